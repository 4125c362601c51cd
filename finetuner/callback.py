"""Callbacks of a run: what should happen beside training, as frozen dataclasses and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetuner.errors import ConfigError
from finetuner.schema import convert, documented, read

_MAX_SHARE = 0.9


class Distance(StrEnum):
    """How near two vectors are; smaller is nearer."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    SQEUCLIDEAN = "sqeuclidean"


@dataclass(frozen=True)
class EvaluationCallback:
    """Search the index with every query, before training and after each epoch, and report metrics.

    :raises ConfigError: When a number is out of its range.
    """

    query_data: Any = documented(
        "the queries: a stored name, rows, a CSV file or a DocumentArray, every text labelled",
        default=None,
    )
    index_data: Any = documented(
        "what is searched, in the same forms; the queries themselves when left out", default=None
    )
    batch_size: int = documented("texts encoded at once, at least 1", default=32)
    exclude_self: bool = documented(
        "leave a query's own document (the same id) out of its matches", default=True
    )
    limit: int = documented("matches per query: the k of `_at_k`, at least 1", default=20)
    distance: Distance = documented("what orders the matches", default=Distance.COSINE)
    gather_examples: bool = documented(
        "keep the matches of some queries before and after training", default=False
    )
    num_example_queries: int = documented("queries whose matches are kept", default=5)
    steps_per_interval: int | None = documented(
        "evaluate after every so many batches too", default=None
    )
    query_sample_size: int | None = documented(
        "evaluate a random sample of this many queries", default=None
    )
    caption: str | None = documented(
        "prefix of the metrics' names; needed when a run has several of these", default=None
    )
    hold_out: float | None = documented(
        "share of the training data to evaluate with in place of query_data, and not to train on; above 0, "
        "at most 0.9",
        default=None,
    )

    def __post_init__(self) -> None:
        distance = convert(Distance, self.distance, "EvaluationCallback.distance")
        object.__setattr__(self, "distance", distance)
        for name in (
            *("batch_size", "limit", "num_example_queries"),
            *("query_sample_size", "steps_per_interval"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"EvaluationCallback.{name} must be at least 1, got {value}")
        if self.hold_out is not None:
            self._check_hold_out(self.hold_out)

    def _check_hold_out(self, share: float) -> None:
        if not 0 < share <= _MAX_SHARE:
            raise ConfigError(
                f"EvaluationCallback.hold_out must be above 0 and at most {_MAX_SHARE}, got {share}"
            )
        if self.query_data is not None or self.index_data is not None:
            raise ConfigError(
                "EvaluationCallback.hold_out takes queries and index from the training data: leave "
                "query_data and index_data out, or hold_out"
            )
        if not self.exclude_self:
            raise ConfigError(
                "EvaluationCallback.hold_out searches texts among themselves, where with "
                "exclude_self=False each finds itself first: leave exclude_self out"
            )

    @property
    def prefix(self) -> str:
        """What stands before the names of its metrics; nothing without a caption."""
        return f"{self.caption}_" if self.caption else ""


class Mode(StrEnum):
    """Which way a watched value gets better; ``auto`` is down for losses and up for metrics."""

    AUTO = "auto"
    MIN = "min"
    MAX = "max"


_MONITOR = (
    "`train_loss`, `val_loss` or the name of a metric, with its caption before it if it has one"
)


@dataclass(frozen=True)
class EarlyStopping:
    """End the training when a value no longer gets better.

    :raises ConfigError: When a number is out of its range.
    """

    monitor: str = documented(_MONITOR, default="val_loss")
    mode: Mode = documented("which way is better", default=Mode.AUTO)
    patience: int = documented("epochs without a better value, at least 1", default=2)
    min_delta: float = documented("how much better counts, at least 0", default=0.0)
    baseline: float | None = documented("a value that every epoch must beat", default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", convert(Mode, self.mode, "EarlyStopping.mode"))
        for name, low in (("patience", 1), ("min_delta", 0)):
            if getattr(self, name) < low:
                raise ConfigError(
                    f"EarlyStopping.{name} must be at least {low}, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class BestModelCheckpoint:
    """Keep the weights of the best epoch, all of them, as the run's result."""

    monitor: str = documented(_MONITOR, default="val_loss")
    mode: Mode = documented("which way is better", default=Mode.AUTO)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", convert(Mode, self.mode, "BestModelCheckpoint.mode"))


@dataclass(frozen=True)
class TrainingCheckpoint:
    """Keep the models of the last epochs, as folders `epochs/epoch-N` of the run on the server.

    :raises ConfigError: When ``last_k_epochs`` is below 1.
    """

    last_k_epochs: int = documented("epochs to keep, at least 1", default=1)

    def __post_init__(self) -> None:
        if self.last_k_epochs < 1:
            raise ConfigError(
                f"TrainingCheckpoint.last_k_epochs must be at least 1, got {self.last_k_epochs}"
            )


@dataclass(frozen=True)
class WiSEFTCallback:
    """End with weights between the untuned and the tuned ones (arXiv 2109.01903).

    :raises ConfigError: When ``alpha`` is not from 0 to 1.
    """

    alpha: float = documented("0: the untuned weights; 1: the tuned ones", default=0.4)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"WiSEFTCallback.alpha must be from 0 to 1, got {self.alpha}")


class LoggingStep(StrEnum):
    """How often an experiment logger writes: after each epoch alone, or after each batch too."""

    EPOCH = "epoch"
    BATCH = "batch"


_STEP_DOC = "write after each `epoch`, or after each `batch` too"
_ZERO_SHOT_DOC = "write the metrics before training too, as step 0"


def _convert_logger(callback: TensorBoardLogger | WandBLogger | MLflowLogger) -> None:
    where = type(callback).__name__
    for name, hint in (("metrics_logger_step", LoggingStep), ("log_zero_shot", bool)):
        value = convert(hint, getattr(callback, name), f"{where}.{name}")
        object.__setattr__(callback, name, value)


@dataclass(frozen=True)
class TensorBoardLogger:
    """Write loss and metrics for TensorBoard, into ``tensorboard`` of the run's folder.

    :raises ConfigError: When a value is of the wrong type.
    """

    metrics_logger_step: LoggingStep = documented(_STEP_DOC, default=LoggingStep.EPOCH)
    log_zero_shot: bool = documented(_ZERO_SHOT_DOC, default=True)

    def __post_init__(self) -> None:
        _convert_logger(self)


_MAX_WANDB_PROJECT_LENGTH = 128
_MAX_WANDB_TAG_LENGTH = 64
_NOT_IN_WANDB_PROJECT = "/\\#?%:"


@dataclass(frozen=True)
class WandBArguments:
    """What a client may set of ``wandb.init``: how a run is filed, not where it is sent or written.

    :raises ConfigError: When Weights & Biases would refuse a value.
    """

    entity: str | None = documented("the user or team that owns the project", default=None)
    project: str | None = documented(
        "at most 128 characters; the experiment's name when left out", default=None
    )
    name: str | None = documented("the run's name when left out", default=None)
    group: str | None = documented("runs shown together", default=None)
    job_type: str | None = documented("the run's kind within its group", default=None)
    notes: str | None = documented("free text", default=None)
    tags: tuple[str, ...] = documented("1 to 64 characters each", default=())

    def __post_init__(self) -> None:
        project = self.project or ""
        if len(project) > _MAX_WANDB_PROJECT_LENGTH or set(project) & set(_NOT_IN_WANDB_PROJECT):
            raise ConfigError(
                f"a project of Weights & Biases has at most {_MAX_WANDB_PROJECT_LENGTH} characters "
                f"and none of `{_NOT_IN_WANDB_PROJECT}`; got `{project[:200]}`"
            )
        for tag in self.tags:
            if not 1 <= len(tag) <= _MAX_WANDB_TAG_LENGTH:
                raise ConfigError(
                    f"a tag of Weights & Biases has 1 to {_MAX_WANDB_TAG_LENGTH} characters; "
                    f"got `{tag[:200]}`"
                )


@dataclass(frozen=True)
class WandBLogger:
    """Write loss and metrics for Weights & Biases.

    Without ``WANDB_MODE`` or ``WANDB_API_KEY`` in the server's environment they stay in ``wandb`` of
    the run's folder, from where ``wandb sync`` sends them.

    :raises ConfigError: When a value is of the wrong type, or ``wandb_args`` holds a key that is none
        of :class:`WandBArguments`.
    """

    metrics_logger_step: LoggingStep = documented(_STEP_DOC, default=LoggingStep.EPOCH)
    wandb_args: dict[str, Any] | None = documented(
        f"arguments of `wandb.init`: {', '.join(WandBArguments.__dataclass_fields__)}", default=None
    )
    log_zero_shot: bool = documented(_ZERO_SHOT_DOC, default=True)

    def __post_init__(self) -> None:
        _convert_logger(self)
        self.arguments()

    def arguments(self) -> WandBArguments:
        """Return ``wandb_args``, checked."""
        return read(WandBArguments, self.wandb_args or {}, "WandBLogger.wandb_args")


@dataclass(frozen=True)
class MLflowLogger:
    """Write loss and metrics for MLflow.

    Without ``MLFLOW_TRACKING_URI`` in the server's environment they stay in ``mlruns`` of the run's
    folder, which ``mlflow ui --backend-store-uri`` shows.

    :raises ConfigError: When a value is of the wrong type.
    """

    metrics_logger_step: LoggingStep = documented(_STEP_DOC, default=LoggingStep.EPOCH)
    log_zero_shot: bool = documented(_ZERO_SHOT_DOC, default=True)

    def __post_init__(self) -> None:
        _convert_logger(self)


LoggerCallback = TensorBoardLogger | WandBLogger | MLflowLogger

CALLBACKS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *(EvaluationCallback, EarlyStopping, BestModelCheckpoint),
        *(TrainingCheckpoint, WiSEFTCallback),
        *(TensorBoardLogger, WandBLogger, MLflowLogger),
    )
}

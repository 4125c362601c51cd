"""Callbacks of a run: what should happen beside training, as frozen dataclasses and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetuner.errors import ConfigError
from finetuner.schema import convert, documented


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
        "the queries: a stored name, rows, a CSV file or a DocumentArray, every text labelled"
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


CALLBACKS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *(EvaluationCallback, EarlyStopping, BestModelCheckpoint),
        *(TrainingCheckpoint, WiSEFTCallback),
    )
}

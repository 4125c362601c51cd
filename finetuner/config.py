"""Settings: of a run, and where things lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from finetuner.callback import (
    CALLBACKS,
    BestModelCheckpoint,
    EvaluationCallback,
    TrainingCheckpoint,
    WiSEFTCallback,
)
from finetuner.errors import ConfigError
from finetuner.names import check_name, random_run_name
from finetuner.schema import documented, nearest, read

T = TypeVar("T")
DEFAULT_EXPERIMENT = "default"
DEFAULT_HOST = "http://127.0.0.1:51001"
DEFAULT_LEARNING_RATE = 2e-5
# Of a head alone or LoRA, which start from nothing, and of class centres.
DEFAULT_ADAPTER_LEARNING_RATE = 1e-3
DEFAULT_LOSS_LEARNING_RATE = 1e-2
_LONGEST_PROMPT = 1000
_LONGEST_KEY = 255


class Device(StrEnum):
    """Where a model runs; ``cuda`` falls back to the CPU, with a warning, where there is none."""

    CPU = "cpu"
    CUDA = "cuda"


class Sampler(StrEnum):
    """How batches are filled: whole classes together, or any texts."""

    AUTO = "auto"
    CLASS = "class"
    RANDOM = "random"


class Precision(StrEnum):
    """Arithmetic of the forward pass; weights and loss are always 32-bit."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class HardNegatives:
    """Texts that the model itself takes for alike though they are not, put into one batch with them.

    After each epoch every text's nearest texts of other labels are looked up. One nearer than
    ``1 - relative_margin`` times the mean similarity to its own label is left out, since it may be an
    unmarked duplicate (the positive-aware filter of arXiv 2407.15831, section 3).

    :raises ConfigError: When a number is out of its range.
    """

    share: float = documented(
        "part of the groups that are joined with a rival, 0 to 1", default=0.5
    )
    relative_margin: float = documented("0 to 1", default=0.05)
    n_candidates: int = documented("nearest texts looked at, at least 1", default=10)

    def __post_init__(self) -> None:
        for name in ("share", "relative_margin"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"hard_negatives.{name} must be from 0 to 1, got {getattr(self, name)}"
                )
        if self.n_candidates < 1:
            raise ConfigError(
                f"hard_negatives.n_candidates must be at least 1, got {self.n_candidates}"
            )


class OnnxVariant(StrEnum):
    """Smaller, faster graphs beside the fp32 one.

    ``int8`` computes in 8 bits, with one scale a channel of the weights and one a text for what flows
    between them. ``weight_int8`` keeps the weights of matrix products in 8 bits, one scale for 32 of
    them, and all else in fp32.
    """

    INT8 = "int8"
    WEIGHT_INT8 = "weight_int8"


@dataclass(frozen=True)
class CallbackConfig:
    """One callback as it travels: its name and its options."""

    name: str = documented(f"one of: {', '.join(CALLBACKS)}")
    options: dict[str, Any] = documented("the callback's fields", default_factory=dict)

    def build(self) -> Any:
        """Return the callback itself.

        :raises ConfigError: When the name or an option is unknown, or an option is out of range.
        """
        if self.name not in CALLBACKS:
            known = ", ".join(CALLBACKS)
            raise ConfigError(
                f"unknown callback `{self.name}`{nearest(self.name, CALLBACKS)} known: {known}"
            )
        return read(CALLBACKS[self.name], self.options, self.name)


@dataclass(frozen=True)
class RunConfig:
    """Everything that ``finetuner.fit`` takes: the body of ``POST /fit`` and a run's ``spec.json``.

    :raises ConfigError: When a value is out of its range.
    """

    model: str = documented("backbone: a display name, a Hugging Face id or a folder on the server")
    train_data: Any = documented(
        "a stored name, or rows `[text, label]` or `{text, label}`", default=None
    )
    run_name: str = documented("unique in its experiment; made up when left out", default="")
    description: str | None = documented("free text", default=None)
    experiment_name: str = documented("the experiment", default=DEFAULT_EXPERIMENT)
    model_options: dict[str, Any] = documented(
        "`pooler` (mean, cls, max), `max_length` in tokens, `normalize`", default_factory=dict
    )
    eval_data: Any = documented(
        "data for a validation loss, in the forms of train_data", default=None
    )
    val_split: float = documented(
        "share of the training data to keep for a validation loss, below 1; not beside eval_data",
        default=0.0,
    )
    model_artifact: str | None = documented(
        "an artifact id or a run's name: go on from its weights", default=None
    )
    freeze: bool = documented("train the projection head alone", default=False)
    n_frozen_layers: int | None = documented(
        "keep the embeddings and this many of the lowest layers as they are; 0 for the embeddings alone",
        default=None,
    )
    output_dim: int | None = documented("length of the vectors, by a projection head", default=None)
    lora: dict[str, Any] | None = documented(
        "train low-rank additions alone: `rank`, `alpha`, `dropout`, `target_modules`", default=None
    )
    loss: str = documented(
        "a loss of pytorch-metric-learning, or one of pairs", default="TripletMarginLoss"
    )
    loss_options: dict[str, Any] = documented("the loss's arguments", default_factory=dict)
    loss_optimizer: str | None = documented(
        "the optimizer of a loss's own centres; of the model's kind when left out", default=None
    )
    loss_optimizer_options: dict[str, Any] = documented(
        "its arguments; `lr` is 0.01 when left out", default_factory=dict
    )
    dimensions: tuple[int, ...] = documented(
        "lengths that the vectors may be cut to, such as 384, 128, 64 (Matryoshka)", default=()
    )
    hard_negatives: HardNegatives | None = documented("mine rivals after each epoch", default=None)
    miner: str | None = documented("a miner of pytorch-metric-learning", default=None)
    miner_options: dict[str, Any] = documented("the miner's arguments", default_factory=dict)
    optimizer: str = documented("an optimizer of torch", default="Adam")
    optimizer_options: dict[str, Any] = documented(
        "the optimizer's arguments", default_factory=dict
    )
    learning_rate: float | None = documented(
        f"above 0, below 1; {DEFAULT_LEARNING_RATE:g}, or {DEFAULT_ADAPTER_LEARNING_RATE:g} with "
        "`freeze` or `lora`, when neither this nor `optimizer_options.lr` is given",
        default=None,
    )
    scheduler: str | None = documented(
        "a schedule of transformers, such as `linear`; constant when left out", default=None
    )
    scheduler_options: dict[str, Any] = documented(
        "`num_warmup_steps`, and what the schedule takes", default_factory=dict
    )
    epochs: int = documented("passes over the data, 0 to 1000", default=5)
    batch_size: int = documented(
        "texts a step, at least 4: two labels with two texts each", default=64
    )
    num_items_per_class: int = documented("texts of one label put together, at least 2", default=4)
    sampler: Sampler = documented("how batches are filled", default=Sampler.AUTO)
    accumulation_steps: int = documented("batches to a step of the optimizer", default=1)
    gradient_cache_size: int | None = documented(
        "texts that are in memory at once; a batch's gradient stays the same", default=None
    )
    gradient_checkpointing: bool = documented(
        "compute layers twice and keep less in memory", default=False
    )
    max_gradient_norm: float = documented("longer gradients are cut to this", default=1.0)
    checkpoint_interval_s: float = documented(
        "seconds from one checkpoint to the next; at an epoch's end a tenth is enough",
        default=300.0,
    )
    precision: Precision = documented("arithmetic of the forward pass", default=Precision.AUTO)
    device: Device = documented("where to train", default=Device.CUDA)
    to_onnx: bool = documented("put an ONNX graph beside the weights", default=False)
    onnx_variants: tuple[OnnxVariant, ...] = documented(
        "8-bit graphs to put beside the ONNX graph, each only where it is near enough to it",
        default=(),
    )
    prompts: dict[str, Any] = documented(
        "texts to put before each text when a request names one, kept with the artifact, such as "
        "{'query': 'query: '}; training does not add them",
        default_factory=dict,
    )
    callbacks: tuple[CallbackConfig, ...] = documented("what happens beside training", default=())
    n_processes: int = documented(
        "processes that train together, each on a part of every batch; one for each GPU", default=1
    )
    priority: int = documented("-100 to 100; higher ones get a worker first", default=0)
    seed: int = documented("of batches and dropout, at least 0", default=0)
    idempotency_key: str | None = documented(
        f"1 to {_LONGEST_KEY} characters: a request sent again with its key gives the run that it made",
        default=None,
    )

    def __post_init__(self) -> None:
        if not self.run_name:
            object.__setattr__(self, "run_name", random_run_name())
        check_name(self.run_name, "run name")
        check_name(self.experiment_name, "experiment name")
        for name, low, high in (
            ("epochs", 0, 1000),
            ("batch_size", 4, 100_000),
            ("seed", 0, 2**63 - 1),
            ("priority", -100, 100),
            ("val_split", 0, 0.9),
            ("accumulation_steps", 1, 100_000),
            ("n_processes", 1, 1024),
            ("gradient_cache_size", 1, 100_000),
            ("output_dim", 1, 100_000),
            ("max_gradient_norm", 1e-9, 1e9),
            ("checkpoint_interval_s", 0, 1e9),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, got {value}")
        if self.num_items_per_class < 2:
            raise ConfigError(
                f"num_items_per_class must be at least 2, got {self.num_items_per_class}: "
                "without two texts of one label in a batch there is nothing to draw together"
            )
        if not 0 < self.resolved_learning_rate < 1:
            raise ConfigError(
                f"learning_rate must lie between 0 and 1, got {self.resolved_learning_rate}"
            )
        self._check_onnx_variants()
        self._check_dimensions()
        self._check_prompts()
        self._check_key()
        self.built_callbacks()

    def _check_dimensions(self) -> None:
        dimensions = self.dimensions
        if dimensions and (min(dimensions) < 1 or len(set(dimensions)) < len(dimensions)):
            raise ConfigError(f"dimensions must be different and above 0, got {list(dimensions)}")

    def _check_prompts(self) -> None:
        for name, prompt in self.prompts.items():
            check_name(name, "prompt's name")
            if not isinstance(prompt, str) or len(prompt) > _LONGEST_PROMPT:
                raise ConfigError(
                    f"prompts.{name} must be a string of at most {_LONGEST_PROMPT} characters, got "
                    f"`{prompt!r}`"[:200]
                )

    def _check_key(self) -> None:
        length = None if self.idempotency_key is None else len(self.idempotency_key)
        if length is not None and not 1 <= length <= _LONGEST_KEY:
            raise ConfigError(
                f"idempotency_key must have 1 to {_LONGEST_KEY} characters, got {length}; a random UUID "
                "made once for each run that is wanted will do"
            )

    def _check_onnx_variants(self) -> None:
        names = ", ".join(self.onnx_variants)
        if self.onnx_variants and not self.to_onnx:
            raise ConfigError(
                f"onnx_variants ({names}) are made from the ONNX graph: add to_onnx=True, or leave "
                "onnx_variants out"
            )
        if len(set(self.onnx_variants)) < len(self.onnx_variants):
            raise ConfigError(f"onnx_variants must name each variant once, got {names}")

    @property
    def resolved_learning_rate(self) -> float:
        """The learning rate given, else the optimizer option ``lr``, else 2e-5 (1e-3 for adapters).

        The optimizers' own default of 1e-3 destroys a pretrained transformer within one epoch.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        is_adapter = self.freeze or self.lora is not None
        default = DEFAULT_ADAPTER_LEARNING_RATE if is_adapter else DEFAULT_LEARNING_RATE
        rate = self.optimizer_options.get("lr", default)
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise ConfigError(f"optimizer_options.lr must be a number, got `{rate!r}`")
        return float(rate)

    def built_callbacks(self) -> list[Any]:
        """Return the callbacks themselves, checked.

        :raises ConfigError: When one is unknown, or two evaluations would report under one name.
        """
        callbacks = [config.build() for config in self.callbacks]
        captions = [c.caption for c in callbacks if isinstance(c, EvaluationCallback)]
        if len(set(captions)) < len(captions):
            raise ConfigError("several EvaluationCallbacks need a different `caption` each")
        if sum(isinstance(c, EvaluationCallback) and c.hold_out is not None for c in callbacks) > 1:
            raise ConfigError(
                "a run holds training data out once; give the other EvaluationCallbacks query_data"
            )
        for kind in (BestModelCheckpoint, TrainingCheckpoint, WiSEFTCallback):
            if sum(isinstance(callback, kind) for callback in callbacks) > 1:
                raise ConfigError(f"a run takes one {kind.__name__}; leave the others out")
        return callbacks

    def callbacks_of(self, kind: type[T]) -> list[T]:
        """Return the callbacks of one class, in order.

        :param kind: A class of :mod:`finetuner.callback`.
        """
        return [callback for callback in self.built_callbacks() if isinstance(callback, kind)]


def workspace_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that all parts of a Flow share: stored data, runs, models.

    :param path: The folder; when None, ``FINETUNER_WORKSPACE``, else the user's data folder.
    """
    chosen = (
        path or os.environ.get("FINETUNER_WORKSPACE") or platformdirs.user_data_dir("finetuner")
    )
    return Path(chosen).expanduser().resolve()

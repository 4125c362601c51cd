"""Settings: of a run, of CSV reading, of where things lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import platformdirs

from finetuner.callback import CALLBACKS
from finetuner.errors import ConfigError
from finetuner.names import check_name, random_run_name
from finetuner.schema import documented, nearest, read

DEFAULT_EXPERIMENT = "default"
DEFAULT_HOST = "http://127.0.0.1:51001"
DEFAULT_LEARNING_RATE = 2e-5


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
    loss: str = documented("a loss of pytorch-metric-learning", default="TripletMarginLoss")
    loss_options: dict[str, Any] = documented("the loss's arguments", default_factory=dict)
    miner: str | None = documented("a miner of pytorch-metric-learning", default=None)
    miner_options: dict[str, Any] = documented("the miner's arguments", default_factory=dict)
    optimizer: str = documented("an optimizer of torch", default="Adam")
    optimizer_options: dict[str, Any] = documented(
        "the optimizer's arguments", default_factory=dict
    )
    learning_rate: float | None = documented(
        f"above 0, below 1; {DEFAULT_LEARNING_RATE:g} when neither this nor "
        "`optimizer_options.lr` is given",
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
    precision: Precision = documented("arithmetic of the forward pass", default=Precision.AUTO)
    device: Device = documented("where to train", default=Device.CUDA)
    to_onnx: bool = documented("put an ONNX graph beside the weights", default=False)
    onnx_variants: tuple[OnnxVariant, ...] = documented(
        "8-bit graphs to put beside the ONNX graph, each only where it is near enough to it",
        default=(),
    )
    callbacks: tuple[CallbackConfig, ...] = documented("what happens beside training", default=())
    seed: int = documented("of batches and dropout, at least 0", default=0)

    def __post_init__(self) -> None:
        if not self.run_name:
            object.__setattr__(self, "run_name", random_run_name())
        check_name(self.run_name, "run name")
        check_name(self.experiment_name, "experiment name")
        for name, low, high in (
            ("epochs", 0, 1000),
            ("batch_size", 4, 100_000),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
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
        self.evaluations()

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
        """The learning rate given, else the optimizer option ``lr``, else 2e-5.

        The optimizers' own default of 1e-3 destroys a pretrained transformer within one epoch.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        rate = self.optimizer_options.get("lr", DEFAULT_LEARNING_RATE)
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise ConfigError(f"optimizer_options.lr must be a number, got `{rate!r}`")
        return float(rate)

    def evaluations(self) -> list[Any]:
        """Return the callbacks themselves, checked.

        :raises ConfigError: When one is unknown, or two would report under one name.
        """
        callbacks = [config.build() for config in self.callbacks]
        captions = [callback.caption for callback in callbacks]
        if len(set(captions)) < len(captions):
            raise ConfigError("several EvaluationCallbacks need a different `caption` each")
        return callbacks


def workspace_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that all parts of a Flow share: stored data, runs, models.

    :param path: The folder; when None, ``FINETUNER_WORKSPACE``, else the user's data folder.
    """
    chosen = (
        path or os.environ.get("FINETUNER_WORKSPACE") or platformdirs.user_data_dir("finetuner")
    )
    return Path(chosen).expanduser().resolve()

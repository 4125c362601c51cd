"""What follows from an epoch's figures: whether to stop, and which weights to keep."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from finetuner.callback import BestModelCheckpoint, EarlyStopping, Mode
from finetuner.errors import ConfigError

logger = logging.getLogger(__name__)
LOSSES = ("train_loss", "val_loss")


def is_better(value: float, than: float, *, monitor: str, mode: Mode, min_delta: float = 0) -> bool:
    """Whether a watched value has got better.

    :param value: The new one; not-a-number is never better.
    :param than: The best so far; not-a-number when there is none.
    :param monitor: What it is a value of: ``auto`` is down for the two losses and up for metrics.
    :param mode: Which way is better.
    :param min_delta: How much better counts.
    """
    if math.isnan(than):
        return not math.isnan(value)
    is_down = mode is Mode.MIN or (mode is Mode.AUTO and monitor in LOSSES)
    gain = than - value if is_down else value - than
    return gain > min_delta


def watched(values: Mapping[str, float], monitor: str, callback: str) -> float:
    """Return the value that a callback watches.

    :raises ConfigError: When the run has no such value, with those that it has.
    """
    if monitor not in values:
        raise ConfigError(
            f"{callback} watches `{monitor}`, which this run does not have; it has: "
            f"{', '.join(values)}. A val_loss needs val_split or eval_data, a metric needs an "
            "EvaluationCallback"
        )
    return values[monitor]


@dataclass
class StopWatch:
    """Counts epochs without a better value.

    :param callback: What to watch, and for how long.
    :param best: The best value so far.
    :param n_worse: Epochs in a row that were no better.
    """

    callback: EarlyStopping
    best: float = math.nan
    n_worse: int = 0

    def __post_init__(self) -> None:
        if self.callback.baseline is not None and math.isnan(self.best):
            self.best = self.callback.baseline

    def see(self, values: Mapping[str, float]) -> bool:
        """Take an epoch's values and return whether to stop."""
        own = self.callback
        value = watched(values, own.monitor, "EarlyStopping")
        if is_better(value, self.best, monitor=own.monitor, mode=own.mode, min_delta=own.min_delta):
            self.n_worse = 0
            self.best = value if own.baseline is None else own.baseline
            return False
        self.n_worse += 1
        if self.n_worse < own.patience:
            return False
        logger.info(
            "Early stopping: %s was no better for %d epochs (now %.5f, best %.5f)",
            own.monitor, self.n_worse, value, self.best,
        )  # fmt: skip
        return True


@dataclass
class BestWeights:
    """Keeps a copy of the weights of the best epoch: transformer, head and all.

    :param callback: What to watch.
    :param best: The best value so far.
    :param epoch: Where it was; 0 before the first epoch has ended.
    :param weights: The model's state then.
    """

    callback: BestModelCheckpoint
    best: float = math.nan
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, values: Mapping[str, float], epoch: int, model: nn.Module) -> None:
        """Take an epoch's values and, where they are the best, its weights."""
        own = self.callback
        value = watched(values, own.monitor, "BestModelCheckpoint")
        if not is_better(value, self.best, monitor=own.monitor, mode=own.mode):
            logger.info("Model did not improve: %s %.5f, best %.5f", own.monitor, value, self.best)
            return
        logger.info("Model improved: %s from %.5f to %.5f", own.monitor, self.best, value)
        self.best, self.epoch = value, epoch
        self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def restore_into(self, model: nn.Module) -> None:
        """Put the best epoch's weights back; every one of them must fit."""
        if self.weights:
            logger.info("Keeping the model of epoch %d", self.epoch)
            model.load_state_dict(self.weights)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of it."""
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

"""How far a run is, in numbers: what its record shows while it trains."""

from __future__ import annotations

from typing import Any

from finetuner.callback import BestModelCheckpoint, EvaluationCallback, WiSEFTCallback
from finetuner.config import RunConfig
from finetuner.pace import Pace
from finetuner.trainer import Progress


class RunProgress:
    """Follows a training batch by batch.

    :param config: The run's settings.
    """

    def __init__(self, config: RunConfig) -> None:
        self.pace = Pace()
        self._config = config
        self._at: Progress | None = None

    def see(self, progress: Progress) -> None:
        """Note where the training is."""
        self._at = progress
        self.pace.see(progress.n_texts, is_last_of_epoch=progress.step == progress.n_steps)

    @property
    def evaluates_at_end(self) -> bool:
        """Whether the final weights are others than the last epoch's, and evaluated once more."""
        config = self._config
        is_changed = (
            config.lora is not None
            or bool(config.callbacks_of(BestModelCheckpoint))
            or bool(config.callbacks_of(WiSEFTCallback))
        )
        return is_changed and bool(config.callbacks_of(EvaluationCallback))

    def numbers(self) -> dict[str, Any] | None:
        """Return what the record shows; None before the first batch."""
        at = self._at
        if at is None:
            return None
        n_epochs_left = self._config.epochs - at.epoch
        n_steps_left = at.n_steps - at.step + n_epochs_left * at.n_steps
        return {
            "epoch": at.epoch,
            "n_epochs": self._config.epochs,
            "step": at.step,
            "n_steps": at.n_steps,
            "n_steps_done": at.n_steps_done,
            "n_steps_total": at.n_steps_done + n_steps_left,
            "loss": round(at.loss, 6),
            "active": round(at.active, 4),
            "texts_per_s": _rounded(self.pace.texts_per_s),
            "eta_s": _rounded(
                self.pace.eta_s(
                    n_steps_left,
                    n_epoch_ends=n_epochs_left + 1,
                    n_evaluations=self._n_evaluations_left(at) + self.evaluates_at_end,
                )
            ),
        }

    def _n_evaluations_left(self, at: Progress) -> int:
        """Count those within epochs; the one at an epoch's end is in none of them."""
        intervals = [c.steps_per_interval for c in self._config.callbacks_of(EvaluationCallback)]
        within = {
            step
            for interval in intervals
            if interval is not None
            for step in range(interval, at.n_steps, interval)
        }
        n_in_this = sum(step > at.step for step in within)
        return n_in_this + (self._config.epochs - at.epoch) * len(within)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)

"""Trainings that can no longer succeed, noticed while they run.

A loss alone does not tell. Where all vectors are the same, every triplet's loss is the margin and its
gradient is exactly 0; where no triplet is left, the loss is 0 and Adam's momentum still moves the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from finetuner.errors import TrainingError
from finetuner.gradients import BatchResult

# Texts of one subject have a mean cosine of .2 to .6 in a healthy model.
_COLLAPSED_COSINE = 0.99
_PATIENCE_STEPS = 20
# Without anything to learn for so long, what is left of a training moves the weights by momentum alone.
_IDLE_STEPS = 200


class Verdict(StrEnum):
    """Whether a training should go on."""

    GO_ON = "go on"
    NOTHING_LEFT = "nothing left to learn"


@dataclass
class CollapseWatch:
    """Counts steps in a row that show a collapse, or nothing to learn.

    :param n_collapsed: Steps in a row whose vectors were all nearly the same, or had a loss without
        gradient.
    :param n_idle: Steps in a row without loss and gradient.
    :param was_active: Whether any step so far had a gradient.
    """

    n_collapsed: int = 0
    n_idle: int = 0
    was_active: bool = False

    def see(self, result: BatchResult) -> Verdict:
        """Take one step's result.

        :param result: Of the step.
        :returns: ``NOTHING_LEFT`` when every pair or triplet has been satisfied for 200 steps.
        :raises TrainingError: When the model has collapsed for 20 steps, or there never was anything to
            learn; the message gives the figures and what to do.
        """
        is_stuck = result.active == 0 and result.loss > 0
        is_same = result.mean_cosine > _COLLAPSED_COSINE
        self.n_collapsed = self.n_collapsed + 1 if is_stuck or is_same else 0
        self.n_idle = self.n_idle + 1 if result.active == 0 and result.loss <= 0 else 0
        self.was_active |= result.active > 0
        if self.n_collapsed >= _PATIENCE_STEPS:
            raise TrainingError(
                f"the model has collapsed: for {_PATIENCE_STEPS} steps all texts had nearly the same "
                f"vector (mean cosine {result.mean_cosine:.4f}, loss {result.loss:.4f}). Lower the "
                "learning rate, use SupConLoss, or leave out a miner that takes only the hardest"
            )
        if self.n_idle < _IDLE_STEPS:
            return Verdict.GO_ON
        if not self.was_active:
            raise TrainingError(
                f"nothing was learnt in {_IDLE_STEPS} steps: no pair or triplet violates the margin. "
                "Use SupConLoss, raise the loss's margin, or leave the miner out"
            )
        return Verdict.NOTHING_LEFT

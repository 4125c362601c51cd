"""How fast a training goes, and how long it still takes: measured over its last seconds, not since its start.

Evaluations stand still in between. What they take is counted beside the batches, for as many as are to
come, so that the estimate does not jump with each of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WINDOW_S = 30.0
# Where a batch takes long, so many are looked at however long they took.
_MIN_BATCHES = 4


class Pace:
    """Measures a training while it goes.

    :param clock: Seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When each batch was done, by a clock that stands still beside the batches, and its texts.
        self._done: deque[tuple[float, int]] = deque()
        self._n_texts = 0
        self._aside_s = 0.0
        self._left_at: float | None = None
        self._evaluation_s: float | None = None
        self._epoch_end_s: float | None = None

    def see(self, n_texts: int, *, is_last_of_epoch: bool) -> None:
        """Note that a batch is done.

        :param n_texts: Its texts.
        :param is_last_of_epoch: Whether what comes before the next one is the epoch's end.
        """
        if self._left_at is not None:
            passed_s = self._clock() - self._left_at
            self._epoch_end_s = max(0.0, passed_s - (self.batch_s or 0.0))
            # A batch is not known to have taken no time: the mean is kept where there is one.
            self._aside_s += self._epoch_end_s
            self._left_at = None
        self._done.append((self._clock() - self._aside_s, n_texts))
        self._n_texts += n_texts
        while len(self._done) > _MIN_BATCHES and self._done[-1][0] - self._done[0][0] > _WINDOW_S:
            self._n_texts -= self._done.popleft()[1]
        if is_last_of_epoch:
            self._left_at = self._clock()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count what a block takes as an evaluation, and not as part of a batch."""
        started_at = self._clock()
        yield
        self._evaluation_s = self._clock() - started_at
        if self._left_at is None:  # else it is part of the epoch's end
            self._aside_s += self._evaluation_s

    @property
    def batch_s(self) -> float | None:
        """Seconds a batch; None until two are done."""
        if len(self._done) < 2:
            return None
        return (self._done[-1][0] - self._done[0][0]) / (len(self._done) - 1)

    @property
    def texts_per_s(self) -> float | None:
        """Texts a second while it trains; None until two batches are done."""
        passed_s = self._done[-1][0] - self._done[0][0] if self._done else 0.0
        return (self._n_texts - self._done[0][1]) / passed_s if passed_s > 0 else None

    def eta_s(self, n_batches: int, *, n_epoch_ends: int, n_evaluations: int) -> float | None:
        """Return the seconds that are left; None until two batches are done.

        What was not seen yet, such as an evaluation in a run that has none, counts nothing.

        :param n_batches: To come.
        :param n_epoch_ends: To come: validation, evaluation, and what is written.
        :param n_evaluations: To come beside these.
        """
        if self.batch_s is None:
            return None
        evaluation_s = self._evaluation_s or 0.0
        epoch_end_s = evaluation_s if self._epoch_end_s is None else self._epoch_end_s
        return n_batches * self.batch_s + n_epoch_ends * epoch_end_s + n_evaluations * evaluation_s

    def state(self) -> dict[str, float | None]:
        """Return what a checkpoint should hold: what a run that goes on would learn late."""
        return {"evaluation_s": self._evaluation_s, "epoch_end_s": self._epoch_end_s}

    def restore(self, state: dict[str, float | None]) -> None:
        """Go on from what :meth:`state` gave; the batches are measured anew, by this machine."""
        self._evaluation_s, self._epoch_end_s = state["evaluation_s"], state["epoch_end_s"]

"""Brings the runs whose workers ended without a word to a true state, and gives a volume time to recover."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from finetuner.errors import ConflictError, RunNotFoundError
from finetuner.holder import Life, life_of
from finetuner.interruption import Interruption
from finetuner.runs import Run
from finetuner.states import Actor, State, Status

# Before a run goes on that the volume kept from being written, times its interruptions.
_VOLUME_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 60.0
# Before another try with a run whose worker was gone before it had claimed the run.
_UNCLAIMED_PAUSE_S = 1.0


class Settler:
    """Settles runs, and remembers which of them shall rest before they go on.

    :param max_interruptions: After so many a run is given up.
    """

    def __init__(self, max_interruptions: int) -> None:
        self._max_interruptions = max_interruptions
        self._not_before: dict[Path, float] = {}
        self._n_unasked: Counter[Path] = Counter()

    def is_resting(self, run: Run) -> bool:
        """Whether it is too early for a run to go on."""
        return self._not_before.get(run.folder, 0) > time.monotonic()

    def rest(self, run: Run, n_interruptions: int = 0) -> None:
        """Let a run rest that the volume cannot take now.

        :param run: The run.
        :param n_interruptions: How often it was interrupted: the longer it rests.
        """
        self._rest(run, min(_VOLUME_PAUSE_S * (n_interruptions + 1), _LONGEST_PAUSE_S))

    def _rest(self, run: Run, pause_s: float) -> None:
        self._not_before[run.folder] = time.monotonic() + pause_s

    def settle(
        self,
        run: Run,
        found: Interruption,
        *,
        is_expired: bool = False,
        begun_from: int | None = None,
        ended: str = "",
    ) -> bool:
        """Give a true state to a run whose worker ended without doing so itself; return whether it got one.

        :param run: The run.
        :param found: How its worker ended.
        :param is_expired: Whether a claim counts as void though its process cannot be looked at.
        :param begun_from: The number of the state that the worker was started for.
        :param ended: The process that has ended for certain, where it cannot be looked at; its claim is void.
        """
        try:
            state = run.state()
        except RunNotFoundError:
            return False
        if state.status.is_terminal:
            return False
        if state.status.is_waiting:
            if state.number != begun_from:
                self._count_unasked(run, state, found)  # the worker has left it so itself
                return False
            self._rest(run, _UNCLAIMED_PAUSE_S)
        is_void = life_of(state.holder) is Life.DEAD or is_expired or state.holder == ended
        if not (state.status.is_waiting or is_void):
            return False  # another service on this volume was quicker; the run is its
        # One elsewhere that is only out of sight ends meanwhile: it sees that its claim is void.
        if found.is_of_volume or found.is_of_cluster or ended:
            self.rest(run, state.n_interruptions)
        status, details, n = found.outcome(run, state, self._max_interruptions)
        if status is None:
            return False
        with suppress(ConflictError):  # another service has settled it
            step_by_service(run, state, status, details, n_interruptions=n)
        return True

    def _count_unasked(self, run: Run, state: State, found: Interruption) -> None:
        """Give a run up one of whose processes ends each time: torchrun then asks the others to end."""
        if not (found.is_own_fault or found.is_of_cluster):
            return
        self._n_unasked[run.folder] += 1
        if (n := self._n_unasked[run.folder]) >= self._max_interruptions:
            details = f"One of its processes ended {n} times; see worker.txt"
            step_by_service(run, state, Status.FAILED, details)


def step_by_service(run: Run, state: State, status: Status, details: str, **changes: int) -> None:
    """Make a step as the service; what only a run that goes on needs goes when it is cancelled.

    :param run: The run.
    :param state: Where it is.
    :param status: Where it comes to.
    :param details: For people.
    :param changes: Of the counts.
    :raises ImpossibleStepError, RunChangedError, RunNotFoundError: As :meth:`finetuner.runs.Run.step`.
    """
    run.step(state, status, details, actor=Actor.SERVICE, **changes)
    if status is Status.CANCELLED:
        run.clean_up()

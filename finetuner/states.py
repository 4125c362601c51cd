"""The states of a run, the steps between them, and who may make each: here and nowhere else.

CREATED ──► STARTED ──► FINISHED
   │         ▲  │ ├───► FAILED       with the cause in the details
   │         │  ▼ └───► CANCELLED    by its owner
   │      INTERRUPTED                the worker is gone; it goes on from its last checkpoint
   └───────────┴──────► CANCELLED, FAILED

A step is a file of its own, ``states/000004.json``, which only one process can make: of two that take the
same step from the same state, one is told that the run has gone on. So the step to STARTED is also the
claim of a worker on its run, and what a worker that lost its claim still wants to write is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from finetuner.errors import ImpossibleStepError


class Status(StrEnum):
    """The states of a run."""

    CREATED = "CREATED"
    STARTED = "STARTED"
    INTERRUPTED = "INTERRUPTED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether the run stays in it for ever."""
        return not any(step.before is self for step in STEPS)

    @property
    def is_waiting(self) -> bool:
        """Whether the run waits for a worker."""
        return any(step.before is self and step.after is Status.STARTED for step in _CLAIMS)


class Actor(StrEnum):
    """Who makes a step."""

    WORKER = "worker"
    """The process that has claimed the run."""
    SERVICE = "service"
    """A FinetunerExecutor, or what stands there for a worker elsewhere, for a run that no living process
    has claimed."""


@dataclass(frozen=True)
class Step:
    """A step that is possible.

    :param before: The state that it leaves.
    :param after: The state that it comes to.
    :param actors: Who may make it.
    """

    before: Status
    after: Status
    actors: frozenset[Actor]


def _steps(before: Status, after: Iterable[Status], *actors: Actor) -> tuple[Step, ...]:
    return tuple(Step(before, status, frozenset(actors)) for status in after)


_W, _S = Actor.WORKER, Actor.SERVICE
_CLAIMS = (
    *_steps(Status.CREATED, [Status.STARTED], _W),
    *_steps(Status.INTERRUPTED, [Status.STARTED], _W),
)
STEPS = (
    *_CLAIMS,
    *_steps(Status.CREATED, [Status.FAILED, Status.CANCELLED], _S),
    *_steps(Status.INTERRUPTED, [Status.FAILED, Status.CANCELLED], _S),
    *_steps(Status.STARTED, [Status.FINISHED], _W),
    *_steps(Status.STARTED, [Status.INTERRUPTED, Status.FAILED, Status.CANCELLED], _W, _S),
)


@dataclass(frozen=True)
class State:
    """Where a run is.

    :param status: One of the states.
    :param details: For people: progress, or the cause of a failure.
    :param n_starts: How often a worker has begun it.
    :param n_interruptions: How often a worker was gone without a word.
    :param holder: The process that has claimed it, as :mod:`finetuner.holder` names it; empty for none.
    :param gpus: Those that it has there, as ``CUDA_VISIBLE_DEVICES`` names them.
    :param at: When the step was made, ISO 8601 in UTC.
    :param number: Of the step, from 0; its file's name.
    """

    status: Status
    details: str
    n_starts: int = 0
    n_interruptions: int = 0
    holder: str = ""
    gpus: str = ""
    at: str = ""
    number: int = field(default=0, compare=False)

    def answer(self) -> dict[str, str]:
        """Return what ``run.status()`` gives."""
        return {"status": self.status.value, "details": self.details}


def check_step(before: Status, after: Status, actor: Actor) -> None:
    """Pass when a step is possible.

    :raises ImpossibleStepError: When it is not, for anybody or for this actor.
    """
    actors = {
        a for step in STEPS if (step.before, step.after) == (before, after) for a in step.actors
    }
    if actor in actors:
        return
    allowed = sorted(
        {step.after for step in STEPS if step.before is before and actor in step.actors}
    )
    raise ImpossibleStepError(
        f"a run that is {before} cannot become {after} by its {actor}; possible: "
        f"{', '.join(allowed) or 'nothing, it has ended'}"
    )

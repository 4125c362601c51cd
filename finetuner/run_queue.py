"""The runs of a volume that wait for a worker, in the order in which they get one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetuner.errors import FinetunerServerError, RunNotFoundError
from finetuner.run_store import RunStore
from finetuner.runs import Run
from finetuner.states import State, Status

Mark = tuple[int, int]


@dataclass(frozen=True, order=True)
class Place:
    """Where a run stands in the queue.

    :param rank: Higher priorities first.
    :param created_at: Then older ones.
    :param folder: The run's.
    """

    rank: int
    created_at: str
    folder: Path


class Queue:
    """Knows which runs wait and which are claimed; reads no more files than it must.

    :param store: The volume's runs.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._waiting: list[Place] = []
        self._numbers: dict[Path, int] = {}
        self._started: dict[Path, State] = {}
        # Of runs that have ended, or wait: the same until the run makes a step, or the folder is another.
        self._ended: dict[Path, Mark] = {}
        self._places: dict[Path, tuple[Mark, Place]] = {}

    @property
    def waiting(self) -> list[Run]:
        """The runs that wait, the next one first."""
        return [Run(place.folder) for place in self._waiting]

    @property
    def started(self) -> dict[Path, State]:
        """The runs that a worker has claimed, by folder, with their states."""
        return self._started

    def position(self, run: Run) -> int | None:
        """Return how many runs are before one that waits; None for one that is not known to wait."""
        return self._numbers.get(run.folder)

    def remove(self, run: Run) -> None:
        """Take a run out that gets a worker now."""
        self._set_waiting([place for place in self._waiting if place.folder != run.folder])

    def _set_waiting(self, places: list[Place]) -> None:
        self._waiting = places
        self._numbers = {place.folder: number for number, place in enumerate(places)}

    def refresh(self) -> None:
        """See which runs there are and what has become of them."""
        places: dict[Path, tuple[Mark, Place]] = {}
        started, ended = {}, {}
        for run in self._store.list():
            # Deleted since they were listed, or damaged: the others do not wait for that.
            with suppress(RunNotFoundError, FileNotFoundError, FinetunerServerError):
                mark = run.version()
                if self._ended.get(run.folder) == mark:
                    ended[run.folder] = mark
                    continue
                if (known := self._places.get(run.folder)) and known[0] == mark:
                    places[run.folder] = known
                    continue
                state = run.state()
                if state.status.is_terminal:
                    ended[run.folder] = mark
                elif state.status is Status.STARTED:
                    started[run.folder] = state
                else:
                    places[run.folder] = (mark, _place_of(run))
        self._places, self._started, self._ended = places, started, ended
        self._set_waiting(sorted(place for _, place in places.values()))


def _place_of(run: Run) -> Place:
    spec = run.spec()
    return Place(-spec["config"].get("priority", 0), spec["created_at"], run.folder)

"""Which runs a volume holds, in order, without reading all of them each time.

A run's spec never changes, so what it says is kept. What this process creates and deletes is known at
once; for what others do, an experiment's folder is listed again when it has changed, at most once a
second. A folder's time may be as coarse as two seconds, and a network volume may show an old one for a
while: a folder that had just changed when it was listed, or was listed some seconds ago, is listed anyway.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from finetuner.errors import FinetunerServerError, RunNotFoundError
from finetuner.runs import Run

logger = logging.getLogger(__name__)
_COARSEST_TIME_S = 2.0
_SHORTEST_TRUST_S = 1.0
_LONGEST_TRUST_S = 5.0
_ORDER = attrgetter("order")


@dataclass(frozen=True)
class _Entry:
    """What is kept of a run; the inode tells its folder from a later one of the same name."""

    run: Run
    inode: int
    artifact_id: str
    # Kept, since thousands are sorted at each change: when it was created, and its name.
    order: tuple[str, str]

    @classmethod
    def of(cls, run: Run, spec: Mapping[str, Any], *, inode: int) -> _Entry:
        return cls(run, inode, spec["artifact_id"], (spec["created_at"], run.name))


@dataclass
class _Experiment:
    """What was found when the folder was last listed."""

    changed_ns: int = -1
    listed_at: float = float("-inf")
    is_settled: bool = False
    entries: dict[str, _Entry] = field(default_factory=dict)

    def is_current(self, changed_ns: int) -> bool:
        age_s = time.monotonic() - self.listed_at
        if self.is_settled and changed_ns == self.changed_ns:
            return age_s < _LONGEST_TRUST_S
        return age_s < _SHORTEST_TRUST_S


class RunIndex:
    """The runs below one folder; may be used by several threads.

    :param root: Holds a folder for each experiment, which hold one for each run.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._experiments: dict[str, _Experiment] = {}
        self._sorted: dict[str | None, list[_Entry]] = {}
        self._by_artifact: dict[str, Run] | None = None
        self._all_read_at = float("-inf")

    def runs(self, experiment_name: str | None = None) -> list[Run]:
        """Return the runs of one experiment, or of all, oldest first."""
        with self._lock:
            self._refresh()
            if experiment_name not in self._sorted:
                self._sorted[experiment_name] = sorted(self._entries(experiment_name), key=_ORDER)
            return [entry.run for entry in self._sorted[experiment_name]]

    def find(self, artifact_id: str) -> Run | None:
        """Return the run that has an artifact id, or None."""
        with self._lock:
            run = self._found(artifact_id)
            # Another process may have made a run anew whose folder has the name and inode of the old one.
            if run is None and time.monotonic() - self._all_read_at > _LONGEST_TRUST_S:
                self._all_read_at = time.monotonic()
                self._experiments = {}
                self._drop_views()
                run = self._found(artifact_id)
            return run

    def _found(self, artifact_id: str) -> Run | None:
        self._refresh()
        if self._by_artifact is None:
            self._by_artifact = {entry.artifact_id: entry.run for entry in self._entries()}
        run = self._by_artifact.get(artifact_id)
        return run if run is not None and _has_id(run, artifact_id) else None

    def add(self, run: Run, spec: Mapping[str, Any]) -> None:
        """Take up a run that this process has made.

        :param run: Its folder is in its place.
        :param spec: What its ``spec.json`` holds.
        """
        try:
            inode = run.folder.stat().st_ino
        except FileNotFoundError:  # deleted at once
            return
        entry = _Entry.of(run, spec, inode=inode)
        with self._lock:
            experiment = self._experiments.setdefault(run.experiment_name, _Experiment())
            if run.name in experiment.entries:  # a list taken since then, or an older run's
                self._drop_views()
            experiment.entries[run.name] = entry
            if self._by_artifact is not None:
                self._by_artifact[entry.artifact_id] = run
            for experiment_name in (None, run.experiment_name):
                if experiment_name in self._sorted:
                    insort(self._sorted[experiment_name], entry, key=_ORDER)

    def remove(self, run: Run) -> None:
        """Forget a run that this process has deleted."""
        with self._lock:
            if experiment := self._experiments.get(run.experiment_name):
                experiment.entries.pop(run.name, None)
            self._drop_views()

    def _entries(self, experiment_name: str | None = None) -> Iterator[_Entry]:
        for name, experiment in self._experiments.items():
            if experiment_name in (None, name):
                yield from experiment.entries.values()

    def _drop_views(self) -> None:
        self._sorted, self._by_artifact = {}, None

    def _refresh(self) -> None:
        found = {entry.name for entry in _folders(self._root)}
        for name in self._experiments.keys() - found:
            del self._experiments[name]
            self._drop_views()
        for name in found:
            experiment = self._experiments.setdefault(name, _Experiment())
            with contextlib.suppress(FileNotFoundError):  # deleted since the root was listed
                changed_ns = (self._root / name).stat().st_mtime_ns
                if not experiment.is_current(changed_ns):
                    self._list(name, experiment, changed_ns)

    def _list(self, name: str, experiment: _Experiment, changed_ns: int) -> None:
        experiment.changed_ns, experiment.listed_at = changed_ns, time.monotonic()
        experiment.is_settled = time.time() - changed_ns / 1e9 > _COARSEST_TIME_S
        before, entries = experiment.entries, {}
        for folder in _folders(self._root / name):
            known = before.get(folder.name)
            if known is None or known.inode != _inode(folder):
                known = _read_entry(folder)
            if known is not None:
                entries[folder.name] = known
        if entries != before:
            experiment.entries = entries
            self._drop_views()


def _folders(path: Path) -> list[os.DirEntry[str]]:
    """Return the folders within one, but not those being made or deleted, which begin with a dot."""
    try:
        with os.scandir(path) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.is_dir()]
    except FileNotFoundError:
        return []


def _inode(folder: os.DirEntry[str]) -> int:
    return folder.inode()


def _has_id(run: Run, artifact_id: str) -> bool:
    with contextlib.suppress(RunNotFoundError):
        return bool(run.spec()["artifact_id"] == artifact_id)
    return False


def _read_entry(folder: os.DirEntry[str]) -> _Entry | None:
    run = Run(Path(folder.path))
    try:
        return _Entry.of(run, run.spec(), inode=_inode(folder))
    # Deleted since it was listed, no run at all, or one that someone copies here right now.
    except (RunNotFoundError, KeyError):
        return None
    except FinetunerServerError as exc:  # it is damaged
        _tell(str(exc))
        return None


@lru_cache(1024)
def _tell(damage: str) -> None:
    """Log what is damaged; once, for runs are listed every few seconds."""
    logger.error("%s", damage)


@lru_cache(maxsize=32)
def index_of(root: Path) -> RunIndex:
    """Return this process's index of a folder of runs, one for all who ask.

    :param root: As for :class:`RunIndex`.
    """
    return RunIndex(root)

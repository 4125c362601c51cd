"""What can go from a volume, and removing it: first a plan that changes nothing, then its rows one by one.

Of a run that has ended: checkpoints, what its worker printed when it finished, temporaries; the whole run
when that is asked for. Beside runs: what a killed process left half written or half removed, once it is
old. A run that has not ended is never touched, nor is what an alias points to.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from finetuner.alias_store import AliasStore
from finetuner.errors import (
    ConfigError,
    ConflictError,
    FinetunerError,
    RunInProgressError,
    RunNotFoundError,
)
from finetuner.run_keys import KEYS
from finetuner.run_store import RunStore
from finetuner.runs import CHECKPOINTS, OUTPUT_FILE, Run
from finetuner.space import size_bytes_of
from finetuner.states import Status

DEFAULT_GRACE_S = 24 * 3600.0
# Where processes write under a name of their own before the final one: (folder, pattern).
_TEMPORARIES = (
    ("runs", ".new-*"),
    ("runs", ".deleted-*"),
    (f"runs/*/{KEYS}", ".*"),
    ("data", ".upload-*"),
    ("data", ".deleted-*"),
    ("aliases", ".*.json.*"),
    ("fetched", ".new-*"),
)


class Reason(StrEnum):
    """Why something can go."""

    CHECKPOINTS = "checkpoints of a run that has ended"
    WORKER_OUTPUT = "worker's output of a finished run"
    RUN = "run that has ended"
    TEMPORARY = "left by a process that was killed"
    KEY = "idempotency key of a run that is gone"


@dataclass(frozen=True)
class Retention:
    """What shall stay.

    :param grace_s: Temporaries and keys younger than this.
    :param runs_older_than_s: Runs that ended less than this ago; None keeps them by no age.
    :param is_failed_only: Of the runs that have ended, all that did not fail.
    :param n_kept: So many of each experiment, the newest of those that have ended, or that failed when
        only these go; None keeps none for being new.
    :raises ConfigError: When a number is negative.
    """

    grace_s: float = DEFAULT_GRACE_S
    runs_older_than_s: float | None = None
    is_failed_only: bool = False
    n_kept: int | None = None

    def __post_init__(self) -> None:
        for name in ("grace_s", "runs_older_than_s", "n_kept"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} must be at least 0, got {value}")

    @property
    def removes_runs(self) -> bool:
        """Whether whole runs shall go."""
        return self.runs_older_than_s is not None or self.is_failed_only or self.n_kept is not None


@dataclass(frozen=True)
class Removal:
    """One row of a plan.

    :param path: A file or folder.
    :param size_bytes: What goes with it.
    :param reason: Why.
    :param run: The run that it belongs to, or is.
    """

    path: Path
    size_bytes: int
    reason: Reason
    run: Run | None = None


@dataclass(frozen=True)
class _Ended:
    """A run that has ended, as it was when it was looked at.

    :param names: All by which its artifact can be named.
    """

    run: Run
    status: Status
    age_s: float
    names: tuple[str, ...]


def plan(workspace: Path, retention: Retention | None = None) -> list[Removal]:
    """Return what would go; nothing is changed.

    :param workspace: The volume.
    :param retention: What shall stay.
    :raises FinetunerServerError: When runs shall go and the file of an alias is damaged: what it
        points to cannot be known.
    """
    retention = retention or Retention()
    now = time.time()
    runs = RunStore(workspace).list()
    ended = [found for run in runs if (found := _look_at(run, now))]
    going = []
    if retention.removes_runs:
        needed = _served(workspace) | _awaited(runs)
        going = [e for e in _let_go(ended, retention) if needed.isdisjoint(e.names)]
    rows = [Removal(e.run.folder, size_bytes_of(e.run.folder), Reason.RUN, e.run) for e in going]
    for one in ended:
        if one not in going:
            rows += _parts(one)
    others = [*_temporaries(workspace), *_lost_keys(workspace)]
    return rows + [row for row in others if now - _changed_at(row.path) >= retention.grace_s]


def carry_out(workspace: Path, removals: Iterable[Removal]) -> Iterator[tuple[Removal, str]]:
    """Remove the rows of a plan, each only while what was planned is still true.

    :param workspace: The volume.
    :param removals: The rows.
    :yields: Each row, and why it was left; an empty text when it is gone.
    """
    for removal in removals:
        left_for = ""
        try:
            _remove(removal, workspace)
        except (FileNotFoundError, RunNotFoundError):  # somebody else has removed it
            pass
        except (OSError, FinetunerError) as exc:
            left_for = str(exc)
        yield removal, left_for


def _remove(removal: Removal, workspace: Path) -> None:
    run = removal.run
    if run is None:
        _remove_path(removal.path)
        return
    # Another run may have the name by now.
    if not (status := run.state().status).is_terminal:
        raise RunInProgressError(f"run `{run.name}` is {status} by now")
    if removal.reason is not Reason.RUN:
        _remove_path(removal.path)
    elif run.spec()["artifact_id"] in _served(workspace):
        raise ConflictError(f"an alias points to run `{run.name}` by now")
    else:
        RunStore(workspace).delete(run)


def _remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _look_at(run: Run, now: float) -> _Ended | None:
    """Return a run that has ended; None for others, and for one whose files cannot be read."""
    with contextlib.suppress(FinetunerError, ValueError, FileNotFoundError):
        state = run.state()
        if state.status.is_terminal:
            names = (run.name, f"{run.experiment_name}/{run.name}", run.spec()["artifact_id"])
            age_s = now - datetime.fromisoformat(state.at).timestamp()
            return _Ended(run, state.status, age_s, names)
    return None


def _served(workspace: Path) -> set[str]:
    """Return the artifact ids that aliases point to, or would roll back to."""
    aliases = AliasStore(workspace).list()
    return {t.artifact_id for alias in aliases for t in (*alias.targets, *alias.history[-1:])}


def _awaited(runs: Iterable[Run]) -> set[str]:
    """Return by name or id the artifacts that runs which have not ended go on from."""
    awaited = set()
    for run in runs:
        with contextlib.suppress(FinetunerError, ValueError):
            if not run.state().status.is_terminal:
                awaited.add(run.config().model_artifact or "")
    return awaited


def _let_go(ended: Iterable[_Ended], retention: Retention) -> Iterator[_Ended]:
    """Yield the runs that need not stay by kind, age and number.

    :param ended: The oldest first.
    """
    of_experiment = defaultdict(list)
    for one in ended:
        if not retention.is_failed_only or one.status is Status.FAILED:
            of_experiment[one.run.experiment_name].append(one)
    for runs in of_experiment.values():
        for one in runs[: max(0, len(runs) - (retention.n_kept or 0))]:
            if one.age_s >= (retention.runs_older_than_s or 0.0):
                yield one


def _parts(ended: _Ended) -> Iterator[Removal]:
    """Yield what a run that has ended needs no more."""
    folder = ended.run.folder
    rows = [(folder / CHECKPOINTS, Reason.CHECKPOINTS)]
    if ended.status is Status.FINISHED:
        rows.append((folder / OUTPUT_FILE, Reason.WORKER_OUTPUT))
    for pattern in (".*", "epochs/.*"):
        rows += [(path, Reason.TEMPORARY) for path in sorted(folder.glob(pattern))]
    for path, reason in rows:
        if size_bytes := size_bytes_of(path):
            yield Removal(path, size_bytes, reason, ended.run)


def _temporaries(workspace: Path) -> Iterator[Removal]:
    for folder, pattern in _TEMPORARIES:
        for path in sorted(workspace.glob(f"{folder}/{pattern}")):
            yield Removal(path, size_bytes_of(path), Reason.TEMPORARY)


def _lost_keys(workspace: Path) -> Iterator[Removal]:
    """Yield the keys that stand for a run which is not there, nor perhaps on its way."""
    for path in sorted(workspace.glob(f"runs/*/{KEYS}/[!.]*")):
        with contextlib.suppress(FileNotFoundError):
            name = path.read_text(encoding="utf-8")
            if not (path.parents[1] / name / "spec.json").is_file():
                yield Removal(path, size_bytes_of(path), Reason.KEY)


def _changed_at(path: Path) -> float:
    """Return when anything of a file or folder was last changed."""
    times = [0.0]
    for found in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(found.lstat().st_mtime)
    return max(times)

"""What lists show of a run: its settings, where it is, how far, and what its evaluations gave.

Of a run that has ended all of that stays the same, so it is read once; of one that trains, the heartbeat
and the evaluations are read each time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from finetuner.holder import EXPIRY_S
from finetuner.run_metrics import summarise_metric, worst_outcome
from finetuner.runs import Run
from finetuner.states import Status

Record = dict[str, Any]
# So many pages of the largest size, at some 10 kB a run.
_MAX_KEPT = 2000


def record_of(run: Run) -> Record:
    """Return what the API shows of a run, as its files say it now.

    :param run: The run.
    :raises RunNotFoundError: When it was deleted.
    :raises FinetunerServerError: When its settings are damaged.
    """
    spec = run.spec()
    state, beat = run.look()
    record = {
        "name": run.name,
        "experiment_name": run.experiment_name,
        **state.answer(),
        **{key: spec[key] for key in ("description", "created_at", "artifact_id", "config")},
        "changed_at": state.at or spec["created_at"],
        "n_starts": state.n_starts,
        "progress": None if beat is None else beat.progress,
        "position": None,
        "metric": None,
        "verdict": None,
    }
    if state.n_starts:  # before that there is nothing to read
        record["metric"] = summarise_metric(run.folder)
        record["verdict"] = worst_outcome(run.folder)
    return record


class RunRecords:
    """The records of a volume's runs; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By folder, those of runs that have ended; a deleted run's is given up by its version.
        self._ended: OrderedDict[Path, tuple[tuple[int, int], Record]] = OrderedDict()

    def get(self, run: Run) -> Record:
        """Return a run's record; see :func:`record_of`.

        :param run: The run.
        """
        try:
            version = run.version()
        except FileNotFoundError:  # deleted, or of a form that has no such folder yet
            return record_of(run)
        with self._lock:
            known = self._ended.get(run.folder)
            if known is not None and known[0] == version:
                self._ended.move_to_end(run.folder)
                return dict(known[1])
        record = record_of(run)
        if _is_settled(record, changed_ns=version[1]):
            with self._lock:
                self._ended[run.folder] = (version, record)
                while len(self._ended) > _MAX_KEPT:
                    self._ended.popitem(last=False)
        return dict(record)


def _is_settled(record: Record, *, changed_ns: int) -> bool:
    """Whether a run has ended so long ago that other machines show all files that it left."""
    return Status(record["status"]).is_terminal and time.time() - changed_ns / 1e9 > EXPIRY_S

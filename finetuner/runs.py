"""Runs on the volume: one folder each, complete in itself, and the states that a run goes through.

runs/{experiment}/{run_name}/
  spec.json      the run's settings, its artifact id, when it was created
  state.json     status and details, replaced as a whole
  log.txt        what the worker writes
  metrics.jsonl  one line an evaluation
  steps.jsonl    one line a batch: loss, active share, learning rate
  verdict.json   what fine-tuning changed, when it was evaluated
  checkpoints/   where it goes on from after an interruption; gone when it is finished
  epochs/        models of the last epochs, when TrainingCheckpoint asks for them
  examples.json  matches of some queries before and after, when asked for
  data/          the texts it trains on and is evaluated with
  lock           held by the worker while it lives; says which process that is
  {run_name}.zip the artifact, once it is finished

CREATED ──► STARTED ──► FINISHED
   ▲           ├──────► FAILED      with the cause in the details
   └───────────┘                    the service or the worker was stopped: it starts again
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from finetuner import lock
from finetuner.config import RunConfig
from finetuner.errors import (
    RunFailedError,
    RunInProgressError,
    RunNotFoundError,
    RunPreparingError,
)
from finetuner.files import read_json, replacing, write_json
from finetuner.json_lines import read_page
from finetuner.schema import read

TRAIN_FILE = "train.jsonl"
VALIDATION_FILE = "validation.jsonl"
LOG_FILE = "log.txt"
METRICS_FILE = "metrics.jsonl"
STEPS_FILE = "steps.jsonl"
VERDICT_FILE = "verdict.json"
CHECKPOINTS = "checkpoints"


class Status(StrEnum):
    """The states of a run."""

    CREATED = "CREATED"
    STARTED = "STARTED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"


_GOES_ON = frozenset({"CREATED", "STARTED", "INTERRUPTED"})
SUBMITTED = "Run submitted and awaits execution"
# What a worker exits with when it was asked to end (EX_TEMPFAIL of sysexits.h).
EXIT_STOPPED = 75
STOPPED = "Stopped with the service; it starts again with it"


def evaluation_file(number: int, role: str) -> str:
    """Return the name of an evaluation's data in ``data/``.

    :param number: The callback's place in the run's list, from 0.
    :param role: ``query`` or ``index``.
    """
    return f"evaluation-{number}-{role}.jsonl"


@dataclass(frozen=True)
class State:
    """Where a run is.

    :param status: One of the states.
    :param details: For people: progress, or the cause of a failure.
    :param n_starts: How often a worker has begun it.
    :param n_interruptions: How often a worker was gone without a word.
    """

    status: Status
    details: str
    n_starts: int = 0
    n_interruptions: int = 0

    def answer(self) -> dict[str, str]:
        """Return what ``run.status()`` gives."""
        return {"status": self.status.value, "details": self.details}


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def experiment_name(self) -> str:
        """The experiment that it belongs to."""
        return self.folder.parent.name

    @property
    def artifact_path(self) -> Path:
        """Where the artifact is, or will be."""
        return self.folder / f"{self.name}.zip"

    def _read(self, file_name: str) -> Any:
        try:
            return read_json(self.folder / file_name)
        except FileNotFoundError as exc:
            raise self._not_found() from exc

    def _not_found(self) -> RunNotFoundError:
        return RunNotFoundError(f"no run `{self.name}` in experiment `{self.experiment_name}`")

    def spec(self) -> dict[str, Any]:
        """Return ``spec.json``: ``artifact_id``, ``created_at``, ``description`` and ``config``.

        :raises RunNotFoundError: When the run was deleted.
        """
        return dict(self._read("spec.json"))

    def config(self) -> RunConfig:
        """Return the run's settings."""
        return read(RunConfig, self.spec()["config"], "spec.json")

    def state(self) -> State:
        """Return where the run is.

        :raises RunNotFoundError: When the run was deleted.
        """
        return read(State, self._read("state.json"), "state.json")

    def set_state(self, status: Status, details: str, **counts: int) -> None:
        """Write where the run is, whole or not at all.

        :param counts: ``n_starts`` and ``n_interruptions``; those left out stay as they are.
        :raises RunNotFoundError: When the run was deleted.
        """
        state = replace(self.state(), status=status, details=details, **counts)
        write_json(self.folder / "state.json", asdict(state))

    def record(self) -> dict[str, Any]:
        """Return what the API shows of the run."""
        spec = self.spec()
        return {
            "name": self.name,
            "experiment_name": self.experiment_name,
            **self.state().answer(),
            **{key: spec[key] for key in ("description", "created_at", "artifact_id", "config")},
        }

    def read_log(self, offset: int = 0) -> tuple[str, int]:
        """Return the log from a byte offset on, and the offset of what comes next.

        A character of which only some bytes are written yet is left for the next time.

        :param offset: At least 0; one behind the end gives an empty text.
        :raises RunPreparingError: When the run has not started.
        :raises RunNotFoundError: When the run was deleted.
        """
        path = self.folder / LOG_FILE
        if self.state().status is Status.CREATED and not path.exists():
            raise RunPreparingError(
                "Preparing to run, logs will be ready to pull when `status` is `STARTED`."
            )
        if not path.exists() or offset >= path.stat().st_size:
            return "", offset
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = decoder.decode(content)
        unfinished, _ = decoder.getstate()
        return text, offset + len(content) - len(unfinished)

    def has_ended(self) -> bool:
        """Whether nothing will be written any more.

        :raises RunNotFoundError: When the run was deleted.
        """
        return self.state().status not in _GOES_ON

    def metrics(self) -> dict[str, Any]:
        """Return the metrics before training, after the last epoch, and of every epoch, so far.

        :raises RunNotFoundError: When the run was deleted.
        """
        self.state()
        return read_metrics(self.folder)

    def examples(self) -> dict[str, Any]:
        """Return the matches of some queries before and after; empty unless they were asked for.

        :raises RunInProgressError, RunFailedError: When the run is not finished.
        """
        self.check_finished()
        path = self.folder / "examples.json"
        return dict(read_json(path)) if path.exists() else {"before": {}, "after": {}}

    def check_finished(self) -> None:
        """Pass when there is an artifact.

        :raises RunInProgressError: When the run is created or started.
        :raises RunFailedError: When it failed.
        """
        status = self.state().status
        if status is Status.FAILED:
            raise RunFailedError(
                "The run failed, please check the `logs` for detailed information."
            )
        if status is not Status.FINISHED:
            raise RunInProgressError("The run needs to be finished in order to save the artifact.")

    @property
    def _lock_path(self) -> Path:
        return self.folder / "lock"

    def has_checkpoint(self) -> bool:
        """Whether an interrupted training can go on from where it was."""
        return any((self.folder / CHECKPOINTS).glob("step-*.pt"))

    def is_alive(self) -> bool:
        """Whether a worker holds the run's lock."""
        return lock.is_held(self._lock_path)

    def signal_worker(self, number: int) -> bool:
        """Send a signal to the worker that holds the run's lock, whichever service started it.

        :returns: Whether there is one on this machine.
        """
        return lock.signal_holder(self._lock_path, number)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock; the system frees it when the process dies, however it dies.

        :raises RunInProgressError: When another worker holds it.
        :raises RunNotFoundError: When the run was deleted.
        """
        if not self.folder.is_dir():
            raise self._not_found()
        with lock.hold(self._lock_path) as is_free:
            if not is_free:
                raise RunInProgressError(
                    f"run `{self.name}` has a worker already; it ends with the run, or with the "
                    "service that started it"
                )
            yield


def append_metrics(
    folder: Path, epoch: int, metrics: dict[str, float], *, step: int | None = None
) -> None:
    """Add one evaluation to ``metrics.jsonl``.

    :param folder: The run's.
    :param epoch: 0 is before training.
    :param metrics: By name.
    :param step: Batches of the epoch done, where it is evaluated within one.
    """
    with (folder / METRICS_FILE).open("ab") as file:
        line = {"epoch": epoch, **({} if step is None else {"step": step}), "metrics": metrics}
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        os.fsync(file.fileno())


def count_lines(path: Path) -> int:
    """Return how many lines a file has; 0 for none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def keep_lines(path: Path, n_lines: int) -> None:
    """Cut a file to its first lines: those after a checkpoint are written again."""
    lines = path.read_bytes().splitlines(keepends=True)[:n_lines] if path.exists() else []
    with replacing(path) as file:
        file.writelines(lines)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return ``{"before", "after", "epochs", "verdicts"}``; empty ones without evaluation."""
    verdicts = folder / VERDICT_FILE
    lines, _ = read_page(folder / METRICS_FILE)
    return {
        "before": next((line["metrics"] for line in lines if line["epoch"] == 0), {}),
        "after": lines[-1]["metrics"] if lines and lines[-1]["epoch"] > 0 else {},
        "epochs": lines,
        "verdicts": dict(read_json(verdicts)) if verdicts.exists() else {},
    }

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
  lock           held by the worker while it lives
  {run_name}.zip the artifact, once it is finished

CREATED ──► STARTED ──► FINISHED
   ▲           ├──────► FAILED      with the cause in the details
   └───────────┘                    the service or the worker was stopped: it starts again
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from finetuner.config import RunConfig
from finetuner.errors import (
    RunFailedError,
    RunInProgressError,
    RunPreparingError,
)
from finetuner.files import read_json, replacing, write_json
from finetuner.schema import read

TRAIN_FILE = "train.jsonl"
VALIDATION_FILE = "validation.jsonl"
METRICS_FILE = "metrics.jsonl"
STEPS_FILE = "steps.jsonl"


class Status(StrEnum):
    """The states of a run."""

    CREATED = "CREATED"
    STARTED = "STARTED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"


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
    """

    status: Status
    details: str
    n_starts: int = 0

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

    def spec(self) -> dict[str, Any]:
        """Return ``spec.json``: ``artifact_id``, ``created_at``, ``description`` and ``config``."""
        return dict(read_json(self.folder / "spec.json"))

    def config(self) -> RunConfig:
        """Return the run's settings."""
        return read(RunConfig, self.spec()["config"], "spec.json")

    def state(self) -> State:
        """Return where the run is."""
        content = read_json(self.folder / "state.json")
        return State(Status(content["status"]), content["details"], content["n_starts"])

    def set_state(self, status: Status, details: str, *, n_starts: int | None = None) -> None:
        """Write where the run is, whole or not at all."""
        starts = self.state().n_starts if n_starts is None else n_starts
        write_json(self.folder / "state.json", asdict(State(status, details, starts)))

    def record(self) -> dict[str, Any]:
        """Return what the API shows of the run."""
        spec = self.spec()
        return {
            "name": self.name,
            "experiment_name": self.experiment_name,
            **self.state().answer(),
            **{key: spec[key] for key in ("description", "created_at", "artifact_id", "config")},
        }

    def logs(self, offset: int = 0) -> str:
        """Return the log from a byte offset on.

        :raises RunPreparingError: When the run has not started.
        """
        path = self.folder / "log.txt"
        if self.state().status is Status.CREATED and not path.exists():
            raise RunPreparingError(
                "Preparing to run, logs will be ready to pull when `status` is `STARTED`."
            )
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    def metrics(self) -> dict[str, Any]:
        """Return the metrics before training and after the last epoch, and those of every epoch.

        :raises RunPreparingError, RunInProgressError, RunFailedError: When the run is not finished.
        """
        self.check_finished()
        return read_metrics(self.folder)

    def examples(self) -> dict[str, Any]:
        """Return the matches of some queries before and after; empty unless they were asked for.

        :raises RunPreparingError, RunInProgressError, RunFailedError: When the run is not finished.
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

    def is_alive(self) -> bool:
        """Whether a worker holds the run's lock."""
        with (self.folder / "lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock; the system frees it when the process dies, however it dies.

        :raises RunInProgressError: When another worker holds it.
        """
        with (self.folder / "lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise RunInProgressError(f"run `{self.name}` has a worker already") from exc
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
    """Return ``{"before", "after", "epochs"}``; empty ones without evaluation."""
    path = folder / METRICS_FILE
    lines = [orjson.loads(line) for line in path.open("rb")] if path.exists() else []
    return {
        "before": next((line["metrics"] for line in lines if line["epoch"] == 0), {}),
        "after": lines[-1]["metrics"] if lines and lines[-1]["epoch"] > 0 else {},
        "epochs": lines,
    }

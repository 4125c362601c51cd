"""Runs on the volume: one folder each, complete in itself.

runs/{experiment}/{run_name}/
  spec.json      the run's settings, its artifact id, when it was created
  states/        a file for each step that the run has made; the last one is where it is
  heartbeat.json what its worker says while it lives: that it does, and how far it is
  cancel.json    there once its owner wants it to end
  log.txt        what the worker writes
  worker.txt     what its processes print beside that
  metrics.jsonl  one line an evaluation
  steps.jsonl    one line a batch: loss, active share, learning rate, texts, when
  verdict.json   what fine-tuning changed, when it was evaluated
  checkpoints/   where it goes on from after an interruption; gone when it is finished
  epochs/        models of the last epochs, when TrainingCheckpoint asks for them
  examples.json  matches of some queries before and after, when asked for
  map.json       where the texts of its evaluations lie for the model, before and after
  data/          the texts it trains on and is evaluated with
  {run_name}.zip the artifact, once it is finished
  published.json where in an object store the artifact is too, when there is one

A copy of the folder on another volume is the same run: its claim is seen to be of no living process there.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetuner.config import RunConfig
from finetuner.errors import (
    FinetunerServerError,
    RunCancelledError,
    RunChangedError,
    RunFailedError,
    RunInProgressError,
    RunNotFoundError,
    RunPreparingError,
)
from finetuner.files import read_json, write_new_json
from finetuner.heartbeat import Beat, read_beat
from finetuner.holder import own_name
from finetuner.run_metrics import read_metrics
from finetuner.schema import read
from finetuner.state_files import StateFiles, states_version
from finetuner.states import Actor, State, Status, check_step

TRAIN_FILE = "train.jsonl"
VALIDATION_FILE = "validation.jsonl"
LOG_FILE = "log.txt"
STEPS_FILE = "steps.jsonl"
MAP_FILE = "map.json"
CHECKPOINTS = "checkpoints"
HEARTBEAT_FILE = "heartbeat.json"
CANCEL_FILE = "cancel.json"
OUTPUT_FILE = "worker.txt"
PUBLISHED_FILE = "published.json"

SUBMITTED = "Run submitted and awaits execution"
STOPPED = "Stopped with the service; it goes on with it"
CANCELLED = "Cancelled"


def evaluation_file(number: int, role: str) -> str:
    """Return the name of an evaluation's data in ``data/``.

    :param number: The callback's place in the run's list, from 0.
    :param role: ``query`` or ``index``.
    """
    return f"evaluation-{number}-{role}.jsonl"


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

    def _not_found(self) -> RunNotFoundError:
        return RunNotFoundError(f"no run `{self.name}` in experiment `{self.experiment_name}`")

    def exists(self) -> bool:
        """Whether the run is there: not deleted, on a volume that is not away."""
        return (self.folder / "spec.json").is_file()

    def spec(self) -> dict[str, Any]:
        """Return ``spec.json``: ``artifact_id``, ``created_at``, ``description`` and ``config``.

        :raises RunNotFoundError: When the run was deleted.
        :raises FinetunerServerError: When the file is damaged.
        """
        try:
            return dict(read_json(self.folder / "spec.json"))
        except FileNotFoundError as exc:
            raise self._not_found() from exc
        except ValueError as exc:
            raise FinetunerServerError(
                f"The file spec.json of run `{self.name}` in experiment `{self.experiment_name}` is "
                "damaged; put it back from a copy, or remove the run's folder",
                str(exc),
            ) from exc

    def config(self) -> RunConfig:
        """Return the run's settings."""
        return read(RunConfig, self.spec()["config"], "spec.json")

    def state(self) -> State:
        """Return where the run is; one whose state the disk has lost has failed.

        :raises RunNotFoundError: When the run was deleted.
        """
        return self.look()[0]

    def look(self) -> tuple[State, Beat | None]:
        """Return where the run is, as :meth:`state` does, and what its worker last said of its claim."""
        state = self._newest()
        beat = self.beat(state) if state.status is Status.STARTED else None
        if beat is not None and beat.details:
            state = replace(state, details=beat.details)
        return state, beat

    def version(self) -> tuple[int, int]:
        """Return what changes when the run makes a step, or its name becomes another run's.

        :raises FileNotFoundError: When the run was deleted.
        """
        return states_version(self.folder)

    def history(self) -> list[State]:
        """Return all states that the run has been in, the present one last."""
        try:
            return StateFiles(self.folder).all()
        except FileNotFoundError as exc:
            raise self._not_found() from exc

    def _newest(self) -> State:
        try:
            return StateFiles(self.folder).newest()
        except FileNotFoundError as exc:
            raise self._not_found() from exc

    def beat(self, state: State) -> Beat | None:
        """Return the last heartbeat of the worker whose claim a state is; None when there is none."""
        beat = read_beat(self.folder / HEARTBEAT_FILE)
        return beat if beat is not None and beat.number == state.number else None

    def step(
        self, before: State, status: Status, details: str, *, actor: Actor, **changes: Any
    ) -> State:
        """Come to another state: whole or not at all, and only from the state that is given.

        :param before: Where the run is, as its reader knows it.
        :param status: Where it comes to.
        :param details: For people.
        :param actor: Who makes the step.
        :param changes: Of the counts and the holder.
        :raises ImpossibleStepError: When this is no step, or not this actor's.
        :raises RunChangedError: When another process has made a step from there.
        :raises RunNotFoundError: When the run was deleted.
        """
        check_step(before.status, status, actor)
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        number = before.number + 1
        changes = {"holder": "", "gpus": "", **changes}
        state = replace(before, status=status, details=details, at=at, number=number, **changes)
        try:
            StateFiles(self.folder).add(state)
        except (FileExistsError, FileNotFoundError) as exc:
            self.state()  # or it was deleted
            raise RunChangedError(
                f"run `{self.name}` is no longer {before.status}; look at it again"
            ) from exc
        return state

    def claim(self) -> State:
        """Make the run this process's, to work on it.

        :raises ImpossibleStepError, RunChangedError: When it does not wait, or another was quicker.
        :raises RunNotFoundError: When the run was deleted.
        """
        before = self.state()
        return self.step(
            before,
            Status.STARTED,
            "Loading the model",
            actor=Actor.WORKER,
            holder=own_name(),
            gpus=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            n_starts=before.n_starts + 1,
        )

    def holds(self, claim: State) -> bool:
        """Whether a claim is still the run's state, and the folder still that run's."""
        state = self.state()
        return (state.number, state.holder) == (claim.number, claim.holder)

    def ask_to_cancel(self) -> None:
        """Let the run's worker end it, whichever service has started that.

        :raises RunNotFoundError: When the run was deleted.
        """
        try:
            with contextlib.suppress(FileExistsError):
                write_new_json(self.folder / CANCEL_FILE, {})
        except FileNotFoundError as exc:
            raise self._not_found() from exc

    def is_to_be_cancelled(self) -> bool:
        """Whether somebody has asked for its end."""
        return (self.folder / CANCEL_FILE).exists()

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
        return self.state().status.is_terminal

    def metrics(self) -> dict[str, Any]:
        """Return the metrics before training, after the last epoch, and of every epoch, so far.

        :raises RunNotFoundError: When the run was deleted.
        """
        self.state()
        return read_metrics(self.folder)

    def examples(self) -> dict[str, Any]:
        """Return the matches of some queries before and after; empty unless they were asked for.

        :raises RunInProgressError, RunFailedError, RunCancelledError: When the run is not finished.
        """
        self.check_finished()
        path = self.folder / "examples.json"
        return dict(read_json(path)) if path.exists() else {"before": {}, "after": {}}

    def map(self) -> dict[str, Any]:
        """Return where the texts of its evaluations lie, before and after; empty until there is one.

        :raises RunNotFoundError: When the run was deleted.
        :raises FinetunerServerError: When the file is damaged.
        """
        self.state()
        try:
            return dict(read_json(self.folder / MAP_FILE))
        except FileNotFoundError:
            return {"evaluations": {}}
        except ValueError as exc:
            raise FinetunerServerError(
                f"The file {MAP_FILE} of run `{self.name}` is damaged; remove it", str(exc)
            ) from exc

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
        if status is Status.CANCELLED:
            raise RunCancelledError("The run was cancelled; it has no artifact.")
        if status is not Status.FINISHED:
            raise RunInProgressError("The run needs to be finished in order to save the artifact.")

    def published_url(self) -> str:
        """Return where in an object store the artifact is too; empty where it is in none, or not yet."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            return str(read_json(self.folder / PUBLISHED_FILE)["url"])
        return ""

    def clean_up(self) -> None:
        """Remove what only a run that goes on needs."""
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)

    def has_checkpoint(self) -> bool:
        """Whether an interrupted training can go on from where it was."""
        return any((self.folder / CHECKPOINTS).glob("step-*.pt"))

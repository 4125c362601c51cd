"""The run store against a dict: any sequence of operations, cut at any write, on one volume or another."""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from crash_points import Disk, Found
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from finetuner.config import RunConfig
from finetuner.data import from_rows, read_jsonl
from finetuner.errors import (
    ArtifactNotFound,
    ConflictError,
    ImpossibleStepError,
    RunCancelledError,
    RunExistsError,
    RunFailedError,
    RunInProgressError,
    RunNotFoundError,
)
from finetuner.run_store import RunStore
from finetuner.run_summary import record_of
from finetuner.runs import Run
from finetuner.states import STEPS, Actor, Status

TEXTS = from_rows([["a", 1], ["b", 1]])
NAMES = st.sampled_from(["one", "two", "three"])
FOUND = st.sampled_from(Found)
N_EXAMPLES = int(os.environ.get("FINETUNER_MACHINE_EXAMPLES", "40"))
# Most operations are whole; a claim has 7 writes, a creation about 40.
CUTS = st.none() | st.integers(1, 9) | st.integers(1, 45)
_NO_ARTIFACT = {
    Status.FAILED: RunFailedError,
    Status.CANCELLED: RunCancelledError,
}


@dataclass(frozen=True)
class Known:
    """What is known of a run."""

    status: Status = Status.CREATED
    n_starts: int = 0
    n_interruptions: int = 0
    is_asked_to_end: bool = False
    n_states: int = 1


def known(run):
    state = run.state()
    history = run.history()
    for before, after in zip(history, history[1:], strict=False):
        assert any((s.before, s.after) == (before.status, after.status) for s in STEPS)
    return Known(
        state.status,
        state.n_starts,
        state.n_interruptions,
        run.is_to_be_cancelled(),
        len(history),
    )


class Volume(RuleBasedStateMachine):
    """Does the same to a run store and to a dict, and looks whether they are the same."""

    def __init__(self):
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="finetuner-machine-"))
        self.n_volumes = 0
        self.volume = self.base / "0"
        self.volume.mkdir()
        self.runs = {}
        self.fsync, os.fsync = os.fsync, lambda descriptor: None

    def teardown(self):
        os.fsync = self.fsync
        shutil.rmtree(self.base)

    @property
    def store(self):
        """A new object each time, as after a restart."""
        return RunStore(self.volume)

    def do(self, operation, after, cut_before, found, *, name):
        """Do something to a run; when it is cut, it has taken place or not."""
        with Disk(self.volume, cut_before=cut_before) as disk:
            operation()
        if not disk.is_cut:
            found = Found.SYNCED  # what has been answered stays
        self.n_volumes += 1
        self.volume = disk.leave(found, self.base / str(self.n_volumes))
        disk.close()
        shutil.rmtree(disk.root)
        present = {run.name: known(run) for run in self.store.list()}.get(name)
        allowed = (self.runs.get(name), after) if disk.is_cut else (after,)
        assert present in allowed
        self.runs.pop(name, None)
        if present is not None:
            self.runs[name] = present

    @rule(name=NAMES, cut_before=CUTS, found=FOUND)
    def create(self, name, cut_before, found):
        config = RunConfig(model="tiny", run_name=name)
        if name in self.runs:
            with pytest.raises(RunExistsError, match=f"already has a run `{name}`"):
                self.store.create(config, {"train.jsonl": TEXTS})
            return
        self.do(
            lambda: self.store.create(config, {"train.jsonl": TEXTS}),
            Known(),
            cut_before,
            found,
            name=name,
        )

    @rule(
        name=NAMES,
        status=st.sampled_from(Status),
        actor=st.sampled_from(Actor),
        cut_before=CUTS,
        found=FOUND,
    )
    def step(self, name, status, actor, cut_before, found):
        if name not in self.runs:
            with pytest.raises(RunNotFoundError, match=f"no run `{name}`"):
                self.store.get(name)
            return
        run, present = self.store.get(name), self.runs[name]
        before = run.state()
        if not _is_possible(present.status, status, actor):
            with pytest.raises(ImpossibleStepError, match=f"cannot become {status}"):
                run.step(before, status, "", actor=actor)
            return
        n_interruptions = present.n_interruptions + (status is Status.INTERRUPTED)
        after = replace(
            present, status=status, n_interruptions=n_interruptions, n_states=present.n_states + 1
        )
        self.do(
            lambda: run.step(before, status, "", actor=actor, n_interruptions=n_interruptions),
            after,
            cut_before,
            found,
            name=name,
        )

    @precondition(lambda self: any(known.status.is_waiting for known in self.runs.values()))
    @rule(data=st.data(), cut_before=CUTS, found=FOUND)
    def claim(self, data, cut_before, found):
        waiting = sorted(name for name, known in self.runs.items() if known.status.is_waiting)
        name = data.draw(st.sampled_from(waiting))
        present = self.runs[name]
        after = replace(
            present,
            status=Status.STARTED,
            n_starts=present.n_starts + 1,
            n_states=present.n_states + 1,
        )
        self.do(self.store.get(name).claim, after, cut_before, found, name=name)

    @rule(name=NAMES)
    def claim_what_does_not_wait(self, name):
        if name in self.runs and not self.runs[name].status.is_waiting:
            with pytest.raises(ConflictError, match="cannot become STARTED by its worker"):
                self.store.get(name).claim()

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def step_from_a_state_that_was_left(self, data):
        """What a worker does that was taken for dead, or a service that was too slow."""
        run = self.store.get(data.draw(st.sampled_from(sorted(self.runs))))
        for before in run.history()[:-1]:
            for step in STEPS:
                if step.before is before.status:
                    with pytest.raises(ConflictError, match="is no longer"):
                        run.step(before, step.after, "", actor=min(step.actors))

    @rule(name=NAMES, cut_before=CUTS, found=FOUND)
    def ask_to_cancel(self, name, cut_before, found):
        if name in self.runs:
            after = replace(self.runs[name], is_asked_to_end=True)
            self.do(self.store.get(name).ask_to_cancel, after, cut_before, found, name=name)

    @rule(name=NAMES, cut_before=CUTS, found=FOUND)
    def delete(self, name, cut_before, found):
        run = Run(self.volume / "runs" / "default" / name)
        if name not in self.runs:
            for call in (run.state, run.claim, lambda: self.store.delete(run)):
                with pytest.raises(RunNotFoundError, match=name):
                    call()
            return
        self.do(lambda: self.store.delete(run), None, cut_before, found, name=name)

    @rule()
    def move(self):
        """Copy the runs' folders to another volume, which goes on with them."""
        self.n_volumes += 1
        other = self.base / str(self.n_volumes)
        other.mkdir()
        for run in self.store.list():
            shutil.copytree(run.folder, other / "runs" / "default" / run.name)
        shutil.rmtree(self.volume)
        self.volume = other

    @rule(name=NAMES)
    def find_artifact(self, name):
        if name not in self.runs:
            with pytest.raises(ArtifactNotFound, match=f"no run and no artifact `{name}`"):
                self.store.find_artifact(name)
            return
        run, status = self.store.get(name), self.runs[name].status
        for artifact in (name, f"default/{name}", run.spec()["artifact_id"]):
            if status is Status.FINISHED:
                assert self.store.find_artifact(artifact) == run.artifact_path
            else:
                with pytest.raises(_NO_ARTIFACT.get(status, RunInProgressError), match="The run"):
                    self.store.find_artifact(artifact)

    @invariant()
    def the_store_is_as_the_dict(self):
        runs = self.store.list()
        assert {run.name: known(run) for run in runs} == self.runs
        for run in runs:
            assert read_jsonl(run.folder / "data" / "train.jsonl") == TEXTS
            assert run.config().run_name == run.name
            assert record_of(run)["status"] == self.runs[run.name].status


def _is_possible(before, after, actor):
    return any(
        (step.before, step.after) == (before, after) and actor in step.actors for step in STEPS
    )


TestVolume = pytest.mark.slow(Volume.TestCase)
TestVolume.settings = settings(
    max_examples=N_EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

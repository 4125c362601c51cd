"""A worker that is stopped or killed at any moment, and started again, ends as one left in peace."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from finetuner import files, worker
from finetuner.artifact import unpacked
from finetuner.exits import Exit
from finetuner.job import Job
from finetuner.publishing import Publisher
from finetuner.run_evaluation import RunEvaluations
from finetuner.runs import STOPPED, Run
from finetuner.states import Actor, Status
from finetuner.submission import submit
from finetuner.trainer import Trainer

_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def submitted(tmp_path_factory, tiny_model_folder, tiny_labelled):
    """Submit a run that uses whatever has a state of its own, under a name of its own."""
    workspace = tmp_path_factory.mktemp("workspace")
    (workspace / "models").mkdir()
    (workspace / "models" / "tiny").symlink_to(tiny_model_folder)
    rows = list(tiny_labelled.rows())
    numbers = itertools.count()

    def submitted(**changes):
        evaluation = {"query_data": rows, "limit": 3, "steps_per_interval": 4}
        falling = {"monitor": "train_loss", "mode": "max"}  # the first epoch is the best one
        request = {
            "model": "tiny",
            "train_data": rows,
            "run_name": f"run-{next(numbers)}",
            "val_split": 0.2,
            "loss": "ArcFaceLoss",
            "loss_optimizer": "Adam",
            "optimizer": "AdamW",
            "learning_rate": 1e-3,
            "scheduler": "linear",
            "scheduler_options": {"num_warmup_steps": 0.1},
            "epochs": 8,
            "batch_size": 8,
            "accumulation_steps": 2,
            "hard_negatives": {},
            "checkpoint_interval_s": 0,
            "precision": "fp32",
            "device": "cpu",
            "callbacks": [
                {"name": "EvaluationCallback", "options": {**evaluation, "gather_examples": True}},
                {"name": "BestModelCheckpoint", "options": falling},
                {"name": "EarlyStopping", "options": {**falling, "patience": 6}},
                {"name": "TrainingCheckpoint", "options": {"last_k_epochs": 2}},
            ],
        }
        return submit({**request, **changes}, workspace)

    return submitted


class _Forked:
    """A worker in a process of its own, which has all imports from this one: as Popen to a test."""

    def __init__(self, run):
        self._process = multiprocessing.get_context("fork").Process(target=self._main, args=[run])
        self._process.start()
        self.kill, self.terminate = self._process.kill, self._process.terminate

    @staticmethod
    def _main(run):
        os._exit(worker.main(str(run.folder)))

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout_s=None):
        self._process.join(timeout_s)
        assert self._process.exitcode is not None
        return self._process.exitcode


def _start(run):
    return subprocess.Popen(
        [sys.executable, "-m", "finetuner.worker", str(run.folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=(run.folder / "worker.txt").open("ab"),
    )


def _wait(process, condition, run):
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, run.read_log()[0]
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def _interrupt(run):
    """Do what a service does when it finds the worker dead."""
    run.step(run.state(), Status.INTERRUPTED, "killed", actor=Actor.SERVICE)


def _n_steps(run):
    path = run.folder / "steps.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _result(run):
    """All that a run leaves, but for what tells times and names."""
    with unpacked(run.artifact_path) as (folder, manifest):
        weights = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "manifest.json"
        }
    epochs = {
        path.relative_to(run.folder).as_posix(): path.read_bytes()
        for path in (run.folder / "epochs").rglob("*.safetensors")
    }
    names = ("metrics.jsonl", "verdict.json", "examples.json", "map.json")
    texts = {"steps": _timeless_steps(run)}
    texts |= {name: (run.folder / name).read_text() for name in names}
    return weights, epochs, texts, manifest.metrics, manifest.verdicts


def _timeless_steps(run):
    lines = [json.loads(line) for line in (run.folder / "steps.jsonl").read_text().splitlines()]
    times = [line.pop("at") for line in lines]
    assert times == sorted(times)
    return lines


def _check_steps(run):
    """Every line once, in order: `n_steps` of each of the epochs."""
    lines = [json.loads(line) for line in (run.folder / "steps.jsonl").read_text().splitlines()]
    places = [(line["epoch"], line["step"]) for line in lines]
    n_epochs = max(epoch for epoch, _ in places)
    sizes = {line["epoch"]: line["n_steps"] for line in lines}
    assert places == [(e, s) for e in range(1, n_epochs + 1) for s in range(1, sizes[e] + 1)]


def _check_clean(run):
    assert not (run.folder / "checkpoints").exists()
    assert list(run.folder.rglob(".*")) == []
    with zipfile.ZipFile(run.artifact_path) as archive:
        assert archive.testzip() is None


@pytest.fixture(scope="module")
def finished(submitted):
    """What a worker that nobody disturbs leaves."""
    run = submitted()
    assert _Forked(run).wait(_TIMEOUT_S) == 0
    assert run.state().status is Status.FINISHED
    log = " ".join(run.read_log()[0].split())
    assert "Early stopping: train_loss was no better for 6 epochs" in log
    assert "Keeping the model of epoch 1" in log
    _check_steps(run)
    _check_clean(run)
    return _result(run)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(submitted, finished):
    run = submitted()
    chance = random.Random(5)
    n_kills = 0
    while n_kills < 8:
        n_before = _n_steps(run)
        n_more = chance.randint(0, 8)
        process = _Forked(run)
        aimed = _wait(process, lambda: run.state().status is Status.STARTED, run) and _wait(
            process, lambda n=n_before + n_more: _n_steps(run) >= n, run
        )
        time.sleep(chance.random() * 0.05)
        process.kill()
        if process.wait() == 0:
            break
        assert aimed
        n_kills += 1
        assert run.state().status is Status.STARTED
        _interrupt(run)
    assert n_kills >= 4
    if run.state().status is not Status.FINISHED:  # it may have been quicker than the last kill
        assert _Forked(run).wait(_TIMEOUT_S) == 0
    assert run.state().status is Status.FINISHED
    _check_steps(run)
    _check_clean(run)
    assert _result(run) == finished


@pytest.mark.slow
def test_killed_in_its_last_stages_it_ends_the_same(submitted, finished):
    """While the final weights are evaluated, and while the artifact is written."""
    run = submitted()
    moments = {
        "final evaluation": lambda: "Evaluating the final weights" in run.read_log()[0],
        "publishing": lambda: any(run.folder.glob(".saving-*")),
        "packing": lambda: any(run.folder.glob(f".{run.name}.zip.*")),
        "artifact": run.artifact_path.exists,
    }
    n_hit = 0
    for moment in moments.values():
        process = _Forked(run)
        _wait(process, lambda: run.state().status is Status.STARTED, run)
        _wait(process, moment, run)
        process.kill()
        n_hit += process.wait() != 0
        if run.state().status is Status.FINISHED:
            break
        _interrupt(run)
    assert n_hit >= 2
    if run.state().status is not Status.FINISHED:
        assert _Forked(run).wait(_TIMEOUT_S) == 0
        _check_clean(run)
    assert run.state().status is Status.FINISHED
    _check_steps(run)
    assert _result(run) == finished


@pytest.mark.slow
def test_stopped_it_saves_that_very_step_and_goes_on(submitted, finished):
    run = submitted(checkpoint_interval_s=1e9)
    for n_steps in (1, 9):
        process = _start(run)
        assert _wait(process, lambda n=n_steps: _n_steps(run) >= n, run)
        process.terminate()
        assert process.wait(_TIMEOUT_S) == Exit.STOPPED
        assert run.state().answer() == {"status": "INTERRUPTED", "details": STOPPED}
        newest = max((run.folder / "checkpoints").glob("*.pt")).stem
        assert int(newest.removeprefix("step-")) == _n_steps(run)
    assert _start(run).wait(_TIMEOUT_S) == 0
    assert run.state().status is Status.FINISHED
    assert run.state().n_starts == 3
    _check_steps(run)
    _check_clean(run)
    assert _result(run) == finished


@pytest.mark.slow
def test_stopped_while_it_publishes_it_publishes_again(submitted):
    run = submitted(epochs=1, to_onnx=True)
    process = _Forked(run)
    assert _wait(process, lambda: run.state().details == "Exporting to ONNX", run)
    process.terminate()
    assert process.wait(_TIMEOUT_S) == Exit.STOPPED
    assert run.state().answer() == {"status": "INTERRUPTED", "details": STOPPED}
    assert not run.artifact_path.exists()
    n_steps = _n_steps(run)
    assert _Forked(run).wait(_TIMEOUT_S) == 0
    assert run.state().status is Status.FINISHED
    assert _n_steps(run) == n_steps
    assert "Going on from epoch 2, batch 0" in run.read_log()[0]
    _check_clean(run)


@pytest.mark.slow
def test_a_signal_after_the_end_changes_nothing(submitted):
    run = submitted(epochs=0, callbacks=[])
    process = _Forked(run)
    assert _wait(process, lambda: run.state().status is Status.FINISHED, run)
    process.terminate()
    assert process.wait(_TIMEOUT_S) == 0
    assert run.state().status is Status.FINISHED
    _check_clean(run)


def _terminate_self():
    os.kill(os.getpid(), signal.SIGTERM)


_SHORT = {"epochs": 2, "callbacks": [], "hard_negatives": None}


def _before(monkeypatch, owner, name):
    """Send this process SIGTERM the first time that something is called."""
    original, sent = getattr(owner, name), []

    def call(*args, **kwargs):
        if not sent:
            sent.append(True)
            _terminate_self()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def _behind(monkeypatch, owner, name):
    original, sent = getattr(owner, name), []

    def call(*args, **kwargs):
        result = original(*args, **kwargs)
        if not sent:
            sent.append(True)
            _terminate_self()
        return result

    monkeypatch.setattr(owner, name, call)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "owner", "name", "n_steps"),
    [
        (_before, Job, "_load", 0),
        (_behind, Job, "_adapt", 0),
        (_before, RunEvaluations, "read", 0),
        (_before, Trainer, "_run_batch", 2),  # a gradient of two batches is finished
        (_before, Trainer, "_end_epoch", 5),
        (_before, Trainer, "_save", 4),  # that one was due, and is not the one of the signal
        (_before, Publisher, "publish", 10),
        (_before, Publisher, "_manifest", 10),
        (_behind, files.os, "replace", None),
        (_behind, Publisher, "publish", 10),
    ],
)
def test_stopped_at_one_place(submitted, work, monkeypatch, when, owner, name, n_steps):
    """In process, so that the signal comes exactly there; then the same run once more."""
    undisturbed = submitted(**_SHORT)
    assert work(undisturbed) == 0
    run = submitted(**_SHORT)
    with monkeypatch.context() as patch:
        when(patch, owner, name)
        assert work(run) == Exit.STOPPED
    assert run.state().answer() == {"status": "INTERRUPTED", "details": STOPPED}
    assert n_steps is None or _n_steps(run) == n_steps
    assert work(run) == 0
    assert run.state().status is Status.FINISHED
    assert run.state().n_starts == 2
    _check_steps(run)
    _check_clean(run)
    assert _timeless_steps(run) == _timeless_steps(undisturbed)
    with unpacked(run.artifact_path) as (one, _), unpacked(undisturbed.artifact_path) as (two, _):
        assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("fails", "code"), [(False, 0), (True, 1)])
def test_a_signal_beside_the_last_state_comes_too_late(submitted, work, monkeypatch, fails, code):
    run = submitted(epochs=0, callbacks=[])
    if fails:
        shutil.rmtree(run.folder / "data")
    step = Run.step

    def with_signal(self, before, status, details, **changes):
        if status is not Status.STARTED:
            _terminate_self()
        return step(self, before, status, details, **changes)

    monkeypatch.setattr(Run, "step", with_signal)
    assert work(run) == code
    assert run.state().status is (Status.FAILED if fails else Status.FINISHED)


@pytest.mark.slow
def test_killed_between_artifact_and_state_it_does_not_train_again(submitted, work, monkeypatch):
    """The checkpoint of the last epoch is there until the state says FINISHED."""
    run = submitted(**_SHORT)

    class Killed(BaseException):
        pass

    def killed(self, before, status, details, **changes):
        if status is Status.FINISHED:
            raise Killed
        return step(self, before, status, details, **changes)

    step = Run.step
    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", killed)
        with pytest.raises(Killed):
            work(run)
    assert run.artifact_path.exists()
    _interrupt(run)
    monkeypatch.setattr(Trainer, "_run_batch", None)
    assert work(run) == 0
    assert run.state().status is Status.FINISHED
    _check_steps(run)
    _check_clean(run)


def test_a_failure_is_told_in_state_and_log(submitted, work):
    run = submitted(epochs=0)
    shutil.rmtree(run.folder / "data")
    assert work(run) == 1
    assert run.state().status is Status.FAILED
    assert run.state().details.startswith("FileNotFoundError: ")
    assert "The run failed: FileNotFoundError" in run.read_log()[0]
    assert "Traceback" in run.read_log()[0]


def test_the_lines_that_a_checkpoint_counts_on_are_durable_before_it(submitted, work, monkeypatch):
    run = submitted(epochs=2, callbacks=[])
    synced, unsynced = [], []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_replace(source, target):
        if str(target).endswith(".pt"):
            if "steps.jsonl" not in synced:
                unsynced.append(target)
            synced.clear()
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", noted_fsync)
    monkeypatch.setattr(files.os, "replace", noted_replace)
    assert work(run) == Exit.FINISHED
    assert synced != []
    assert unsynced == []

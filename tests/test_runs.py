import dataclasses
import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetuner.config import CallbackConfig, RunConfig
from finetuner.data import from_rows, read_jsonl
from finetuner.errors import (
    ArtifactNotFound,
    ConfigError,
    ConflictError,
    ExperimentNotFoundError,
    ImpossibleStepError,
    RunCancelledError,
    RunChangedError,
    RunExistsError,
    RunFailedError,
    RunInProgressError,
    RunNotFoundError,
    RunPreparingError,
)
from finetuner.heartbeat import Heartbeat
from finetuner.holder import Life, life_of
from finetuner.run_metrics import append_metrics, read_metrics
from finetuner.run_store import RunStore
from finetuner.run_summary import record_of
from finetuner.states import Actor, Status

CONFIG = RunConfig(model="tiny", run_name="one", epochs=2, learning_rate=0.01)
DATA = {"train.jsonl": from_rows([["a", 1], ["b", 1]])}


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


@pytest.fixture
def run(store):
    return store.create(CONFIG, DATA)


def test_new_run_awaits_execution(run):
    assert run.state().answer() == {
        "status": "CREATED",
        "details": "Run submitted and awaits execution",
    }
    assert read_jsonl(run.folder / "data" / "train.jsonl") == DATA["train.jsonl"]
    record = record_of(run)
    assert len(record["artifact_id"]) == 24
    assert record["config"]["learning_rate"] == 0.01


def test_config_comes_back_as_it_was(store):
    callback = CallbackConfig("EvaluationCallback", {"query_data": "q.da", "limit": 7})
    config = dataclasses.replace(CONFIG, callbacks=(callback,), loss_options={"margin": 0.1})

    assert store.create(config, DATA).config() == config


def test_name_is_unique_in_its_experiment(store, run):
    with pytest.raises(RunExistsError, match="already has a run `one`"):
        store.create(CONFIG, DATA)
    other = store.create(dataclasses.replace(CONFIG, experiment_name="other"), DATA)
    assert [r.experiment_name for r in store.list()] == ["default", "other"]
    assert store.list("other") == [other]


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/b", "", ".hidden", "a\0b", "x" * 129])
def test_names_cannot_leave_the_store(store, name):
    with pytest.raises(ConfigError, match="is not allowed"):
        store.get(name)
    with pytest.raises(ConfigError, match="is not allowed"):
        store.get("one", name)
    with pytest.raises(ArtifactNotFound, match="no run and no artifact"):
        store.find_artifact(name)


def test_unknown_run_and_experiment(store):
    with pytest.raises(RunNotFoundError, match="no run `x` in experiment `default`"):
        store.get("x")
    with pytest.raises(ExperimentNotFoundError, match="no experiment `x`"):
        store.list("x")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.CREATED, RunInProgressError),
        (Status.STARTED, RunInProgressError),
        (Status.INTERRUPTED, RunInProgressError),
        (Status.FAILED, RunFailedError),
        (Status.CANCELLED, RunCancelledError),
    ],
)
def test_no_artifact_before_the_end(store, run, come_to, status, error):
    come_to(run, status)
    for call in (run.examples, lambda: store.find_artifact("one")):
        with pytest.raises(error, match="The run"):
            call()


def test_artifact_is_found_by_name_path_and_id(store, run, come_to):
    come_to(run, Status.FINISHED)
    for name in ("one", "default/one", run.spec()["artifact_id"]):
        assert store.find_artifact(name) == run.artifact_path


def test_logs_need_a_start(run):
    with pytest.raises(RunPreparingError, match="logs will be ready to pull when `status` is"):
        run.read_log()
    run.claim()
    assert run.read_log() == ("", 0)
    (run.folder / "log.txt").write_text("Done ✨\nmore\n", encoding="utf-8")
    assert run.read_log() == ("Done ✨\nmore\n", 14)  # ✨ is 3 bytes
    assert run.read_log(offset=9) == ("more\n", 14)
    for offset in (14, 15, 2**63 - 1):
        assert run.read_log(offset) == ("", offset)


def test_log_is_read_by_whole_characters_however_it_is_written(run):
    run.claim()
    log = "é ✨\n🚀 done\n"
    content = log.encode()
    read, offset = "", 0
    for n_written in range(len(content) + 1):
        (run.folder / "log.txt").write_bytes(content[:n_written])
        text, offset = run.read_log(offset)
        read += text
        assert read == content[:n_written].decode(errors="ignore")
        assert offset == len(read.encode())
    assert (read, offset) == (log, len(content))


def test_bytes_that_are_no_text_do_not_shift_the_offset(run):
    run.claim()
    (run.folder / "log.txt").write_bytes(b"a\xff\xe2\x9cb")
    assert run.read_log() == ("a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b", 5)


def test_a_deleted_run_is_not_found(store, run):
    store.delete(run)
    calls = (run.state, run.spec, run.read_log, run.metrics, run.claim)
    for call in (*calls, lambda: record_of(run)):
        with pytest.raises(RunNotFoundError, match="no run `one` in experiment `default`"):
            call()


def test_a_step_keeps_the_counts_that_it_is_not_told(run):
    claim = run.claim()
    state = run.step(claim, Status.INTERRUPTED, "b", actor=Actor.SERVICE, n_interruptions=1)
    found = run.state()
    assert found == state
    assert (found.n_starts, found.n_interruptions, found.holder) == (1, 1, "")
    assert run.claim().n_starts == 2
    assert [s.status for s in run.history()] == ["CREATED", "STARTED", "INTERRUPTED", "STARTED"]


def test_of_two_steps_from_one_state_one_is_refused(run):
    before = run.state()
    claim = run.claim()
    with pytest.raises(RunChangedError, match="run `one` is no longer CREATED; look at it again"):
        run.step(before, Status.CANCELLED, "", actor=Actor.SERVICE)
    run.step(claim, Status.INTERRUPTED, "taken for dead", actor=Actor.SERVICE)
    with pytest.raises(RunChangedError, match="no longer STARTED"):
        run.step(claim, Status.FINISHED, "", actor=Actor.WORKER)
    assert run.state().details == "taken for dead"


def test_a_run_is_claimed_once(run):
    run.claim()
    with pytest.raises(ImpossibleStepError, match="is STARTED cannot become STARTED by its worker"):
        run.claim()


def test_of_many_that_claim_at_once_one_gets_it(run):
    with ThreadPoolExecutor(16) as pool:
        claims = [pool.submit(run.claim) for _ in range(16)]
    errors = [claim.exception() for claim in claims]
    assert sum(error is None for error in errors) == 1
    lost = (RunChangedError, ImpossibleStepError)
    assert all(error is None or isinstance(error, lost) for error in errors)
    assert len(run.history()) == 2


def test_what_a_worker_says_is_shown_while_its_claim_holds(run):
    claim = run.claim()
    with Heartbeat(run.folder / "heartbeat.json", claim.number, look=lambda: None) as heartbeat:
        heartbeat.say("Epoch 1/5")
        assert run.state().details == "Epoch 1/5"
    run.step(claim, Status.INTERRUPTED, "gone", actor=Actor.SERVICE)
    assert run.state().details == "gone"
    run.claim()
    assert run.state().details == "Loading the model"


def test_a_run_of_version_0_1_0_goes_on(store, run):
    shutil.rmtree(run.folder / "states")
    old = {"status": "STARTED", "details": "at work", "n_starts": 2, "n_interruptions": 1}
    (run.folder / "state.json").write_text(json.dumps(old))
    state = run.state()
    assert (state.status, state.n_starts, state.n_interruptions) == (Status.STARTED, 2, 1)
    assert life_of(state.holder) is Life.DEAD
    run.step(state, Status.INTERRUPTED, "", actor=Actor.SERVICE)
    assert run.claim().n_starts == 3


def test_metrics_before_after_and_by_epoch(run):
    assert read_metrics(run.folder) == {
        "before": {},
        "after": {},
        "epochs": [],
        "verdicts": {},
    }
    append_metrics(run.folder, 0, {"hit_at_k": 0.5})
    assert read_metrics(run.folder)["after"] == {}
    append_metrics(run.folder, 1, {"hit_at_k": 0.75})
    found = read_metrics(run.folder)
    assert found["before"] == {"hit_at_k": 0.5}
    assert found["after"] == {"hit_at_k": 0.75}
    assert [line["epoch"] for line in found["epochs"]] == [0, 1]


def test_delete_removes_the_folder(store, run):
    store.delete(run)

    assert store.list() == []
    assert not run.folder.exists()


def test_experiments(store, run):
    store.create_experiment("second")
    assert [e["name"] for e in store.list_experiments()] == ["default", "second"]
    store.delete_experiment("second")
    assert [e["name"] for e in store.list_experiments()] == ["default"]
    with pytest.raises(ExperimentNotFoundError, match="no experiment `second`"):
        store.delete_experiment("second")


def test_an_experiment_with_a_run_is_not_removed(store, run):
    with pytest.raises(ConflictError, match="experiment `default` holds a run; delete its runs"):
        store.delete_experiment("default")
    assert store.list() == [run]
    store.delete(run)
    store.delete_experiment("default")
    assert store.list_experiments() == []


def test_of_two_that_delete_a_run_one_is_told(store, run):
    store.delete(run)
    with pytest.raises(RunNotFoundError, match="no run `one` in experiment `default`"):
        store.delete(run)


def test_a_volume_that_takes_no_new_name_is_not_a_taken_name(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left on device"):
        store.create(CONFIG, DATA)


def test_a_step_that_came_too_late_for_its_own_temporary_file(run, monkeypatch):
    """The worker that was quicker has removed it with other leftovers."""
    before = run.state()
    link = os.link

    def lose(source, target):
        monkeypatch.setattr(os, "link", link)
        run.claim()
        os.unlink(source)
        link(source, target)

    monkeypatch.setattr(os, "link", lose)
    with pytest.raises(RunChangedError, match="run `one` is no longer CREATED"):
        run.step(before, Status.CANCELLED, "", actor=Actor.SERVICE)


def test_a_step_whose_answer_was_lost_on_the_network_was_made(run, monkeypatch):
    """The system asks a second time, and the second answer is that the name is taken."""
    link = os.link

    def ask_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", ask_twice)
    assert run.claim() == run.state()
    assert [state.status for state in run.history()] == [Status.CREATED, Status.STARTED]


def test_listing_does_not_look_into_what_is_being_made_or_deleted(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    store.create(RunConfig(model="tiny", run_name="one"), {})
    (tmp_path / "runs" / ".new-gone").mkdir()
    scandir = os.scandir

    def scan(path="."):
        if Path(path).name.startswith("."):  # its maker was quicker
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert [run.name for run in store.list()] == ["one"]

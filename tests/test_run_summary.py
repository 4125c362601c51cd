import json
import os
import time

import pytest

from finetuner import run_summary
from finetuner.config import RunConfig
from finetuner.data import from_rows
from finetuner.errors import RunNotFoundError
from finetuner.heartbeat import Heartbeat
from finetuner.run_metrics import append_metrics, summarise_metric, worst_outcome
from finetuner.run_store import RunStore
from finetuner.run_summary import RunRecords, record_of
from finetuner.states import Actor, Status

DATA = {"train.jsonl": from_rows([["a", 1], ["b", 1]])}
EMPTY = {"progress": None, "position": None, "metric": None, "verdict": None}


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


@pytest.fixture
def run(store):
    return store.create(RunConfig(model="tiny", run_name="one"), DATA)


def _evaluate(run, *values, caption=""):
    for epoch, value in enumerate(values):
        append_metrics(run.folder, epoch, {f"{caption}average_precision": value, "other": 1.0})


def _judge(run, *outcomes):
    verdicts = {f"set {n}": {"outcome": outcome} for n, outcome in enumerate(outcomes)}
    (run.folder / "verdict.json").write_text(json.dumps(verdicts))


def _age(run, age_s=3600.0):
    at = time.time() - age_s
    os.utime(run.folder / "states", (at, at))


def test_a_new_run_has_nothing_to_show_yet(run):
    record = record_of(run)
    assert {key: record[key] for key in EMPTY} == EMPTY
    assert (record["status"], record["n_starts"]) == ("CREATED", 0)
    assert record["changed_at"] == record["created_at"]


def test_a_run_that_trains(run):
    claim = run.claim()
    assert record_of(run)["progress"] is None
    with Heartbeat(run.folder / "heartbeat.json", claim.number, look=lambda: None) as heartbeat:
        heartbeat.say("Epoch 1/5", {"epoch": 1})
        _evaluate(run, 0.5, 0.75)
        record = record_of(run)
    assert (record["details"], record["progress"]) == ("Epoch 1/5", {"epoch": 1})
    assert (record["n_starts"], record["changed_at"]) == (1, claim.at)
    assert record["metric"] == {
        "name": "average_precision",
        "before": 0.5,
        "after": 0.75,
        "best": 0.75,
        "best_epoch": 1,
    }


def test_numbers_of_an_earlier_claim_are_not_shown(run):
    claim = run.claim()
    with Heartbeat(run.folder / "heartbeat.json", claim.number, look=lambda: None) as heartbeat:
        heartbeat.say("Epoch 1/5", {"epoch": 1})
    run.step(claim, Status.INTERRUPTED, "gone", actor=Actor.SERVICE)
    assert record_of(run)["progress"] is None
    run.claim()
    record = record_of(run)
    assert (record["details"], record["progress"]) == ("Loading the model", None)
    assert record["n_starts"] == 2


@pytest.mark.parametrize(
    ("values", "after", "best", "best_epoch"),
    [
        ([0.5], 0.5, 0.5, 0),
        ([0.5, 0.4], 0.4, 0.4, 1),
        ([0.5, 0.6, 0.8, 0.7], 0.7, 0.8, 2),
        ([0.5, 0.8, 0.8], 0.8, 0.8, 1),
    ],
)
def test_the_best_epoch_and_the_last(run, values, after, best, best_epoch):
    _evaluate(run, *values)
    found = summarise_metric(run.folder)
    assert (found["before"], found["after"]) == (0.5, after)
    assert (found["best"], found["best_epoch"]) == (best, best_epoch)


def test_the_metric_is_of_the_first_evaluation(run):
    for epoch, (first, second) in enumerate([(0.1, 0.9), (0.2, 0.8)]):
        metrics = {"one_average_precision": first, "average_precision": second}
        append_metrics(run.folder, epoch, metrics)
    assert summarise_metric(run.folder) == {
        "name": "average_precision",
        "before": 0.1,
        "after": 0.2,
        "best": 0.2,
        "best_epoch": 1,
    }


@pytest.mark.parametrize(
    ("outcomes", "worst"),
    [
        (["improved"], "improved"),
        (["improved", "unchanged"], "unchanged"),
        (["improved", "REGRESSED", "unchanged"], "REGRESSED"),
        ([], None),
    ],
)
def test_the_worst_verdict_counts(run, outcomes, worst):
    _judge(run, *outcomes)
    assert worst_outcome(run.folder) == worst


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"epoch": 0, "metr',
        b"\0" * 64 + b"\n",
        b"[1]\n",
        b"null\n",
        b'{"epoch": 0}\n',
        b'{"epoch": 0, "metrics": {}}\n',
        b'{"epoch": 1, "metrics": {"average_precision": 0.5}}\n',
        b'{"epoch": 0, "metrics": {"average_precision": 1}}\n[]\n',
        b'{"epoch": 1, "metrics": {"average_precision": null}}\n' * 2,
    ],
)
def test_what_is_torn_or_something_else_breaks_no_list(run, content):
    run.claim()
    (run.folder / "metrics.jsonl").write_bytes(content)
    (run.folder / "verdict.json").write_bytes(content)
    record = record_of(run)
    assert (record["metric"], record["verdict"]) == (None, None)


@pytest.mark.parametrize("content", [b'{"a": {"outcome": "better"}}', b'{"a": 1}', b'{"a": {}}'])
def test_a_verdict_that_is_none_is_not_shown(run, content):
    (run.folder / "verdict.json").write_bytes(content)
    assert worst_outcome(run.folder) is None


@pytest.fixture
def records(monkeypatch):
    """Records that count how often files were read."""
    n_read = []
    monkeypatch.setattr(
        run_summary, "record_of", lambda run: n_read.append(run.name) or record_of(run)
    )
    found = RunRecords()
    found.n_read = n_read
    return found


def test_a_run_that_has_ended_is_read_once(records, run, come_to):
    come_to(run, Status.FINISHED)
    _evaluate(run, 0.5, 0.75)
    _judge(run, "improved")
    _age(run)
    first = records.get(run)
    first["position"] = 7  # of the caller alone
    assert records.get(run) == record_of(run)
    assert records.get(run)["verdict"] == "improved"
    assert records.n_read == ["one"]


def test_one_that_ended_a_moment_ago_is_read_again(records, run, come_to):
    """Another machine may not show all of its files yet."""
    come_to(run, Status.FINISHED)
    assert records.get(run)["verdict"] is None
    _judge(run, "improved")
    assert records.get(run)["verdict"] == "improved"
    assert records.n_read == ["one", "one"]


@pytest.mark.parametrize("status", [Status.CREATED, Status.STARTED, Status.INTERRUPTED])
def test_one_that_has_not_ended_is_read_each_time(records, run, come_to, status):
    come_to(run, status)
    for _ in range(2):
        _age(run)
        assert records.get(run)["status"] == status
    assert records.n_read == ["one", "one"]


def test_another_run_of_the_name_is_another(records, store, run, come_to):
    come_to(run, Status.FAILED, "first")
    _age(run)
    assert records.get(run)["details"] == "first"
    store.delete(run)
    with pytest.raises(RunNotFoundError, match="no run `one`"):
        records.get(run)
    again = store.create(RunConfig(model="tiny", run_name="one"), DATA)
    assert records.get(again)["status"] == "CREATED"


def test_only_so_many_are_kept(records, store, come_to, monkeypatch):
    monkeypatch.setattr(run_summary, "_MAX_KEPT", 2)
    for name in ("a", "b", "c"):
        run = store.create(RunConfig(model="tiny", run_name=name), DATA)
        come_to(run, Status.FINISHED)
        _age(run)
        records.get(run)
    for name in ("b", "c", "a", "b"):
        records.get(store.get(name))
    assert records.n_read == ["a", "b", "c", "a", "b"]

import shutil
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from finetuner.config import RunConfig
from finetuner.data import from_rows
from finetuner.errors import (
    ConfigError,
    FinetunerServerError,
    InsufficientSpaceError,
    RunExistsError,
    RunNotFoundError,
    RunPreparingError,
    UnavailableError,
)
from finetuner.run_api import RunAPI
from finetuner.run_metrics import append_metrics
from finetuner.run_store import RunStore
from finetuner.runs import STEPS_FILE, Run
from finetuner.states import Actor, Status
from finetuner.supervisor import Supervisor

NAME = {"run_name": "one"}


@pytest.fixture
def run(tmp_path):
    config = RunConfig(model="tiny", run_name="one")
    return RunStore(tmp_path).create(config, {"train.jsonl": from_rows([["a", 1], ["b", 1]])})


@pytest.fixture
def api(tmp_path):
    return RunAPI(tmp_path, Supervisor(tmp_path))


def test_log_goes_on_behind_a_half_written_character(api, run):
    claim = run.claim()
    log = run.folder / "log.txt"
    log.write_bytes("a✨".encode()[:-1])
    first = api.logs(NAME)
    assert first == {"text": "a", "offset": 1, "ended": False}
    log.write_bytes("a✨b".encode())
    run.step(claim, Status.FINISHED, "", actor=Actor.WORKER)
    assert api.logs({**NAME, "offset": first["offset"]}) == {
        "text": "✨b",
        "offset": 5,
        "ended": True,
    }


def test_log_before_the_start_and_from_a_wrong_offset(api, run):
    with pytest.raises(RunPreparingError, match="logs will be ready"):
        api.logs(NAME)
    with pytest.raises(ConfigError, match="offset must be at least 0, got -1"):
        api.logs({**NAME, "offset": -1})


FIT = {"train_data": [["a", 1], ["b", 1], ["c", 2], ["d", 2]], "run_name": "new", "device": "cpu"}


def test_fit_says_whether_it_has_made_the_run(api, tiny_model_folder):
    body = {**FIT, "model": str(tiny_model_folder)}
    first, again = api.fit(body), api.fit(body)
    assert (first.pop("is_new"), again.pop("is_new")) == (True, False)
    assert again == first == api.run({"run_name": "new"})


def test_only_what_looks_at_a_fit_request_waits_for_torch(api, tiny_model_folder):
    body = {**FIT, "model": str(tiny_model_folder)}
    with ThreadPoolExecutor() as pool:
        with api._loading:
            waiting = {pool.submit(api.fit, body), pool.submit(api.check, body)}
            assert not wait(waiting, timeout=0.2).done
            assert api.runs({})["items"] == []
        assert sorted(len(future.result()) > 1 for future in waiting) == [True, True]
    assert [run["name"] for run in api.runs({})["items"]] == ["new"]


def test_fit_refuses_another_request_of_the_name(api, tiny_model_folder):
    body = {**FIT, "model": str(tiny_model_folder)}
    api.fit(body)
    with pytest.raises(RunExistsError, match="epochs: 5 → 2\n  train_data: other texts\n"):
        api.fit({**body, "epochs": 2, "train_data": [["a", 1], ["b", 1], ["c", 2], ["e", 2]]})


def test_fit_respects_the_quota(tmp_path, tiny_model_folder):
    api = RunAPI(tmp_path, Supervisor(tmp_path), quota_bytes=1000)
    with pytest.raises(InsufficientSpaceError, match=r"run `new` needs about .* quota of 1\.0 kB"):
        api.fit({**FIT, "model": str(tiny_model_folder)})


def test_check_answers_for_fit_and_makes_nothing(api, tmp_path, tiny_model_folder):
    body = {**FIT, "model": str(tiny_model_folder)}
    before = sorted(tmp_path.rglob("*"))
    assert api.check(body)["problems"] == []
    (problem,) = api.check({**body, "epochs": -1})["problems"]
    assert problem == {"field": "epochs", "message": "epochs must be from 0 to 1000, got -1"}
    assert sorted(tmp_path.rglob("*")) == before


def test_metrics_are_there_while_the_run_trains(api, run):
    claim = run.claim()
    assert api.metrics(NAME) == {"before": {}, "after": {}, "epochs": [], "verdicts": {}}
    append_metrics(run.folder, 0, {"hit_at_k": 0.5})
    append_metrics(run.folder, 1, {"hit_at_k": 0.75})
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 2, "metr')  # killed in the middle of a line
    epochs = [{"epoch": n, "metrics": {"hit_at_k": value}} for n, value in enumerate((0.5, 0.75))]
    assert api.metrics(NAME)["epochs"] == epochs
    assert api.metrics(NAME)["after"] == {"hit_at_k": 0.75}
    assert api.epochs(NAME) == {"items": epochs, "offset": 2, "ended": False}
    run.step(claim, Status.FAILED, "", actor=Actor.WORKER)
    assert api.epochs({**NAME, "offset": 1}) == {"items": epochs[1:], "offset": 2, "ended": True}


def test_steps_come_in_pages(api, run):
    (run.folder / STEPS_FILE).write_bytes(b"".join(b"%d\n" % n for n in range(1500)))
    first = api.steps(NAME)
    assert (first["items"], first["offset"]) == (list(range(1000)), 1000)
    assert api.steps({**NAME, "offset": 1000.0})["items"] == list(range(1000, 1500))
    assert api.steps({**NAME, "offset": 7, "limit": 2})["items"] == [7, 8]
    for wrong in ({"limit": 0}, {"limit": 1001}):
        with pytest.raises(ConfigError, match="limit must be 1 to 1000, got"):
            api.steps({**NAME, **wrong})
    with pytest.raises(ConfigError, match="offset must be at least 0, got -1"):
        api.steps({**NAME, "offset": -1})
    with pytest.raises(RunNotFoundError, match="no run `two`"):
        api.steps({"run_name": "two"})


def test_a_run_deleted_since_it_was_listed_is_left_out(api, run, tmp_path, monkeypatch):
    gone = RunStore(tmp_path).create(RunConfig(model="tiny", run_name="gone"), {})
    monkeypatch.setattr(api._store, "list", lambda _name: [run, gone])
    RunStore(tmp_path).delete(gone)
    assert [item["name"] for item in api.runs({})["items"]] == ["one"]
    assert [item["name"] for item in api.delete({})["items"]] == ["one"]


def test_runs_come_oldest_or_newest_first(api, tmp_path):
    for name in ("a", "b", "c"):
        RunStore(tmp_path).create(RunConfig(model="tiny", run_name=name), {})

    def names(**parameters):
        return [item["name"] for item in api.runs(parameters)["items"]]

    assert names() == names(order="oldest") == ["a", "b", "c"]
    assert names(order="newest") == ["c", "b", "a"]
    assert names(order="newest", page=2.0, size=2.0) == ["a"]
    assert names() == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="order must be one of oldest, newest; got `new`"):
        names(order="new")


def test_waiting_runs_show_their_place_in_the_queue(tmp_path, come_to):
    supervisor = Supervisor(tmp_path)
    api, store = RunAPI(tmp_path, supervisor), RunStore(tmp_path)
    for name, priority in (("low", 0), ("high", 1), ("ended", 2)):
        store.create(RunConfig(model="tiny", run_name=name, priority=priority), {})
    come_to(store.get("ended"), Status.FINISHED)
    assert {item["position"] for item in api.runs({})["items"]} == {None}  # not looked at yet
    supervisor._queue.refresh()
    places = {item["name"]: item["position"] for item in api.runs({})["items"]}
    assert places == {"low": 2, "high": 1, "ended": None}
    assert api.run({"run_name": "low"})["position"] == 2
    supervisor._queue.remove(store.get("high"))
    assert api.run({"run_name": "low"})["position"] == 1


def test_a_damaged_run_does_not_break_the_list(api, run, tmp_path, monkeypatch, caplog):
    damaged = RunStore(tmp_path).create(RunConfig(model="tiny", run_name="damaged"), {})
    assert api.runs({})["total"] == 2
    (damaged.folder / "spec.json").write_bytes(b"\0" * 100)
    assert [item["name"] for item in api.runs({})["items"]] == ["one"]
    assert "spec.json of run `damaged`" in caplog.text


@pytest.mark.parametrize("returns", [False, True])
def test_a_volume_that_goes_away_during_a_deletion_is_no_deletion(
    api, run, tmp_path, monkeypatch, returns
):
    ask_to_cancel = Run.ask_to_cancel

    def away(self):
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        try:
            ask_to_cancel(self)
        finally:
            if returns:
                (tmp_path / "elsewhere").rename(tmp_path / "runs")

    monkeypatch.setattr(Run, "ask_to_cancel", away)
    with pytest.raises(UnavailableError, match="the volume (is|was) away"):
        api.delete(NAME)


def test_deleting_what_another_request_deletes_meanwhile_is_done(api, run, monkeypatch):
    ask_to_cancel = Run.ask_to_cancel

    def quicker(self):
        shutil.rmtree(self.folder)
        ask_to_cancel(self)

    monkeypatch.setattr(Run, "ask_to_cancel", quicker)
    assert [item["name"] for item in api.delete(NAME)["items"]] == ["one"]


def test_the_map_of_a_run(api, run):
    assert api.map(NAME) == {"evaluations": {}}
    (run.folder / "map.json").write_bytes(b'{"evaluations": {"model": {"n_texts": 2}}}')
    assert api.map(NAME) == {"evaluations": {"model": {"n_texts": 2}}}
    (run.folder / "map.json").write_bytes(b'{"evaluations')
    with pytest.raises(FinetunerServerError, match="file map.json of run `one` is damaged"):
        api.map(NAME)
    with pytest.raises(RunNotFoundError, match="no run `two`"):
        api.map({"run_name": "two"})

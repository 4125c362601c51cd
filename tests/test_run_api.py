import pytest

from finetuner.config import RunConfig
from finetuner.data import from_rows
from finetuner.errors import (
    ConfigError,
    InsufficientSpaceError,
    RunExistsError,
    RunPreparingError,
)
from finetuner.run_api import RunAPI
from finetuner.run_store import RunStore
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


def test_fit_refuses_another_request_of_the_name(api, tiny_model_folder):
    body = {**FIT, "model": str(tiny_model_folder)}
    api.fit(body)
    with pytest.raises(RunExistsError, match="epochs: 5 → 2\n  train_data: other texts\n"):
        api.fit({**body, "epochs": 2, "train_data": [["a", 1], ["b", 1], ["c", 2], ["e", 2]]})


def test_fit_respects_the_quota(tmp_path, tiny_model_folder):
    api = RunAPI(tmp_path, Supervisor(tmp_path), quota_bytes=1000)
    with pytest.raises(InsufficientSpaceError, match=r"run `new` needs about .* quota of 1\.0 kB"):
        api.fit({**FIT, "model": str(tiny_model_folder)})

"""A volume that is full, read-only or away: nothing is taken for lost, and no run fails by it."""

import errno
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from finetuner import worker
from finetuner.config import RunConfig
from finetuner.data import from_rows
from finetuner.errors import RunNotFoundError, UnavailableError
from finetuner.exits import Exit
from finetuner.files import volume_trouble
from finetuner.http_messages import add_error_handlers
from finetuner.run_api import RunAPI
from finetuner.run_store import RunStore
from finetuner.states import Status
from finetuner.supervisor import Supervisor

ONE = {"run_name": "one"}


@pytest.fixture
def run(tmp_path):
    config = RunConfig(model="tiny", run_name="one")
    return RunStore(tmp_path).create(config, {"train.jsonl": from_rows([["a", 1], ["b", 1]])})


@pytest.fixture
def work_on(run):
    """The worker's main with work of the test's own, in this process, which gets its signals and log back."""
    logger = logging.getLogger("finetuner")
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    propagate, level = logger.propagate, logger.level
    yield lambda do: worker.main(str(run.folder), lambda *_: do())
    logger.propagate = propagate
    logger.setLevel(level)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "ask",
    [
        lambda api: api.runs({}),
        lambda api: api.run(ONE),
        lambda api: api.status(ONE),
        lambda api: api.logs(ONE),
        lambda api: api.cancel(ONE),
        lambda api: api.delete(ONE),
        lambda api: api.delete({}),
        lambda api: api.fit({"model": "tiny"}),
        lambda api: api.experiments({}),
        lambda api: api.experiment({"experiment_name": "default"}),
        lambda api: api.create_experiment({"experiment_name": "new"}),
        lambda api: api.delete_experiment({"experiment_name": "default"}),
    ],
    ids="runs run status logs cancel delete delete-all fit experiments experiment create drop".split(),
)
def test_a_volume_that_is_away_is_no_empty_one(tmp_path, run, ask):
    api = RunAPI(tmp_path, Supervisor(tmp_path))
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError, match="the volume is away"):
        ask(api)
    assert not (tmp_path / "runs").exists()

    (tmp_path / "elsewhere").rename(tmp_path / "runs")
    assert [item["name"] for item in api.runs({})["items"]] == ["one"]


def test_the_folder_of_runs_is_there_from_the_start(tmp_path):
    assert RunAPI(tmp_path / "new", Supervisor(tmp_path / "new")).runs({})["items"] == []


def _missing(path):
    return FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))


def test_a_worker_whose_folder_vanishes_and_comes_back_is_interrupted(run, work_on):
    def do():
        raise _missing(run.folder / "steps.jsonl")

    assert work_on(do) == Exit.VOLUME
    assert run.state().status is Status.INTERRUPTED
    assert run.state().details.startswith("The volume cannot be written (FileNotFoundError")


def test_a_worker_that_does_not_find_its_run_any_more_is_interrupted(run, work_on):
    def do():
        raise RunNotFoundError("no run `one`")

    assert work_on(do) == Exit.VOLUME
    assert run.state().status is Status.INTERRUPTED


def test_a_worker_whose_run_is_deleted_ends_without_a_word(run, work_on):
    def do():
        shutil.rmtree(run.folder)
        raise _missing(run.folder / "steps.jsonl")

    assert work_on(do) == Exit.TAKEN
    assert not run.folder.exists()


def test_another_file_that_is_missing_fails_the_run(run, work_on):
    def do():
        raise _missing("/somewhere/else")

    assert work_on(do) == Exit.FAILED
    assert run.state().details.startswith("FileNotFoundError: ")


def test_what_keeps_the_runs_from_being_looked_after_is_logged_once(tmp_path, caplog):
    supervisor = Supervisor(tmp_path)
    caplog.set_level(logging.ERROR, logger="finetuner.supervisor")
    for name in "abc":
        supervisor._tell(OSError(errno.EROFS, "Read-only file system", f"/runs/.{name}"))
    supervisor._tell(OSError(errno.ENOSPC, "No space left on device"))
    assert [record.args[0].errno for record in caplog.records] == [errno.EROFS, errno.ENOSPC]


def test_a_full_disk_is_not_taken_for_a_name_that_is_taken(tmp_path, monkeypatch):
    def rename(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space left on device"):
        RunStore(tmp_path).create(RunConfig(model="tiny", run_name="one"), {})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_clients_are_told_what_the_volume_cannot_do(number):
    told = volume_trouble(OSError(number, os.strerror(number), "/a/path/of/the/server"))
    assert isinstance(told, UnavailableError)
    assert f"cannot be used now ({os.strerror(number)})" in str(told)
    assert "/a/path" not in str(told)


def test_other_errors_are_no_trouble_of_the_volume():
    assert volume_trouble(ProcessLookupError(errno.ESRCH, "gone")) is None
    assert volume_trouble(UnavailableError("the encoder does not answer")) is None


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 503), (errno.ESRCH, 500)])
def test_a_route_that_the_volume_fails_says_so(number, status):
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    def fail():
        raise OSError(number, os.strerror(number), "/a/path/of/the/server")

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert answer.status_code == status
    assert "/a/path" not in answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)

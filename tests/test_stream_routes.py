"""Following over HTTP, without a Flow: it asks no executor."""

import pytest
from fastapi.testclient import TestClient

from finetuner.config import RunConfig
from finetuner.http_api import build_app
from finetuner.run_metrics import METRICS_FILE, append_metrics
from finetuner.run_store import RunStore
from finetuner.runs import LOG_FILE, STEPS_FILE
from finetuner.states import Status


async def no_executor(endpoint, _docs, _parameters):
    raise AssertionError(f"{endpoint} was asked")


@pytest.fixture
def run(come_to, tmp_path):
    run = RunStore(tmp_path).create(RunConfig(model="tiny", run_name="r"), {})
    (run.folder / LOG_FILE).write_text("a ✨\nb\n", encoding="utf-8")
    append_metrics(run.folder, 0, {"hit_at_k": 0.5})
    (run.folder / STEPS_FILE).write_bytes(b'{"n":1}\n{"n":2}\n{"n"')
    come_to(run, Status.FINISHED, "")
    return run


@pytest.fixture
def client(tmp_path):
    return TestClient(build_app(no_executor, tmp_path))


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("logs?follow=true", "text/plain; charset=utf-8", "a ✨\nb\n".encode()),
        ("logs?follow=TRUE&offset=4", "text/plain; charset=utf-8", b"\xa8\nb\n"),
        ("logs?follow=1&offset=8", "text/plain; charset=utf-8", b""),
        ("steps?follow=true", "application/x-ndjson", b'{"n":1}\n{"n":2}\n'),
        ("steps?follow=true&offset=1", "application/x-ndjson", b'{"n":2}\n'),
        ("epochs?follow=true&offset=1", "application/x-ndjson", b""),
    ],
)
def test_a_run_that_has_ended_is_given_to_its_end(client, run, path, kind, expected):
    answer = client.get(f"/runs/r/{path}")
    assert (answer.status_code, answer.content) == (200, expected)
    assert answer.headers["Content-Type"] == kind
    assert answer.headers["Run-Ended"] == "true"
    assert answer.headers["Run-Id"] == run.spec()["artifact_id"]


def test_evaluations_are_followed_as_they_were_written(client, run):
    expected = (run.folder / METRICS_FILE).read_bytes()
    assert client.get("/runs/r/epochs?follow=1").content == expected


@pytest.mark.parametrize("view", ["logs", "steps", "epochs"])
@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        ("/runs/x/{}?follow=true", 404, "RunNotFoundError"),
        ("/runs/r/{}?follow=true&experiment_name=x", 404, "RunNotFoundError"),
        ("/runs/..%2Fr/{}?follow=true", 404, "EndpointNotFoundError"),
        ("/runs/.r/{}?follow=true", 422, "ConfigError"),
        ("/runs/r/{}?follow=true&experiment_name=..", 422, "ConfigError"),
    ],
)
def test_what_is_not_there_is_not_followed(client, run, view, path, status, name):
    answer = client.get(path.format(view))
    assert (answer.status_code, answer.json()["error"]) == (status, name)

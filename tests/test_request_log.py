"""A line and an id for each request over HTTP; tests/flows/test_json_logs.py has gRPC and a real Flow."""

import logging
import re

import pytest
from fastapi.testclient import TestClient

from finetuner.access import Scope, TokenStore
from finetuner.config import RunConfig
from finetuner.errors import RunNotFoundError
from finetuner.http_api import build_app
from finetuner.request_log import new_id
from finetuner.run_store import RunStore
from finetuner.runs import LOG_FILE
from finetuner.states import Status
from finetuner.wire import json_document


async def call(endpoint, _docs, parameters):
    if parameters.get("run_name") == "gone":
        raise RunNotFoundError("no run")
    if parameters.get("run_name") == "broken":
        raise ZeroDivisionError("broken")
    return json_document({"name": "r", "tokens": []})


@pytest.fixture
def client(tmp_path):
    with TestClient(build_app(call, tmp_path), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def lines(caplog):
    """What the requests so far have written, without how long they took."""
    caplog.set_level(logging.INFO, "finetuner.request_log")

    def read():
        found = [r.fields for r in caplog.records if r.name == "finetuner.request_log"]
        assert all(0 <= line["took_s"] < 60 for line in found)
        return [tuple(line[n] for n in ("method", "route", "status", "caller")) for line in found]

    return read


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/runs/my-run", ("GET", "/runs/{run_name}", 200)),
        ("GET", "/runs/gone", ("GET", "/runs/{run_name}", 404)),
        ("GET", "/runs/broken", ("GET", "/runs/{run_name}", 500)),
        ("GET", "/runs/my-run/secret", ("GET", "unknown", 404)),
        ("PATCH", "/runs", ("PATCH", "/runs", 405)),
        ("HEAD", "/", ("HEAD", "/", 200)),
        ("GET", "/runs?page=x&secret=1", ("GET", "/runs", 422)),
    ],
)
def test_each_request_is_a_line(client, lines, method, path, expected):
    answer = client.request(method, path)
    assert answer.status_code == expected[-1]
    assert [line[:3] for line in lines()] == [expected]
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [("abc-1.2_3:4", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("", False)],
)
@pytest.mark.parametrize("path", ["/livez", "/runs/broken", "/nothing"])
def test_an_id_is_kept_or_given(client, path, given, is_taken):
    found = client.get(path, headers={"X-Request-ID": given}).headers.get_list("X-Request-ID")
    assert len(found) == 1
    assert (found[0] == given) == is_taken
    assert new_id(found[0]) == found[0]


@pytest.mark.parametrize("given", [None, "a\nb", "é", "a\n", '"', "{}"])
def test_no_id_breaks_a_line_or_a_header(given):
    assert re.fullmatch("[0-9a-f]{16}", new_id(given))


def test_the_caller_is_named_and_neither_token_nor_texts(client, lines, caplog, tmp_path):
    secret = TokenStore(tmp_path).create("laptop", [Scope.ENCODE])
    headers = {"Authorization": f"Bearer {secret}"}
    client.post("/tokenize", json={"texts": ["a private text"]}, headers=headers)
    client.post("/tokenize", json={"texts": ["a private text"]})
    client.get("/livez", headers=headers)
    assert lines() == [
        ("POST", "/tokenize", 200, "laptop"),
        ("POST", "/tokenize", 401, "anonymous"),
        ("GET", "/livez", 200, "anonymous"),
    ]
    told = str([record.__dict__ for record in caplog.records])
    assert secret not in told
    assert "a private text" not in told


def test_a_stream_is_a_line_at_its_end(client, lines, come_to, tmp_path):
    run = RunStore(tmp_path).create(RunConfig(model="tiny", run_name="r"), {})
    (run.folder / LOG_FILE).write_text("a\n")
    come_to(run, Status.FINISHED, "")
    assert client.get("/runs/r/logs?follow=true").text == "a\n"
    assert lines() == [("GET", "/runs/{run_name}/logs", 200, "anonymous")]

"""The file of deeds: whole lines, durable, from several processes, and never in the way of an answer."""

import asyncio
import multiprocessing
import os
import re
import stat
from contextlib import suppress
from datetime import UTC, datetime

import orjson
import pytest
from docarray import DocumentArray
from fastapi.testclient import TestClient

from finetuner import grpc_access
from finetuner.access import ALL_SCOPES, Scope, TokenStore
from finetuner.audit import AUDIT_FILE, Action, AuditLog, Deed, target_of
from finetuner.errors import AliasNotFoundError, ConfigError
from finetuner.flow_calls import request_for
from finetuner.gatekeeper import Caller, Gatekeeper
from finetuner.grpc_access import GuardedCall
from finetuner.http_api import build_app
from finetuner.wire import json_document

N_WRITERS, N_LINES = 4, 50


def lines(volume):
    return [orjson.loads(line) for line in (volume / AUDIT_FILE).read_bytes().splitlines()]


def deed(target="default/r", who="laptop"):
    return Deed(who, "127.0.0.1", Action.SUBMITTED, target, 201)


def test_a_line_says_who_did_what_to_what_when_and_how_it_ended(tmp_path):
    AuditLog(tmp_path).append(deed())
    (line,) = lines(tmp_path)
    age = datetime.now(UTC) - datetime.fromisoformat(line.pop("at"))
    assert 0 <= age.total_seconds() < 60
    assert line == {
        "who": "laptop",
        "address": "127.0.0.1",
        "action": "submitted a run",
        "target": "default/r",
        "status": 201,
    }
    assert stat.S_IMODE((tmp_path / AUDIT_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("target", ["a\nb", "\ud800", 'x"}\n{"who": "root', "x" * 10_000, "\x00"])
def test_no_name_makes_a_second_line(tmp_path, target):
    AuditLog(tmp_path).append(deed(target))
    AuditLog(tmp_path).append(deed())
    assert [line["who"] for line in lines(tmp_path)] == ["laptop", "laptop"]
    assert len(lines(tmp_path)[0]["target"]) <= 310


def _write_many(volume, number):
    log = AuditLog(volume)
    for i in range(N_LINES):
        log.append(deed(target=f"{number}-{i}-" + "x" * 250))


def test_writers_at_once_never_mix(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, i)) for i in range(N_WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    targets = {line["target"].rpartition("-")[0] for line in lines(tmp_path)}
    assert targets == {f"{i}-{j}" for i in range(N_WRITERS) for j in range(N_LINES)}


def test_each_line_is_one_write_and_on_disk_before_the_answer(tmp_path, monkeypatch):
    calls = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append("write") or write(fd, data))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    AuditLog(tmp_path).append(deed())
    assert calls == ["write", "fsync"]


def test_what_cannot_be_written_is_logged_and_no_error(tmp_path, caplog):
    (tmp_path / AUDIT_FILE).mkdir()
    AuditLog(tmp_path).append(deed())
    assert re.search(r"not written to .*audit\.jsonl .*: .*submitted a run", caplog.text)


@pytest.mark.parametrize(
    ("parameters", "target"),
    [
        ({"run_name": "r"}, "default/r"),
        ({"run_name": "r", "experiment_name": "e"}, "e/r"),
        ({"experiment_name": "e"}, "e"),
        ({"name": "quora.da"}, "quora.da"),
        ({"name": "prod", "run": "e/r"}, "prod -> e/r"),
        ({}, "all"),
    ],
)
def test_targets(parameters, target):
    assert target_of(parameters) == target


# Over HTTP.

RECORD = {"name": "made-up", "experiment_name": "default", "items": [], "is_new": True}


async def call(endpoint, _docs, parameters):
    if parameters.get("name") == "missing":
        raise AliasNotFoundError("no alias `missing`")
    if parameters.get("run_name") == "..":
        raise ConfigError("the run name `..` is not allowed")
    return json_document(RECORD)


@pytest.fixture
def client(tmp_path):
    with TestClient(build_app(call, tmp_path)) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/fit", {"model": "m"}, ("submitted a run", "default/made-up", 201)),
        ("POST", "/runs/r/cancel", None, ("cancelled a run", "default/r", 200)),
        ("DELETE", "/runs/r", None, ("deleted runs", "default/r", 200)),
        ("DELETE", "/runs/r?experiment_name=e", None, ("deleted runs", "e/r", 200)),
        ("DELETE", "/runs/..%2e", None, ("deleted runs", "default/...", 200)),
        ("DELETE", "/runs", None, ("deleted runs", "all", 200)),
        ("DELETE", "/runs?experiment_name=e", None, ("deleted runs", "e", 200)),
        ("PUT", "/experiments/e", None, ("created an experiment", "e", 200)),
        ("DELETE", "/experiments/e", None, ("deleted an experiment", "e", 200)),
        ("PUT", "/aliases/prod", {"run": "r"}, ("pointed an alias", "prod -> r", 200)),
        ("PUT", "/aliases/missing", {"run": "r"}, ("pointed an alias", "missing -> r", 404)),
        ("POST", "/aliases/prod/rollback", None, ("rolled an alias back", "prod", 200)),
        ("DELETE", "/aliases/prod", None, ("deleted an alias", "prod", 200)),
        ("POST", "/fit", [], ("submitted a run", "all", 400)),
    ],
)
def test_deeds_are_written_with_their_outcome(client, tmp_path, method, path, body, expected):
    secret = TokenStore(tmp_path).create("laptop", [Scope.ADMIN])
    client.request(method, path, json=body, headers={"Authorization": f"Bearer {secret}"})
    (line,) = lines(tmp_path)
    assert (line["action"], line["target"], line["status"]) == expected
    assert (line["who"], line["address"]) == ("laptop", "testclient")


def test_data_is_written_by_its_name(client, tmp_path):
    content = DocumentArray.empty(1).to_bytes(protocol="protobuf", compress="gzip")
    client.post("/v2/rpc/artifact.upload", files={"file": ("f", content)}, data={"name": "a.da"})
    client.post("/v2/rpc/artifact.delete", files={"name": (None, "a.da")})
    client.post("/v2/rpc/artifact.delete", files={"name": (None, "a.da")})
    found = [(line["action"], line["target"], line["status"]) for line in lines(tmp_path)]
    assert found == [
        ("pushed data", "a.da", 200),
        ("deleted data", "a.da", 200),
        ("deleted data", "a.da", 404),
    ]


def test_refused_deeds_and_failed_logins_are_written_and_reads_are_not(client, tmp_path):
    client.delete("/runs/r")
    secret = TokenStore(tmp_path).create("reader", [Scope.READ])
    assert client.get("/runs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert (
        client.delete("/runs/r", headers={"Authorization": f"Bearer {secret}"}).status_code == 403
    )
    assert client.get("/runs", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/runs").status_code == 401
    found = [(line["who"], line["action"], line["status"]) for line in lines(tmp_path)]
    assert found == [
        ("anonymous", "deleted runs", 200),
        ("reader", "deleted runs", 403),
        ("anonymous", "failed to log in", 401),
    ]


def test_a_volume_that_cannot_be_written_answers_as_ever(client, tmp_path, caplog):
    secret = TokenStore(tmp_path).create("laptop", [Scope.FIT])
    (tmp_path / AUDIT_FILE).mkdir()
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/runs", headers=headers).status_code == 200
    assert client.get("/runs", headers={"Authorization": "Bearer x"}).status_code == 401
    assert client.delete("/runs/r", headers=headers).status_code == 200
    assert caplog.text.count("not written to") == 2
    assert secret not in caplog.text


def test_the_deed_is_on_disk_before_the_client_knows(tmp_path):
    """Who reads the answer can rely on the line."""
    sent = []

    async def send(message):
        sent.append((message["type"], len(lines(tmp_path))))

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "DELETE",
        "path": "/runs/r",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
    }
    app = build_app(call, tmp_path, gatekeeper=Gatekeeper(tmp_path))
    asyncio.run(app(scope, receive, send))
    assert sent[0] == ("http.response.start", 1)


def test_a_deed_that_ends_in_an_internal_error_is_written(tmp_path):
    async def failing(_endpoint, _docs, _parameters):
        raise RuntimeError("unforeseen")

    with TestClient(build_app(failing, tmp_path), raise_server_exceptions=False) as client:
        assert client.delete("/runs/r").status_code == 500
    assert [(line["target"], line["status"]) for line in lines(tmp_path)] == [("default/r", 500)]


# Over gRPC; tests/flows/test_security.py has a real Flow.


def request_for_deletion(run_name, request_id="1"):
    request = request_for("/delete", None, {"run_name": run_name})
    request.header.request_id = request_id
    return request


def test_who_hangs_up_before_the_answer_is_written_down_too(tmp_path):
    """Also when a client gives two requests one identity, which would let one hide the other."""

    async def hang_up():
        grpc_access._caller.set(Caller("laptop", "127.0.0.1", ALL_SCOPES))
        with suppress(asyncio.CancelledError):
            async with GuardedCall(Gatekeeper(tmp_path)) as call:
                for name in ("a", "b", "c"):
                    assert await call.refusal(request_for_deletion(name), {"/delete"}) is None
                response = request_for_deletion("a")
                await call.answered(response)
                raise asyncio.CancelledError

    asyncio.run(hang_up())
    found = [(line["target"], line["status"]) for line in lines(tmp_path)]
    assert found == [("default/a", 200), ("default/b", 499), ("default/c", 499)]


def test_a_call_that_came_past_the_interceptor_is_refused(tmp_path):
    async def ask():
        async with GuardedCall(Gatekeeper(tmp_path)) as call:
            return await call.refusal(request_for_deletion("a"), {"/delete"})

    answer = asyncio.run(ask())
    assert answer.header.status.exception.name == "AuthenticationRequiredError"
    assert not (tmp_path / AUDIT_FILE).exists()

"""Slow and endless clients against uvicorn with our protocol and short times."""

import asyncio
import json
import resource
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Request

from finetuner.connections import BoundedProtocol, ConnectionLimits, allow_many_files
from finetuner.http_messages import add_error_handlers, read_body

pytestmark = pytest.mark.slow

HEAD = b"POST /echo HTTP/1.1\r\nhost: x\r\n"


def application():
    app = FastAPI()
    add_error_handlers(app)

    @app.post("/echo")
    async def echo(request: Request):
        return await read_body(request)

    @app.post("/slow")
    async def slow(request: Request):
        await asyncio.sleep(1.0)
        return await read_body(request)

    @app.post("/early")
    async def early():
        return {}

    return app


@contextmanager
def serving(limits):
    protocol = type("Protocol", (BoundedProtocol,), {"limits": limits})
    config = uvicorn.Config(
        application(),
        port=0,
        http=protocol,
        ws="none",
        log_level="error",
        lifespan="off",
        timeout_keep_alive=1,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


SHORT = ConnectionLimits(
    head_timeout_s=0.5,
    body_timeout_s=0.5,
    body_rate=2000.0,
    head_bytes=4096,
    unread_bytes=100_000,
)


@pytest.fixture(scope="module")
def port():
    with serving(SHORT) as port:
        yield port


def talk(port, *parts, pause_s=0.0, limit_s=10.0):
    """Send parts with pauses until the server closes; return what it said and after how long."""

    async def client():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        started = time.monotonic()
        answer = asyncio.create_task(reader.read())
        try:
            for part in parts:
                if answer.done():
                    break
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
            said = await asyncio.wait_for(answer, limit_s)
        # uvloop raises the second when it is closed already.
        except (ConnectionError, RuntimeError):
            said = b""
        finally:
            writer.close()
        return said, time.monotonic() - started

    return asyncio.run(client())


def body_of(said):
    return json.loads(said.partition(b"\r\n\r\n")[2])


def with_length(body, *, length=None):
    return HEAD + b"content-length: %d\r\n\r\n" % (length or len(body)) + body


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([HEAD], id="half a head"),
        pytest.param([bytes([b]) for b in HEAD * 4], id="a byte at a time"),
    ],
)
def test_a_slow_head_is_refused(port, parts):
    said, took_s = talk(port, *parts, pause_s=0.05)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert body_of(said) == {
        "error": "SlowRequestError",
        "detail": "the request's headers did not arrive within 0.5 s",
    }
    assert 0.4 < took_s < 3


@pytest.mark.parametrize(
    ("parts", "start"),
    [
        pytest.param([], b"", id="silence"),
        pytest.param([b"\r\n"] * 40, b"HTTP/1.1 408 ", id="empty lines"),
    ],
)
def test_who_asks_nothing_is_closed(port, parts, start):
    said, took_s = talk(port, *parts, pause_s=0.05)
    assert said[:13] == start
    assert 0.4 < took_s < 3


def test_silence_behind_an_answer_ends_too(port):
    said, took_s = talk(port, with_length(b"{}"), *[b"\r\n"] * 60, pause_s=0.05)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert took_s < 3


def test_a_slow_body_is_refused(port):
    said, took_s = talk(port, with_length(b"{", length=1000), *[b" "] * 60, pause_s=0.05)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert "did not arrive within 0.5 s and its length by 2000 bytes" in body_of(said)["detail"]
    assert 0.4 < took_s < 3


def test_a_slow_chunked_body_is_refused(port):
    start = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    said, took_s = talk(port, start, *[b"1\r\n \r\n"] * 60, pause_s=0.05)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert took_s < 3


def test_a_long_body_has_the_time_of_its_length(port):
    parts = [b" " * 400] * 10  # 1 s in all, at twice the least rate
    said, took_s = talk(
        port,
        HEAD + b"connection: close\r\ncontent-length: 4002\r\n\r\n{}",
        *parts,
        pause_s=0.1,
    )
    assert said.startswith(b"HTTP/1.1 200 ")
    assert took_s > 0.9


def test_a_slow_answer_is_not_the_clients_fault(port):
    request = with_length(b"{}").replace(b"/echo", b"/slow")
    for extra in (b"", b"\r\n"):
        said, _ = talk(port, request + extra, limit_s=20)
        assert said.startswith(b"HTTP/1.1 200 ")


def test_who_waits_to_be_asked_for_the_body_is_not_slow(port):
    head = HEAD.replace(b"/echo", b"/slow")
    head += b"expect: 100-continue\r\nconnection: close\r\ncontent-length: 2\r\n\r\n"

    async def client():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"{}")
        return asked + await reader.read()

    said = asyncio.run(client())
    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("part", "start"),
    [
        pytest.param(b"a: " + b"b" * 500 + b"\r\n", HEAD, id="many headers"),
        pytest.param(b"b" * 500, HEAD + b"a: ", id="one header"),
        pytest.param(b"b" * 500, b"GET /", id="path"),
        pytest.param(
            b"a: " + b"b" * 500 + b"\r\n",
            HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n",
            id="trailers",
        ),
        pytest.param(
            b"b" * 500, HEAD + b"transfer-encoding: chunked\r\n\r\n1;", id="chunk extension"
        ),
    ],
)
def test_an_endless_head_is_refused(port, part, start):
    said, took_s = talk(port, start + part * 20)
    assert said.startswith(b"HTTP/1.1 431 ")
    assert body_of(said)["detail"] == "the request's headers are longer than 4096 bytes"
    assert took_s < 0.4


def test_a_body_that_nobody_reads_has_an_end(port):
    start = HEAD.replace(b"/echo", b"/early") + b"content-length: 100000000\r\n\r\n"
    _, took_s = talk(port, start, *[b" " * 10_000] * 1000, pause_s=0.001)
    assert took_s < 5


def test_connections_beyond_the_limit_are_closed():
    limits = ConnectionLimits(share_of_files=0.0)
    with serving(limits) as port:
        said, took_s = talk(port, with_length(b"{}"))
    assert said == b""
    assert took_s < 2


def test_requests_follow_each_other_on_one_connection(port):
    request = with_length(b'{"a": 1}')
    said, _ = talk(port, request, request, request, pause_s=0.1)
    assert said.count(b'{"a":1}') == 3


@pytest.mark.parametrize(
    ("soft", "hard", "raised_to", "n_connections"),
    [
        (1024, 4096, 4096, 768),
        (1024, resource.RLIM_INFINITY, 65536, 768),
        (70_000, 80_000, None, 52_500),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 49_152),
    ],
)
def test_connections_leave_files_to_others(monkeypatch, soft, hard, raised_to, n_connections):
    raised = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    allow_many_files()
    assert raised == ([] if raised_to is None else [(raised_to, hard)])
    assert ConnectionLimits().n_connections == n_connections

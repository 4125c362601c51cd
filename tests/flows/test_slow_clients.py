"""Clients that send slowly, too much, or nonsense, and a client beside them that is served as ever."""

import asyncio
import os
import pickle
import socket
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from docarray import Document, DocumentArray
from jina import Client
from jina.proto.jina_pb2 import DataRequestProto
from jina.types.request.data import DataRequest

from finetuner.http_messages import MAX_BODY_BYTES

pytestmark = pytest.mark.slow

N_SLOW = 100
HEAD = b"POST /encode HTTP/1.1\r\nhost: x\r\n"
BODY = {"data": [{"text": "a"}], "parameters": {"artifact": "finished"}}


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


async def _trickle(port, start, drip):
    """Send a byte a second until the server closes; return what it said and after how long."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.monotonic()
    writer.write(start)
    answer = asyncio.create_task(reader.read())
    try:
        while not answer.done():
            writer.write(drip)
            await asyncio.wait([answer], timeout=1.0)
        return await answer, time.monotonic() - started
    except ConnectionError:
        return b"", time.monotonic() - started
    finally:
        writer.close()


def _times_s(server, n_requests=20):
    times_s = []
    for _ in range(n_requests):
        started = time.monotonic()
        answer = server.post("/encode", json=BODY)
        assert answer.status_code == 200, answer.text
        times_s.append(time.monotonic() - started)
    return times_s


@pytest.mark.parametrize(
    ("start", "drip", "limit_s"),
    [
        pytest.param(b"", b"", 15, id="silent"),
        pytest.param(HEAD, b"a", 15, id="head"),
        pytest.param(HEAD + b"content-length: 100000\r\n\r\n", b" ", 30, id="body"),
        pytest.param(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", 30, id="chunks"),
    ],
)
def test_a_hundred_slow_clients_keep_nobody_waiting(server, finished_run, start, drip, limit_s):
    _times_s(server, 3)
    alone_s = np.median(_times_s(server))

    async def scenario():
        slow = [asyncio.create_task(_trickle(server.http_port, start, drip)) for _ in range(N_SLOW)]
        await asyncio.sleep(1.0)
        times_s = await asyncio.to_thread(_times_s, server)
        assert not any(task.done() for task in slow), "they were not slow beside the others"
        return times_s, await asyncio.wait_for(asyncio.gather(*slow), limit_s + 20)

    beside_s, ends = asyncio.run(scenario())
    assert np.median(beside_s) < 5 * alone_s + 0.1
    assert max(beside_s) < 3.0
    assert all(limit_s - 1 < after_s < limit_s + 10 for _, after_s in ends)
    expected = b"HTTP/1.1 408" if start else b""
    assert {said[:12] for said, _ in ends} == {expected}
    assert server.get("/readyz").ok


def _zeros(n_bytes):
    block = bytes(2**20)
    for _ in range(n_bytes // 2**20 + 1):
        yield block


@pytest.mark.parametrize("path", ["/fit", "/encode", "/v1/embeddings", "/tokenize", "/rank"])
def test_a_body_without_a_length_has_a_bound(server, path):
    answer = requests.post(server.url + path, data=_zeros(MAX_BODY_BYTES), timeout=60)
    assert answer.status_code == 413, answer.text
    assert f"longer than {MAX_BODY_BYTES} bytes" in answer.text


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /fit HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /fit HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nxxxxx",
        b"POST /fit HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffffff\r\n",
        b"\0" * 70_000,
        b"GET /" + b"a" * 100_000,
    ],
)
def test_what_is_no_http_is_refused_and_closed(server, nonsense):
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as connection:
        connection.sendall(nonsense)
        try:
            said = connection.recv(1000)
        except ConnectionResetError:
            said = b"HTTP/1.1 400"
    assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 413"))
    assert server.get("/livez").ok


def test_a_websocket_is_not_spoken(server):
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert server.get("/livez", headers=headers).status_code == 200


def _call(server, content, method="/jina.JinaRPC/Call"):
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as channel:
        answers = list(channel.stream_stream(method)(iter([content]), timeout=60))
    return DataRequest(answers[0]).header.status


def test_garbage_on_the_grpc_port_stops_nothing(server, finished_run):
    generator = np.random.default_rng(0)
    for number in range(50):
        with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=10) as connection:
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if number % 2 else b""
            connection.sendall(preface + generator.bytes(2000))
    for _ in range(20):
        status = _call(server, generator.bytes(500))
        assert status.description.startswith(("MalformedRequestError", "EndpointNotFoundError"))
    documents = DocumentArray([Document(text="a")])
    Client(port=server.grpc_port).post("/encode", documents, parameters={"artifact": "finished"})
    assert server.get("/readyz").ok


def test_a_grpc_message_has_a_bound(server, finished_run):
    request = DataRequestProto()
    request.header.exec_endpoint = "/encode"
    request.data.docs.docs.add().text = "a" * (65 * 2**20)
    with pytest.raises(grpc.RpcError, match="larger than max") as caught:
        _call(server, request.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.get("/readyz").ok


def test_a_million_empty_documents_are_refused(server, finished_run):
    request = DataRequestProto()
    request.header.exec_endpoint = "/encode"
    content = request.SerializeToString() + _documents(b"\x0a\x00" * 1_000_001)
    status = _call(server, content)
    assert status.description.startswith("TooLargeError: the message holds more than 1000000")
    assert server.get("/readyz").ok


def _documents(documents):
    """Return the field `data.docs` on the wire."""
    for field in (b"\x0a", b"\x22"):
        length, size = bytearray(), len(documents)
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        documents = field + bytes([*length, size]) + documents
    return documents


@pytest.mark.parametrize("endpoint", ["/encode", "/fit", "/tokenize", "/status"])
def test_a_pickle_over_grpc_is_refused(server, finished_run, tmp_path, endpoint):
    canary = tmp_path / "the canary sang"
    pickle.loads(pickle.dumps(Canary(canary)))
    os.remove(canary)
    request = DataRequestProto()
    request.header.exec_endpoint = endpoint
    request.parameters.update({"artifact": "finished", "model": "tiny", "run_name": "finished"})
    request.data.docs_bytes = pickle.dumps(Canary(canary))
    status = _call(server, request.SerializeToString())
    assert not canary.exists(), "a pickle was loaded"
    assert status.description.startswith("MalformedRequestError: the documents are a pickle")


def test_a_pickle_is_not_stored(server, tmp_path):
    canary = tmp_path / "the canary sang"
    content = pickle.dumps(Canary(canary))
    files = {"file": ("DocumentArray", content)}
    answer = server.post("/v2/rpc/artifact.upload", files=files, data={"name": "canary"})
    assert (answer.status_code, answer.json()["error"]) == (422, "DataError")
    assert not canary.exists(), "a pickle was loaded"
    assert server.get("/data/canary").status_code == 404


def test_who_goes_away_within_a_body_leaves_no_trace_in_the_log(server):
    before = server.log.read_text()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as connection:
            connection.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
    time.sleep(0.5)
    assert server.get("/livez").ok
    assert "Traceback" not in server.log.read_text()[len(before) :]

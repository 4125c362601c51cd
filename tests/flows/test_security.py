"""A service that lets nobody in: every route and endpoint of a real Flow, with and without tokens."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import grpc
import numpy as np
import orjson
import psutil
import pytest
import requests
import yaml
from docarray import Document, DocumentArray
from jina import Client
from jina.excepts import BadServer, BadServerFlow
from jina.proto import jina_pb2, jina_pb2_grpc
from typer.testing import CliRunner

import finetuner
from finetuner.access import Scope, TokenStore
from finetuner.audit import AUDIT_FILE
from finetuner.cli import app as command
from finetuner.errors import (
    AuthenticationRequiredError,
    ForbiddenError,
    InvalidTokenError,
    OverloadedError,
)
from finetuner.permissions import ENDPOINTS, METHODS, PUBLIC, ROUTES

from .conftest import ROWS, Server, free_port

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
WRONG = "ft_" + "x" * 43
EVIL_NAMES = (
    "..",
    "../x",
    "/etc/passwd",
    "..%2Fx",
    "%2e%2e%2fx",
    "a\0b",
    "a/../b",
    "~",
    "x" * 9000,
)
EVIL_NAMES += ("..\\x", "a\nb", ".", ".lock", "%00", "\u202e", "a" * 129)


@pytest.fixture(scope="module")
def secured(tmp_path_factory, tiny_model_folder, publish_run):
    """A server whose volume holds a run, stored data and one token for each scope."""
    workspace = tmp_path_factory.mktemp("secured")
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    publish_run(workspace, "finished")
    store = TokenStore(workspace)
    tokens = {scope: store.create(scope, [scope]) for scope in Scope}
    server = Server(workspace, tmp_path_factory.mktemp("log") / "server.txt")
    server.tokens = tokens
    server.is_open_to = lambda permission, scope: (
        permission.is_public or bool(permission.scopes & store.get(scope).granted)
    )
    try:
        server.wait_until_ready()
        yield server
        server.stop()
    finally:
        server.kill_group()


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def metadata(secret):
    return (("authorization", f"Bearer {secret}"),) if secret else ()


def filled(path, name="nothing-of-that-name"):
    return re.sub(r"{.*?}", quote(name, safe=""), path)


# HTTP.


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda part: part)
def test_every_route(secured, method, path):
    permission = ROUTES[method, path]

    def status(secret):
        answer = requests.request(
            method, secured.url + filled(path), headers=bearer(secret), timeout=60
        )
        assert answer.status_code < 500, answer.text
        return answer.status_code

    assert (status(None) == 401) == (not permission.is_public)
    # After ten wrong ones from this address it is 429, which is no way in either.
    assert (status(WRONG) in (401, 429)) == (not permission.is_public)
    for scope, secret in secured.tokens.items():
        # Nothing is deleted: DELETE /runs is of an experiment that is not there.
        if (method, path) == ("DELETE", "/runs") and secured.is_open_to(permission, scope):
            continue
        assert (status(secret) not in (401, 403)) == secured.is_open_to(permission, scope), scope


def test_what_is_open_works(secured):
    body = {"data": [{"text": "a"}], "parameters": {"artifact": "finished"}}
    answer = secured.post("/encode", json=body, headers=bearer(secured.tokens[Scope.ENCODE]))
    assert len(answer.json()["data"][0]["embedding"]) == 32
    headers = {"Authorization": f"token {secured.tokens[Scope.READ]}"}
    zipped = secured.get("/runs/finished/artifact", headers=headers)
    assert (zipped.status_code, zipped.content[:2]) == (200, b"PK")
    figures = secured.get("/metrics", headers=headers).text
    assert 'route="/runs/{run_name}/artifact",status="200"' in figures


@pytest.mark.parametrize("name", EVIL_NAMES, ids=lambda name: ascii(name)[:20])
def test_no_name_leaves_the_volume(secured, name):
    """With the broadest token, in every parameter of a path and every field that is a name."""
    secret = bearer(secured.tokens[Scope.ADMIN])
    answers = []
    for method, path in ROUTES:
        # Unquoted too: `..` in a path as some clients and proxies would pass it on.
        for made in {filled(path, name), re.sub(r"{.*?}", lambda _: name, path)}:
            if "{" in path and not set("\0\n\\\u202e") & set(made):
                url = secured.url + made
                request = requests.Request(method, url, headers=secret).prepare()
                request.url = url
                answers.append(requests.Session().send(request, timeout=60))
    query = {"experiment_name": name}
    for method, path in (("GET", "/runs"), ("GET", "/runs/finished"), ("DELETE", "/runs/x")):
        answers.append(
            requests.request(method, secured.url + path, params=query, headers=secret, timeout=60)
        )
    bodies = [
        ("/fit", {"model": "tiny", "train_data": ROWS, "run_name": name}),
        ("/fit", {"model": "tiny", "train_data": ROWS, "experiment_name": name}),
        ("/fit", {"model": "tiny", "train_data": name}),
        ("/fit", {"model": "tiny", "train_data": ROWS, "model_artifact": name}),
        *(
            ("/search", {"data": ["a"], "parameters": {"artifact": "finished", field: name}})
            for field in ("artifact", "index_run", "index_data")
        ),
        ("/fit", {"model": name, "train_data": ROWS}),
        ("/encode", {"data": ["a"], "parameters": {"artifact": name}}),
        ("/v1/embeddings", {"input": "a", "model": name}),
    ]
    answers += [secured.post(path, json=body, headers=secret) for path, body in bodies]
    body = {"run": name}
    answers.append(secured.put("/aliases/prod", json=body, headers=secret))
    address = "/v2/rpc/artifact.getDownloadUrl"
    answers.append(secured.get(address, params={"name": name}, headers=secret))
    for endpoint in ("upload", "delete"):
        form = {"files": {"file": ("f", b"\1" + bytes(8))}, "data": {"name": name}}
        answers.append(secured.post(f"/v2/rpc/artifact.{endpoint}", headers=secret, **form))
    for answer in answers:
        shown = (answer.request.method, answer.request.url[:80], answer.text[:300])
        # What a client or the standard normalises (`/runs/.`) is another route, and may be there.
        assert answer.status_code < 500, shown
        assert "root:" not in answer.text, shown
        assert str(secured.workspace) not in answer.text, shown
    assert len(answers) > 12
    assert sum(answer.status_code in (400, 404, 422) for answer in answers) >= len(answers) - 12
    kept = {path.name for path in secured.workspace.iterdir()}
    assert kept <= {"models", "runs", "access", "data", "aliases", "experiments", AUDIT_FILE}
    assert secured.get("/runs/finished", headers=secret).status_code == 200


def test_pull_follows_a_link_that_is_signed(secured, monkeypatch):
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", secured.url)
    monkeypatch.setenv("JINA_AUTH_TOKEN", secured.tokens[Scope.FIT])
    pushed = DocumentArray([Document(text=text) for text in "abc"])
    pushed.push("signed.da")
    assert DocumentArray.cloud_list() == ["signed.da"]
    monkeypatch.setenv("JINA_AUTH_TOKEN", secured.tokens[Scope.READ])
    assert DocumentArray.pull("signed.da", local_cache=False)[:, "text"] == ["a", "b", "c"]

    address = "/v2/rpc/artifact.getDownloadUrl?name=signed.da"
    answer = secured.get(address, headers=bearer(secured.tokens[Scope.READ]))
    link = answer.json()["data"]["download"]
    assert secured.tokens[Scope.READ] not in link
    assert requests.get(link, timeout=60).status_code == 200
    assert requests.get(link.replace("signed.da", "other.da"), timeout=60).status_code in (401, 429)
    assert requests.get(link[:-1] + "g", timeout=60).status_code in (401, 429)
    path, _, signature = link.partition("?")
    assert requests.get(path, timeout=60).status_code == 401
    elsewhere = f"{secured.url}/runs/finished/artifact?{signature}"
    assert requests.get(elsewhere, timeout=60).status_code == 401


# gRPC.


@pytest.fixture(scope="module")
def channel(secured):
    with grpc.insecure_channel(f"127.0.0.1:{secured.grpc_port}") as channel:
        yield channel


@pytest.mark.parametrize("is_stream", [True, False], ids=["Call", "process_single_data"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint(secured, endpoint, is_stream):
    permission = ENDPOINTS[endpoint]
    client = Client(port=secured.grpc_port)

    def outcome(secret):
        parameters = {"run_name": "no-such-run", "experiment_name": "no-such", "name": "no-such"}
        try:
            client.post(
                *(endpoint, DocumentArray()),
                parameters=parameters,
                metadata=metadata(secret),
                stream=is_stream,
            )
        except BadServerFlow as error:
            return re.search(r"StatusCode\.(\w+)", str(error))[1]
        except BadServer as error:
            return "forbidden" if "ForbiddenError" in str(error) else "failed"
        return "answered"

    assert outcome(None) == "UNAUTHENTICATED"
    assert outcome(WRONG) in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
    for scope, secret in secured.tokens.items():
        found = outcome(secret)
        assert found not in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
        assert (found != "forbidden") == secured.is_open_to(permission, scope), (scope, found)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_port(secured, channel, method):
    """Jina's own services, and those that come with gRPC: none of them is a back door."""
    permission = METHODS[method]
    is_stream = method.endswith(("/Call", "/ServerReflectionInfo", "/stream_doc", "/Watch"))

    def code(secret):
        call = (channel.stream_stream if is_stream else channel.unary_unary)(method)
        message = iter([b""]) if is_stream else b""
        try:
            answer = call(message, metadata=metadata(secret), timeout=5)
            if is_stream:
                next(answer, None)
                answer.cancel()
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert (code(None) in refused) == (permission is not PUBLIC)
    assert (code(WRONG) in refused) == (permission is not PUBLIC)
    for scope, secret in secured.tokens.items():
        is_open = code(secret) is not grpc.StatusCode.PERMISSION_DENIED
        assert is_open == secured.is_open_to(permission, scope), scope


def test_a_method_that_nobody_serves(channel, secured):
    call = channel.unary_unary("/jina.JinaExecutorSnapshot/snapshot")
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        call(b"", metadata=metadata(secured.tokens[Scope.ADMIN]), timeout=5)


def test_all_that_the_port_serves_is_in_the_table(secured, channel):
    """What reflection lists is what Jina registers, today and after its next release."""
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    secret = secured.tokens[Scope.READ]
    (answer,) = stub.ServerReflectionInfo(iter([asked]), metadata=metadata(secret), timeout=20)
    listed = {service.name for service in answer.list_services_response.service}
    # Listed by Jina, and not served by a gateway; all else that is listed can be called.
    unserved = {"jina.JinaDataRequestRPC"}
    known = {method.split("/")[1] for method in METHODS} | unserved
    assert listed <= known


def test_an_encoder_over_grpc_with_a_token(secured):
    client = Client(port=secured.grpc_port)
    documents = DocumentArray([Document(text="a"), Document(text="b c")])
    answer = client.post(
        *("/encode", documents),
        parameters={"artifact": "finished"},
        metadata=metadata(secured.tokens[Scope.ENCODE]),
    )
    assert answer.embeddings.shape == (2, 32)
    assert np.isfinite(answer.embeddings).all()


def test_a_dry_run_with_a_token(secured, channel):
    stub = jina_pb2_grpc.JinaGatewayDryRunRPCStub(channel)
    empty = jina_pb2.google_dot_protobuf_dot_empty__pb2.Empty()
    answer = stub.dry_run(empty, metadata=metadata(secured.tokens[Scope.READ]), timeout=20)
    assert answer.code == jina_pb2.StatusProto.SUCCESS


def test_one_stream_may_not_smuggle_a_request_behind_an_open_one(secured, channel):
    from jina.types.request.data import DataRequest

    def requests_():
        for endpoint in ("/models", "/delete", "/runs"):
            request = DataRequest()
            request.header.exec_endpoint = endpoint
            request.header.request_id = endpoint
            request.data.docs = DocumentArray()
            yield request

    stub = jina_pb2_grpc.JinaRPCStub(channel)
    secret = secured.tokens[Scope.ENCODE]
    answers = stub.Call(requests_(), metadata=metadata(secret), timeout=30)
    found = {answer.header.request_id: answer.header.status.exception.name for answer in answers}
    assert found == {"/models": "", "/delete": "ForbiddenError", "/runs": "ForbiddenError"}


def test_what_strangers_send_is_not_even_read(secured, channel):
    """Jina takes messages of any length, and gRPC hands a lone message over before anyone is asked."""
    gateway = next(
        part
        for part in psutil.Process(secured.process.pid).children()
        if secured.grpc_port in {c.laddr.port for c in part.net_connections()}
    )
    before = gateway.memory_info().rss
    call = channel.unary_unary("/jina.JinaSingleDataRequestRPC/process_single_data")
    for _ in range(3):
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED|Broken pipe|UNAVAILABLE"):
            call(bytes(200_000_000), timeout=60)
    assert gateway.memory_info().rss - before < 100_000_000


# Revoking, the client, the audit.


def test_a_revoked_token_is_worthless_at_once(secured):
    secret = TokenStore(secured.workspace).create("short-lived", [Scope.READ])
    client = Client(port=secured.grpc_port)
    assert secured.get("/runs", headers=bearer(secret)).status_code == 200
    assert len(client.post("/runs", metadata=metadata(secret))) == 1
    environment = {"FINETUNER_WORKSPACE": str(secured.workspace)}
    revoked = CliRunner().invoke(command, ["token", "revoke", "short-lived"], env=environment)
    assert revoked.exit_code == 0, revoked.output
    assert secured.get("/runs", headers=bearer(secret)).status_code in (401, 429)
    with pytest.raises(BadServerFlow, match="UNAUTHENTICATED|RESOURCE_EXHAUSTED"):
        client.post("/runs", metadata=metadata(secret))


def test_the_client_logs_in(secured, monkeypatch):
    monkeypatch.setenv("FINETUNER_HOST", secured.url)
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", secured.url)
    monkeypatch.setenv("JINA_AUTH_TOKEN", "none")
    monkeypatch.setenv("FINETUNER_TOKEN", "")
    with pytest.raises(AuthenticationRequiredError, match=r"call finetuner\.login\(token="):
        finetuner.login()
    finetuner.login(token=secured.tokens[Scope.READ])
    assert [run.name for run in finetuner.list_runs()] == ["finished"]
    assert os.environ["JINA_AUTH_TOKEN"] == secured.tokens[Scope.READ]
    with pytest.raises(ForbiddenError, match="POST /fit needs a token with the scope fit; `read`"):
        finetuner.fit("tiny", ROWS)
    TokenStore(secured.workspace).create("gone", [Scope.READ])
    TokenStore(secured.workspace).revoke("gone")
    with pytest.raises((InvalidTokenError, OverloadedError), match="token"):
        finetuner.login(token=WRONG)


def audit(server):
    rows = map(orjson.loads, (server.workspace / AUDIT_FILE).read_bytes().splitlines())
    return [(row["who"], row["action"], row["target"], row["status"]) for row in rows]


def test_both_protocols_write_the_same_lines(secured):
    secret = secured.tokens[Scope.ADMIN]
    client = Client(port=secured.grpc_port)

    def over_grpc(endpoint, secret=secret, **parameters):
        with suppress(BadServer):
            client.post(endpoint, parameters=parameters, metadata=metadata(secret))

    n_before = len(audit(secured))
    secured.put("/aliases/prod", json={"run": "finished"}, headers=bearer(secret))
    over_grpc("/alias/set", name="prod", run="finished")
    secured.delete("/runs/none", headers=bearer(secret))
    over_grpc("/delete", run_name="none")
    over_grpc("/runs/none/status")
    secured.put("/experiments/e", headers=bearer(secret))
    over_grpc("/experiment/create", experiment_name="e")
    secured.delete("/aliases/prod", headers=bearer(secured.tokens[Scope.FIT]))
    over_grpc("/alias/delete", secret=secured.tokens[Scope.FIT], name="prod")
    assert audit(secured)[n_before:] == [
        *[("admin", "pointed an alias", "prod -> finished", 200)] * 2,
        *[("admin", "deleted runs", "default/none", 404)] * 2,
        *[("admin", "created an experiment", "e", 200)] * 2,
        *[("fit", "deleted an alias", "prod", 403)] * 2,
    ]


def test_a_run_over_grpc_is_audited_by_the_name_it_gets(secured):
    documents = DocumentArray(
        [Document(text=text, tags={"finetuner_label": label}) for text, label in ROWS]
    )
    (answer,) = Client(port=secured.grpc_port).post(
        *("/fit", documents),
        parameters={"model": "tiny", "epochs": 0, "device": "cpu"},
        metadata=metadata(secured.tokens[Scope.FIT]),
    )
    name = orjson.loads(answer.text)["name"]
    assert audit(secured)[-1] == ("fit", "submitted a run", f"default/{name}", 200)


# Where it listens.


def serve(workspace, *options):
    ports = ("--grpc-port", str(free_port()), "--http-port", str(free_port()))
    arguments = ["-m", "finetuner.cli", "serve", "--workspace", str(workspace), *ports, *options]
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_no_other_address_without_a_token(tmp_path, host):
    refused = serve(tmp_path, "--host", host)
    assert refused.returncode == 2
    assert f"others can reach {host}" in refused.stderr
    assert "`finetuner token create laptop --scope admin --workspace" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_another_address_with_a_token(tmp_path, start_server, tiny_model_folder):
    secret = TokenStore(tmp_path).create("laptop", [Scope.READ])
    server = start_server(tmp_path, options=("--host", "0.0.0.0"))
    assert server.get("/models").status_code == 401
    assert server.get("/models", headers=bearer(secret)).status_code == 200
    # The last one is revoked, and nobody gets in, from this machine neither.
    TokenStore(tmp_path).revoke("laptop")
    assert server.get("/models").status_code == 401
    server.stop()


def changed_flow(tmp_path, change):
    flow = yaml.safe_load((REPOSITORY / "flows" / "train.yml").read_text())
    for part in (flow["gateway"], *flow["executors"]):
        part["uses"] = str(REPOSITORY / "flows" / part["uses"])
    change(flow)
    path = tmp_path / "flow.yml"
    path.write_text(yaml.safe_dump(flow, sort_keys=False))
    return path


def test_an_executor_that_others_can_reach_is_refused(tmp_path):
    path = changed_flow(tmp_path, lambda flow: flow["executors"][0].pop("host"))
    refused = serve(tmp_path / "volume", "--flow", str(path))
    assert refused.returncode == 2
    assert "the executor `finetuner` of the Flow would listen at 0.0.0.0" in refused.stderr
    assert "write `host: 127.0.0.1`" in refused.stderr.replace("\n", " ")


def test_nothing_listens_beyond_this_machine(tmp_path, start_server):
    """Neither the gateway, whatever the Flow's YAML says, nor the executors."""
    path = changed_flow(tmp_path, lambda flow: flow["gateway"].update(host="0.0.0.0"))
    server = start_server(tmp_path / "volume", options=("--flow", str(path)))
    parts = psutil.Process(server.process.pid).children(recursive=True)
    found = {
        connection.laddr
        for part in parts
        for connection in part.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert {server.grpc_port, server.http_port} < {address.port for address in found}
    assert {address.ip for address in found} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    server.stop()


def test_the_gateway_itself_refuses_in_the_flows_of_others(tmp_path):
    """`jina flow` knows nothing of our rules, and its default is to listen everywhere."""

    def change(flow):
        flow["gateway"] |= {"host": "0.0.0.0", "port": [free_port(), free_port()]}

    path = changed_flow(tmp_path, change)
    log = tmp_path / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("jina")), "flow", "--uses", str(path)],
            start_new_session=True,
            stdout=output,
            stderr=output,
            env={**os.environ, "FINETUNER_WORKSPACE": str(tmp_path / "volume")},
        )
    try:
        assert process.wait(120) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shown = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", log.read_text()).split())
    assert "others can reach 0.0.0.0, and this service has no token" in shown


def test_cors_and_failed_logins_over_the_wire(tmp_path, start_server):
    origin = "https://search.example.org"
    TokenStore(tmp_path).create("laptop", [Scope.READ])
    options = ("--flow", "flows/train.yml", "--cors-origin", origin)
    server = start_server(tmp_path, options=options)
    answer = server.get("/runs", headers={"Origin": origin})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (401, origin)
    other = server.get("/runs", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    codes = [server.get("/runs", headers=bearer(WRONG)).status_code for _ in range(15)]
    assert codes[:10] == [401] * 10
    assert codes[-1] == 429
    # A proxy on this machine says whom it speaks for; others are not believed, which needs another machine.
    behind = {**bearer(WRONG), "X-Forwarded-For": "192.0.2.7"}
    assert server.get("/runs", headers=behind).status_code == 401
    assert b'"192.0.2.7"' in (tmp_path / AUDIT_FILE).read_bytes().splitlines()[-1]
    # The same count for both protocols.
    with pytest.raises(BadServerFlow, match=r"RESOURCE_EXHAUSTED.*retry in \d s"):
        Client(port=server.grpc_port).post("/runs", metadata=metadata(WRONG))
    server.stop()


# What is written down.


def test_no_token_is_in_any_file_or_output(tmp_path, start_server, tiny_model_folder, monkeypatch):
    """With all logs on, after requests of each kind, failures among them, and a whole run."""
    workspace = tmp_path / "volume"
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    secret = TokenStore(workspace).create("laptop", [Scope.ADMIN])
    monkeypatch.setenv("JINA_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("FINETUNER_TOKEN", secret)
    server = start_server(workspace)
    monkeypatch.setenv("JINA_AUTH_TOKEN", secret)
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", server.url)
    DocumentArray([Document(text=t, tags={"finetuner_label": n}) for t, n in ROWS]).push("x.da")
    body = {"model": "tiny", "run_name": "r", "epochs": 1, "device": "cpu", "train_data": "x.da"}
    headers = bearer(secret)
    assert server.post("/fit", json=body, headers=headers).status_code == 201
    for _ in range(3):
        server.post("/fit", json={"model": 5}, headers=headers)
        server.get("/nothing", headers=headers)
        server.get("/runs", headers=bearer(secret + "x"))
        with suppress(BadServer, BadServerFlow):
            Client(port=server.grpc_port).post("/run", metadata=metadata(secret))
        with suppress(BadServer, BadServerFlow):
            Client(port=server.grpc_port).post("/run", metadata=metadata(secret + "x"))
    while server.get("/runs/r/status", headers=headers).json()["status"] in ("CREATED", "STARTED"):
        assert_no_process_knows(server, secret)
    body = {"data": ["a"], "parameters": {"artifact": "r"}}
    assert server.post("/encode", json=body, headers=headers).status_code == 200
    server.stop()
    written = [path for path in workspace.rglob("*") if path.is_file()]
    assert {"000000.json", "log.txt", AUDIT_FILE, "tokens.json"} <= {path.name for path in written}
    for path in (*written, server.log):
        assert secret[3:].encode() not in path.read_bytes(), path


def assert_no_process_knows(server, secret):
    """The parts and workers of a server do not have the token of who started it in their environment."""
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "finetuner.worker" in " ".join(child.cmdline()):
                assert secret not in child.environ().values()

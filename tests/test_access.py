"""Tokens, scopes, the table of permissions, failed logins, signed links, and the gatekeeper over them."""

import asyncio
import os
import re
import stat
import threading
from pathlib import Path

import grpc
import orjson
import pytest
import yaml
from fastapi.testclient import TestClient
from jina.proto import jina_pb2

from finetuner import signed_links
from finetuner.access import ALL_SCOPES, Scope, TokenStore
from finetuner.audit import AUDIT_FILE
from finetuner.errors import (
    AuthenticationRequiredError,
    ConfigError,
    ConflictError,
    ForbiddenError,
    InvalidTokenError,
    NotFoundError,
    TooManyFailedLoginsError,
    UnavailableError,
)
from finetuner.failed_logins import FailedLogins
from finetuner.gatekeeper import Gatekeeper, check_host, is_loopback
from finetuner.http_api import build_app
from finetuner.permissions import ADMIN, CLOSED, ENDPOINTS, METHODS, PUBLIC, READ, ROUTES
from finetuner.wire import json_document

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path):
    return TokenStore(tmp_path)


async def call(endpoint, _docs, _parameters):
    """Answer as an executor would, with what each route reads of it."""
    record = {
        "name": "r",
        "experiment_name": "default",
        "items": [{}],
        "models": [],
        "text": "",
        "ready": True,
    }
    return json_document(record)


@pytest.fixture
def app(tmp_path):
    return build_app(call, tmp_path)


@pytest.fixture
def client(app):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


# The store.


def test_a_token_is_found_by_its_secret_alone(store, tmp_path):
    secret = store.create("laptop", [Scope.FIT, Scope.ENCODE])
    token = store.find(secret)
    assert (token.name, token.scopes) == ("laptop", (Scope.ENCODE, Scope.FIT))
    assert token.granted == {Scope.ENCODE, Scope.FIT, Scope.READ}
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), token.digest, "\ud800", "ü" * 9):
        assert store.find(wrong) is None


def test_secrets_are_long_differ_and_are_not_kept(store, tmp_path):
    secrets = [store.create(f"t{i}", [Scope.READ]) for i in range(5)]
    assert len(set(secrets)) == 5
    assert all(re.fullmatch(r"ft_[A-Za-z0-9_-]{43}", secret) for secret in secrets)
    kept = (tmp_path / "access" / "tokens.json").read_text()
    assert not any(secret in kept or secret[3:] in kept for secret in secrets)


def test_only_the_owner_reads_the_file(store, tmp_path):
    store.create("laptop", [Scope.READ])
    store.create("phone", [Scope.READ])
    mode = stat.S_IMODE((tmp_path / "access" / "tokens.json").stat().st_mode)
    assert mode == 0o600
    assert stat.S_IMODE((tmp_path / "access").stat().st_mode) == 0o700


def test_what_one_process_changes_another_sees_at_once(tmp_path):
    ours, theirs = TokenStore(tmp_path), TokenStore(tmp_path)
    assert ours.list() == ()
    secret = theirs.create("laptop", [Scope.READ])
    assert ours.find(secret).name == "laptop"
    theirs.revoke("laptop")
    assert ours.find(secret) is None
    other = theirs.create("laptop", [Scope.READ])
    assert (ours.find(secret), ours.find(other).name) == (None, "laptop")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "x" * 129, "\x00", ".x"])
def test_names_of_tokens_are_names(store, name):
    with pytest.raises(ConfigError, match="the token name .* is not allowed"):
        store.create(name, [Scope.READ])


def test_a_name_is_taken_once(store):
    store.create("laptop", [Scope.READ])
    with pytest.raises(ConflictError, match="there is a token `laptop`: revoke it first"):
        store.create("laptop", [Scope.ADMIN])
    assert store.get("laptop").scopes == (Scope.READ,)


def test_a_token_needs_a_scope(store):
    with pytest.raises(ConfigError, match="needs a scope, one or more of: read, encode, fit"):
        store.create("laptop", [])


def test_an_unknown_name_is_not_revoked(store):
    store.create("laptop", [Scope.READ])
    with pytest.raises(NotFoundError, match="no token `labtop`; did you mean `laptop`"):
        store.revoke("labtop")


def test_two_that_change_the_tokens_at_once_lose_none(tmp_path):
    done = []

    def create(number):
        while True:
            try:
                TokenStore(tmp_path).create(f"t{number}", [Scope.READ])
            except ConflictError:
                continue
            done.append(number)
            return

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(8))
    assert len(TokenStore(tmp_path).list()) == 8


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"tokens": 1}', b'{"tokens": [{}]}', b'{"tokens": [{"name": "a"}]}'],
)
def test_a_damaged_file_closes(store, tmp_path, content):
    store.create("laptop", [Scope.READ])
    (tmp_path / "access" / "tokens.json").write_bytes(content)
    with pytest.raises(UnavailableError, match="cannot read its tokens; its log has the cause"):
        store.list()


def test_a_file_that_is_gone_closes(store, tmp_path):
    store.create("laptop", [Scope.READ])
    assert len(store.list()) == 1
    (tmp_path / "access" / "tokens.json").unlink()
    with pytest.raises(UnavailableError, match="cannot read its tokens"):
        store.list()


# The table.


def test_every_route_is_in_the_table_and_the_table_has_no_other(app):
    served = {(method, route.path) for route in app.routes for method in route.methods - {"HEAD"}}
    assert served == set(ROUTES)


def _endpoints_of_executors():
    found = set()
    for path in (ROOT / "executors").rglob("*_executor.py"):
        source = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'(?:@requests\(on=|= _endpoint\()"([^"]+)"', source))
    return found


def test_every_endpoint_is_in_the_table_and_the_table_has_no_other():
    served = _endpoints_of_executors()
    assert len(served) > 15
    assert served | {"_jina_dry_run_"} == set(ENDPOINTS)


def test_methods_in_the_table_exist():
    services = jina_pb2.DESCRIPTOR.services_by_name.values()
    known = {f"/{s.full_name}/{method.name}" for s in services for method in s.methods}
    assert {method for method in METHODS if method.startswith("/jina.")} <= known
    assert METHODS["/jina.JinaSingleDocumentRequestRPC/stream_doc"] is CLOSED


def test_what_is_public_is_known_by_heart():
    public = {path for (_, path), permission in ROUTES.items() if permission.is_public}
    assert public == {
        *("/", "/assets/{file}", "/livez", "/readyz"),
        *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
    }
    assert [name for name, permission in ENDPOINTS.items() if permission.is_public] == []
    methods = [name for name, permission in METHODS.items() if permission.is_public]
    assert methods == ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]


def test_what_changes_something_is_audited_and_what_reads_is_not():
    silent = {"/check", "/encode", "/similarity", "/rank", "/tokenize", "/v1/embeddings", "/search"}
    silent |= {"/v2/rpc/user.identity.whoami", "/v2/rpc/artifact.list"}
    for (method, path), permission in ROUTES.items():
        assert (permission.action is None) == (method == "GET" or path in silent), (method, path)


def test_reading_opens_nothing_that_changes():
    for table in (ROUTES, ENDPOINTS):
        for key, permission in table.items():
            assert permission.action is None or Scope.READ not in permission.scopes, key


# Failed logins.


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_failures_of_one_address_are_bounded_and_paid_back():
    clock = Clock()
    failures = FailedLogins(burst=3, interval_s=10, clock=clock)
    assert [failures.count("1.1.1.1") for _ in range(3)] == [0, 0, 0]
    assert failures.count("1.1.1.1") == pytest.approx(10)
    assert failures.count("1.1.1.1") == pytest.approx(10)  # what is refused adds no debt
    assert failures.count("2.2.2.2") == 0
    clock.now += 10
    assert failures.count("1.1.1.1") == 0
    assert failures.count("1.1.1.1") == pytest.approx(10)


def test_memory_of_failures_is_bounded():
    failures = FailedLogins(burst=1, max_peers=100, clock=Clock())
    for number in range(1000):
        assert failures.count(f"10.0.{number // 256}.{number % 256}") == 0
    assert len(failures._paid_at) == 100


@pytest.mark.parametrize(
    ("first", "second", "are_one"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.1.1.1", "1.1.1.1", True),
        ("", "unix", False),
    ],
)
def test_what_counts_as_one_address(first, second, are_one):
    failures = FailedLogins(burst=1, clock=Clock())
    assert failures.count(first) == 0
    assert (failures.count(second) > 0) == are_one


# Signed links.


def test_a_link_opens_its_path_for_a_minute(store, monkeypatch):
    store.create("laptop", [Scope.READ])
    token = store.get("laptop")
    query = dict(part.split("=") for part in signed_links.sign("/data/a", token).split("&"))
    assert signed_links.holder("/data/a", query, store) == token
    other = {**query, "expires": str(int(query["expires"]) + 1)}
    forged = {**query, "signature": "0" * 64}
    for path, given in (
        ("/data/b", query),
        ("/data/a", other),
        ("/data/a", forged),
        ("/data/a", {**query, "signature": "ü"}),
        ("/data/a", {**query, "token": "nobody"}),
        ("/data/a", {**query, "expires": ""}),
        ("/data/a", {}),
    ):
        with pytest.raises(InvalidTokenError, match="the link is not valid, or no more"):
            signed_links.holder(path, given, store)

    now = signed_links.time.time()
    monkeypatch.setattr(signed_links.time, "time", lambda: now + 61)
    with pytest.raises(InvalidTokenError, match="the link is not valid, or no more"):
        signed_links.holder("/data/a", query, store)


def test_a_link_ends_with_its_token(store):
    store.create("laptop", [Scope.READ])
    query = signed_links.sign("/data/a", store.get("laptop"))
    store.revoke("laptop")
    given = dict(part.split("=") for part in query.split("&"))
    with pytest.raises(InvalidTokenError, match="the link is not valid, or no more"):
        signed_links.holder("/data/a", given, store)
    store.create("laptop", [Scope.READ])  # another secret under the same name
    with pytest.raises(InvalidTokenError, match="the link is not valid, or no more"):
        signed_links.holder("/data/a", given, store)


# The gatekeeper.


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("my-host", False),
    ],
)
def test_which_hosts_only_this_machine_can_reach(host, expected):
    assert is_loopback(host) is expected


def test_another_host_needs_a_token(tmp_path):
    check_host("127.0.0.1", tmp_path)
    message = "has no token .* `finetuner token create laptop --scope admin --workspace "
    with pytest.raises(ConfigError, match=message):
        check_host("0.0.0.0", tmp_path)
    with pytest.raises(ConfigError, match=message):
        Gatekeeper(tmp_path, host="::")
    TokenStore(tmp_path).create("laptop", [Scope.ADMIN])
    check_host("0.0.0.0", tmp_path)


def identify(gatekeeper, authorization, address="1.1.1.1"):
    return asyncio.run(gatekeeper.identify(authorization, address))


def test_without_tokens_this_machine_is_let_in(tmp_path):
    caller = identify(Gatekeeper(tmp_path), None)
    assert (caller.name, caller.scopes, caller.token) == ("anonymous", ALL_SCOPES, None)


def test_the_last_token_that_is_revoked_opens_nothing_to_others(tmp_path):
    store = TokenStore(tmp_path)
    secret = store.create("laptop", [Scope.ADMIN])
    gatekeeper = Gatekeeper(tmp_path, host="0.0.0.0")
    store.revoke("laptop")
    with pytest.raises(AuthenticationRequiredError, match="this needs a token"):
        identify(gatekeeper, None)
    with pytest.raises(InvalidTokenError, match=r"none of the server's, or was revoked"):
        identify(gatekeeper, f"Bearer {secret}")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "token", "TOKEN"])
def test_a_token_is_taken_in_both_schemes(tmp_path, scheme):
    secret = TokenStore(tmp_path).create("laptop", [Scope.READ])
    caller = identify(Gatekeeper(tmp_path), f"{scheme} {secret}")
    assert (caller.name, caller.scopes) == ("laptop", {Scope.READ})


@pytest.mark.parametrize("authorization", ["Basic {}", "{}", "Bearer", "Bearer x{}", "Bearer {} x"])
def test_other_headers_are_wrong_tokens(tmp_path, authorization):
    secret = TokenStore(tmp_path).create("laptop", [Scope.READ])
    with pytest.raises(InvalidTokenError, match=r"none of the server's"):
        identify(Gatekeeper(tmp_path), authorization.format(secret))


def test_too_many_wrong_tokens_slow_nobody_who_has_one(tmp_path):
    secret = TokenStore(tmp_path).create("laptop", [Scope.READ])
    gatekeeper = Gatekeeper(tmp_path)
    for _ in range(10):
        with pytest.raises(InvalidTokenError, match=r"none of the server's"):
            identify(gatekeeper, "Bearer x")
    with pytest.raises(TooManyFailedLoginsError, match=r"too many .* 1\.1\.1\.1; retry in \d s$"):
        identify(gatekeeper, "Bearer x")
    assert identify(gatekeeper, f"Bearer {secret}").name == "laptop"
    with pytest.raises(InvalidTokenError, match=r"none of the server's"):
        identify(gatekeeper, "Bearer x", "2.2.2.2")
    lines = (tmp_path / AUDIT_FILE).read_bytes().splitlines()
    assert [orjson.loads(line)["address"] for line in lines] == ["1.1.1.1"] * 10 + ["2.2.2.2"]


def test_a_narrow_token_is_told_what_is_needed(tmp_path):
    secret = TokenStore(tmp_path).create("laptop", [Scope.ENCODE])
    gatekeeper = Gatekeeper(tmp_path)
    caller = identify(gatekeeper, f"Bearer {secret}")
    with pytest.raises(ForbiddenError, match="GET /runs needs .* scope read; `laptop` has encode"):
        gatekeeper.check(caller, READ, "GET /runs")
    with pytest.raises(ForbiddenError, match="is closed to all"):
        gatekeeper.check(caller, CLOSED, "GET /runs")
    gatekeeper.check(caller, PUBLIC, "GET /")


# The HTTP side, over an executor of a few lines; tests/flows/test_security.py has a real Flow.


def test_every_route_asks_for_a_token_once_there_is_one(client, tmp_path):
    assert client.get("/runs").status_code == 200
    TokenStore(tmp_path).create("laptop", [Scope.ADMIN])
    for (method, path), permission in ROUTES.items():
        answer = client.request(method, re.sub(r"{.*?}", "x", path))
        assert (answer.status_code == 401) == (not permission.is_public), (method, path)
    for method, path in (("GET", "/nothing"), ("PATCH", "/runs"), ("OPTIONS", "/runs")):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["error"]) == (401, "AuthenticationRequiredError")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="finetuner"'


@pytest.mark.parametrize("scope", Scope)
def test_every_route_opens_to_its_scopes_alone(client, tmp_path, scope):
    store = TokenStore(tmp_path)
    secret = store.create("laptop", [scope])
    granted = store.get("laptop").granted
    for (method, path), permission in ROUTES.items():
        answer = client.request(method, re.sub(r"{.*?}", "x", path), headers=bearer(secret))
        is_open = permission.is_public or bool(permission.scopes & granted)
        assert (answer.status_code not in (401, 403)) == is_open, (method, path, answer.text)
    assert client.get("/nothing", headers=bearer(secret)).status_code == 404


def test_refusals_have_the_form_of_the_route(client, tmp_path):
    secret = TokenStore(tmp_path).create("laptop", [Scope.FIT])
    wrong = client.get("/runs", headers=bearer("wrong"))
    assert (wrong.status_code, wrong.json()["error"]) == (401, "InvalidTokenError")
    assert wrong.headers["WWW-Authenticate"] == 'Bearer realm="finetuner", error="invalid_token"'
    narrow = client.post("/v1/embeddings", headers=bearer(secret), json={})
    error = narrow.json()["error"]
    assert (narrow.status_code, error["type"], error["code"]) == (
        *(403, "permission_error"),
        "ForbiddenError",
    )
    missing = client.get("/v1/models").json()["error"]
    assert (missing["type"], missing["code"]) == (
        "authentication_error",
        "AuthenticationRequiredError",
    )


def test_a_route_that_others_add_is_for_admin(app, tmp_path):
    @app.get("/added-by-others")
    async def added():
        return {"secret": 1}

    store = TokenStore(tmp_path)
    secrets = {scope: store.create(scope, [scope]) for scope in Scope}
    with TestClient(app) as client:
        found = {
            scope: client.get("/added-by-others", headers=bearer(secret)).status_code
            for scope, secret in secrets.items()
        }
        assert client.get("/added-by-others").status_code == 401
    assert found == {Scope.READ: 403, Scope.ENCODE: 403, Scope.FIT: 403, Scope.ADMIN: 200}
    assert ADMIN.scopes == {Scope.ADMIN}


def test_websockets_are_closed(app):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/runs", "headers": [], "query_string": b""}
    asyncio.run(app(scope, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_429_says_when_to_come_back(client, tmp_path):
    TokenStore(tmp_path).create("laptop", [Scope.READ])
    codes = [client.get("/runs", headers=bearer("x")).status_code for _ in range(12)]
    assert codes == [401] * 10 + [429] * 2
    refused = client.get("/runs", headers=bearer("x"))
    assert refused.json()["error"] == "TooManyFailedLoginsError"
    assert 1 <= int(refused.headers["Retry-After"]) <= 6


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:51001"}, 200),
        ({"Host": "[::1]:51001"}, 200),
        ({"Host": "localhost:51001"}, 200),
        ({"Host": "localhost:51001", "Origin": "http://localhost:51001"}, 200),
        ({"Host": "localhost:51001", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost:51001", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "localhost:51001", "Origin": "null"}, 403),
        ({"Host": "rebound.evil.example:51001"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
    ],
)
def test_pages_of_others_cannot_use_a_browser_here(client, tmp_path, headers, status):
    assert client.get("/runs", headers=headers).status_code == status
    secret = TokenStore(tmp_path).create("laptop", [Scope.READ])
    assert client.get("/runs", headers={**headers, **bearer(secret)}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:51001", "localhost:51001", "[::1]:51001"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/fit"), ("PUT", "/experiments/e"), ("DELETE", "/runs/r")]
)
def test_our_own_page_may_change_things_and_those_of_others_not(client, host, method, path):
    def status(origin):
        headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
        return client.request(method, path, headers=headers, json={}).status_code

    assert status(f"http://{host}") != 403
    others = ("http://127.0.0.1:3000", "http://localhost:3000", "https://evil.example", "null")
    assert [status(origin) for origin in others] == [403] * 4


def test_cors_is_closed_but_to_those_named(tmp_path):
    origin, other = "https://search.example.org", "https://evil.example"
    asking = {"Access-Control-Request-Method": "POST", "Origin": origin}
    with TestClient(build_app(call, tmp_path)) as client:
        answer = client.get("/livez", headers={"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers
        assert client.options("/encode", headers=asking).status_code == 403
    with TestClient(build_app(call, tmp_path, cors_origins=[origin])) as client:
        answer = client.get("/runs", headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in answer.headers
        assert client.options("/encode", headers=asking).status_code == 200
        refused = client.options("/encode", headers={**asking, "Origin": other})
        assert "access-control-allow-origin" not in refused.headers
        TokenStore(tmp_path).create("laptop", [Scope.READ])
        answer = client.get("/runs", headers={"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, origin)


@pytest.mark.parametrize(
    "origin", ["*", "https://*", "search.example.org", "https://a.example/", "https://a/b", ""]
)
def test_what_is_no_origin_is_refused(tmp_path, origin):
    with pytest.raises(ConfigError, match="a CORS origin is a scheme and a host"):
        build_app(call, tmp_path, cors_origins=[origin])


def test_whoami(client, tmp_path):
    assert client.get("/whoami").json()["name"] == "anonymous"
    secret = TokenStore(tmp_path).create("laptop", [Scope.FIT])
    answer = client.get("/whoami", headers=bearer(secret)).json()
    assert answer == {"name": "laptop", "scopes": ["fit", "read"]}


def test_the_description_asks_for_a_token(client):
    description = client.get("/openapi.json").json()
    (scheme,) = description["security"][0]
    assert description["components"]["securitySchemes"][scheme]["scheme"] == "bearer"


def test_tokens_that_cannot_be_read_close_the_service(client, tmp_path):
    secret = TokenStore(tmp_path).create("laptop", [Scope.READ])
    assert client.get("/runs", headers=bearer(secret)).status_code == 200
    (tmp_path / "access" / "tokens.json").write_text("{")
    answer = client.get("/runs", headers=bearer(secret))
    assert (answer.status_code, answer.json()["error"]) == (503, "UnavailableError")
    assert str(tmp_path) not in answer.text
    os.unlink(tmp_path / "access" / "tokens.json")
    assert client.get("/runs").status_code == 503


# Flows.


@pytest.mark.parametrize("path", sorted((ROOT / "flows").glob("*.yml")), ids=lambda path: path.name)
def test_our_flows_listen_on_this_machine_alone(path):
    flow = yaml.safe_load(path.read_text())
    for part in (flow["gateway"], *flow["executors"]):
        assert is_loopback(part.get("host", "0.0.0.0")), part
    assert "port_monitoring" not in path.read_text()


def test_grpc_has_a_code_for_each_refusal():
    from finetuner.grpc_access import _CODES

    error = TooManyFailedLoginsError("retry in 1 s")
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

"""The page's files, headers and caching, over a folder of a few files."""

import asyncio
import gzip
import hashlib
import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from finetuner.access import Scope, TokenStore
from finetuner.http_api import build_app
from finetuner.http_messages import add_error_handlers
from finetuner.page_routes import PAGE, add_page_routes

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
HTML = "<!doctype html><title>é</title>\n"
SCRIPT = "console.log('a');\n" * 100


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "page"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text(HTML, encoding="utf-8")
    (folder / "secret.js").write_text("secret")
    (folder / "assets" / "main-AB12.js").write_text(SCRIPT)
    (folder / "assets" / "main-AB12.css").write_text("a{}")
    (folder / "assets" / "dot-AB12.png").write_bytes(b"\x89PNG" + b"a" * 1000)
    (folder / "assets" / ".hidden").write_text("secret")
    (folder / "assets" / "inner").mkdir()
    return folder


@pytest.fixture
def app(folder):
    app = FastAPI(redirect_slashes=False)
    add_error_handlers(app)
    add_page_routes(app, folder)
    return app


@pytest.fixture
def client(app):
    return TestClient(app)


@pytest.mark.parametrize(
    "accept",
    ["*/*", "application/json", "text/*", "text/html;q=0", "text/html; q=0.000", "text/htmlx", ""],
)
def test_who_does_not_ask_for_a_page_gets_json(client, accept):
    answer = client.get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.json()["name"]) == (200, "finetuner-flow")
    assert answer.headers["Vary"] == "Accept"


@pytest.mark.parametrize(
    "accept", [BROWSER["Accept"], "text/html", "*/*, TEXT/HTML;q=0.1", "application/json,text/html"]
)
def test_a_browser_gets_the_page(client, accept):
    answer = client.get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.text) == (200, HTML)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["Vary"] == "Accept, Accept-Encoding"
    assert answer.headers["ETag"] == f'"{hashlib.sha256(HTML.encode()).hexdigest()[:32]}"'


@pytest.mark.parametrize("path", ["/", "/assets/main-AB12.js", "/assets/main-AB12.css"])
@pytest.mark.parametrize("is_known", [False, True])
def test_strict_headers(client, path, is_known):
    headers = dict(BROWSER)
    if is_known:
        headers["If-None-Match"] = client.get(path, headers=BROWSER).headers["ETag"]
    answer = client.get(path, headers=headers)
    assert answer.status_code == (304 if is_known else 200)
    policy = dict(
        rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "font-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("main-AB12.js", "text/javascript; charset=utf-8"),
        ("main-AB12.css", "text/css; charset=utf-8"),
        ("dot-AB12.png", "image/png"),
    ],
)
def test_assets_stay_for_ever(client, folder, name, media_type):
    answer = client.get(f"/assets/{name}")
    assert answer.content == (folder / "assets" / name).read_bytes()
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize(
    ("name", "accepted", "is_zipped"),
    [
        ("main-AB12.js", "gzip, deflate, br", True),
        ("main-AB12.js", "gzip;q=0", False),
        ("main-AB12.js", "identity", False),
        ("main-AB12.js", "br", False),
        ("main-AB12.css", "gzip", False),  # three bytes
        ("dot-AB12.png", "gzip", False),
    ],
)
def test_what_is_zipped(client, folder, name, accepted, is_zipped):
    with client.stream("GET", f"/assets/{name}", headers={"Accept-Encoding": accepted}) as answer:
        sent = b"".join(answer.iter_raw())
    assert answer.headers.get("Content-Encoding") == ("gzip" if is_zipped else None)
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert int(answer.headers["Content-Length"]) == len(sent)
    content = (folder / "assets" / name).read_bytes()
    assert (gzip.decompress(sent) if is_zipped else sent) == content


@pytest.mark.parametrize("path", ["/", "/assets/main-AB12.js"])
def test_head_gives_the_head_alone(client, path):
    expected, answer = client.get(path, headers=BROWSER), client.head(path, headers=BROWSER)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers == expected.headers


@pytest.mark.parametrize(
    ("known", "status"),
    [("{}", 304), ("W/{}", 304), ('"x", {}', 304), ('"x"', 200), ("", 200)],
)
def test_what_a_browser_has_is_not_sent_again(client, known, status):
    etag = client.get("/", headers=BROWSER).headers["ETag"]
    answer = client.get("/", headers={**BROWSER, "If-None-Match": known.format(etag)})
    assert (answer.status_code, answer.text) == (status, HTML if status == 200 else "")
    assert answer.headers["ETag"] == etag


def test_a_page_built_anew_is_seen_at_once(client, folder):
    assert client.get("/", headers=BROWSER).text == HTML
    (folder / "index.html").write_text("other")
    assert client.get("/", headers=BROWSER).text == "other"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "main.js",
            "x" * 9000,
            "inner",
            ".hidden",
            "%2Ehidden",
            "",
            "a%00b",
            "main-AB12.js%00",
            "main-AB12.js%0A",
        ),
        *(
            "../secret.js",
            "..%2Fsecret.js",
            "%2E%2E%2Fsecret.js",
            "%2e%2e/secret.js",
            "..%5Csecret.js",
        ),
        *(
            "inner/../main-AB12.js",
            "%2Fetc%2Fpasswd",
            "..%252Fsecret.js",
            "…",
            "%C0%AE%C0%AE%2Fsecret.js",
        ),
    ],
)
def test_nothing_else_is_there(app, name):
    """Past every client, since they make paths shorter before they send them."""
    sent = []

    async def send(message):
        sent.append(message)

    path = unquote(f"/assets/{name}", errors="replace")
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    asyncio.run(app(scope, None, send))
    assert sent[0]["status"] == 404
    assert json.loads(sent[1]["body"])["error"] == "EndpointNotFoundError"


def test_the_page_is_open_and_what_it_asks_for_is_not(tmp_path):
    TokenStore(tmp_path).create("laptop", [Scope.READ])
    client = TestClient(build_app(None, tmp_path))
    page = client.get("/", headers=BROWSER)
    assert (page.status_code, page.text) == (200, (PAGE / "index.html").read_text("utf-8"))
    assert client.get("/assets/none.js").status_code == 404
    assert client.get("/whoami").status_code == 401


def test_the_page_is_part_of_the_package():
    assert (PAGE / "index.html").is_file()
    assert PAGE.parent == Path(__import__("finetuner").__file__).parent

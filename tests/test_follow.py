"""The client's side of following, against a server of a few lines that breaks off where it is told to."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from finetuner import follow as following
from finetuner.client import Client
from finetuner.errors import ConfigError, RunNotFoundError, UnavailableError
from finetuner.run import Run

LOG = "first ✨\nsecond\n\nlast, without an end".encode()
STEPS = b'{"n":1}\n{"n":2}\n\n{"n":4}\n'
ENDED = {"Run-Id": "id", "Run-Ended": "true"}
OPEN = {"Run-Id": "id", "Run-Ended": "false"}


class Answers(HTTPServer):
    """Gives each request the next of its answers: headers, body, and whether it breaks off."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = [], []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # the name in the base class
        self.server.asked.append(self.path)
        status, headers, body, is_broken = self.server.answers.pop(0)
        self.send_response(status)
        # Said, or the client may ask again by a connection that is just being closed.
        own = {"Transfer-Encoding": "chunked", "Connection": "close"}
        for name, value in {**headers, **own}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        if not is_broken:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(following, "_FIRST_PAUSE_S", 0.001)
    server = Answers()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(server):
    record = {"name": "r", "experiment_name": "default", "artifact_id": "id"}
    return Run(Client(f"http://127.0.0.1:{server.server_port}"), record)


def refused(status, name):
    body = b'{"error": "%s", "detail": "said so"}' % name
    return status, {}, body, False


def offsets(server):
    return [int(path.rpartition("offset=")[2]) for path in server.asked]


@pytest.mark.parametrize("is_broken", [True, False])
@pytest.mark.parametrize("cut", range(len(LOG) + 1))
def test_no_byte_is_lost_or_repeated_wherever_the_connection_ends(server, run, cut, is_broken):
    server.answers = [(200, OPEN, LOG[:cut], is_broken), (200, ENDED, LOG[cut:], False)]
    assert list(run.stream_logs()) == LOG.decode().split("\n")
    assert offsets(server) == [0, cut]


@pytest.mark.parametrize("cut", range(len(STEPS) + 1))
def test_no_step_is_lost_or_repeated_wherever_the_connection_breaks(server, run, cut):
    n_whole = STEPS[:cut].count(b"\n")
    rest = b"".join(STEPS.splitlines(keepends=True)[n_whole:])
    server.answers = [(200, OPEN, STEPS[:cut], True), (200, ENDED, rest, False)]
    assert [step["n"] for step in run.stream_steps()] == [1, 2, 4]
    assert offsets(server) == [0, n_whole]


def test_it_waits_for_a_server_that_starts_again(server, run):
    server.answers = [
        (200, OPEN, b"a\n", False),
        refused(503, b"UnavailableError"),
        refused(429, b"OverloadedError"),
        (200, OPEN, b"", False),
        (200, OPEN, b"b\n", True),
        (200, ENDED, b"", False),
    ]
    assert list(run.stream_logs()) == ["a", "b"]
    assert offsets(server) == [0, 2, 2, 2, 2, 4]


def test_it_goes_on_where_the_caller_says(server, run):
    server.answers = [(200, ENDED, b'{"n":8}\n', False)]
    assert list(run.stream_steps(offset=7)) == [{"n": 8}]
    assert offsets(server) == [7]


def test_a_last_line_that_is_torn_is_no_step(server, run):
    server.answers = [(200, ENDED, b'{"n":1}\n{"n"', False)]
    assert list(run.stream_epochs()) == [{"n": 1}]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (refused(404, b"RunNotFoundError"), RunNotFoundError, "said so"),
        (refused(422, b"ConfigError"), ConfigError, "said so"),
        ((200, {**OPEN, "Run-Id": "other"}, b"x\n", False), RunNotFoundError, "another one has"),
    ],
)
def test_what_cannot_get_better_is_raised_at_once(server, run, answer, error, message):
    server.answers = [(200, OPEN, b"a\n", False), answer]
    lines = run.stream_logs()
    assert next(lines) == "a"
    with pytest.raises(error, match=message):
        next(lines)


def test_it_gives_up_when_nobody_answers_for_long(monkeypatch):
    monkeypatch.setattr(following, "PATIENCE_S", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{probe.getsockname()[1]}")
        run = Run(client, {"name": "r", "experiment_name": "default", "artifact_id": "id"})
        with pytest.raises(UnavailableError, match="tried for 0 s; no Finetuner server answers at"):
            list(run.stream_logs(interval=0.01))


def test_steps_are_fetched_page_by_page(server, run):
    pages = [(b'{"n":1}, {"n":2}', 2), (b'{"n":4}', 4), (b"", 4)]
    server.answers = [
        (200, {}, b'{"items": [%s], "offset": %d, "ended": false}' % page, False) for page in pages
    ]
    assert [step["n"] for step in run.steps()] == [1, 2, 4]
    assert offsets(server) == [0, 2, 4]

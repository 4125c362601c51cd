"""A server that answers what a test tells it to."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import orjson


class FakeServer(ThreadingHTTPServer):
    """Answers by `METHOD /path`: JSON, bytes, (status, JSON), a function of the request, or a list of
    these, of which each is given once and the last for ever. Keeps what it was asked.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = {}
        self.requests = []
        self.head = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def handle_any(self):
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = f"{self.command} {url.path}"
        query, body = dict(parse_qsl(url.query)), orjson.loads(body) if body else None
        self.server.requests.append((key, query, body))
        missing = (404, {"error": "RunNotFoundError", "detail": f"nothing at {key}"})
        answer = self.server.answers.get(key, missing)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(body)
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        content = content if isinstance(content, bytes) else orjson.dumps(content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in self.server.head.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, *_):
        pass


@contextmanager
def fake_server():
    """Serve until the block ends."""
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

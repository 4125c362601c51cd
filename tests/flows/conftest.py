import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import requests

ROWS = [
    [f"{form} {topic}", topic] for topic in "abcdef" for form in ("one", "two", "three", "four")
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server in a process group of its own; what it prints goes to a file."""

    def __init__(self, workspace, log, *, options=(), command=None, ports=None):
        self.workspace, self.log = workspace, log
        self.grpc_port, self.http_port = ports or (free_port(), free_port())
        self.url = f"http://127.0.0.1:{self.http_port}"
        command = command or [
            *("-m", "finetuner.cli", "serve", "--workspace", str(workspace)),
            *("--grpc-port", str(self.grpc_port), "--http-port", str(self.http_port), *options),
        ]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={
                    **os.environ,
                    "HF_HUB_OFFLINE": "1",
                    "FINETUNER_WORKSPACE": str(workspace),
                    "PYTHONUNBUFFERED": "1",
                },
                start_new_session=True,
                stdout=output,
                stderr=output,
            )

    def get(self, path, **kwargs):
        return requests.get(self.url + path, timeout=60, **kwargs)

    def post(self, path, **kwargs):
        return requests.post(self.url + path, timeout=60, **kwargs)

    def put(self, path, **kwargs):
        return requests.put(self.url + path, timeout=60, **kwargs)

    def delete(self, path, **kwargs):
        return requests.delete(self.url + path, timeout=60, **kwargs)

    def wait_until_ready(self, timeout_s=90):
        deadline = time.monotonic() + timeout_s
        while not self._is_ready():
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"it did not get ready: {self.log.read_text()}"
            time.sleep(0.2)

    def is_listening(self):
        try:
            return self.get("/livez").ok
        except requests.RequestException:
            return False

    def _is_ready(self):
        try:
            return self.get("/readyz").ok
        except requests.RequestException:
            return False

    def executor(self):
        """Return the process of a Flow's only executor: it listens, and at no port of the gateway."""
        own = {self.http_port, self.grpc_port}
        for child in psutil.Process(self.process.pid).children():
            ports = {c.laddr.port for c in child.net_connections() if c.status == "LISTEN"}
            if ports and not ports & own:
                return child
        raise LookupError("no executor listens")

    def wait_until_ended(self, run_name, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while (state := self.get(f"/runs/{run_name}/status").json())["status"] not in (
            "FINISHED",
            "FAILED",
        ):
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        return state

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        assert self.process.wait(30) == 0, self.log.read_text()

    def kill_group(self):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start_server(tmp_path):
    """Start a server over a workspace; none outlives the test."""
    servers = []

    def start(workspace, *, until_ready=True, **kwargs):
        servers.append(Server(workspace, tmp_path / f"server-{len(servers)}.txt", **kwargs))
        if until_ready:
            servers[-1].wait_until_ready()
        return servers[-1]

    yield start
    for server in servers:
        server.kill_group()


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_model_folder):
    workspace = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    server = Server(workspace, tmp_path_factory.mktemp("log") / "server.txt")
    try:
        server.wait_until_ready()
        yield server
        server.stop()
    finally:
        server.kill_group()


@pytest.fixture(scope="session")
def finished_run(server):
    body = {
        "model": "tiny",
        "train_data": ROWS,
        "run_name": "finished",
        "epochs": 1,
        "device": "cpu",
        "callbacks": [{"name": "EvaluationCallback", "options": {"query_data": ROWS}}],
    }
    answer = server.post("/fit", json=body)
    assert answer.status_code == 201, answer.text
    assert server.wait_until_ended("finished") == {"status": "FINISHED", "details": "Run finished"}
    return answer.json()

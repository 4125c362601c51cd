import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

ROWS = [
    [f"{form} {topic}", topic] for topic in "abcdef" for form in ("one", "two", "three", "four")
]


@dataclass
class Server:
    url: str
    http_port: int
    grpc_port: int
    workspace: Path
    log: Path

    def get(self, path, **kwargs):
        return requests.get(self.url + path, timeout=60, **kwargs)

    def post(self, path, **kwargs):
        return requests.post(self.url + path, timeout=60, **kwargs)

    def put(self, path, **kwargs):
        return requests.put(self.url + path, timeout=60, **kwargs)

    def delete(self, path, **kwargs):
        return requests.delete(self.url + path, timeout=60, **kwargs)

    def wait_until_ended(self, run_name, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while (state := self.get(f"/runs/{run_name}/status").json())["status"] not in (
            "FINISHED",
            "FAILED",
        ):
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        return state


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_model_folder):
    workspace = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    grpc_port, http_port = free_port(), free_port()
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "finetuner.cli", "serve", "--workspace", str(workspace)),
                *("--grpc-port", str(grpc_port), "--http-port", str(http_port)),
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
            stdout=output,
            stderr=output,
        )
    server = Server(f"http://127.0.0.1:{http_port}", http_port, grpc_port, workspace, log)
    try:
        _wait_until_ready(server, process)
        yield server
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_ready(server, process, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended: {server.log.read_text()}"
        try:
            if server.get("/readyz").ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the server did not get ready: {server.log.read_text()}")


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

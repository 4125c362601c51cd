"""Starting and stopping: no process is left, no port held, no run forgotten."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from finetuner.run_store import RunStore
from finetuner.runs import Status

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
ROWS = [[f"question {i} about topic {i % 10}", i % 10] for i in range(400)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def wait_until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def group_members(process_group):
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == process_group and fields[0] != "Z":
            members.append(stat.parent.name)
    return members


class Served:
    """A server in a process group of its own."""

    def __init__(self, workspace, command=None, ports=None):
        self.grpc_port, self.http_port = ports or (free_port(), free_port())
        command = command or [
            *("-m", "finetuner.cli", "serve", "--workspace", str(workspace)),
            *("--grpc-port", str(self.grpc_port), "--http-port", str(self.http_port)),
        ]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            start_new_session=True,
            env={**os.environ, "FINETUNER_WORKSPACE": str(workspace)},
        )
        self.url = f"http://127.0.0.1:{self.http_port}"
        wait_until(self.answers)

    def answers(self):
        assert self.process.poll() is None
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).ok
        except requests.RequestException:
            return False

    def stop(self, number):
        self.process.send_signal(number)
        returncode = self.process.wait(30)
        wait_until(lambda: not group_members(self.process.pid), 10)
        assert is_free(self.grpc_port)
        assert is_free(self.http_port)
        return returncode


@pytest.fixture
def workspace(tmp_path, tiny_model_folder):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_everything(workspace, number):
    server = Served(workspace)
    assert len(group_members(server.process.pid)) >= 4  # main, gateway, two executors

    assert server.stop(number) == 0


def test_run_that_was_stopped_starts_again_with_the_service(workspace):
    server = Served(workspace)
    body = {
        "model": "tiny",
        "train_data": ROWS,
        "run_name": "long",
        "epochs": 1000,
        "device": "cpu",
    }
    assert requests.post(f"{server.url}/fit", json=body, timeout=30).status_code == 201
    body = {**body, "run_name": "waiting", "epochs": 1}
    assert requests.post(f"{server.url}/fit", json=body, timeout=30).status_code == 201
    runs = RunStore(workspace)
    wait_until(lambda: "batch" in runs.get("long").state().details)
    assert runs.get("waiting").state().status is Status.CREATED

    assert server.stop(signal.SIGTERM) == 0
    assert runs.get("long").state().answer() == {
        "status": "CREATED",
        "details": "Stopped with the service; it starts again with it",
    }

    server = Served(workspace)
    wait_until(lambda: "batch" in runs.get("long").state().details)
    assert runs.get("long").state().n_starts == 2
    assert requests.delete(f"{server.url}/runs/long", timeout=30).status_code == 200
    wait_until(lambda: runs.get("waiting").state().status is Status.FINISHED)
    assert server.stop(signal.SIGTERM) == 0


def test_killed_worker_fails_its_run_with_the_cause(workspace):
    server = Served(workspace)
    body = {
        "model": "tiny",
        "train_data": ROWS,
        "run_name": "long",
        "epochs": 1000,
        "device": "cpu",
    }
    requests.post(f"{server.url}/fit", json=body, timeout=30)
    run = RunStore(workspace).get("long")
    wait_until(lambda: "batch" in run.state().details)
    subprocess.run(["pkill", "-KILL", "-f", f"finetuner.worker {run.folder}"], check=True)
    wait_until(lambda: run.state().status is Status.FAILED)

    assert (
        run.state().details == "The worker was ended by SIGKILL (out of memory, or killed by hand)"
    )
    assert server.stop(signal.SIGTERM) == 0


def test_run_of_a_killed_service_starts_again(workspace):
    server = Served(workspace)
    body = {"model": "tiny", "train_data": ROWS, "run_name": "r", "epochs": 1000, "device": "cpu"}
    requests.post(f"{server.url}/fit", json=body, timeout=30)
    run = RunStore(workspace).get("r")
    wait_until(lambda: "batch" in run.state().details)
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not run.is_alive())
    assert run.state().status is Status.STARTED  # nobody was left to say otherwise

    server = Served(workspace)
    wait_until(lambda: run.state().n_starts == 2 and "batch" in run.state().details)
    assert requests.delete(f"{server.url}/runs/r", timeout=30).status_code == 200
    assert not run.folder.exists()
    assert server.stop(signal.SIGTERM) == 0


def test_dead_executor_ends_the_service(workspace):
    server = Served(workspace)
    encoder = [pid for pid in group_members(server.process.pid) if pid != str(server.process.pid)][
        -1
    ]
    os.kill(int(encoder), signal.SIGKILL)

    assert server.process.wait(30) == 1
    wait_until(lambda: not group_members(server.process.pid), 20)


def test_part_that_does_not_start_ends_the_service(workspace):
    flow = (REPOSITORY / "flows" / "all.yml").read_text(encoding="utf-8")
    flow = flow.replace("../executors", str(REPOSITORY / "executors"))
    (workspace / "bad.yml").write_text(f"{flow}    uses_with: {{backend: tensorflow}}\n")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "finetuner.cli", "serve", "--flow", str(workspace / "bad.yml")),
            *("--grpc-port", str(free_port()), "--http-port", str(free_port())),
        ],
        env={**os.environ, "FINETUNER_WORKSPACE": str(workspace)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "The Flow did not start" in errors
    wait_until(lambda: not group_members(process.pid), 10)


def test_taken_port_is_named(workspace):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "finetuner.cli", "serve", "--http-port", str(port)],
            env={**os.environ, "FINETUNER_WORKSPACE": str(workspace)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 1
    assert f"cannot listen at 127.0.0.1:{port}" in result.stderr.replace("\n", " ")


def test_jina_flow_command_starts_it_too(workspace):
    command = ["-m", "jina", "flow", "--uses", str(REPOSITORY / "flows" / "all.yml")]
    server = Served(workspace, command, ports=(51000, 51001))

    assert requests.get(f"{server.url}/runs", timeout=10).json()["total"] == 0
    # Jina's own command leaves its parts behind on SIGTERM; Ctrl-C, which it handles, goes to all.
    os.killpg(server.process.pid, signal.SIGINT)
    server.process.wait(30)
    wait_until(lambda: not group_members(server.process.pid), 20)

"""Starting and stopping: no process is left, no port held, no run forgotten."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetuner.holder import Life, life_of, send_signal
from finetuner.run_store import RunStore
from finetuner.states import Status

from .conftest import free_port

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
ROWS = [[f"question {i} about topic {i % 10}", i % 10] for i in range(400)]


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


def assert_nothing_is_left(server):
    wait_until(lambda: not group_members(server.process.pid), 20)
    assert is_free(server.grpc_port)
    assert is_free(server.http_port)


def stop(server, number=signal.SIGTERM):
    server.stop(number)
    assert_nothing_is_left(server)


@pytest.fixture
def workspace(tmp_path, tiny_model_folder):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    return tmp_path


def fit(server, run_name, *, epochs=1000, **settings):
    """Start a run, one that will not end by itself unless it is given fewer epochs."""
    body = {"model": "tiny", "train_data": ROWS, "run_name": run_name, "epochs": epochs}
    assert server.post("/fit", json={**body, "device": "cpu", **settings}).status_code == 201
    return RunStore(server.workspace).get(run_name)


def is_at_work(run, *, n_starts=1):
    return run.state().n_starts == n_starts and "batch" in run.state().details


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_everything(workspace, start_server, number):
    server = start_server(workspace)
    assert len(group_members(server.process.pid)) >= 4  # main, gateway, two executors

    stop(server, number)


def test_run_that_was_stopped_starts_again_with_the_service(workspace, start_server):
    server = start_server(workspace)
    long, waiting = fit(server, "long"), fit(server, "waiting", epochs=1)
    wait_until(lambda: is_at_work(long))
    assert waiting.state().status is Status.CREATED

    stop(server)
    assert long.state().answer() == {
        "status": "INTERRUPTED",
        "details": "Stopped with the service; it goes on with it",
    }

    server = start_server(workspace)
    wait_until(lambda: is_at_work(long, n_starts=2))
    assert long.state().n_interruptions == 0
    assert server.delete("/runs/long").status_code == 200
    wait_until(lambda: waiting.state().status is Status.FINISHED)
    stop(server)


def test_killed_worker_goes_on_from_its_checkpoint(workspace, start_server):
    server = start_server(workspace)
    run = fit(server, "r", checkpoint_interval_s=0)
    wait_until(lambda: is_at_work(run) and run.has_checkpoint())
    assert send_signal(run.state().holder, signal.SIGKILL)
    wait_until(lambda: is_at_work(run, n_starts=2))

    assert run.state().n_interruptions == 1
    assert "Going on from epoch " in (run.folder / "log.txt").read_text()
    assert server.delete("/runs/r").status_code == 200
    stop(server)


def test_a_run_whose_worker_is_killed_again_and_again_is_given_up(workspace, start_server):
    server = start_server(workspace)
    run = fit(server, "long")
    for n_starts in range(1, 6):
        wait_until(lambda n=n_starts: is_at_work(run, n_starts=n))
        assert send_signal(run.state().holder, signal.SIGKILL)
    wait_until(lambda: run.state().status is Status.FAILED)

    assert run.state().details == (
        "The worker was ended by SIGKILL (by hand, or out of memory); interrupted 5 times, "
        "the run is given up"
    )
    causes = [state.details for state in run.history() if state.status is Status.INTERRUPTED]
    assert causes[0].endswith("(by hand, or out of memory); it starts again")
    stop(server)


def test_run_of_a_killed_service_starts_again(workspace, start_server):
    server = start_server(workspace)
    run = fit(server, "r")
    wait_until(lambda: is_at_work(run))
    server.kill_group()
    wait_until(lambda: life_of(run.state().holder) is Life.DEAD)
    assert run.state().status is Status.STARTED  # nobody was left to say otherwise

    server = start_server(workspace)
    wait_until(lambda: is_at_work(run, n_starts=2))
    assert run.state().n_interruptions == 1
    assert server.delete("/runs/r").status_code == 200
    assert not run.folder.exists()
    stop(server)


def test_worker_that_a_killed_service_left_ends_with_its_run(workspace, start_server):
    server = start_server(workspace)
    run = fit(server, "r")
    wait_until(lambda: is_at_work(run))
    worker = run.state().holder.split()[-2]
    for pid in group_members(server.process.pid):
        if pid != worker:
            os.kill(int(pid), signal.SIGKILL)
    server.process.wait()

    second = start_server(workspace)
    assert is_at_work(run)  # adopted, not started again
    assert group_members(server.process.pid) == [worker]
    assert second.delete("/runs/r").status_code == 200
    wait_until(lambda: not group_members(server.process.pid), 5)
    stop(second)


def test_dead_executor_ends_the_service(workspace, start_server):
    server = start_server(workspace)
    others = [pid for pid in group_members(server.process.pid) if pid != str(server.process.pid)]
    os.kill(int(others[-1]), signal.SIGKILL)

    assert server.process.wait(30) == 1
    assert_nothing_is_left(server)


def test_part_that_does_not_start_ends_the_service(workspace, start_server):
    flow = (REPOSITORY / "flows" / "all.yml").read_text(encoding="utf-8")
    flow = flow.replace("../executors", str(REPOSITORY / "executors"))
    (workspace / "bad.yml").write_text(f"{flow}    uses_with: {{backend: tensorflow}}\n")
    options = ("--flow", str(workspace / "bad.yml"))
    server = start_server(workspace, options=options, until_ready=False)

    assert server.process.wait(90) == 1
    assert "The Flow did not start" in server.log.read_text()
    assert_nothing_is_left(server)


def test_taken_port_is_named(workspace):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ports = ("--grpc-port", str(free_port()), "--http-port", str(port))
        result = subprocess.run(
            [sys.executable, "-m", "finetuner.cli", "serve", *ports],
            env={**os.environ, "FINETUNER_WORKSPACE": str(workspace)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}" in result.stderr.replace("\n", " ")


def test_jina_flow_command_starts_it_too(workspace, start_server):
    command = ["-m", "jina", "flow", "--uses", str(REPOSITORY / "flows" / "all.yml")]
    server = start_server(workspace, command=command, ports=(51000, 51001))

    assert server.get("/runs").json()["total"] == 0
    # The command's own word: the gateway answers before the Flow has finished starting, and a Ctrl-C in
    # between may leave `jina flow` waiting for ever.
    wait_until(lambda: "ready to serve" in server.log.read_text())
    # Jina's own command leaves its parts behind on SIGTERM; Ctrl-C, which it handles, goes to all.
    os.killpg(server.process.pid, signal.SIGINT)
    server.process.wait(30)
    assert_nothing_is_left(server)

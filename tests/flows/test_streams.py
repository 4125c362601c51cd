"""Following runs over a whole service: through its restarts, and by a thousand at once."""

import asyncio
import json
import signal
import sys
import threading
import time

import psutil
import pytest

from finetuner.client import Client
from finetuner.config import RunConfig
from finetuner.errors import RunInProgressError, RunNotFoundError
from finetuner.run import Run as UserRun
from finetuner.run_metrics import append_metrics
from finetuner.run_store import RunStore
from finetuner.states import Status

pytestmark = pytest.mark.slow

N_FOLLOWERS = 1000
N_LINES = 100
ROWS = [[f"question {i} about topic {i % 10}", i % 10] for i in range(400)]


@pytest.fixture
def workspace(tmp_path, tiny_model_folder):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    return tmp_path


def wait_until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


class Following(threading.Thread):
    """Reads a stream of the client's to its end beside the test."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream, self.got, self.error = stream, [], None
        self.start()

    def run(self):
        try:
            for item in self.stream:
                self.got.append(item)
        except Exception as error:
            self.error = error

    def result(self, timeout_s=120):
        self.join(timeout_s)
        assert not self.is_alive(), f"it goes on after {len(self.got)}"
        if self.error is not None:
            raise self.error
        return self.got


def fit(server, run_name, **settings):
    body = {"model": "tiny", "train_data": ROWS, "run_name": run_name, "device": "cpu"}
    body["callbacks"] = [{"name": "EvaluationCallback", "options": {"query_data": ROWS[:20]}}]
    answer = server.post("/fit", json={**body, **settings})
    assert answer.status_code == 201, answer.text
    return UserRun(Client(server.url), answer.json())


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_streams_go_on_through_restarts_of_the_service(workspace, start_server):
    server = start_server(workspace)
    run = fit(server, "r", epochs=15, checkpoint_interval_s=0)
    folder = RunStore(workspace).get("r").folder
    streams = [Following(s) for s in (run.stream_logs(), run.stream_epochs(), run.stream_steps())]
    wait_until(lambda: len(streams[2].got) > 10)
    with pytest.raises(RunInProgressError, match="needs to be finished"):
        run.metrics()
    assert server.get("/runs/r/metrics").json()["epochs"][0]["epoch"] == 0
    assert [line["n_steps_done"] for line in run.steps()[:10]] == list(range(1, 11))
    assert run.steps(offset=3)[0]["n_steps_done"] == 4
    assert run.epochs()[0]["epoch"] == 0

    ports = (server.grpc_port, server.http_port)
    server.stop(signal.SIGTERM)
    time.sleep(2)  # nothing answers
    server = start_server(workspace, ports=ports)
    n_before = len(streams[2].got)
    wait_until(lambda: len(streams[2].got) > n_before + 10)
    server.kill_group()
    server = start_server(workspace, ports=ports)

    assert server.wait_until_ended("r") == {"status": "FINISHED", "details": "Run finished"}
    log, epochs, steps = (stream.result() for stream in streams)
    assert "\n".join(log) + "\n" == (folder / "log.txt").read_text()
    assert epochs == json_lines(folder / "metrics.jsonl") == run.epochs()
    assert [line["epoch"] for line in epochs] == list(range(16))
    assert [s["n_steps_done"] for s in steps] == [s["n_steps_done"] for s in run.steps()]
    assert run.steps() == json_lines(folder / "steps.jsonl")
    assert sorted(run.metrics()) == ["after", "before"]


def test_a_waiting_run_is_followed_and_a_deleted_one_is_missed(workspace, start_server):
    server = start_server(workspace)
    long, waiting = fit(server, "long", epochs=1000), fit(server, "waiting", epochs=1)
    following, waiting_too = Following(long.stream_logs()), Following(waiting.stream_logs())
    wait_until(lambda: following.got)
    assert not waiting_too.got
    assert server.delete("/runs/long").status_code == 200
    with pytest.raises(RunNotFoundError, match="no run `long` in experiment `default`"):
        following.result()
    assert "Finished" in waiting_too.result()[-1]


async def follow_log(port, path, started):
    """Follow by a bare socket; return the lines and when each came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    started.release()
    body, times = b"", []
    while (size := int(await reader.readline(), 16)) > 0:
        body += (await reader.readexactly(size + 2))[:-2]
        times += [time.time()] * (body.count(b"\n") - len(times))
    writer.close()
    return body, times


async def write_log(come_to, run):
    """Write lines that say when they were written."""
    with (run.folder / "log.txt").open("ab", buffering=0) as file:
        for number in range(N_LINES):
            file.write(f"{number} {time.time()}\n".encode())
            await asyncio.sleep(0.1)
    come_to(run, Status.FINISHED, "")


async def follow_many(come_to, port, run):
    started = asyncio.Semaphore(0)
    path = f"/runs/{run.name}/logs?follow=true"
    followers = [asyncio.create_task(follow_log(port, path, started)) for _ in range(N_FOLLOWERS)]
    for _ in followers:
        await started.acquire()
    writer = asyncio.create_task(write_log(come_to, run))
    found = await asyncio.wait_for(asyncio.gather(*followers), 200)
    await writer
    return found


def test_a_thousand_followers_get_every_line(come_to, workspace, start_server, capsys):
    server = start_server(workspace, options=("--flow", "flows/serve.yml"))
    run = RunStore(workspace).create(RunConfig(model="tiny", run_name="many"), {})
    come_to(run, Status.STARTED, "")
    (gateway,) = {
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if server.http_port in {c.laddr.port for c in child.net_connections()}
    }
    before, started_at = gateway.cpu_times(), time.monotonic()
    found = asyncio.run(follow_many(come_to, server.http_port, run))
    took_s, after = time.monotonic() - started_at, gateway.cpu_times()

    log = (run.folder / "log.txt").read_bytes()
    assert log.count(b"\n") == N_LINES
    assert [body for body, _ in found if body != log] == []
    written = [float(line.split()[1]) for line in log.splitlines()]
    lags = sorted(
        got - sent for _, times in found for got, sent in zip(times, written, strict=True)
    )
    cpu_s = after.user + after.system - before.user - before.system
    with capsys.disabled():
        sys.stdout.write(
            f"\n{N_FOLLOWERS} followers, {N_LINES} lines: {took_s:.1f} s, gateway {cpu_s:.1f} CPU s, "
            f"{gateway.memory_info().rss / 2**20:.0f} MB; lag p50 {lags[len(lags) // 2]:.2f} s, "
            f"p99 {lags[len(lags) * 99 // 100]:.2f} s\n"
        )
    assert server.get("/livez").json() == {"alive": True}


def test_followers_that_hang_up_leave_nothing_behind_and_nobody_holds_a_stop_up(
    come_to, workspace, start_server
):
    server = start_server(workspace, options=("--flow", "flows/serve.yml"))
    run = RunStore(workspace).create(RunConfig(model="tiny", run_name="idle"), {})
    come_to(run, Status.STARTED, "")
    append_metrics(run.folder, 0, {"hit_at_k": 0.5})
    process = psutil.Process(server.process.pid)

    def n_connections():
        found = [c for p in process.children(recursive=True) for c in p.net_connections()]
        return sum(c.laddr.port == server.http_port and c.status == "ESTABLISHED" for c in found)

    answers = [
        server.get(f"/runs/idle/{view}?follow=true", stream=True)
        for view in ("logs", "epochs", "steps")
        for _ in range(20)
    ]
    assert n_connections() >= 60
    for answer in answers[1:]:
        answer.close()
    wait_until(lambda: n_connections() <= 2)
    server.stop()
    assert answers[0].content == b""

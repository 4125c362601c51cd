"""How long `GET /runs` takes on a volume that holds many runs, while others are submitted.

    python benchmarks/run_list.py [--runs 10000] [--lists 300]

Once as the executor answers it, in this process, and once over HTTP from a whole Flow. Wall time, since that
is what a user waits for, and beside it the CPU time of the thread that lists, which a busy machine changes
less. Submissions come from another thread of this process: for the Flow, from another process.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson
import requests
from measurement import BenchmarkError, Row, machine, report

from finetuner.config import RunConfig
from finetuner.data import from_rows
from finetuner.run_api import RunAPI
from finetuner.run_store import RunStore
from finetuner.states import Actor, State, Status
from finetuner.supervisor import Supervisor

_DATA = {"train.jsonl": from_rows([["a", 1], ["b", 1]])}
_METRICS = {f"metric_{number}": 0.5 for number in range(8)} | {"average_precision": 0.9}
_N_EPOCHS = 3
_START_TIMEOUT_S = 120.0
_PAUSE_S = 0.02
_COLUMNS = {
    "side": "",
    "n_runs": "runs",
    "n_lists": "lists",
    "n_submitted": "submitted meanwhile",
    "first_ms": "first, ms",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "cpu_p50_ms": "thread CPU p50, ms",
    "cpu_p99_ms": "p99, ms",
}


def fill(volume: Path, n_runs: int) -> None:
    """Write finished runs that trained long ago, without the fsyncs that make the store slow here."""
    long_ago = time.time() - 24 * 3600
    for number in range(n_runs):
        config = RunConfig(model="tiny", run_name=f"run-{number:05}")
        folder = volume / "runs" / "default" / config.run_name
        folder.mkdir(parents=True)
        spec = {
            "artifact_id": f"{number:024x}",
            "created_at": f"2026-01-01T00:00:00.{number:06}+00:00",
            "description": "",
            "config": asdict(config),
        }
        state = asdict(State(Status.FINISHED, "Run finished", n_starts=1))
        del state["number"]
        (folder / "spec.json").write_bytes(orjson.dumps(spec))
        (folder / "states").mkdir()
        (folder / "states" / "000000.json").write_bytes(orjson.dumps(state))
        os.utime(folder / "states", (long_ago, long_ago))
        for epoch in range(_N_EPOCHS + 1):
            append_line(folder / "metrics.jsonl", {"epoch": epoch, "metrics": _METRICS})
        (folder / "verdict.json").write_bytes(orjson.dumps({"model": {"outcome": "improved"}}))


def append_line(path: Path, value: Row) -> None:
    """Add a line to a file."""
    with path.open("ab") as file:
        file.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))


def measure(side: str, list_runs: Callable[[], Row], volume: Path, n: int) -> Row:
    """List runs while others are submitted, one after the other."""
    store = RunStore(volume)
    started_at = time.perf_counter()
    n_runs = list_runs()["total"]
    first_ms = (time.perf_counter() - started_at) * 1e3
    is_over, n_submitted = threading.Event(), 0

    def go_on() -> None:
        nonlocal n_submitted
        while not is_over.wait(_PAUSE_S):
            config = RunConfig(model="tiny", run_name=f"{side}-{n_submitted:05}")
            run = store.create(config, _DATA)
            run.step(run.state(), Status.CANCELLED, "made for a benchmark", actor=Actor.SERVICE)
            n_submitted += 1

    thread = threading.Thread(target=go_on)
    thread.start()
    times_ms, cpu_ms = [], []
    for _ in range(n):
        time.sleep(_PAUSE_S)
        started_at, cpu_before = time.perf_counter(), time.thread_time()
        list_runs()
        times_ms.append((time.perf_counter() - started_at) * 1e3)
        cpu_ms.append((time.thread_time() - cpu_before) * 1e3)
    is_over.set()
    thread.join()
    (p50, p99), (cpu_p50, cpu_p99) = (
        np.percentile(t, (50, 99)).tolist() for t in (times_ms, cpu_ms)
    )
    return {
        "side": side,
        "n_runs": n_runs,
        "n_lists": n,
        "n_submitted": n_submitted,
        "first_ms": round(first_ms, 1),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "cpu_p50_ms": round(cpu_p50, 1),
        "cpu_p99_ms": round(cpu_p99, 1),
    }


def measure_api(volume: Path, n: int) -> Row:
    """Ask the class behind the executor."""
    api = RunAPI(volume, Supervisor(volume))
    return measure("RunAPI", lambda: api.runs({}), volume, n)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure_http(volume: Path, n: int) -> Row:
    """Ask a whole Flow."""
    grpc_port, http_port = _free_port(), _free_port()
    command = ["-m", "finetuner.cli", "serve", "--flow", "flows/train.yml"]
    command += ["--workspace", str(volume)]
    command += ["--grpc-port", str(grpc_port), "--http-port", str(http_port)]
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    session, url = requests.Session(), f"http://127.0.0.1:{http_port}"
    try:
        _wait_until_ready(session, url)
        return measure("HTTP", lambda: session.get(f"{url}/runs").json(), volume, n)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_until_ready(session: requests.Session, url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if session.get(f"{url}/readyz").ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise BenchmarkError(f"no service answered at {url} within {_START_TIMEOUT_S:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--lists", type=int, default=300)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        volume = Path(folder)
        fill(volume, arguments.runs)
        for side in (measure_api, measure_http):
            rows.append(side(volume, arguments.lists))
    report("GET /runs, a page of 50", rows, _COLUMNS, machine(["jina"]))


if __name__ == "__main__":
    main()

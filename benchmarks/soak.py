"""Hold the service under mixed load for long: does its memory grow, does it lose files, threads or requests?

    python benchmarks/soak.py [--seconds 600]

Eight clients ask all routes that embed, with texts of all lengths, wrong requests, requests that hang up, and
switches of an alias between them. Every five seconds memory (proportional set size), open files and threads
of the service and its children are noted. A row per process on the standard output as JSON, with the slope
of its memory after the first minute (or the first tenth, if that is less), by least squares.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import psutil
from jina.helper import random_port
from measurement import BenchmarkError, machine, report
from served_model import NAME, make_volume

INTERVAL_S = 5
N_CLIENTS = 8
COLUMNS = {
    "process": "process",
    "memory_mb": "MB at the end",
    "slope_mb_per_minute": "MB a minute",
    "n_files_first": "files at first",
    "n_files_last": "files at last",
    "n_threads_first": "threads at first",
    "n_threads_last": "threads at last",
}
# The run was never evaluated, so it cannot be promoted by its verdict.
ALIAS = {"run": NAME, "force": True}
TEXT = "what does it cost to send money to another country and how long does it take " * 20


def some_request(generator: random.Random) -> tuple[str, str, object]:
    """Return method, path and body of one request of the mix."""
    texts = [TEXT[: generator.randint(1, 600)] for _ in range(generator.randint(1, 8))]
    run = {"artifact": "prod"}
    wrong = {
        "model": generator.choice(["prod", "nobody"]),
        "input": generator.choice([[], [1, "a"]]),
    }
    kinds = {
        ("POST", "/v1/embeddings"): {"model": "prod", "input": texts},
        ("POST", "/encode"): {"data": texts, "parameters": {**run, "dtype": "int8"}},
        ("POST", "/similarity"): {"queries": texts[:2], "texts": texts, "parameters": run},
        ("POST", "/rank"): {"query": texts[0], "texts": texts, "parameters": run},
        ("POST", "/tokenize"): {"texts": texts, "parameters": run},
        ("POST", "/v1/embeddings?"): wrong,
        ("GET", "/metrics"): None,
        ("GET", "/models"): None,
        ("PUT", "/aliases/prod"): ALIAS,
    }
    # Switches and scrapes are rare beside the rest.
    weights = [30, 20, 5, 5, 5, 5, 1, 1, 1]
    (method, path), body = generator.choices(list(kinds.items()), weights)[0]
    return method, path, body


def ask(port: int, number: int, until: float, statuses: Counter[int]) -> None:
    """Send requests until the time is over; now and then without waiting for the answer."""
    generator = random.Random(number)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < until:
        method, path, body = some_request(generator)
        connection.request(method, path, None if body is None else json.dumps(body))
        if generator.random() < 0.02:
            connection.close()  # a client that hangs up; the next request connects anew
            continue
        answer = connection.getresponse()
        answer.read()
        statuses[answer.status] += 1


def family(process: psutil.Process) -> dict[str, psutil.Process]:
    """Return the service's processes by what they are."""
    children = sorted(process.children(recursive=True), key=lambda child: child.pid)
    return {"service": process} | {f"part {i}": child for i, child in enumerate(children, start=1)}


def notes_of(process: psutil.Process) -> tuple[float, int, int]:
    return process.memory_full_info().pss / 2**20, process.num_fds(), process.num_threads()


def watch(process: psutil.Process, seconds: float) -> dict[str, list[tuple[float, ...]]]:
    """Note time, memory, files and threads of each process until the time is over."""
    notes: dict[str, list[tuple[float, ...]]] = {}
    started_at = time.monotonic()
    while (now := time.monotonic() - started_at) < seconds:
        for name, member in family(process).items():
            notes.setdefault(name, []).append((now, *notes_of(member)))
        time.sleep(min(INTERVAL_S, seconds / 20))
    return notes


def summarise(name: str, notes: list[tuple[float, ...]], settled_s: float) -> dict[str, object]:
    rows = np.array([note for note in notes if note[0] >= settled_s])
    slope = np.polyfit(rows[:, 0] / 60, rows[:, 1], 1)[0] if len(rows) > 1 else 0.0
    return {
        "process": name,
        "memory_mb": round(float(rows[-1, 1])),
        "slope_mb_per_minute": round(float(slope), 2),
        "n_files_first": int(rows[0, 2]),
        "n_files_last": int(rows[-1, 2]),
        "n_threads_first": int(rows[0, 3]),
        "n_threads_last": int(rows[-1, 3]),
    }


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        time.sleep(0.5)
    raise BenchmarkError("the service did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    seconds = parser.parse_args().seconds
    port = random_port()
    with tempfile.TemporaryDirectory() as volume:
        make_volume(Path(volume))
        command = [sys.executable, "-m", "finetuner.cli", "serve", "--flow", "flows/serve.yml"]
        command += ["--workspace", volume, "--http-port", str(port)]
        service = subprocess.Popen([*command, "--grpc-port", str(random_port())], stdout=sys.stderr)
        try:
            wait_until_ready(port, service)
            first = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            first.request("PUT", "/aliases/prod", json.dumps(ALIAS))
            if first.getresponse().status != 200:
                raise BenchmarkError("the alias could not be set")
            statuses: Counter[int] = Counter()
            until = time.monotonic() + seconds
            clients = [
                threading.Thread(target=ask, args=(port, number, until, statuses))
                for number in range(N_CLIENTS)
            ]
            for client in clients:
                client.start()
            notes = watch(psutil.Process(service.pid), seconds)
            for client in clients:
                client.join()
        finally:
            service.terminate()
            code = service.wait(60)
    settled_s = min(60.0, seconds / 10)
    rows = [summarise(name, noted, settled_s) for name, noted in notes.items()]
    about = machine(["jina", "onnxruntime"]) | {
        "seconds": seconds,
        "statuses": dict(sorted(statuses.items())),
        "exit_code": code,
    }
    report("Mixed load", rows, COLUMNS, about)


if __name__ == "__main__":
    main()

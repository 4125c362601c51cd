"""Serve one model with the whole Flow, with its bare loop, and with infinity: speed, latency, memory.

    python benchmarks/serve.py [--peer infinity] [--data FILE.csv] [--seconds 8] [--rounds 3]

All serve all-MiniLM-L6-v2, from one fp32 ONNX file where the row says so. A client of 16 connections that
stay open sends 1 to 8 questions a request and waits for the answer, as JSON floats; then one connection
sends one question at a time. The servers take turns, round by round, so that a busy minute of the machine
falls on all of them; those that wait use no processor time. Processor time and memory are those of a
server and all its children. The peer is installed once into an environment of its own. A table on the
standard error, JSON lines on the standard output.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from urllib.error import URLError
from urllib.request import Request, urlopen

import orjson
import platformdirs
import psutil
from jina.helper import random_port
from measurement import ENVIRONMENT, BenchmarkError, Row, machine, report, run_child
from served_model import NAME, make_volume

from finetuner.csv_file import CSVOptions, read_csv

HERE = Path(__file__).parent
PEER_VERSION = "0.0.78"
START_TIMEOUT_S = 120
COLUMNS = {
    "server": "",
    "precision": "precision",
    "texts_per_second": "texts / s",
    "times_infinity": "x infinity ONNX",
    "texts_per_cpu_second": "texts / CPU s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "single_p50_ms": "one text p50 ms",
    "memory_mb": "MB",
    "min_cosine": "min cosine to fp32",
}


@dataclass(frozen=True, eq=False)
class Server:
    """A row of the table.

    :param name: For people.
    :param precision: Of its vectors.
    :param command: Starts it; ``{port}`` stands for its HTTP port.
    :param path: Of its embeddings route, in OpenAI's shape.
    :param folder: Where it is started.
    :param environment: Added to the benchmark's.
    """

    name: str
    precision: str
    command: tuple[str, ...]
    path: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=("infinity",))
    parser.add_argument("--data", type=Path, default=Path("examples/quora_style_index.csv"))
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(platformdirs.user_cache_dir("finetuner-benchmarks")),
        help="where the peer's environment is kept (default: %(default)s)",
    )
    return parser.parse_args()


def install_peer(cache: Path) -> Path:
    """Return the folder of the peer's programs, installed with this torch's version."""
    folder = cache / f"infinity-{PEER_VERSION}"
    wanted = f"infinity-emb[server,torch,optimum]=={PEER_VERSION} torch==2.13.0"
    stamp = folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"installing {wanted} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq"]
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, *wanted.split()], check=True)
        stamp.write_text(wanted)
    return folder / "bin"


def our_servers(volume: Path) -> list[Server]:
    python = sys.executable
    loop = (python, str(HERE / "serve_loop.py"), str(volume), "{port}")
    flows = {}
    for precision in ("fp32", "auto"):
        flows[precision] = volume / f"{precision}.yml"
        text = (HERE.parent / "flows" / "serve.yml").read_text()
        text = text.replace("../executors", str(HERE.parent / "executors"))
        flows[precision].write_text(f"{text}    uses_with:\n      precision: {precision}\n")
    return [
        *(
            Server(
                "finetuner",
                precision,
                (
                    *(str(Path(python).with_name("finetuner")), "serve", "--flow", str(flow)),
                    *("--workspace", str(volume), "--http-port", "{port}"),
                    *("--grpc-port", str(random_port())),
                ),
                "/v1/embeddings",
                volume,
            )
            for precision, flow in flows.items()
        ),
        *(
            Server("finetuner, bare loop", precision, (*loop, precision), "/v1/embeddings", volume)
            for precision in flows
        ),
    ]


def peer_servers(volume: Path, programs: Path) -> list[Server]:
    """Return the peer's rows; facts about how it starts: the graph must lie at the folder's root."""
    onnx_folder, torch_folder = volume / "peer-onnx", volume / "peer-torch"
    graph = volume / "model" / "onnx" / "model.onnx"
    for folder, left_out in ((onnx_folder, "model.safetensors"), (torch_folder, "onnx")):
        ignored = shutil.ignore_patterns(left_out, "onnx")
        shutil.copytree(volume / "model", folder, ignore=ignored)
    shutil.copy(graph, onnx_folder / "model.onnx")
    common = (
        *(str(programs / "infinity_emb"), "v2", "--model-id", ".", "--served-model-name", NAME),
        *("--device", "cpu", "--port", "{port}", "--engine"),
    )
    environment = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    environment["INFINITY_HOST"] = "127.0.0.1"
    onnx = ("optimum", "--pooling-method", "mean", "--onnx-disable-optimize")
    return [
        Server(
            f"infinity {engine[0]}", "fp32", (*common, *engine), "/embeddings", folder, environment
        )
        for engine, folder in ((onnx, onnx_folder), (("torch",), torch_folder))
    ]


@contextmanager
def running(server: Server, log: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Start a server; gives its port and process once it embeds a text."""
    import os

    port = random_port()
    command = [part.format(port=port) for part in server.command]
    environment = os.environ | ENVIRONMENT | server.environment
    if "infinity" in server.name:
        environment.pop("PYTHONPATH", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=server.folder, env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(f"http://127.0.0.1:{port}{server.path}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{server.name} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def embed(url: str, texts: list[str]) -> list[list[float]]:
    body = orjson.dumps({"model": NAME, "input": texts, "encoding_format": "float"})
    request = Request(url, body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return [row["embedding"] for row in orjson.loads(answer.read())["data"]]


def answers(url: str) -> bool:
    try:
        return bool(embed(url, ["a text"]))
    except (URLError, OSError, KeyError):
        return False


def usage(process: psutil.Process) -> tuple[float, float]:
    """Return the CPU seconds and the megabytes (proportional set size) of a process and its children."""
    family = [process, *process.children(recursive=True)]
    times = [member.cpu_times() for member in family]
    cpu_s = sum(t.user + t.system for t in times)
    return cpu_s, sum(member.memory_full_info().pss for member in family) / 2**20


def measure(
    server: Server, port: int, process: psutil.Process, job: Row, *, n_connections: int
) -> Row:
    """Drive one server for a while."""
    cpu_before, _ = usage(process)
    job = {**job, "port": port, "path": server.path, "n_connections": n_connections}
    row = run_child(HERE / "load_client.py", job)
    cpu_s, memory_mb = usage(process)
    return {**row, "cpu_s": cpu_s - cpu_before, "memory_mb": memory_mb}


def summarise(server: Server, runs: list[Row], singles: list[Row], min_cosine: float) -> Row:
    return {
        "server": server.name,
        "precision": server.precision,
        "texts_per_second": round(fmean(run["n_texts"] / run["wall_s"] for run in runs), 1),
        "texts_per_cpu_second": round(fmean(run["n_texts_sent"] / run["cpu_s"] for run in runs), 1),
        "p50_ms": round(fmean(run["p50_ms"] for run in runs), 1),
        "p99_ms": round(fmean(run["p99_ms"] for run in runs), 1),
        "single_p50_ms": round(fmean(run["p50_ms"] for run in singles), 2),
        "n_errors": sum(run["n_errors"] for run in [*runs, *singles]),
        "memory_mb": round(max(run["memory_mb"] for run in runs)),
        "min_cosine": min_cosine,
    }


def main() -> None:
    arguments = parse_arguments()
    texts = list(read_csv(arguments.data, CSVOptions(is_labeled=True)).texts)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        volume = Path(temporary)
        reference = make_volume(volume).encode(texts[:200])
        servers = our_servers(volume)
        if arguments.peer:
            servers += peer_servers(volume, install_peer(arguments.cache))
        started = {}
        for number, server in enumerate(servers):
            started[server] = stack.enter_context(running(server, volume / f"{number}.log"))
            print(f"{server.name} {server.precision} is up", file=sys.stderr)
        job = {"texts": texts, "seconds": arguments.seconds, "model": NAME}
        runs, singles = ({server: [] for server in servers} for _ in range(2))
        for _ in range(arguments.rounds):
            for server in servers:
                runs[server].append(measure(server, *started[server], job, n_connections=16))
                alone = {**job, "seconds": arguments.seconds / 4, "max_texts": 1}
                singles[server].append(measure(server, *started[server], alone, n_connections=1))
        rows = [
            summarise(
                server,
                runs[server],
                singles[server],
                nearness(reference, f"http://127.0.0.1:{started[server][0]}{server.path}", texts),
            )
            for server in servers
        ]
    onnx = [row["texts_per_second"] for row in rows if row["server"] == "infinity optimum"]
    for row in rows if onnx else ():
        row["times_infinity"] = round(row["texts_per_second"] / onnx[0], 2)
    about = machine(["onnxruntime", "torch", "jina"]) | {"rounds": arguments.rounds}
    columns = {k: v for k, v in COLUMNS.items() if any(k in row for row in rows)}
    report("all-MiniLM-L6-v2, 16 connections, 1 to 8 texts a request", rows, columns, about)


def nearness(reference, url: str, texts: list[str]) -> float:
    """Return the smallest cosine between a server's vectors and the reference, both of length one."""
    vectors = [embed(url, texts[i : i + 8]) for i in range(0, len(reference), 8)]
    rows = [row for answer in vectors for row in answer]
    return round(float((reference * rows).sum(axis=1).min()), 6)


if __name__ == "__main__":
    main()

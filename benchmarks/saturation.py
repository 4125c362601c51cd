"""Where a service has no more to give: requests through the gateway, and encoders that load one artifact.

    python benchmarks/saturation.py [--seconds 6] [--connections 1 4 16 64] [--loads 1 2 4]

Requests hold one text each, and the model is a BERT of two layers, 128 wide, with random weights, so that it
is the service that is measured and not the model. The client runs on the same cores. The artifact is that of
all-MiniLM-L6-v2, on a local disk, loaded by so many processes at the same moment, torch being imported
before; once without a page of it in memory. Two tables on the standard error, JSON lines on the standard
output. Listing, submission and state of many runs: `run_list.py --runs 100000`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import psutil
from chaos_service import Part, Service
from measurement import Row, machine, metered, peak_memory_mb, report, run_child
from served_model import NAME

HERE = Path(__file__).parent
ALL_PARTS = (Part.GATEWAY, Part.ENCODER)
IMPORT_S = 30.0  # until when all have imported torch, also on a busy machine
REQUEST_COLUMNS = {
    "n_connections": "connections",
    "requests_per_second": "requests / s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "n_refusals": "429",
    "gateway_ms": "gateway CPU ms / request",
    "encoder_ms": "encoder CPU ms / request",
}
LOAD_COLUMNS = {
    "n_processes": "processes",
    "in_memory": "page cache",
    "wall_s": "wall s, slowest",
    "cpu_s": "CPU s each",
    "read_mb": "read MB each",
    "from_disk_mb": "from disk MB, all",
    "written_mb": "written MB each",
    "peak_memory_mb": "peak MB each",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def drive_gateway(scratch: Path, arguments: argparse.Namespace) -> list[Row]:
    """Ask a whole service, over more and more connections."""
    made = run_child(HERE / "small_model.py", {"folder": str(scratch), "model": ""})
    service = Service(scratch / "volume", scratch, flow="all.yml", arguments={})
    service.start()
    try:
        service.wait_until_ready()
        job = {"texts": made["words"], "model": NAME, "max_texts": 1, "pause_s": 0.1}
        job |= {"port": service.http_port, "path": "/v1/embeddings"}
        drive(service, {**job, "n_connections": 2, "seconds": 2})  # the model is loaded by it
        return [
            drive(service, {**job, "n_connections": n, "seconds": arguments.seconds})
            for n in arguments.connections
        ]
    finally:
        service.stop()


def drive(service: Service, job: Row) -> Row:
    """Send requests for a while."""
    before = cpu_times_s(service)
    row = run_child(HERE / "load_client.py", job)
    used = {part: cpu_s - before[part] for part, cpu_s in cpu_times_s(service).items()}
    n_sent = max(1, row["n_texts_sent"])  # one a request, those of the warm-up too
    return {
        "n_connections": job["n_connections"],
        "requests_per_second": round(row["n_texts"] / row["wall_s"], 1),
        "p50_ms": round(row["p50_ms"], 1),
        "p99_ms": round(row["p99_ms"], 1),
        "n_refusals": row["n_refusals"],
        "n_errors": row["n_errors"],
        "gateway_ms": round(1e3 * used[Part.GATEWAY] / n_sent, 2),
        "encoder_ms": round(1e3 * used[Part.ENCODER] / n_sent, 2),
    }


def cpu_times_s(service: Service) -> dict[Part, float]:
    processes = {part: service.part(part) for part in ALL_PARTS}
    times = {part: process.cpu_times() for part, process in processes.items() if process}
    return {part: used.user + used.system for part, used in times.items()}


def load_together(scratch: Path, n_processes: int, *, in_memory: bool) -> Row:
    """Load one artifact by several processes at the same moment."""
    artifact = scratch / f"volume/runs/default/{NAME}/{NAME}.zip"
    if not in_memory:
        with artifact.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    job = {"artifact": str(artifact), "begin_at": time.time() + IMPORT_S}
    with ThreadPoolExecutor(n_processes) as pool:
        rows = list(
            pool.map(
                lambda _: run_child(Path(__file__), job, arguments=["--child"]), range(n_processes)
            )
        )
    return {
        "n_processes": n_processes,
        "in_memory": "warm" if in_memory else "cold",
        "wall_s": round(max(row["wall_s"] for row in rows), 2),
        "cpu_s": round(fmean(row["cpu_s"] for row in rows), 2),
        "read_mb": round(fmean(row["read_mb"] for row in rows)),
        "from_disk_mb": round(sum(row["from_disk_mb"] for row in rows)),
        "written_mb": round(fmean(row["written_mb"] for row in rows)),
        "peak_memory_mb": round(fmean(row["peak_memory_mb"] for row in rows)),
    }


def load(job: Row) -> Row:
    """Load the artifact, once the moment has come, and embed a text."""
    from finetuner.encoder import load_encoder

    time.sleep(max(0.0, job["begin_at"] - time.time()))
    before = psutil.Process().io_counters()
    with metered() as usage:
        load_encoder(Path(job["artifact"])).encode(["a text"])
    after = psutil.Process().io_counters()
    return {
        **vars(usage),
        "read_mb": (after.read_chars - before.read_chars) / 1e6,
        "from_disk_mb": (after.read_bytes - before.read_bytes) / 1e6,
        "written_mb": (after.write_chars - before.write_chars) / 1e6,
        "peak_memory_mb": peak_memory_mb(),
    }


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(load(json.load(sys.stdin))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        rows = drive_gateway(Path(temporary), arguments)
    report("Requests of one text", rows, REQUEST_COLUMNS, machine(["jina", "onnxruntime"]))
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        run_child(HERE / "served_model.py", {"volume": str(scratch / "volume")})
        rows = [load_together(scratch, 1, in_memory=False)]
        rows += [load_together(scratch, n, in_memory=True) for n in arguments.loads]
    report("One artifact, loaded at once", rows, LOAD_COLUMNS, machine(["torch", "onnxruntime"]))


if __name__ == "__main__":
    main()

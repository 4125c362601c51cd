"""Encode a million short texts by a small model, killed on the way and begun again.

    python benchmarks/encode_corpus.py [--rows 1000000] [--kills 2] [--ray-workers 1 2] [--model NAME]

The model is a BERT of two layers, 128 wide, with random weights and the vocabulary of all-MiniLM-L6-v2, as an
ONNX graph, unless `--model` names another. The command runs in a process of its own, gets SIGKILL after equal
shares of the rows, and begins again; in the end each row must be there exactly once, or the script fails.
`--ray-workers` encodes them once more for each number, on a Ray cluster of this machine with so many workers
of one core. A table on the standard error, JSON lines on the standard output: a row for each start of the
command. CPU seconds and memory are those of all its processes, Ray's among them.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from measurement import BenchmarkError, Row, machine, report, run_child
from served_model import NAME

HERE = Path(__file__).parent
ROWS_PER_PART = 16_384
COLUMNS = {
    "on": "on",
    "ended_by": "ended by",
    "n_rows": "rows written",
    "wall_s": "wall s",
    "cpu_s": "CPU s",
    "rows_per_second": "rows / s",
    "rows_per_cpu_second": "rows / CPU s",
    "memory_early_mb": "memory early",
    "memory_late_mb": "memory late",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--ray-workers", type=int, nargs="*", default=[])
    parser.add_argument("--model", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = run_child(HERE / "small_model.py", {"folder": temporary, "model": arguments.model})
        write_texts(folder / "texts.txt", made["words"], arguments.rows)
        rows = []
        for number in range(arguments.kills + 1):
            n_wanted = arguments.rows * (number + 1) // (arguments.kills + 1)
            is_last = number == arguments.kills
            n_until = None if is_last else n_wanted
            rows.append(one_start(folder, folder / "out", arguments.rows, n_until=n_until))
        check(folder / "out", arguments.rows)
        size_mb = sum(path.stat().st_size for path in (folder / "out").iterdir()) / 1e6
        for n_workers in arguments.ray_workers:
            out = folder / f"out-{n_workers}"
            rows.append(one_start(folder, out, arguments.rows, n_workers=n_workers))
            check(out, arguments.rows)
    about = machine(["torch", "onnxruntime", "pyarrow"])
    title = f"{arguments.rows:,} rows, each once; {size_mb:,.0f} MB of Parquet"
    report(title, rows, COLUMNS, about)


def write_texts(path: Path, words: list[str], n_rows: int) -> None:
    """Write rows of 4 to 12 words, a draw with a fixed seed."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(n_rows):
            file.write(" ".join(draw.choices(words, k=draw.randint(4, 12))) + "\n")


def one_start(
    folder: Path, out: Path, n_all: int, *, n_until: int | None = None, n_workers: int = 0
) -> Row:
    """Run the command up to so many rows, or to its end when None; with Ray when it has workers."""
    command = [sys.executable, "-m", "finetuner.cli", "encode-corpus", str(folder / "texts.txt")]
    command += [str(out), "--artifact", str(folder / f"volume/runs/default/{NAME}/{NAME}.zip")]
    command += ["--device", "cpu", "--rows-per-part", str(ROWS_PER_PART)]
    if n_workers:
        command += ["--ray", "local", "--workers", str(n_workers)]
    n_before, began_at, memory_mb, cpu_s = n_parts(out), time.monotonic(), [], 0.0
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=said, stderr=said) as process:
            while process.poll() is None:
                if n_until is not None and n_parts(out) * ROWS_PER_PART >= n_until:
                    process.kill()
                    break
                found_cpu_s, found_mb = usage(process.pid)
                cpu_s = max(cpu_s, found_cpu_s)
                if n_parts(out) > n_before and found_mb:  # what is loaded before is not yet all
                    memory_mb.append(found_mb)
                time.sleep(0.1)
        wall_s = time.monotonic() - began_at
        if process.returncode != (0 if n_until is None else -9):
            said.seek(0)
            lines = said.read()[-1500:]
            raise BenchmarkError(f"the command ended with {process.returncode}: {lines}")
    n_rows = min(n_parts(out) * ROWS_PER_PART, n_all) - n_before * ROWS_PER_PART
    third = max(1, len(memory_mb) // 3)
    return {
        "on": f"Ray, workers: {n_workers}" if n_workers else "this machine",
        "ended_by": "its end" if n_until is None else "SIGKILL",
        "n_rows": n_rows,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "rows_per_second": round(n_rows / wall_s),
        "rows_per_cpu_second": round(n_rows / cpu_s),
        "memory_early_mb": round(max(memory_mb[:third])),
        "memory_late_mb": round(max(memory_mb[-third:])),
    }


def usage(pid: int) -> tuple[float, float]:
    """Return the CPU seconds and the megabytes of a process and those that it has started."""
    cpu_s, memory_mb = 0.0, 0.0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                memory_mb += process.memory_info().rss / 2**20
    return cpu_s, memory_mb


def n_parts(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


def check(out: Path, n_rows: int) -> None:
    """See that each row is there once, with a vector of finite numbers."""
    import numpy as np
    from pyarrow import parquet

    row = 0
    for path in sorted(out.glob("part-*.parquet")):
        table = parquet.read_table(path)
        expected = [f"texts.txt:{n}" for n in range(row + 1, row + 1 + len(table))]
        if table["id"].to_pylist() != expected:
            raise BenchmarkError(f"{path.name} does not hold the rows from {row + 1} on")
        if not np.isfinite(table["embedding"].combine_chunks().flatten().to_numpy()).all():
            raise BenchmarkError(f"{path.name} holds a vector that is no number")
        row += len(table)
    if row != n_rows:
        raise BenchmarkError(f"{row} rows are there, of {n_rows}")


if __name__ == "__main__":
    main()

"""What every benchmark needs: a process for each side, its time and memory, and the report.

Times are CPU seconds of the whole process, all threads together, since wall time tells little on a
machine that others use too. Threads that wait should sleep and not spin, hence ``OMP_WAIT_POLICY``; it
must be set before torch loads, so all that is measured runs in a child process.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
Row = dict[str, Any]


class BenchmarkError(RuntimeError):
    """A side did not come to its end."""


@dataclass
class Usage:
    """What a stretch of code took; filled when it is over."""

    cpu_s: float = 0.0
    wall_s: float = 0.0


@contextmanager
def metered(synchronize: Callable[[], None] = lambda: None) -> Iterator[Usage]:
    """Measure the body.

    :param synchronize: Waits for a GPU's work.
    """
    usage = Usage()
    synchronize()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    yield usage
    synchronize()
    usage.cpu_s, usage.wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s


def synchronizer(device: str) -> Callable[[], None]:
    """Return what waits for the device; torch is loaded here and not before."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def peak_memory_mb() -> int:
    """Return the most memory that this process has held.

    Not getrusage's maximum, which a child takes over from the process that started it.
    """
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def run_child(
    script: Path, job: Row, *, python: Path | None = None, arguments: Sequence[str] = ()
) -> Row:
    """Run a script in a process of its own and return the JSON of its last line.

    :param script: Reads the job from its standard input.
    :param job: What it should do.
    :param python: Another interpreter, which then sees nothing of this one's packages.
    :param arguments: Of the script.
    :raises BenchmarkError: When it fails; the message is the end of what it said.
    """
    environment = os.environ | ENVIRONMENT
    if python is not None:
        environment.pop("PYTHONPATH", None)
    finished = subprocess.run(
        [str(python or sys.executable), str(script), *arguments],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if finished.returncode:
        raise BenchmarkError(f"{script.name} failed: {finished.stderr[-1500:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def machine(packages: Sequence[str]) -> Row:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "n_cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def report(title: str, rows: Sequence[Row], columns: dict[str, str], about: Row) -> None:
    """Print a table for people to the standard error, and JSON lines to the standard output.

    :param title: Of the table.
    :param rows: One a JSON line.
    :param columns: From a row's key to the heading it has in the table.
    :param about: The machine; on every JSON line.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=", ".join(f"{k} {v}" for k, v in about.items()))
    for key, heading in columns.items():
        is_text = any(isinstance(row.get(key), str) for row in rows)
        table.add_column(heading, justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    # Wide enough for all columns, also where the output is no terminal.
    Console(stderr=True, width=max(160, Console(stderr=True).width)).print(table)
    for row in rows:
        print(json.dumps({**row, **about}))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and abs(value) >= 1 else str(value)

"""The process that works on a run, as the service that has started it knows it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

import finetuner
from finetuner.gpus import VISIBLE
from finetuner.interruption import n_kernel_kills
from finetuner.runs import Run
from finetuner.states import State

# Threads that wait give their core away: an encoder, or another run, works beside this one.
_WORKER_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true"}


class WorkerProcess:
    """The process that works on a run.

    :param run: The run.
    :param state: Where the run is.
    :param module: What is run.
    :param gpus: Those that it may use.
    """

    def __init__(self, run: Run, state: State, module: str, gpus: tuple[str, ...]) -> None:
        self.gpus = gpus
        self.begun_from = state.number
        self._n_kernel_kills_before = n_kernel_kills()
        package_parent = str(Path(finetuner.__file__).parents[1])
        path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
        with (run.folder / "worker.txt").open("ab") as output:
            self._process = subprocess.Popen(
                _command(run, module),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={
                    **_WORKER_DEFAULTS,
                    **os.environ,
                    "PYTHONPATH": path,
                    VISIBLE: ",".join(gpus),
                },
            )

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int | None:
        """What it ended with."""
        return self._process.returncode

    @property
    def n_kernel_kills(self) -> int:
        """How many processes the kernel has ended for want of memory since this one was started."""
        return n_kernel_kills() - self._n_kernel_kills_before

    def terminate(self) -> None:
        """Ask it to end, once: a second signal could hit it while it writes its last state."""
        self._process.terminate()

    def kill(self) -> None:
        """End it, and the processes that it has started: torchrun's would train on for ever."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self._process.kill()
        self._process.wait()

    def wait_or_kill(self, deadline: float) -> None:
        """Wait for one that was asked to end, until it must."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()


def _command(run: Run, module: str) -> list[str]:
    # -P: a file `torch.py` in the current folder must not take the place of torch.
    python = [sys.executable, "-P", "-m"]
    n_processes = run.config().n_processes
    if n_processes > 1:
        python += ["torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}", "-m"]
    return [*python, module, str(run.folder)]

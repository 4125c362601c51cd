"""The process that works on a run, as the service that has started it knows it."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress

import psutil

from finetuner.gpus import VISIBLE
from finetuner.interruption import n_kernel_kills
from finetuner.runs import OUTPUT_FILE, Run
from finetuner.states import State
from finetuner.worker_command import worker_environment


class WorkerProcess:
    """The process that works on a run, or stands here for one that works elsewhere.

    :param run: The run.
    :param state: Where the run is.
    :param command: What is run.
    :param gpus: Those of this machine that it may use.
    :param waits_for: What it may have to wait for before it claims the run, for people.
    :param is_here: Whether it works itself; one that stands for another prints the name of that.
    """

    def __init__(
        self,
        run: Run,
        state: State,
        *,
        command: list[str],
        gpus: tuple[str, ...] = (),
        waits_for: str = "",
        is_here: bool = True,
    ) -> None:
        self.gpus = gpus
        self.begun_from = state.number
        self.waits_for = waits_for
        self._is_here, self._ended = is_here, ""
        self._n_kernel_kills_before = n_kernel_kills()
        with (run.folder / OUTPUT_FILE).open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output if is_here else subprocess.PIPE,
                stderr=output,
                env=worker_environment({VISIBLE: ",".join(gpus)}),
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
    def ended(self) -> str:
        """The process elsewhere that has ended with it, as :mod:`finetuner.holder` names it, or nothing."""
        output = self._process.stdout
        if output is not None and not output.closed and self.has_ended:
            with output:
                self._ended = output.read().decode()
        return self._ended

    @property
    def n_kernel_kills(self) -> int:
        """How many processes the kernel has ended for want of memory since this one was started."""
        return n_kernel_kills() - self._n_kernel_kills_before if self._is_here else 0

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

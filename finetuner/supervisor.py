"""The queue: starts a worker process for each created run, in order, and sees how it ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import finetuner
from finetuner.errors import RunNotFoundError
from finetuner.run_store import RunStore
from finetuner.runs import EXIT_STOPPED, STOPPED, Run, Status

logger = logging.getLogger(__name__)
_TICK_S = 0.2
_SCAN_INTERVAL_S = 5.0
# Below the 5 s that Jina gives an executor to close; a worker deep in a step does not hear SIGTERM.
_STOP_TIMEOUT_S = 3.0
_POLL_S = 0.05
_MAX_INTERRUPTIONS = 5
# Threads that wait give their core away: an encoder, or another run, works beside this one.
_WORKER_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true"}


class Supervisor:
    """Keeps at most ``max_parallel_runs`` workers busy with the created runs of a volume.

    :param workspace: The volume.
    :param max_parallel_runs: Workers at once, at least 1.
    """

    def __init__(self, workspace: Path, *, max_parallel_runs: int = 1) -> None:
        self._store = RunStore(workspace)
        self._max_parallel_runs = max_parallel_runs
        self._workers: dict[Path, subprocess.Popen[bytes]] = {}
        self._adopted: set[Path] = set()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closing = False
        self._scanned_at = float("-inf")
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Take up what an earlier service left, and begin."""
        for run in self._store.list():
            if run.state().status is Status.STARTED and run.is_alive():
                self._adopted.add(run.folder)
        self._thread.start()

    def wake(self) -> None:
        """Look for a created run now."""
        self._changed.set()

    @contextmanager
    def stopped(self, run: Run) -> Iterator[None]:
        """End a run's worker, if it has one, and keep it from getting another while the block lasts.

        :raises RunInProgressError: When its worker is out of reach, on another machine.
        :raises RunNotFoundError: When the run was deleted meanwhile.
        """
        with self._lock:  # so that no tick starts it
            if worker := self._workers.pop(run.folder, None):
                worker.terminate()
                _wait(worker, time.monotonic() + _STOP_TIMEOUT_S)
            _end_adopted(run)
            with run.locked():  # so that no other service on this volume starts it
                yield
        self.wake()

    def close(self) -> None:
        """End all workers; their runs go back to the queue for the next start of the service."""
        self._closing = True
        self.wake()
        self._thread.join()
        with self._lock:
            for worker in self._workers.values():
                worker.terminate()
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            for folder, worker in self._workers.items():
                _wait(worker, deadline)
                with suppress(RunNotFoundError):
                    if Run(folder).state().status is Status.STARTED:  # it had to be killed
                        Run(folder).set_state(Status.CREATED, STOPPED)

    def _watch(self) -> None:
        while not self._closing:
            is_woken = self._changed.wait(_TICK_S)
            self._changed.clear()
            try:
                with self._lock:
                    self._tick(is_woken)
            # The volume is away for a moment, or a run was deleted by another service: the next tick
            # tries again.
            except (OSError, RunNotFoundError):
                logger.exception("cannot look after the runs")

    def _tick(self, is_woken: bool) -> None:
        n_before = len(self._workers)
        for folder, worker in list(self._workers.items()):
            if worker.poll() is not None:
                del self._workers[folder]
                self._settle(Run(folder), worker.returncode)
        self._adopted = {f for f in self._adopted if f.exists() and Run(f).is_alive()}
        # Listing reads every run's files, so it is done when there is a reason, and now and then.
        is_due = time.monotonic() - self._scanned_at > _SCAN_INTERVAL_S
        if is_woken or is_due or len(self._workers) < n_before:
            self._scanned_at = time.monotonic()
            self._start_runs()

    def _start_runs(self) -> None:
        """Start as many created runs as there are free places, oldest first."""
        n_free = self._max_parallel_runs - len(self._workers) - len(self._adopted)
        for run in self._store.list() if n_free > 0 else []:
            if n_free <= 0:
                break
            if run.folder in self._workers or run.folder in self._adopted:
                continue
            if run.state().status is Status.STARTED and not run.is_alive():
                self._settle(run, None)
            if run.state().status is Status.CREATED:
                self._workers[run.folder] = _spawn(run)
                n_free -= 1

    def _settle(self, run: Run, returncode: int | None) -> None:
        """Give a true state to a run whose worker ended without doing so itself.

        :param returncode: Of the worker; None when it was that of an earlier service.
        """
        if not run.folder.exists() or run.state().status in (Status.FINISHED, Status.FAILED):
            return
        if run.is_alive():  # another service on this volume was quicker; the run is its
            self._adopted.add(run.folder)
            return
        n = run.state().n_interruptions + 1
        if returncode is None and n < _MAX_INTERRUPTIONS:
            run.set_state(Status.CREATED, "Interrupted; it starts again", n_interruptions=n)
        elif returncode is None:
            run.set_state(Status.FAILED, f"The run was interrupted {n} times; it is given up")
        elif returncode < 0 and n < _MAX_INTERRUPTIONS and run.has_checkpoint():
            name = signal.Signals(-returncode).name
            details = f"Interrupted by {name}; it goes on from its last checkpoint"
            run.set_state(Status.CREATED, details, n_interruptions=n)
        elif returncode < 0:
            name = signal.Signals(-returncode).name
            reason = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
            run.set_state(Status.FAILED, f"The worker was ended by {name}{reason}")
        elif run.state().status is Status.STARTED or not _was_stopped(run, returncode):
            run.set_state(Status.FAILED, f"The worker ended with exit code {returncode}")


def _was_stopped(run: Run, returncode: int) -> bool:
    """Whether a worker ended because it was asked to; torchrun keeps its workers' codes to itself."""
    return returncode == EXIT_STOPPED or run.state().details == STOPPED


def _command(run: Run) -> list[str]:
    # -P: a file `torch.py` in the current folder must not take the place of torch.
    python = [sys.executable, "-P", "-m"]
    n_processes = run.config().n_processes
    if n_processes > 1:
        python += ["torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}", "-m"]
    return [*python, "finetuner.worker", str(run.folder)]


def _spawn(run: Run) -> subprocess.Popen[bytes]:
    package_parent = str(Path(finetuner.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    with (run.folder / "worker.txt").open("ab") as output:
        return subprocess.Popen(
            _command(run),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**_WORKER_DEFAULTS, **os.environ, "PYTHONPATH": path},
        )


def _wait(worker: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for a worker that was asked to end, until it must.

    It is asked once: a second signal could hit it while it writes its last state.
    """
    try:
        worker.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _end_adopted(run: Run) -> None:
    """End the worker that an earlier service left with a run, if there is one in reach."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not run.signal_worker(number):
            return
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while run.is_alive() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

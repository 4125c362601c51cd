"""Starts a worker process for each waiting run, in order, looks after it, and sees how it ends.

Several services may share a volume: a run belongs to the worker that has claimed it, whoever started that.
What the volume must be able to do: rename and hard-link atomically, a link failing when its name exists,
and show what one machine wrote and closed to another that opens it within :data:`EXPIRY_S`. ext4, XFS, NFS
(version 4, with ``actimeo`` below 15 s), CephFS and Lustre do; SMB and object stores do not.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from finetuner.config import Device, RunConfig
from finetuner.errors import (
    ConfigError,
    ConflictError,
    FinetunerError,
    FinetunerServerError,
    InsufficientSpaceError,
    NotFoundError,
    RunNotFoundError,
)
from finetuner.gpus import choose_gpus
from finetuner.holder import EXPIRY_S, Life, is_frozen, life_of, send_signal
from finetuner.interruption import Interruption, of_exit, of_silence
from finetuner.launcher import Launcher, LocalLauncher, Worker
from finetuner.run_queue import Queue
from finetuner.run_store import RunStore
from finetuner.runs import CANCELLED, STOPPED, Run
from finetuner.settling import Settler, step_by_service
from finetuner.silence import SilenceWatch
from finetuner.space import Space, check_space, size_bytes_of
from finetuner.states import Actor, State, Status

logger = logging.getLogger(__name__)
_TICK_S = 0.2
_SCAN_INTERVAL_S = 5.0
# Below the 5 s that Jina gives an executor to close; a worker deep in a step does not hear SIGTERM.
_STOP_TIMEOUT_S = 3.0
_POLL_S = 0.05


class Supervisor:
    """Keeps at most ``max_parallel_runs`` workers busy with the waiting runs of a volume.

    :param workspace: The volume.
    :param max_parallel_runs: Workers at once on this machine, at least 1.
    :param max_interruptions: After so many a run is given up.
    :param hang_timeout_s: A worker that gets on with nothing for so long is ended, and its run goes on.
    :param launcher: Starts workers; as processes of this machine when None.
    :param worker: What such a process is: ``python -m WORKER RUN_DIR``.
    :param quota_bytes: What may lie on the volume; None for what the disk holds.
    :param gpus: Names of those of this machine that runs may have; the launcher's when None.
    """

    def __init__(
        self,
        workspace: Path,
        *,
        max_parallel_runs: int = 1,
        max_interruptions: int = 5,
        hang_timeout_s: float = 3600.0,
        launcher: Launcher | None = None,
        worker: str = "finetuner.worker",
        quota_bytes: int | None = None,
        gpus: tuple[str, ...] | None = None,
    ) -> None:
        self._max_parallel_runs = max_parallel_runs
        self._hang_timeout_s = hang_timeout_s
        self._launcher = launcher or LocalLauncher(worker)
        self._given_gpus = gpus
        self._space = Space(workspace, quota_bytes)
        self._store = RunStore(workspace)
        self._queue = Queue(self._store)
        self._silences = SilenceWatch()
        self._settler = Settler(max_interruptions)
        self._workers: dict[Path, Worker] = {}
        self._short_of: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closing = False
        self._told = ""
        self._scanned_at = float("-inf")
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @cached_property
    def _gpus(self) -> tuple[str, ...]:
        # Looked for when a run wants one: that loads torch.
        return self._launcher.gpus() if self._given_gpus is None else self._given_gpus

    def start(self) -> None:
        """Begin; the runs that an earlier service left are taken up."""
        self._store.expect()
        self._thread.start()

    def wake(self) -> None:
        """Look for waiting runs now."""
        self._changed.set()

    def waits_for(self, run: Run) -> str:
        """Return what a run waits for, for people; an empty text for one that waits for nothing."""
        n_before = self._queue.position(run)
        if n_before is None:
            return ""
        if reason := self._short_of.get(run.folder):
            return reason
        worker = self._workers.get(run.folder)
        return worker.waits_for if worker else (f"{n_before} before it" if n_before else "")

    def position(self, run: Run) -> int | None:
        """Return a waiting run's place in the queue, from 1; None for one that is not known to wait."""
        n_before = self._queue.position(run)
        return None if n_before is None else n_before + 1

    def cancel(self, run: Run) -> State:
        """End a run for good; gives its state, which is terminal unless its worker is out of reach.

        :param run: One that has ended stays as it is.
        :raises RunNotFoundError: When it was deleted.
        """
        run.ask_to_cancel()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        asked: str | None = None
        while True:
            state = run.state()
            if state.status.is_terminal:
                run.clean_up()
                self.wake()
                return state
            if state.status.is_waiting or life_of(state.holder) is Life.DEAD:
                with suppress(ConflictError):  # a worker was quicker; look again
                    run.step(state, Status.CANCELLED, CANCELLED, actor=Actor.SERVICE)
                continue
            if asked != state.holder:
                asked = state.holder
                send_signal(asked, signal.SIGTERM)
            if time.monotonic() > deadline and not send_signal(asked, signal.SIGKILL):
                return state  # its worker sees the request at its next heartbeat
            time.sleep(_POLL_S)

    def close(self) -> None:
        """End all workers; their runs go on with the next start of the service."""
        self._closing = True
        self.wake()
        self._thread.join()
        with self._lock:
            for worker in self._workers.values():
                worker.terminate()
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            for folder, worker in self._workers.items():
                worker.wait_or_kill(deadline)
                with suppress(RunNotFoundError, ConflictError):
                    run = Run(folder)
                    state = run.state()
                    is_void = life_of(state.holder) is Life.DEAD or state.holder == worker.ended
                    if state.status is Status.STARTED and is_void:
                        run.step(state, Status.INTERRUPTED, STOPPED, actor=Actor.SERVICE)

    def _watch(self) -> None:
        while not self._closing:
            is_woken = self._changed.wait(_TICK_S)
            self._changed.clear()
            try:
                with self._lock:
                    self._tick(is_woken)
            # The volume is full or away for a moment, or a run was deleted or taken by another service:
            # the next tick tries again. Whatever else it is, all runs would be forgotten without this thread.
            except Exception as exc:
                self._tell(exc)

    def _tell(self, error: Exception) -> None:
        """Log what keeps the runs from being looked after, once as long as it is the same."""
        # Not the whole sentence: it may name a temporary file, another one each time.
        kind = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if kind != self._told:
            is_known = isinstance(error, OSError | FinetunerError)
            logger.error("cannot look after the runs: %s", error, exc_info=not is_known)
        self._told = kind

    def _tick(self, is_woken: bool) -> None:
        n_before = len(self._workers)
        for folder, worker in list(self._workers.items()):
            if worker.has_ended:
                # Settled first: when the volume cannot take the state, the next tick tries again.
                found = of_exit(worker.exit_code, worker.n_kernel_kills)
                self._settle(Run(folder), found, begun_from=worker.begun_from, ended=worker.ended)
                del self._workers[folder]
        # Listing takes time, so it is done when there is a reason, and now and then.
        is_due = time.monotonic() - self._scanned_at > _SCAN_INTERVAL_S
        if is_woken or is_due:
            self._scanned_at = time.monotonic()
            self._queue.refresh()
            self._look_after_started()
        if is_woken or is_due or len(self._workers) < n_before:
            self._start_runs()

    def _start_runs(self) -> None:
        """Start as many waiting runs as there are free places."""
        n_free = self._max_parallel_runs - len(self._workers) - sum(1 for _ in self._adopted())
        is_short_of_gpus = False
        for run in self._queue.waiting if n_free > 0 else []:
            if n_free <= 0:
                break
            if run.folder in self._workers or self._settler.is_resting(run):
                continue
            with suppress(NotFoundError, ConflictError):
                state = run.state()
                if not self._may_start(run, state):
                    continue
                gpus = self._gpus_for(run.config())
                # Those of a larger run are not given to later ones, or it would wait for ever.
                if gpus is None or (gpus and is_short_of_gpus):
                    is_short_of_gpus = True
                    continue
                self._queue.remove(run)
                self._workers[run.folder] = self._launcher.launch(run, state, gpus)
                n_free -= 1

    def _may_start(self, run: Run, state: State) -> bool:
        """Whether a run waits and has room; one that is wanted no more, or cannot be read, ends here."""
        if not state.status.is_waiting:
            return False
        if run.is_to_be_cancelled():  # by one that was gone before it could do so
            step_by_service(run, state, Status.CANCELLED, CANCELLED)
            return False
        try:
            config = run.config()
        except (ConfigError, FinetunerServerError) as exc:
            # Of another version, or damaged; the runs behind it do not wait for it.
            run.step(state, Status.FAILED, str(exc), actor=Actor.SERVICE)
            return False
        return self._has_room(run, config)

    def _has_room(self, run: Run, config: RunConfig) -> bool:
        """Whether the volume has what a run needs; if not, the run waits, and its status says so."""
        try:
            check_space(config, self._space, present_bytes=size_bytes_of(run.folder))
        except InsufficientSpaceError as exc:
            self._tell(exc)
            self._short_of[run.folder] = str(exc)
            self._settler.rest(run)
            return False
        self._short_of.pop(run.folder, None)
        return True

    def _adopted(self) -> Iterator[State]:
        """Yield the claims of workers on this machine that another service has started, or an earlier one."""
        for folder, state in self._queue.started.items():
            if folder not in self._workers and life_of(state.holder) is Life.ALIVE:
                yield state

    def _gpus_for(self, config: RunConfig) -> tuple[str, ...] | None:
        if config.device is not Device.CUDA or not self._gpus:
            return ()
        in_use = [gpu for worker in self._workers.values() for gpu in worker.gpus]
        in_use += [gpu for state in self._adopted() for gpu in state.gpus.split(",")]
        return choose_gpus(config.n_processes, self._gpus, in_use)

    def _look_after_started(self) -> None:
        started = self._queue.started
        self._silences.forget_all_but(set(started))
        for folder, claim in started.items():
            with suppress(NotFoundError, ConflictError):
                self._look_after(Run(folder), claim)

    def _look_after(self, run: Run, claim: State) -> None:
        """Settle a run whose worker is gone, and end one that hangs."""
        worker = self._workers.get(run.folder)
        if worker is None and life_of(claim.holder) is Life.DEAD:
            self._settle(run, of_exit(None))
            return
        silence = self._silences.look(run, claim)
        # A process that is here and runs may keep its heartbeat waiting: some native call holds the GIL.
        is_running_here = life_of(claim.holder) is Life.ALIVE and not is_frozen(claim.holder)
        expiry_s = self._hang_timeout_s if is_running_here else EXPIRY_S
        found = of_silence(silence, expiry_s, self._hang_timeout_s)
        if found is None:
            return
        is_here = send_signal(claim.holder, signal.SIGKILL)
        if worker is not None:
            worker.kill()
        elif not is_here and silence.beat_s <= expiry_s:
            return  # it hangs on another machine, whose service ends it
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while life_of(claim.holder) is Life.ALIVE and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self._settle(run, found, is_expired=not is_here)
        self._workers.pop(run.folder, None)

    def _settle(
        self,
        run: Run,
        found: Interruption,
        *,
        is_expired: bool = False,
        begun_from: int | None = None,
        ended: str = "",
    ) -> None:
        if self._settler.settle(
            run, found, is_expired=is_expired, begun_from=begun_from, ended=ended
        ):
            self._scanned_at = float("-inf")  # it may go on at once

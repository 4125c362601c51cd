"""A run on a Ray cluster: ``python -m finetuner.ray_run OPTIONS WORKER RUN_DIR``.

This process stands for the run's worker where the service is: it asks the cluster for room, starts the
worker's processes there, hands SIGTERM on, and ends with the exit code that the worker ended with. It is a
process of its own because Ray ends the process that has lost its cluster. When it is gone, Ray ends its
actors, and with each goes the process that the actor has started.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

from finetuner.config import Device, RunConfig
from finetuner.errors import (
    ConflictError,
    FinetunerError,
    NotFoundError,
    NotInstalledError,
    UnavailableError,
)
from finetuner.exits import Exit
from finetuner.ray_cluster import check_answers
from finetuner.ray_rank import Rank, not_loaded
from finetuner.runs import Run
from finetuner.schema import read
from finetuner.states import Actor, Status

logger = logging.getLogger("finetuner.ray_run")  # __name__ is __main__ here
_POLL_S = 0.5
# The others end within moments of the one that ended well, or whose end they see.
_GRACE_S = 10.0


@dataclass(frozen=True)
class RayOptions:
    """Where a run's processes are, and what each has for itself.

    :param address: As ``ray.init`` takes it.
    :param n_cpus: Cores.
    :param n_gpus: GPUs, for a run with ``device='cuda'``.
    :param memory_bytes: Memory; 0 for no reservation.
    """

    address: str
    n_cpus: float
    n_gpus: float
    memory_bytes: int

    def resources(self, config: RunConfig) -> dict[str, float]:
        """Return what one process of a run has for itself, as Ray names it."""
        wanted = {
            "CPU": self.n_cpus,
            "GPU": self.n_gpus if config.device is Device.CUDA else 0.0,
            "memory": float(self.memory_bytes),
        }
        return {name: value for name, value in wanted.items() if value}


class _Stop:
    """Notes SIGTERM, which the loops below look for."""

    is_set = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_set = True


def main(options: RayOptions, module: str, run: Run) -> int:
    """Let a cluster work on a run, and return what its worker ended with.

    :param options: Which cluster, and what it gives.
    :param module: The worker.
    :param run: The run.
    """
    stop = _Stop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _connected(options) as ray:
            signal.signal(signal.SIGTERM, stop)  # behind Ray, which takes it too
            return _Ranks(ray, options, run, stop).work(module)
    except NotInstalledError as exc:
        _fail(run, getattr(exc, "cause", exc))  # Ray's own form of it has the whole trace
        return Exit.FAILED
    except FinetunerError as exc:
        logger.error("the cluster cannot take the run: %s", exc)
        return Exit.UNAVAILABLE


@contextmanager
def _connected(options: RayOptions) -> Iterator[Any]:
    import ray

    try:
        check_answers(options.address)
        ray.init(address=options.address, log_to_driver=False, logging_level="error")
    except Exception as exc:  # of several kinds, by what it is that does not answer
        is_by_client = options.address.startswith("ray://")
        advice = "" if is_by_client else ": a machine that is no node of it needs ray://HOST:10001"
        raise UnavailableError(f"no Ray cluster at `{options.address}` ({exc}){advice}") from exc
    try:
        yield ray
    finally:
        ray.shutdown()


class _Ranks:
    """The processes of a run, one on each bundle of a placement group: all have room, or none begins."""

    def __init__(self, ray: Any, options: RayOptions, run: Run, stop: _Stop) -> None:
        self._ray, self._run, self._stop = ray, run, stop
        self._config = run.config()
        self._resources = options.resources(self._config)
        self._actors: list[Any] = []

    def work(self, module: str) -> int:
        """Start them, wait for their end, and return the exit code of all."""
        group = self._ray.util.placement_group([self._resources] * self._config.n_processes)
        while not group.wait(_POLL_S):
            if self._stop.is_set:
                return Exit.STOPPED
            if not _is_waiting(self._run):
                return Exit.TAKEN
        try:
            self._start(module, group)
            return self._wait()
        except Exception as exc:
            return self._lost(exc)
        finally:
            # A rank that lives would wait for the lost one for ever.
            with suppress(ConnectionError):
                for actor in self._actors:
                    self._ray.kill(actor)

    def _lost(self, error: Exception) -> int:
        """Return the exit code for a node that is gone; raise what is another error."""
        errors = self._ray.exceptions
        if isinstance(error, FinetunerError | errors.RayTaskError):  # raised there as well as here
            raise error
        if isinstance(error, ImportError) or getattr(error, "actor_init_failed", False):
            raise NotInstalledError(not_loaded(str(error))) from error
        if not isinstance(error, errors.RayError | ConnectionError):  # the latter of ray://
            raise error
        logger.error("a node of the run is gone: %s", str(error).partition("\n")[0])
        return Exit.LOST

    def _start(self, module: str, group: Any) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        rank = self._ray.remote(Rank)
        for index in range(self._config.n_processes):
            self._actors.append(
                rank.options(
                    num_cpus=self._resources.get("CPU", 0),
                    num_gpus=self._resources.get("GPU", 0),
                    memory=int(self._resources.get("memory", 0)) or None,
                    max_restarts=0,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        group, placement_group_bundle_index=index
                    ),
                ).remote()
            )
        # On all nodes before anything begins on one.
        self._ray.get([actor.check_loads.remote(module) for actor in self._actors])
        first = self._actors[0]
        address = self._ray.get([first.host.remote(), first.free_port.remote()])
        started = [
            actor.start.remote(module, str(self._run.folder), self._variables(index, *address))
            for index, actor in enumerate(self._actors)
        ]
        # The service reads it, so as to know whose claim is void when this process has ended.
        os.write(sys.stdout.fileno(), self._ray.get(started)[0].encode())

    def _variables(self, index: int, host: str, port: int) -> dict[str, str]:
        """Return what ``torchrun`` would set; each process has its GPU alone, so it is the first there."""
        if self._config.n_processes == 1:
            return {}
        return {
            **{"RANK": str(index), "WORLD_SIZE": str(self._config.n_processes)},
            **{"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            **{"MASTER_ADDR": host, "MASTER_PORT": str(port)},
        }

    def _wait(self) -> int:
        """Wait until all processes have ended, or one has in such a way that the others cannot go on."""
        codes: list[int | None] = [None] * len(self._actors)
        is_told, deadline = False, float("inf")
        while None in codes and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            # One out of reach for a moment comes back, or is told to be dead.
            with suppress(self._ray.exceptions.ActorUnavailableError):
                if self._stop.is_set and not is_told:
                    self._ray.get(self._actors[0].terminate.remote())  # it says when all stop
                    is_told = True
                codes = self._ray.get([actor.exit_code.remote() for actor in self._actors])
            if any(code is not None for code in codes):
                deadline = min(deadline, time.monotonic() + _GRACE_S)
        return _code_of_all(codes)


def _code_of_all(codes: list[int | None]) -> int:
    """Return what the first process has ended with, unless another was at fault.

    :param codes: Of each; None for one that had to be ended.
    """
    first, *others = codes
    if first in (Exit.FINISHED, Exit.FAILED, Exit.TAKEN, Exit.VOLUME):
        return int(first or 0)
    at_fault = [code for code in (*others, first) if code not in (None, Exit.FINISHED)]
    return at_fault[0] or 0 if at_fault else Exit.LOST


def _fail(run: Run, cause: BaseException) -> None:
    """End a run that no process has begun, and that none there could."""
    logger.error("the cluster cannot work on the run: %s", cause)
    with suppress(ConflictError, NotFoundError):  # cancelled or deleted meanwhile
        run.step(run.state(), Status.FAILED, str(cause), actor=Actor.SERVICE)


def _is_waiting(run: Run) -> bool:
    """Whether a run still wants a worker: it was neither cancelled nor deleted, nor begun by another."""
    try:
        return run.state().status.is_waiting
    except NotFoundError:
        return False


def _leave(code: int) -> None:
    """End as the worker has ended: by the same signal, if it was one."""
    if code < 0:
        with suppress(OSError):  # SIGKILL has no other handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    _leave(
        main(
            read(RayOptions, orjson.loads(sys.argv[1]), "options"),
            sys.argv[2],
            Run(Path(sys.argv[3])),
        )
    )

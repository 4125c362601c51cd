"""Where the workers of runs are started: as processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Protocol

import orjson

from finetuner.errors import ConfigError
from finetuner.gpus import visible_gpus
from finetuner.ray_run import RayOptions
from finetuner.runs import Run
from finetuner.schema import documented
from finetuner.states import State
from finetuner.worker_command import python_command
from finetuner.worker_process import WorkerProcess

_ADDRESS = re.compile(r"auto|(ray://)?[^\s/:]+:\d+")


class Worker(Protocol):
    """A worker at work on a run, as the service that has started it knows it."""

    gpus: tuple[str, ...]
    """Those of this machine that it may use."""
    begun_from: int
    """The number of the state that it was started for."""
    waits_for: str
    """What it may have to wait for before it claims the run, for people."""

    @property
    def has_ended(self) -> bool:
        """Whether it is gone."""

    @property
    def exit_code(self) -> int | None:
        """What it ended with."""

    @property
    def ended(self) -> str:
        """The process elsewhere that has ended with it, as :mod:`finetuner.holder` names it, or nothing."""

    @property
    def n_kernel_kills(self) -> int:
        """How many processes the kernel has ended here for want of memory since it was started."""

    def terminate(self) -> None:
        """Ask it to end, once."""

    def kill(self) -> None:
        """End it."""

    def wait_or_kill(self, deadline: float) -> None:
        """Wait for one that was asked to end, until it must, by the monotonic clock."""


class Launcher(Protocol):
    """Starts workers."""

    def gpus(self) -> tuple[str, ...]:
        """Return the GPUs of this machine that runs may have."""

    def launch(self, run: Run, state: State, gpus: tuple[str, ...]) -> Worker:
        """Start a worker.

        :param run: The run.
        :param state: Where the run is.
        :param gpus: Those of this machine that it may use.
        """


class LauncherName(StrEnum):
    """Where workers may be."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True)
class LauncherOptions:
    """Where workers are."""

    launcher: LauncherName = documented("where runs are worked on", default=LauncherName.LOCAL)
    ray_address: str = documented("auto, HOST:PORT or ray://HOST:PORT", default="auto")
    ray_n_cpus: float = documented("cores for each process of a run, above 0", default=1.0)
    ray_n_gpus: float = documented("GPUs for each process of a run on GPUs", default=1.0)
    ray_memory_bytes: int = documented("memory for each process of a run, 0 for any", default=0)

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.ray_address):
            raise ConfigError(
                f"ray_address must be auto, HOST:PORT or ray://HOST:PORT, got `{self.ray_address}`"
            )
        if self.ray_n_cpus <= 0:
            raise ConfigError(f"ray_n_cpus must be above 0, got {self.ray_n_cpus}")
        for name in ("ray_n_gpus", "ray_memory_bytes"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{name} must be at least 0, got {value}")
        if self.launcher is LauncherName.RAY and find_spec("ray") is None:
            raise ConfigError(
                "launcher: ray needs Ray: `pip install 'finetuner-flow[ray]'`, or take launcher: local"
            )

    @property
    def gives_gpus(self) -> bool:
        """Whether a run on GPUs gets them from elsewhere, so that none need be here."""
        return self.launcher is LauncherName.RAY and self.ray_n_gpus > 0

    def launcher_of(self, module: str) -> Launcher:
        """Return what starts workers.

        :param module: The worker: ``python -m WORKER RUN_DIR``.
        """
        if self.launcher is LauncherName.LOCAL:
            return LocalLauncher(module)
        options = RayOptions(
            self.ray_address, self.ray_n_cpus, self.ray_n_gpus, self.ray_memory_bytes
        )
        return RayLauncher(module, options)


@dataclass(frozen=True)
class LocalLauncher:
    """Starts workers as processes of this machine, with ``torchrun`` where a run wants several.

    :param module: The worker.
    """

    module: str

    def gpus(self) -> tuple[str, ...]:
        """Return the GPUs that this process may use."""
        return visible_gpus()

    def launch(self, run: Run, state: State, gpus: tuple[str, ...]) -> Worker:
        """Start a worker; see :class:`Launcher`."""
        words = [self.module, str(run.folder)]
        if (n_processes := run.config().n_processes) > 1:
            torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
            words = [*torchrun, "-m", *words]
        return WorkerProcess(run, state, command=python_command(*words), gpus=gpus)


@dataclass(frozen=True)
class RayLauncher:
    """Starts workers on a Ray cluster, by a process here that stands for each.

    :param module: The worker.
    :param options: Which cluster, and what it gives.
    """

    module: str
    options: RayOptions

    def gpus(self) -> tuple[str, ...]:
        """Return none: the cluster's are given by Ray."""
        return ()

    def launch(self, run: Run, state: State, gpus: tuple[str, ...]) -> Worker:
        """Start a worker; see :class:`Launcher`."""
        config = run.config()
        options = orjson.dumps(asdict(self.options)).decode()
        words = ("finetuner.ray_run", options, self.module, str(run.folder))
        wanted = self.options.resources(config).items()
        each = ", ".join(f"{value:g} {name}" for name, value in wanted)
        return WorkerProcess(
            run,
            state,
            command=python_command(*words),
            gpus=gpus,
            waits_for=f"{config.n_processes} times {each} on the Ray cluster",
            is_here=False,
        )

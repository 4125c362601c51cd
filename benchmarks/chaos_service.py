"""The service that chaos.py torments: started, found by its parts, killed, and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import psutil
import requests
import yaml
from measurement import BenchmarkError

_REPOSITORY = Path(__file__).parents[1]
_WORKERS = Path(__file__).parent / "workers"
_START_TIMEOUT_S = 150.0
_STOP_TIMEOUT_S = 75.0


class Part(StrEnum):
    """The processes of a Flow."""

    GATEWAY = "gateway"
    FINETUNER = "finetuner"
    ENCODER = "encoder"


def free_port() -> int:
    """Return a port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """``finetuner serve`` over a volume, with a worker of our own.

    :param volume: The workspace.
    :param scratch: Gets its Flow, its log and its temporary files.
    :param flow: The Flow that it is made from, in ``flows/``.
    :param arguments: Of the FinetunerExecutor.
    """

    def __init__(
        self, volume: Path, scratch: Path, *, flow: str, arguments: dict[str, object]
    ) -> None:
        self.volume, self._scratch = volume, scratch
        self.log = scratch / f"service-{flow}.txt"
        self.temporary = scratch / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.grpc_port, self.http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self._ports = {Part.GATEWAY: self.http_port}
        self._flow = scratch / flow
        self._flow.write_text(self._made_from(flow, arguments))
        self._process: subprocess.Popen[bytes] | None = None

    def _made_from(self, name: str, arguments: dict[str, object]) -> str:
        flow = yaml.safe_load((_REPOSITORY / "flows" / name).read_text())
        for part in (flow["gateway"], *flow["executors"]):
            part["uses"] = str(_REPOSITORY / "flows" / part["uses"])
        for executor in flow["executors"]:
            # By its port a part is known from the others.
            executor["port"] = self._ports[Part(executor["name"])] = free_port()
            if executor["name"] == Part.FINETUNER:
                executor["uses_with"] = arguments
        return yaml.safe_dump(flow, sort_keys=False)

    @property
    def is_running(self) -> bool:
        """Whether the process that holds the others lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; :meth:`wait_until_ready` says when it answers."""
        # Of a killed service ports and workers may be left for a moment, never for long.
        path = os.pathsep.join(
            filter(None, [str(_REPOSITORY), str(_WORKERS), os.environ.get("PYTHONPATH")])
        )
        environment = {"HF_HUB_OFFLINE": "1", "TMPDIR": str(self.temporary), "PYTHONPATH": path}
        command = [sys.executable, "-m", "finetuner.cli", "serve", "--flow", str(self._flow)]
        command += ["--workspace", str(self.volume), "--grpc-port", str(self.grpc_port)]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--http-port", str(self.http_port)],
                env={**os.environ, **environment},
                cwd=self._scratch,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def wait_until_ready(self) -> None:
        """Wait until all parts answer.

        :raises BenchmarkError: When they do not in time, or the service ends.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self.is_running:
            with suppress(requests.RequestException):
                if requests.get(f"{self.url}/readyz", timeout=10).ok:
                    return
            time.sleep(0.3)
        raise BenchmarkError(f"the service does not get ready: {self.log.read_text()[-2000:]}")

    def stop(self) -> int | None:
        """Ask it to end; return its exit code, or None when it had to be killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End all its processes at once, workers too."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def part(self, part: Part) -> psutil.Process | None:
        """Return the process of a part, by the port that it listens at."""
        if not self.is_running or self._process is None:
            return None
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                ports = {c.laddr.port for c in child.net_connections() if c.status == "LISTEN"}
                if self._ports[part] in ports:
                    return child
        return None

    def listening_ports(self) -> list[int]:
        """Return those of its ports at which somebody listens."""
        ports = (self.grpc_port, *self._ports.values())
        return [port for port in ports if _is_taken(port)]


def workers_of(volume: Path) -> dict[str, psutil.Process]:
    """Return the workers on a volume by their runs' names, whichever service has started them."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            arguments = process.cmdline()
            if "_worker" in " ".join(arguments[:-1]) and arguments[-1].startswith(str(volume)):
                found[Path(arguments[-1]).name] = process
    return found


def processes_over(scratch: Path) -> list[psutil.Process]:
    """Return all processes that were started with something of a scratch folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = [*process.cmdline()[1:], process.environ().get("TMPDIR", "")]
            if any(str(scratch) in word for word in words) and process.pid != os.getpid():
                found.append(process)
    return found


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

"""One process of a run on a node of a Ray cluster; an actor loads this, and so neither torch nor jina."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from finetuner.errors import UnavailableError
from finetuner.holder import name_of
from finetuner.runs import OUTPUT_FILE
from finetuner.worker_command import python_command, worker_environment


class Rank:
    """Starts and ends the process; an actor of Ray's, with whose process it ends too."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def host(self) -> str:
        """Return the address at which the other nodes find this one."""
        import ray

        return str(ray.util.get_node_ip_address())

    def free_port(self) -> int:
        """Return a port of this node on which nothing listens."""
        with socket.socket() as found:
            found.bind(("", 0))
            return int(found.getsockname()[1])

    def start(self, module: str, folder: str, variables: Mapping[str, str]) -> str:
        """Start the process and return its name, as :mod:`finetuner.holder` gives it.

        :param module: What is run.
        :param folder: The run's.
        :param variables: What ``torchrun`` would set, for one of several processes.
        :raises UnavailableError: When the volume is not here.
        """
        command = python_command(module, folder)
        tethered = python_command("finetuner.tether", str(os.getpid()), *command)
        try:
            output = (Path(folder) / OUTPUT_FILE).open("ab")
        except OSError as exc:
            raise UnavailableError(
                f"node `{socket.gethostname()}` cannot write to `{folder}`: the workspace must have "
                f"the same name on all nodes ({exc.strerror})"
            ) from exc
        with output:
            self._process = subprocess.Popen(
                tethered,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=worker_environment(variables),
            )
        return name_of(self._process.pid)

    def exit_code(self) -> int | None:
        """Return what the process has ended with; None while it lives."""
        return None if self._process is None else self._process.poll()

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

"""One process of a run on a node of a Ray cluster; an actor loads this, and so neither torch nor jina."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from finetuner.errors import NotInstalledError, UnavailableError
from finetuner.holder import name_of
from finetuner.runs import OUTPUT_FILE
from finetuner.worker_command import python_command, worker_environment

_ADVICE = "install there what is installed here, the same finetuner-flow with the same extras"
# How Ray names the process that has raised an error.
_NODE = re.compile(r"\bip=([^,)\s]+)")


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

    def check_loads(self, module: str) -> None:
        """Pass when this node can load the worker, as a process of its own does.

        :param module: The worker.
        :raises NotInstalledError: When it cannot.
        """
        code = f"import importlib; importlib.import_module({module!r})"
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=worker_environment({}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode > 0:  # one that a signal has ended may do better the next time
            cause = done.stderr.strip().rpartition("\n")[2]
            raise NotInstalledError(
                f"node `{socket.gethostname()}` cannot load `{module}` ({cause}): {_ADVICE}"
            )

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


def not_loaded(message: str) -> str:
    """Return what keeps :class:`Rank` from being loaded, and where, for people.

    :param message: Ray's: the trace of a process on a node, or, through ``ray://``, the head's one line.
    """
    node = _NODE.search(message)
    cause = message.strip().rpartition("\n")[2]
    where = f"node `{node[1]}`" if node else "the head of the cluster"
    return f"{where} cannot load finetuner ({cause}): {_ADVICE}"

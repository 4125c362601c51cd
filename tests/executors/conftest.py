"""Flows of other people: a YAML file, opened by Jina's own command."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from jina import Client


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def open_flow(tmp_path):
    """Open a Flow with one executor in a process of its own; gives a client of it.

    Not in this process: a Flow forks, and gRPC, once a client has used it, does not survive a fork.
    """

    @contextmanager
    def open_flow(uses, uses_with):
        port = _free_port()
        executor = {"name": "executor", "uses": str(uses), "uses_with": uses_with}
        flow = {"jtype": "Flow", "with": {"port": port}, "executors": [executor]}
        path, log = tmp_path / "flow.yml", tmp_path / "flow.txt"
        path.write_text(yaml.safe_dump(flow, sort_keys=False))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("jina")), "flow", "--uses", str(path)],
                start_new_session=True,
                stdout=output,
                stderr=output,
            )
        try:
            client = Client(port=port)
            deadline = time.monotonic() + 90
            while not client.is_flow_ready():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield client
        finally:
            # As Ctrl-C in a terminal does: to the whole group, for `jina flow` passes no signal on.
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return open_flow

"""Flows of other people: a YAML file, opened by Jina's own command."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from jina import Client
from jina.helper import random_port


@pytest.fixture
def open_flow(tmp_path):
    """Open a Flow with one executor in a process of its own; gives a client of it.

    Not in this process: a Flow forks, and gRPC, once a client has used it, does not survive a fork.
    """

    @contextmanager
    def open_flow(uses, uses_with):
        port = random_port()
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
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        try:
            deadline = time.monotonic() + 90
            # The command's own word, not the gateway's: that answers before the Flow has finished
            # starting, and a Ctrl-C in between may leave `jina flow` waiting for ever.
            while "ready to serve" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield Client(port=port)
            # Ctrl-C, not SIGTERM: that ends `jina flow` alone and leaves its parts running.
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, log.read_text()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return open_flow

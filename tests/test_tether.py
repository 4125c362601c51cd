"""A command on a tether does not outlive who has started it."""

import subprocess
import sys
import time

import psutil

_PARENT = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-m", "finetuner.tether", sys.argv[1] or str(os.getpid()),
     sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"],
    stdout=subprocess.PIPE,
)
child.stdout.readline()
print(child.pid, child.poll(), flush=True)
child.wait()
print(child.returncode, flush=True)
"""


def _start(parent_pid=""):
    command = [sys.executable, "-c", _PARENT, parent_pid]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_it_is_killed_with_its_parent_and_keeps_its_process_id():
    with _start() as parent:
        pid, code = parent.stdout.readline().split()
        child = psutil.Process(int(pid))
        assert (code, child.cmdline()[1]) == ("None", "-c")
        parent.kill()
        deadline = time.monotonic() + 10
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_it_does_not_begin_when_its_parent_was_quicker():
    with _start("1") as parent:
        parent.stdout.readline()
        assert parent.stdout.readline() == "137\n"

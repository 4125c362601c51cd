"""A supervisor whose volume is full, read-only or gone for a while, on a small file system of its own."""

import logging
import os
import shutil
import subprocess
import time

import pytest

from finetuner import supervisor as supervisor_module
from finetuner.config import Device, RunConfig
from finetuner.data import from_rows
from finetuner.errors import FinetunerServerError
from finetuner.run_store import RunStore
from finetuner.states import Status
from finetuner.supervisor import Supervisor

pytestmark = pytest.mark.slow

WORKER = """
import os, sys
from finetuner import worker

def fill(folder):
    with open(f"{folder}/filler", "ab", buffering=0) as file:
        while True:
            file.write(bytes(512))

def work(run, console, stop, say):
    if run.name == "filling" and run.state().n_starts == 1:
        fill(run.folder.parents[2])
    return "Run finished"

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1], work))
"""


@pytest.fixture
def volume(tmp_path):
    """A file system of 256 KiB; only root may mount one."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def supervisor(volume, tmp_path, monkeypatch):
    (tmp_path / "small_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("finetuner.settling._VOLUME_PAUSE_S", 0.1)
    # It would let no run begin on a disk this small.
    monkeypatch.setattr(supervisor_module, "check_space", lambda *_, **__: None)
    monkeypatch.setattr(supervisor_module, "_SCAN_INTERVAL_S", 0.3)
    supervisor = Supervisor(volume, worker="small_worker")
    supervisor.start()
    yield supervisor
    assert supervisor._thread.is_alive()
    supervisor.close()


def create(volume, name):
    config = RunConfig(model="tiny", run_name=name, device=Device.CPU)
    return RunStore(volume).create(config, {"train.jsonl": from_rows([["a", 1], ["b", 1]])})


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def told(caplog):
    return [r.message for r in caplog.records if "cannot look after the runs" in r.message]


def remount(volume, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(volume)], check=True)


def test_a_run_that_fills_the_disk_goes_on_when_there_is_space(volume, supervisor, caplog):
    caplog.set_level(logging.ERROR)
    run = create(volume, "filling")
    supervisor.wake()
    wait_until(lambda: told(caplog))  # not even the state can be written
    time.sleep(1.0)
    assert len(told(caplog)) == 1
    assert "No space left on device" in told(caplog)[0]
    assert run.state().status is Status.STARTED
    (volume / "filler").unlink()
    wait_until(lambda: run.state().status is Status.FINISHED)
    states = run.history()
    assert [(s.status, s.n_interruptions) for s in states[2:3]] == [(Status.INTERRUPTED, 1)]
    assert states[2].details == "The volume could not be written; it starts again"


def test_a_run_waits_for_space(volume, supervisor):
    run = create(volume, "waiting")
    with pytest.raises(OSError, match="No space left"):
        (volume / "filler").write_bytes(bytes(2**20))
    supervisor.wake()
    time.sleep(3.0)
    assert run.state().status is Status.CREATED
    (volume / "filler").unlink()
    wait_until(lambda: run.state().status is Status.FINISHED)
    assert run.state().n_interruptions == 0


def test_read_only_for_a_while(volume, supervisor, caplog):
    run = create(volume, "waiting")
    remount(volume, "ro")
    supervisor.wake()
    wait_until(lambda: told(caplog))
    time.sleep(1.0)
    assert len(told(caplog)) == 1
    assert "Read-only file system" in told(caplog)[0]
    assert run.state().status is Status.CREATED
    remount(volume, "rw")
    wait_until(lambda: run.state().status is Status.FINISHED)


def test_gone_for_a_while(volume, supervisor, tmp_path):
    """As a network volume that is not mounted: its folder is there, and empty."""
    run = create(volume, "waiting")
    aside = shutil.move(volume / "runs", volume / "aside")
    supervisor.wake()
    time.sleep(1.0)
    shutil.move(aside, volume / "runs")
    wait_until(lambda: run.state().status is Status.FINISHED)


def test_damaged_runs_do_not_keep_the_others(volume, supervisor):
    """A disk may lose what was durable; that run's owner is told, and nobody else suffers."""
    damages = {
        "spec": ("spec.json", bytes(64)),
        "state": ("states/000000.json", b""),
        "newer": ("spec.json", None),
    }
    damaged = {name: create(volume, name) for name in damages}
    content = (damaged["newer"].folder / "spec.json").read_bytes()
    damages["newer"] = ("spec.json", content.replace(b'"epochs"', b'"new_setting"'))
    for name, (file, content) in damages.items():
        (damaged[name].folder / file).write_bytes(content)
    other = create(volume, "other")
    supervisor.wake()
    wait_until(lambda: other.state().status is Status.FINISHED)
    with pytest.raises(FinetunerServerError, match="The file spec.json of run `spec` in"):
        damaged["spec"].spec()
    assert damaged["state"].state().details.startswith("The file states/000000.json is damaged: ")
    assert damaged["newer"].state().status is Status.FAILED
    assert "new_setting" in damaged["newer"].state().details


def test_an_error_that_nobody_foresaw_is_told_and_survived(volume, supervisor, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError("not foreseen")

    with monkeypatch.context() as patch:
        patch.setattr(supervisor_module.Queue, "refresh", fail)
        supervisor.wake()
        wait_until(lambda: told(caplog))
    assert "RuntimeError: not foreseen" in caplog.text
    run = create(volume, "one")
    wait_until(lambda: run.state().status is Status.FINISHED)

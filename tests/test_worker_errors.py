"""What a worker makes of errors that are not the run's own, with work of a few lines."""

import errno
import io
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors import SafetensorError

from finetuner import heartbeat as heartbeat_module
from finetuner import state_files
from finetuner.checkpoint import CheckpointStore
from finetuner.config import RunConfig
from finetuner.exits import Exit
from finetuner.run_store import RunStore
from finetuner.states import Actor, Status

ADVICE = "Out of memory: take a smaller batch_size, gradient_cache_size or gradient_checkpointing"
VOLUME_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(heartbeat_module, "INTERVAL_S", 0.02)


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


@pytest.fixture
def run(store):
    return store.create(RunConfig(model="tiny", run_name="one"), {})


def raising(error):
    def work(run, console, stop, say):
        raise error

    return work


def too_large_for_torch(run, console, stop, say):
    torch.empty(2**50)


class OutOfMemoryError(RuntimeError):
    """Named as torch's own of a GPU."""


@pytest.mark.parametrize(
    ("work_", "cause"),
    [
        (raising(MemoryError("Unable to allocate 7 TiB")), "MemoryError: Unable to allocate 7 TiB"),
        (raising(OutOfMemoryError("CUDA out of memory")), "OutOfMemoryError: CUDA out of memory"),
        (too_large_for_torch, "RuntimeError: [enforce fail at alloc_cpu.cpp"),
    ],
)
def test_out_of_memory_is_named_with_advice(run, work, work_, cause):
    assert work(run, work_) == Exit.FAILED
    state = run.state()
    assert state.status is Status.FAILED
    assert state.details.startswith(f"{ADVICE} ({cause}")
    assert "The run failed: Out of memory" in run.read_log()[0]


LIMITED = """
import sys
from finetuner import worker

def work(run, console, stop, say):
    kept = []
    while True:
        kept.append(bytearray(2**24))

sys.exit(worker.main(sys.argv[1], work))
"""


@pytest.mark.slow
def test_a_process_that_gets_no_more_memory_says_so(run):
    limit = 2**30

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [sys.executable, "-c", LIMITED, str(run.folder)]
    result = subprocess.run(command, preexec_fn=limited, check=False, timeout=60)
    assert result.returncode == Exit.FAILED
    assert run.state().details == f"{ADVICE} (MemoryError: )"


@pytest.mark.parametrize("number", VOLUME_ERRORS, ids=errno.errorcode.get)
def test_a_volume_that_fails_interrupts_the_run(run, work, number):
    path = str(run.folder / "steps.jsonl")
    assert work(run, raising(OSError(number, os.strerror(number), path))) == Exit.VOLUME
    state = run.state()
    assert (state.status, state.n_interruptions) == (Status.INTERRUPTED, 1)
    assert state.details.startswith("The volume cannot be written (OSError: [Errno ")
    assert state.details.endswith(f"{path}'); the run goes on when it can")
    assert "The volume cannot be written" in run.read_log()[0]


def full_while_torch_saves(run, console, stop, say):
    class Full(io.BytesIO):
        def write(self, content):
            full()

    torch.save({"a": torch.ones(9)}, Full())


@pytest.mark.parametrize(
    "work_",
    [
        full_while_torch_saves,
        raising(SafetensorError("I/O error: No space left on device (os error 28)")),
    ],
)
def test_it_is_known_through_the_errors_of_libraries(run, work, work_):
    assert work(run, work_) == Exit.VOLUME
    assert run.state().status is Status.INTERRUPTED
    assert "No space left on device" in run.state().details


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file"), ValueError("os error 28")]
)
def test_other_errors_fail_the_run(run, work, error):
    assert work(run, raising(error)) == Exit.FAILED
    assert run.state().status is Status.FAILED


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_state_that_cannot_be_written_is_left_to_the_service(run, work, monkeypatch):
    def work_(run, console, stop, say):
        monkeypatch.setattr(state_files, "write_new_json", full)
        return "Run finished"

    assert work(run, work_) == Exit.VOLUME
    assert run.state().status is Status.STARTED


def test_a_claim_that_cannot_be_written(run, work, monkeypatch):
    monkeypatch.setattr(state_files, "write_new_json", full)
    assert work(run, raising(AssertionError("it was not claimed"))) == Exit.VOLUME
    assert run.state().status is Status.CREATED


def test_a_failure_that_cannot_be_logged_is_left_to_the_service(run, work, monkeypatch):
    """It goes on when the volume can be written, and fails again, with its log."""

    def work_(run, console, stop, say):
        monkeypatch.setattr(console.file, "write", full, raising=False)
        raise ValueError("its own fault")

    assert work(run, work_) == Exit.VOLUME
    assert run.state().status is Status.STARTED


WAITING = """
import sys, time
from finetuner import heartbeat, worker

def work(run, console, stop, say):
    say("at work")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.01)

heartbeat.INTERVAL_S = 0.1
sys.exit(worker.main(sys.argv[1], work))
"""


@pytest.fixture
def at_work(run):
    """A worker in a process of its own, which waits."""
    process = subprocess.Popen([sys.executable, "-c", WAITING, str(run.folder)])
    deadline = time.monotonic() + 30
    while run.state().details != "at work":
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_run_that_was_deleted_is_not_made_again(store, run, at_work, tmp_path):
    store.delete(run)
    assert at_work.wait(10) == Exit.TAKEN
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["default"]


@pytest.mark.slow
def test_one_deleted_and_made_again_is_left_alone(store, run, at_work):
    store.delete(run)
    again = store.create(RunConfig(model="tiny", run_name="one"), {})
    assert at_work.wait(10) == Exit.TAKEN
    assert [state.status for state in again.history()] == [Status.CREATED]
    assert sorted(os.listdir(again.folder)) in (
        ["data", "spec.json", "states"],
        ["data", "heartbeat.json", "spec.json", "states"],  # a beat just after
    )
    assert again.claim().n_starts == 1


@pytest.mark.slow
def test_a_worker_that_lost_its_claim_writes_nothing_more(run, at_work):
    run.step(run.state(), Status.INTERRUPTED, "taken for dead", actor=Actor.SERVICE)
    claim = run.claim()
    log = (run.folder / "log.txt").read_bytes()
    assert at_work.wait(10) == Exit.TAKEN
    assert run.state().number == claim.number
    assert (run.folder / "log.txt").read_bytes() == log


@pytest.mark.slow
def test_a_frozen_worker_that_wakes_finds_its_claim_lost(run, at_work):
    at_work.send_signal(signal.SIGSTOP)
    run.step(run.state(), Status.INTERRUPTED, "no sign of life", actor=Actor.SERVICE)
    at_work.send_signal(signal.SIGCONT)
    assert at_work.wait(10) == Exit.TAKEN
    assert run.state().details == "no sign of life"


def test_a_claim_lost_during_the_last_stage_is_not_overwritten(run, work, monkeypatch):
    """Between two heartbeats: the step itself is refused."""
    monkeypatch.setattr(heartbeat_module, "INTERVAL_S", 60.0)

    def work_(run, console, stop, say):
        run.step(run.state(), Status.INTERRUPTED, "taken for dead", actor=Actor.SERVICE)
        return "Run finished"

    assert work(run, work_) == Exit.TAKEN
    assert run.state().details == "taken for dead"


def test_one_that_is_to_be_cancelled_does_no_work(run, work):
    run.ask_to_cancel()
    assert work(run, raising(AssertionError("it worked"))) == Exit.STOPPED
    assert run.state().answer() == {"status": "CANCELLED", "details": "Cancelled"}


def test_a_folder_that_goes_while_it_works(store, run, work, monkeypatch):
    monkeypatch.setattr(heartbeat_module, "INTERVAL_S", 60.0)

    def work_(run, console, stop, say):
        shutil.rmtree(run.folder)
        CheckpointStore(run.folder / "checkpoints").save({"step": 1}, step=1)
        return "Run finished"

    assert work(run, work_) == Exit.TAKEN
    assert store.list() == []
    assert not run.folder.exists()


class DistError(RuntimeError):
    """Named as torch's own of NCCL."""


@pytest.mark.parametrize(
    "error", [RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed"), DistError()]
)
def test_a_process_whose_others_are_gone_leaves_the_run_to_the_service(
    run, work, monkeypatch, error
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert work(run, raising(error)) == Exit.LOST
    assert run.state().status is Status.STARTED


def test_a_process_that_works_alone_has_no_others_to_lose(run, work):
    assert work(run, raising(RuntimeError("gloo"))) == Exit.FAILED
    assert run.state().details == "RuntimeError: gloo"


def test_a_package_that_is_missing_is_named_with_the_machine(run, work):
    error = ModuleNotFoundError("No module named 'torch'")
    assert work(run, raising(error)) == Exit.FAILED
    assert run.state().details == (
        f"ModuleNotFoundError: No module named 'torch', on `{socket.gethostname()}`"
    )


def test_one_that_only_another_process_misses_ends_the_run_too(run, work, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setitem(sys.modules, "finetuner.job", None)
    claimed = threading.Timer(0.3, run.claim)  # as the first does, a moment later
    claimed.start()
    assert work(run) == Exit.FAILED
    claimed.join()
    assert [state.status for state in run.history()] == ["CREATED", "STARTED", "FAILED"]
    assert run.state().details.startswith("ModuleNotFoundError: import of finetuner.job halted")
    assert work(run) == Exit.FAILED  # it has ended already
    assert len(run.history()) == 3

"""The queue with workers of a few lines in place of training."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from finetuner import supervisor as supervisor_module
from finetuner.config import RunConfig
from finetuner.data import from_rows
from finetuner.errors import RunInProgressError, RunNotFoundError
from finetuner.run_api import RunAPI
from finetuner.run_store import RunStore
from finetuner.runs import STOPPED, Status
from finetuner.supervisor import Supervisor

WORKER = """
import pathlib, signal, sys, time
from finetuner.runs import STOPPED, Run, Status
run, is_deaf = Run(pathlib.Path(sys.argv[1])), sys.argv[2] == "deaf"

def stop(*_):
    run.set_state(Status.CREATED, STOPPED)
    sys.exit(75)

with run.locked():
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_deaf else stop)
    run.set_state(Status.STARTED, "at work", n_starts=run.state().n_starts + 1)
    time.sleep(60)
"""


class Worker(subprocess.Popen):
    """Takes the run's lock, and notes the signals that it is sent."""

    def __init__(self, run, kind="willing"):
        self.sent = []
        super().__init__([sys.executable, "-c", WORKER, str(run.folder), kind])

    def send_signal(self, number):
        self.sent.append(number)
        super().send_signal(number)


@pytest.fixture
def spawned(monkeypatch):
    """The workers that a supervisor starts."""
    workers = []

    def spawn(run):
        workers.append(Worker(run, "deaf" if run.name.startswith("deaf") else "willing"))
        return workers[-1]

    monkeypatch.setattr(supervisor_module, "_spawn", spawn)
    monkeypatch.setattr(supervisor_module, "_STOP_TIMEOUT_S", 1.0)
    yield workers
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


@pytest.fixture
def supervisor(tmp_path, spawned):
    supervisor = Supervisor(tmp_path, max_parallel_runs=3)
    yield supervisor
    if supervisor._thread.is_alive():
        supervisor.close()


@pytest.fixture
def orphan(store):
    """A run whose worker an earlier service left behind."""
    run = create(store, "orphan")
    workers = []

    def start(kind):
        workers.append(Worker(run, kind))
        wait_until(lambda: run.state().details == "at work")
        return run, workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


def create(store, name):
    config = RunConfig(model="tiny", run_name=name)
    return store.create(config, {"train.jsonl": from_rows([["a", 1], ["b", 1]])})


def wait_until(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def started(supervisor, *runs):
    supervisor.start()
    wait_until(lambda: all(run.state().details == "at work" for run in runs))


def test_close_asks_each_worker_once(store, supervisor, spawned):
    runs = [create(store, "one"), create(store, "two")]
    started(supervisor, *runs)
    supervisor.close()

    assert [(w.sent, w.returncode) for w in spawned] == [([signal.SIGTERM], 75)] * 2
    for run in runs:
        assert run.state().answer() == {"status": "CREATED", "details": STOPPED}


def test_close_kills_deaf_workers_within_one_wait_for_all(store, supervisor, spawned):
    runs = [create(store, f"deaf-{i}") for i in range(3)]
    started(supervisor, *runs)
    began = time.monotonic()
    supervisor.close()

    assert time.monotonic() - began < 2.5  # three waits would be 3 s
    assert [(w.sent[0], w.returncode) for w in spawned] == [(signal.SIGTERM, -signal.SIGKILL)] * 3
    for run in runs:
        assert run.state().answer() == {"status": "CREATED", "details": STOPPED}


def test_close_after_a_runs_folder_is_gone(store, supervisor, spawned):
    run = create(store, "deaf")
    started(supervisor, run)
    shutil.rmtree(run.folder)
    supervisor.close()

    assert spawned[0].returncode == -signal.SIGKILL
    assert not run.folder.exists()


def test_delete_ends_the_worker(tmp_path, store, supervisor, spawned):
    run = create(store, "one")
    started(supervisor, run)
    deleted = RunAPI(tmp_path, supervisor).delete({"run_name": "one"})

    assert [item["status"] for item in deleted["items"]] == ["STARTED"]
    assert (spawned[0].sent, spawned[0].returncode) == ([signal.SIGTERM], 75)
    assert not run.folder.exists()


def test_a_run_is_not_started_while_it_is_deleted(
    tmp_path, store, supervisor, spawned, monkeypatch
):
    create(store, "waiting")
    delete = RunStore.delete

    def delete_slowly(store_, run):
        supervisor.start()
        supervisor.wake()
        time.sleep(0.6)  # three ticks
        delete(store_, run)

    monkeypatch.setattr(RunStore, "delete", delete_slowly)
    RunAPI(tmp_path, supervisor).delete({"run_name": "waiting"})
    supervisor.close()
    assert spawned == []


@pytest.mark.parametrize(("kind", "returncode"), [("willing", 75), ("deaf", -signal.SIGKILL)])
def test_delete_ends_the_worker_of_an_earlier_service(
    tmp_path, supervisor, spawned, orphan, kind, returncode
):
    run, worker = orphan(kind)
    supervisor.start()
    RunAPI(tmp_path, supervisor).delete({"run_name": "orphan"})

    assert worker.wait(10) == returncode
    assert not run.folder.exists()
    supervisor.close()
    assert spawned == []


def test_delete_refuses_a_worker_out_of_reach(tmp_path, supervisor, orphan):
    run, worker = orphan("willing")
    (run.folder / "lock").write_text("1 0")  # as from another container
    with pytest.raises(RunInProgressError, match="`orphan` has a worker already; it ends with"):
        RunAPI(tmp_path, supervisor).delete({"run_name": "orphan"})
    assert worker.poll() is None
    assert run.folder.exists()


def test_second_delete_finds_no_run(store, supervisor):
    run = create(store, "one")
    store.delete(run)
    with pytest.raises(RunNotFoundError, match="no run `one`"), supervisor.stopped(run):
        pass


def test_starts_do_not_count_as_interruptions(store, supervisor):
    run = create(store, "one")
    run.set_state(Status.STARTED, "", n_starts=100)  # its worker died with the service
    started(supervisor, run)

    state = run.state()
    assert (state.n_starts, state.n_interruptions) == (101, 1)


def test_fifth_interruption_is_the_last(store, supervisor, spawned):
    run = create(store, "one")
    run.set_state(Status.STARTED, "", n_starts=1, n_interruptions=4)
    supervisor.start()
    wait_until(lambda: run.state().status is Status.FAILED)

    assert run.state().details == "The run was interrupted 5 times; it is given up"
    assert spawned == []

"""The queue with workers of a few lines in place of training."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from finetuner import supervisor as supervisor_module
from finetuner import worker_process
from finetuner.config import Device, RunConfig
from finetuner.data import from_rows
from finetuner.errors import ImpossibleStepError, RunInProgressError, RunNotFoundError
from finetuner.exits import Exit
from finetuner.gpus import choose_gpus
from finetuner.holder import own_name
from finetuner.interruption import of_exit
from finetuner.run_api import RunAPI
from finetuner.run_queue import Queue
from finetuner.run_store import RunStore
from finetuner.runs import STOPPED
from finetuner.states import Actor, Status
from finetuner.supervisor import Supervisor

pytestmark = pytest.mark.slow

WORKER = """
import os, signal, sys, time
from finetuner import worker

def work(run, console, stop, say):
    if run.name.startswith("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if run.name.endswith("silent"):
            say("silent")
            os.kill(os.getpid(), signal.SIGSTOP)
    say("at work")
    while not run.name.startswith("quick"):
        time.sleep(0.01)
        if run.name.startswith("busy"):
            say("at work")
    return "Run finished"

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1], work))
"""


class Worker(subprocess.Popen):
    """A worker that notes the signals that it is sent."""

    def __init__(self, command, **kwargs):
        self.sent = []
        super().__init__(command, **kwargs)

    def send_signal(self, number):
        self.sent.append(number)
        super().send_signal(number)


@pytest.fixture
def worker_module(tmp_path, monkeypatch):
    """The name of a module whose worker does nothing, but that well."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "idle_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "idle_worker"


@pytest.fixture
def spawned(monkeypatch):
    """The workers that a supervisor starts."""
    workers = []

    def spawn(command, **kwargs):
        workers.append(Worker(command, **kwargs))
        return workers[-1]

    monkeypatch.setattr(worker_process.subprocess, "Popen", spawn)
    monkeypatch.setattr(supervisor_module, "_STOP_TIMEOUT_S", 10.0)
    yield workers
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


@pytest.fixture
def supervisor(tmp_path, spawned, worker_module):
    supervisor = Supervisor(tmp_path, max_parallel_runs=3, worker=worker_module)
    yield supervisor
    if supervisor._thread.is_alive():
        supervisor.close()


@pytest.fixture
def orphan(store, spawned, worker_module):
    """A run whose worker an earlier service left behind."""
    workers = []

    def start(name):
        run = create(store, name)
        command = [sys.executable, "-m", worker_module, str(run.folder)]
        workers.append(subprocess.Popen(command))
        spawned.clear()
        wait_until(lambda: run.state().details == "at work")
        return run, workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


def create(store, name, **settings):
    config = RunConfig(model="tiny", run_name=name, **{"device": Device.CPU, **settings})
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
        assert run.state().answer() == {"status": "INTERRUPTED", "details": STOPPED}


def test_close_kills_deaf_workers_within_one_wait_for_all(store, supervisor, spawned, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_STOP_TIMEOUT_S", 2.0)
    runs = [create(store, f"deaf-{i}") for i in range(3)]
    started(supervisor, *runs)
    began = time.monotonic()
    supervisor.close()

    assert time.monotonic() - began < 5.5  # three waits would be 6 s
    assert [(w.sent[0], w.returncode) for w in spawned] == [(signal.SIGTERM, -signal.SIGKILL)] * 3
    for run in runs:
        assert run.state().answer() == {"status": "INTERRUPTED", "details": STOPPED}


def test_close_after_a_runs_folder_is_gone(store, supervisor, spawned):
    run = create(store, "deaf")
    started(supervisor, run)
    shutil.rmtree(run.folder)
    supervisor.close()

    # It may have seen by its heartbeat that the run is gone.
    assert spawned[0].returncode in (-signal.SIGKILL, Exit.TAKEN)
    assert not run.folder.exists()


def test_delete_ends_the_worker(tmp_path, store, supervisor, spawned):
    run = create(store, "one")
    started(supervisor, run)
    deleted = RunAPI(tmp_path, supervisor).delete({"run_name": "one"})

    assert [item["status"] for item in deleted["items"]] == ["STARTED"]
    assert spawned[0].wait(5) == Exit.STOPPED
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


@pytest.mark.parametrize(
    ("name", "returncode"), [("orphan", Exit.STOPPED), ("deaf", -signal.SIGKILL)]
)
def test_delete_ends_the_worker_of_an_earlier_service(
    tmp_path, supervisor, spawned, orphan, name, returncode
):
    run, worker = orphan(name)
    supervisor.start()
    RunAPI(tmp_path, supervisor).delete({"run_name": name})

    assert worker.wait(10) == returncode
    assert not run.folder.exists()
    supervisor.close()
    assert spawned == []


def elsewhere(run):
    """Claim a run as a process on another machine."""
    holder = own_name().replace(own_name().split()[0], "elsewhere")
    return run.step(run.state(), Status.STARTED, "", actor=Actor.WORKER, holder=holder, n_starts=1)


def test_delete_asks_a_worker_out_of_reach_to_end(tmp_path, store, supervisor):
    run = create(store, "one")
    elsewhere(run)
    with pytest.raises(RunInProgressError, match="`one` has a worker on another machine, which"):
        RunAPI(tmp_path, supervisor).delete({"run_name": "one"})
    assert run.state().status is Status.STARTED
    assert run.is_to_be_cancelled()


def test_a_worker_hears_of_a_cancellation_by_its_heartbeat(tmp_path, orphan):
    run, worker = orphan("one")
    run.ask_to_cancel()
    assert worker.wait(10) == Exit.STOPPED
    assert run.state().answer() == {"status": "CANCELLED", "details": "Cancelled"}


def test_cancel(tmp_path, store, supervisor, spawned):
    at_work, waiting, done = create(store, "one"), create(store, "two"), create(store, "three")
    api = RunAPI(tmp_path, supervisor)
    done.step(done.claim(), Status.FINISHED, "", actor=Actor.WORKER)
    assert api.cancel({"run_name": "two"})["status"] == "CANCELLED"
    started(supervisor, at_work)
    assert api.cancel({"run_name": "one"})["status"] == "CANCELLED"
    assert api.cancel({"run_name": "one"})["status"] == "CANCELLED"
    with pytest.raises(
        ImpossibleStepError, match="FINISHED cannot become CANCELLED by its service"
    ):
        api.cancel({"run_name": "three"})
    assert spawned[0].wait(5) == Exit.STOPPED
    assert len(spawned) == 1
    assert [state.status for state in waiting.history()] == ["CREATED", "CANCELLED"]


def test_a_cancellation_that_was_cut_is_made_up_for(store, supervisor, spawned):
    """Somebody asked for it, and was gone before the run's next state was written."""
    waiting, left = create(store, "one"), create(store, "two")
    dead(left)
    for run in (waiting, left):
        (run.folder / "checkpoints").mkdir()
        run.ask_to_cancel()
    supervisor.start()
    wait_until(lambda: all(r.state().status is Status.CANCELLED for r in (waiting, left)))
    supervisor.close()
    assert spawned == []
    assert not any((run.folder / "checkpoints").exists() for run in (waiting, left))


def test_second_delete_finds_no_run(store, supervisor):
    run = create(store, "one")
    store.delete(run)
    with pytest.raises(RunNotFoundError, match="no run `one`"):
        supervisor.cancel(run)


def test_starts_do_not_count_as_interruptions(store, supervisor):
    run = create(store, "one")
    dead(run, n_starts=100)  # its worker died with the service
    started(supervisor, run)

    state = run.state()
    assert (state.n_starts, state.n_interruptions) == (101, 1)


def dead(run, **changes):
    return run.step(run.state(), Status.STARTED, "", actor=Actor.WORKER, **changes)


def test_fifth_interruption_is_the_last(store, supervisor, spawned):
    run = create(store, "one")
    dead(run, n_starts=1, n_interruptions=4)
    supervisor.start()
    wait_until(lambda: run.state().status is Status.FAILED)

    assert run.state().details == (
        "The worker was gone, perhaps with its machine; interrupted 5 times, the run is given up"
    )
    assert spawned == []


def test_a_run_one_of_whose_processes_dies_each_time_is_given_up(store, supervisor):
    """Torchrun ends the first process with SIGTERM then, which leaves the run as if it had been stopped."""
    run = create(store, "one")
    for _ in range(5):
        claim = run.claim()
        run.step(claim, Status.INTERRUPTED, STOPPED, actor=Actor.WORKER)
        assert run.state().status is Status.INTERRUPTED
        supervisor._settle(run, of_exit(1), begun_from=claim.number - 1)
    assert run.state().details == "One of its processes ended 5 times; see worker.txt"
    assert run.state().status is Status.FAILED


def test_two_services_on_one_volume_start_no_run_twice(tmp_path, store, spawned, worker_module):
    runs = [create(store, f"quick-{i}") for i in range(8)]
    services = [Supervisor(tmp_path, max_parallel_runs=4, worker=worker_module) for _ in range(2)]
    for service in services:
        service.start()
    wait_until(lambda: all(run.state().status.is_terminal for run in runs), 60)
    for service in services:
        service.close()
    for run in runs:
        assert [state.status for state in run.history()] == ["CREATED", "STARTED", "FINISHED"]


def test_a_higher_priority_goes_first_and_older_ones_before_younger(store):
    names = {"old": 0, "young": 0, "urgent": 5, "later": -5}
    for name, priority in names.items():
        create(store, name, priority=priority)
    queue = Queue(store)
    queue.refresh()
    assert [run.name for run in queue.waiting] == ["urgent", "old", "young", "later"]
    assert [queue.position(store.get(name)) for name in names] == [1, 2, 0, 3]


def test_status_tells_how_many_runs_are_before(tmp_path, store, supervisor):
    for i in range(5):
        create(store, f"run-{i}")
    supervisor.start()
    wait_until(lambda: supervisor.waits_for(store.get("run-4")) == "1 before it")
    status = RunAPI(tmp_path, supervisor).status({"run_name": "run-4"})
    assert status["details"] == "Run submitted and awaits execution; 1 before it"


def test_a_run_without_room_waits_and_says_so(tmp_path, store, spawned, worker_module, monkeypatch):
    monkeypatch.setattr("finetuner.settling._VOLUME_PAUSE_S", 0.2)
    monkeypatch.setattr(supervisor_module, "_SCAN_INTERVAL_S", 0.2)
    run = create(store, "quick")
    service = Supervisor(tmp_path, worker=worker_module, quota_bytes=1)
    service.start()
    wait_until(lambda: service.waits_for(run))
    details = RunAPI(tmp_path, service).status({"run_name": "quick"})["details"]
    assert "awaits execution; run `quick` (the size of `tiny` is not known" in details
    assert "workspace's quota of 1 byte" in details
    assert spawned == []
    monkeypatch.setattr(service._space, "_quota_bytes", None)
    wait_until(lambda: run.state().status is Status.FINISHED)
    service.close()


def test_a_worker_that_is_frozen_is_ended_and_its_run_goes_on(
    store, supervisor, spawned, monkeypatch
):
    monkeypatch.setattr(supervisor_module, "EXPIRY_S", 2.0)
    monkeypatch.setattr(supervisor_module, "_SCAN_INTERVAL_S", 0.3)
    run = create(store, "deaf-silent")
    supervisor.start()
    wait_until(lambda: run.state().n_interruptions == 1)
    assert spawned[0].wait(5) == -signal.SIGKILL
    cause = run.history()[2].details
    assert cause.startswith("The worker gave no sign of life for ")
    assert cause.endswith("; it starts again")


def test_a_worker_that_gets_on_with_nothing_is_ended(
    tmp_path, store, spawned, worker_module, monkeypatch
):
    monkeypatch.setattr(supervisor_module, "_SCAN_INTERVAL_S", 0.3)
    idle, busy = create(store, "idle"), create(store, "busy")
    service = Supervisor(tmp_path, max_parallel_runs=2, hang_timeout_s=2.5, worker=worker_module)
    service.start()
    wait_until(lambda: idle.state().n_interruptions == 1)
    assert "The worker got on with nothing for " in idle.history()[2].details
    assert busy.state().n_interruptions == 0
    service.close()


def test_a_worker_elsewhere_is_taken_for_dead_after_its_silence(store, supervisor, monkeypatch):
    monkeypatch.setattr(supervisor_module, "EXPIRY_S", 1.0)
    monkeypatch.setattr(supervisor_module, "_SCAN_INTERVAL_S", 0.2)
    run = create(store, "quick")
    elsewhere(run)
    began = time.monotonic()
    supervisor.start()
    wait_until(lambda: run.state().status is Status.FINISHED)
    assert time.monotonic() - began > 1.0
    assert "The worker gave no sign of life" in run.history()[2].details


def test_a_worker_that_has_lost_its_run_ends_itself(store, orphan):
    run, worker = orphan("one")
    run.step(run.state(), Status.INTERRUPTED, "taken for dead", actor=Actor.SERVICE)
    assert worker.wait(10) == Exit.TAKEN
    assert run.state().details == "taken for dead"


def test_gpus_are_given_one_by_one(tmp_path, store, spawned, worker_module):
    gpu = {"device": Device.CUDA}
    one, two = create(store, "busy-1", **gpu), create(store, "busy-2", **gpu)
    large, small = create(store, "busy-3", n_processes=2, **gpu), create(store, "busy-4", **gpu)
    cpu = create(store, "busy-5", device=Device.CPU)
    service = Supervisor(tmp_path, max_parallel_runs=5, worker=worker_module, gpus=("0", "3"))
    service.start()
    wait_until(lambda: all(r.state().details == "at work" for r in (one, two, cpu)))
    time.sleep(0.5)
    assert [run.state().gpus for run in (one, two, cpu)] == ["0", "3", ""]
    # The later, smaller one does not take what the larger one waits for.
    assert [run.state().status for run in (large, small)] == [Status.CREATED, Status.CREATED]
    service.cancel(one)
    time.sleep(1.0)
    assert [run.state().status for run in (large, small)] == [Status.CREATED, Status.CREATED]
    service.close()


@pytest.mark.parametrize(
    ("n_wanted", "in_use", "chosen"),
    [(1, [], ("a",)), (2, ["a"], ("b", "c")), (3, ["a"], None), (9, [], ("a", "b", "c"))],
)
def test_choice_of_gpus(n_wanted, in_use, chosen):
    assert choose_gpus(n_wanted, ("a", "b", "c"), in_use) == chosen

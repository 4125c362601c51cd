"""Runs on a Ray cluster of three nodes on this machine: one is lost on the way, and two train together."""

import socket
import time
from contextlib import ExitStack, suppress

import psutil
import pytest

from finetuner.exits import Exit
from finetuner.json_lines import read_page
from finetuner.launcher import LauncherName, LauncherOptions
from finetuner.runs import STEPS_FILE
from finetuner.states import Status
from finetuner.submission import submit
from finetuner.supervisor import Supervisor

pytestmark = pytest.mark.slow
_TIMEOUT_S = 300


@pytest.fixture
def request_of(model_without_dropout, tiny_labelled):
    rows = list(tiny_labelled.rows())

    def request_of(name, **changes):
        return {
            "model": model_without_dropout,
            "run_name": name,
            "train_data": rows,
            "loss": "SupConLoss",
            "loss_options": {"temperature": 0.05},
            "optimizer": "SGD",  # Adam makes much of a gradient's last digits
            "learning_rate": 0.1,
            "batch_size": 16,
            "epochs": 3,
            "precision": "fp32",
            "device": "cpu",
            "checkpoint_interval_s": 0,
            "callbacks": [
                {"name": "EvaluationCallback", "options": {"query_data": rows, "limit": 3}}
            ],
            **changes,
        }

    return request_of


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a service over `tmp_path`, with the launcher's options and the worker that are given."""
    monkeypatch.setattr("finetuner.settling._VOLUME_PAUSE_S", 2.0)
    with ExitStack() as stack:

        def start(address, *, worker="finetuner.worker", **options):
            options = LauncherOptions(LauncherName.RAY, address, **options)
            made = Supervisor(tmp_path, launcher=options.launcher_of(worker))
            made.start()
            stack.callback(made.close)
            return made

        yield start


@pytest.fixture
def service(ray_cluster, start):
    return start(ray_cluster.address)


def wait_until(condition):
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_two_processes_on_two_nodes_train_what_one_trains(service, request_of, tmp_path, work):
    one = submit(request_of("one"), tmp_path / "local")
    assert work(one) == Exit.FINISHED
    two = submit(request_of("two", n_processes=2), tmp_path)
    service.wake()
    wait_until(lambda: two.state().status.is_terminal)
    assert [state.status for state in two.history()] == ["CREATED", "STARTED", "FINISHED"]
    assert len(_losses(two)) == 9
    assert _losses(two) == pytest.approx(_losses(one), rel=1e-5)
    assert two.metrics()["epochs"] == one.metrics()["epochs"]


def test_a_run_one_of_whose_processes_is_killed_goes_on(service, request_of, tmp_path):
    run = submit(request_of("halved", epochs=40, n_processes=2), tmp_path)
    service.wake()
    wait_until(lambda: run.has_checkpoint() and len(_losses(run)) > 10)
    (second,) = (p for p in psutil.process_iter() if _is_rank(p, "1", run))
    second.kill()
    wait_until(lambda: run.state().status.is_terminal)
    statuses = [state.status for state in run.history()]
    assert statuses == ["CREATED", "STARTED", "INTERRUPTED", "STARTED", "FINISHED"]
    assert run.history()[2].details.startswith("The worker was ended by SIGKILL")
    assert len(_losses(run)) == 120


def _cancel_at_work(service, run):
    """Cancel a run of two processes that is at work; nothing of it is left."""
    service.wake()
    wait_until(lambda: len(_losses(run)) > 3)
    service.cancel(run)
    wait_until(lambda: run.state().status.is_terminal and not service._workers)
    assert [state.status for state in run.history()] == ["CREATED", "STARTED", "CANCELLED"]
    wait_until(lambda: not any(_is_rank(p, "1", run) for p in psutil.process_iter()))


def test_a_run_at_work_can_be_cancelled(service, request_of, tmp_path):
    _cancel_at_work(service, submit(request_of("long", epochs=1000, n_processes=2), tmp_path))


def test_runs_by_rays_client(ray_cluster, start, request_of, tmp_path, work):
    """Its processes are ended and told to stop over ray:// as they are from a node of the cluster."""
    one = submit(request_of("one"), tmp_path / "local")
    assert work(one) == Exit.FINISHED
    service = start(ray_cluster.client_address)
    two = submit(request_of("two", n_processes=2), tmp_path)
    service.wake()
    wait_until(lambda: two.state().status.is_terminal)
    assert [state.status for state in two.history()] == ["CREATED", "STARTED", "FINISHED"]
    assert _losses(two) == pytest.approx(_losses(one), rel=1e-5)
    _cancel_at_work(service, submit(request_of("long", epochs=1000, n_processes=2), tmp_path))


def test_a_run_goes_on_whose_stand_in_is_killed_though_the_cluster_waits_for_it(
    ray_cluster, start, request_of, tmp_path
):
    service = start(ray_cluster.client_address)
    run = submit(request_of("orphan", epochs=100), tmp_path)
    service.wake()
    wait_until(lambda: run.has_checkpoint() and len(_losses(run)) > 10)
    worker = psutil.Process(int(run.state().holder.split()[-2]))
    (stand_in,) = (p for p in psutil.Process().children() if str(run.folder) in p.cmdline())
    stand_in.kill()
    wait_until(lambda: run.state().status is Status.INTERRUPTED)
    began_at = time.monotonic()
    wait_until(lambda: _has_ended(worker))
    # It sees that its claim is void, long before Ray ends the actor that has started it.
    assert time.monotonic() - began_at < 20
    wait_until(lambda: run.state().status.is_terminal)
    statuses = [state.status for state in run.history()]
    assert statuses == ["CREATED", "STARTED", "INTERRUPTED", "STARTED", "FINISHED"]
    assert len(_losses(run)) == 300


def test_a_worker_that_a_node_cannot_load_fails_with_what_and_where(
    ray_cluster, start, request_of, tmp_path
):
    service = start(ray_cluster.address, worker="no_such_worker")
    run = submit(request_of("missing"), tmp_path)
    service.wake()
    wait_until(lambda: run.state().status.is_terminal)
    assert [state.status for state in run.history()] == ["CREATED", "FAILED"]
    assert run.state().details == (
        f"node `{socket.gethostname()}` cannot load `no_such_worker` (ModuleNotFoundError: No module "
        "named 'no_such_worker'): install there what is installed here, the same finetuner-flow with "
        "the same extras"
    )


@pytest.mark.parametrize("by_client", [False, True])
def test_a_node_without_finetuner_fails_a_run_with_what_and_where(
    ray_cluster, start, request_of, tmp_path, monkeypatch, by_client
):
    (tmp_path / "away" / "finetuner").mkdir(parents=True)
    (tmp_path / "away" / "finetuner" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'finetuner'\")"
    )
    monkeypatch.chdir(tmp_path)  # Ray lets a worker look where its driver is, too
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(tmp_path / "away"))
        node = ray_cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    address = ray_cluster.client_address if by_client else ray_cluster.address
    service = start(address, ray_n_cpus=2)  # which that node alone has
    run = submit(request_of("bare"), tmp_path)
    service.wake()
    wait_until(lambda: run.state().status.is_terminal)
    ray_cluster.remove_node(node)
    assert [state.status for state in run.history()] == ["CREATED", "FAILED"]
    assert run.state().details.startswith(
        f"node `{node.node_ip_address}` cannot load finetuner (ModuleNotFoundError: No module named "
        "'finetuner'): install there"
    )


def test_a_run_whose_node_is_lost_goes_on_on_another_and_ends_as_a_local_one(
    ray_cluster, service, request_of, tmp_path, work
):
    local = submit(request_of("local", epochs=40), tmp_path / "local")
    assert work(local) == Exit.FINISHED
    run = submit(request_of("lost", epochs=40), tmp_path)
    service.wake()
    wait_until(lambda: run.has_checkpoint() and len(_losses(run)) > 10)
    ray_cluster.remove_node(_node_of(ray_cluster, run), allow_graceful=False)
    wait_until(lambda: run.state().status.is_terminal)
    statuses = [state.status for state in run.history()]
    assert statuses == ["CREATED", "STARTED", "INTERRUPTED", "STARTED", "FINISHED"]
    assert run.history()[2].details == (
        "A node of the worker was lost; it goes on from its last checkpoint"
    )
    assert run.state().n_interruptions == 1
    assert _losses(run) == pytest.approx(_losses(local), rel=1e-4)
    assert run.metrics()["epochs"] == local.metrics()["epochs"]


def test_a_run_without_room_says_what_it_waits_for_and_can_be_cancelled(
    service, request_of, tmp_path
):
    run = submit(request_of("wide", n_processes=3), tmp_path)
    service.wake()
    wait_until(lambda: service.waits_for(run) == "3 times 1 CPU on the Ray cluster")
    assert service.cancel(run).status is Status.CANCELLED
    wait_until(lambda: not service._workers)
    assert [state.status for state in run.history()] == ["CREATED", "CANCELLED"]


def _has_ended(process):
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def _losses(run):
    return [step["batch_loss"] for step in read_page(run.folder / STEPS_FILE, 0, limit=1000)[0]]


def _node_of(cluster, run):
    """The node whose processes are those that the run's worker descends from."""
    parents = [p.pid for p in psutil.Process(int(run.state().holder.split()[-2])).parents()]
    for node in cluster.list_all_nodes():
        if node.all_processes["raylet"][0].process.pid in parents:
            return node
    raise LookupError(f"no node runs `{run.name}`")


def _is_rank(process, rank, run):
    with suppress(psutil.Error):
        return str(run.folder) in process.cmdline() and process.environ().get("RANK") == rank
    return False

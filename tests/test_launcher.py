"""Where workers are started, and what is refused."""

import subprocess
import sys

import pytest

from finetuner import launcher as launcher_module
from finetuner.config import Device, RunConfig
from finetuner.errors import ConfigError
from finetuner.exits import Exit
from finetuner.interruption import of_exit
from finetuner.launcher import LauncherName, LauncherOptions
from finetuner.run_store import RunStore
from finetuner.schema import read
from finetuner.settling import Settler
from finetuner.states import Actor, Status
from finetuner.worker_command import python_command
from finetuner.worker_process import WorkerProcess


@pytest.fixture
def create(tmp_path):
    def create(name="one", **settings):
        config = RunConfig(model="tiny", run_name=name, **{"device": Device.CPU, **settings})
        return RunStore(tmp_path).create(config, {})

    return create


@pytest.fixture
def started(monkeypatch):
    """What would have been started."""
    found = []

    def start(_run, state, **arguments):
        found.append({"number": state.number, **arguments})

    monkeypatch.setattr(launcher_module, "WorkerProcess", start)
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launcher": "slurm"}, "launcher must be one of local, ray"),
        ({"ray_address": "head"}, "ray_address must be auto, HOST:PORT or ray://HOST:PORT, got `h"),
        ({"ray_address": "local"}, "ray_address must be auto, HOST:PORT or ray://HOST:PORT, got"),
        ({"ray_n_cpus": 0}, r"ray_n_cpus must be above 0, got 0\.0"),
        ({"ray_n_gpus": -1}, r"ray_n_gpus must be at least 0, got -1\.0"),
        ({"ray_memory_bytes": -1}, "ray_memory_bytes must be at least 0, got -1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        read(LauncherOptions, options, "FinetunerExecutor")


def test_ray_that_is_not_installed_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(launcher_module, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"launcher: ray needs Ray: `pip install 'finetuner-flow\["
    ):
        read(LauncherOptions, {"launcher": "ray"}, "FinetunerExecutor")
    assert read(LauncherOptions, {}, "FinetunerExecutor").launcher == "local"


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:6379", "ray://head:10001"])
def test_addresses(address):
    assert LauncherOptions(ray_address=address).ray_address == address


def test_only_a_cluster_gives_gpus_to_a_machine_without():
    assert not LauncherOptions().gives_gpus
    assert LauncherOptions(LauncherName.RAY).gives_gpus
    assert not LauncherOptions(LauncherName.RAY, ray_n_gpus=0).gives_gpus


def test_nothing_of_ray_is_loaded_before_a_run_wants_it():
    code = (
        "import sys, finetuner.supervisor; from finetuner.launcher import LauncherOptions; "
        "LauncherOptions().launcher_of('w'); print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_local_workers(create, started):
    local = LauncherOptions().launcher_of("finetuner.worker")
    one, two = create("one"), create("two", n_processes=2)
    for run in (one, two):
        local.launch(run, run.state(), ("3",))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    python = [sys.executable, "-P", "-m"]
    assert [(s["command"], s["gpus"]) for s in started] == [
        ([*python, "finetuner.worker", str(one.folder)], ("3",)),
        ([*python, *torchrun, "finetuner.worker", str(two.folder)], ("3",)),
    ]


def test_a_worker_on_ray_waits_for_what_its_processes_need(create, started):
    options = {"launcher": "ray", "ray_n_cpus": 2, "ray_n_gpus": 0.5, "ray_memory_bytes": 1 << 30}
    on_ray = read(LauncherOptions, options, "FinetunerExecutor").launcher_of("finetuner.worker")
    for device in (Device.CPU, Device.CUDA):
        run = create(device.value, n_processes=2, device=device)
        on_ray.launch(run, run.state(), ())
    assert on_ray.gpus() == ()
    assert [(s["waits_for"], s["is_here"]) for s in started] == [
        ("2 times 2 CPU, 1.07374e+09 memory on the Ray cluster", False),
        ("2 times 2 CPU, 0.5 GPU, 1.07374e+09 memory on the Ray cluster", False),
    ]


def test_a_process_that_stands_for_another_tells_which(create):
    run = create()
    (run.folder / "stand_in.py").write_text(
        "print('node boot pid 7 99', end='')\nraise SystemExit(68)"
    )
    command = [sys.executable, str(run.folder / "stand_in.py")]
    worker = WorkerProcess(run, run.state(), command=command, is_here=False)
    worker._process.wait(20)
    assert (worker.ended, worker.ended) == ("node boot pid 7 99",) * 2
    assert (worker.exit_code, worker.n_kernel_kills) == (Exit.LOST, 0)
    worker = WorkerProcess(run, run.state(), command=python_command("this"))
    worker._process.wait(20)
    assert (worker.ended, worker.exit_code) == ("", Exit.FINISHED)


_HERE, _ANOTHER = "node boot pid:[1] 7 99", "node boot pid:[1] 8 99"


@pytest.mark.parametrize(
    ("ended", "status"), [(_HERE, Status.INTERRUPTED), (_ANOTHER, Status.STARTED)]
)
def test_only_the_claim_of_the_process_that_has_ended_is_void(create, ended, status):
    run = create()
    run.step(run.state(), Status.STARTED, "", actor=Actor.WORKER, holder=_HERE)
    settler = Settler(max_interruptions=5)
    settler.settle(run, of_exit(Exit.LOST), begun_from=0, ended=ended)
    assert run.state().status is status
    if status is Status.INTERRUPTED:
        assert run.state().details == "A node of the worker was lost; it starts again"
        assert settler.is_resting(run)


def test_a_run_that_loses_a_node_each_time_is_given_up(create):
    run = create()
    settler = Settler(max_interruptions=2)
    for number in range(2):
        state = run.state()
        run.step(state, Status.STARTED, "", actor=Actor.WORKER, holder=_HERE)
        settler.settle(run, of_exit(Exit.LOST), begun_from=state.number, ended=_HERE)
        assert run.state().n_interruptions == number + 1
    assert (
        run.state().details
        == "A node of the worker was lost; interrupted 2 times, the run is given up"
    )


def test_a_run_that_no_cluster_takes_waits_and_rests(create):
    run, settler = create(), Settler(max_interruptions=5)
    assert not settler.settle(run, of_exit(Exit.UNAVAILABLE), begun_from=0)
    assert run.state().status is Status.CREATED
    assert settler.is_resting(run)

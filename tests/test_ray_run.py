"""What stands for a worker on a cluster, with a Ray that is made up."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from finetuner import ray_run
from finetuner.config import Device, RunConfig
from finetuner.errors import NotInstalledError, UnavailableError
from finetuner.exits import Exit
from finetuner.ray_rank import Rank
from finetuner.ray_run import RayOptions, _code_of_all
from finetuner.run_store import RunStore
from finetuner.states import Actor, Status

_OPTIONS = RayOptions("auto", n_cpus=1.0, n_gpus=1.0, memory_bytes=0)


class RayError(Exception):
    pass


class Remote:
    """A method of an actor: what it gives each time it is asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []

    def remote(self, *arguments):
        self.calls.append(arguments)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class FakeRay:
    """A cluster with room after some looks, whose processes end as told.

    :param codes: For each process what its exit code is, look after look; an error is raised.
    """

    def __init__(self, *codes, n_looks=0, loads=None, start="holder 1 2"):
        kinds = ("RayTaskError", "ActorDiedError", "ActorUnavailableError")
        errors = {name: type(name, (RayError,), {}) for name in kinds}
        self.exceptions = SimpleNamespace(RayError=RayError, **errors)
        self.util = SimpleNamespace(placement_group=self._placement_group)
        self.n_looks, self.killed, self.on_look = n_looks, [], lambda: None
        self.actors = [
            SimpleNamespace(
                host=Remote("10.0.0.7"),
                free_port=Remote(4711),
                check_loads=Remote(loads),
                start=Remote(start),
                exit_code=Remote(*answers),
                terminate=Remote(None),
            )
            for answers in codes
        ]
        self.given = []

    def _placement_group(self, bundles):
        self.bundles = bundles
        return SimpleNamespace(wait=self._wait)

    def _wait(self, _timeout_s):
        self.n_looks -= 1
        self.on_look()
        return self.n_looks < 0

    def init(self, **_):
        pass

    def shutdown(self):
        pass

    def remote(self, cls):
        assert cls is Rank
        waiting = iter(self.actors)

        def options(**given):
            self.given.append(given)
            return SimpleNamespace(remote=lambda: next(waiting))

        return SimpleNamespace(options=options)

    def get(self, value):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Exception):
                raise one
        return value

    def kill(self, actor):
        self.killed.append(self.actors.index(actor))


@pytest.fixture
def run(tmp_path):
    return _create(tmp_path)


def _create(tmp_path, **settings):
    config = RunConfig(model="tiny", run_name="one", **{"device": Device.CPU, **settings})
    return RunStore(tmp_path).create(config, {})


@pytest.fixture
def work(monkeypatch, capfd):
    """Let a made-up cluster work on a run; gives the exit code and what was printed."""
    strategies = SimpleNamespace(PlacementGroupSchedulingStrategy=lambda *a, **k: k)
    monkeypatch.setitem(sys.modules, "ray.util", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    monkeypatch.setattr(ray_run, "_POLL_S", 0.0)
    monkeypatch.setattr(ray_run, "_GRACE_S", 0.2)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def work(ray, run, options=_OPTIONS):
        monkeypatch.setitem(sys.modules, "ray", ray)
        code = ray_run.main(options, "finetuner.worker", run)
        return code, capfd.readouterr().out

    yield work
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("code", [0, 1, 74, 75, 76, -9])
def test_it_ends_as_the_worker_ends(work, run, code):
    ray = FakeRay([None, None, code], n_looks=3)
    assert work(ray, run) == (code, "holder 1 2")
    assert ray.bundles == [{"CPU": 1.0}]
    assert ray.actors[0].start.calls == [("finetuner.worker", str(run.folder), {})]
    assert ray.given[0]["max_restarts"] == 0
    assert ray.killed == [0]


def test_a_lost_node(work, run):
    ray = FakeRay([None])
    ray.actors[0].exit_code.answers += [ray.exceptions.ActorDiedError("it died")]
    assert work(ray, run) == (Exit.LOST, "holder 1 2")


def test_a_node_out_of_reach_for_a_moment_is_not_lost(work, run):
    ray = FakeRay([None])
    ray.actors[0].exit_code.answers += [ray.exceptions.ActorUnavailableError("wait"), None, 0]
    assert work(ray, run) == (Exit.FINISHED, "holder 1 2")


def test_several_processes_are_told_of_each_other_as_torchrun_would(work, tmp_path):
    ray = FakeRay([None, 0], [None, 0])
    run = _create(tmp_path, n_processes=2, device=Device.CUDA)
    assert work(ray, run)[0] == Exit.FINISHED
    assert ray.bundles == [{"CPU": 1.0, "GPU": 1.0}] * 2
    shared = {
        **{"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        **{"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4711"},
    }
    assert [actor.start.calls[0][2] for actor in ray.actors] == [
        {"RANK": str(rank), **shared} for rank in (0, 1)
    ]
    assert [given["num_gpus"] for given in ray.given] == [1.0, 1.0]


def test_those_that_are_left_alone_are_ended(work, tmp_path):
    ray = FakeRay([None], [None, 1])
    assert work(ray, _create(tmp_path, n_processes=2))[0] == 1
    assert ray.killed == [0, 1]


def test_a_cancelled_run_waits_for_no_room(work, run):
    ray = FakeRay([None], n_looks=10**9)
    ray.on_look = lambda: run.claim() if run.state().status.is_waiting else None
    assert work(ray, run) == (Exit.TAKEN, "")


def test_sigterm_ends_the_waiting_for_room(work, run):
    ray = FakeRay([None], n_looks=10**9)
    ray.on_look = lambda: signal.raise_signal(signal.SIGTERM)
    assert work(ray, run) == (Exit.STOPPED, "")


def test_sigterm_reaches_the_first_process_once(work, tmp_path):
    ray = FakeRay([None, None, None, 75], [None, None, 0])
    ray.on_look = lambda: signal.raise_signal(signal.SIGTERM)
    ray.n_looks = 0
    assert work(ray, _create(tmp_path, n_processes=2))[0] == Exit.STOPPED
    assert [len(actor.terminate.calls) for actor in ray.actors] == [1, 0]


def test_a_cluster_that_does_not_answer(work, run, monkeypatch, caplog):
    ray = FakeRay()

    def init(**_):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", init)
    assert work(ray, run) == (Exit.UNAVAILABLE, "")
    assert "take the run: no Ray cluster at `auto` (Could not find any running Ray" in caplog.text
    nowhere = RayOptions("127.0.0.1:1", n_cpus=1.0, n_gpus=0.0, memory_bytes=0)
    assert work(FakeRay(), run, nowhere) == (Exit.UNAVAILABLE, "")
    assert "no Ray cluster at `127.0.0.1:1` ([Errno 111] Connection refused)" in caplog.text


def test_what_runs_beside_the_worker_is_light():
    code = (
        "import sys, finetuner.ray_rank, finetuner.ray_run; "
        "print([name for name in ('torch', 'jina', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("code", [3, -signal.SIGKILL, -signal.SIGABRT])
def test_it_leaves_as_the_worker_has_left(code):
    leave = f"from finetuner.ray_run import _leave; _leave({code})"
    assert subprocess.run([sys.executable, "-c", leave], check=False).returncode == code


def test_a_node_without_the_volume(work, run, tmp_path, caplog):
    with pytest.raises(
        UnavailableError, match="cannot write to `/away/run`: the workspace must h"
    ) as e:
        Rank().start("finetuner.worker", "/away/run", {})
    ray = FakeRay([None], start=e.value)
    assert work(ray, run) == (Exit.UNAVAILABLE, "")
    assert "must have the same name on all nodes" in caplog.text


def test_a_node_that_cannot_load_the_worker(work, run):
    with pytest.raises(
        NotInstalledError,
        match=r"cannot load `no_such` \(ModuleNotFoundError: No module named 'no_s",
    ) as e:
        Rank().check_loads("no_such")
    Rank().check_loads("finetuner.worker")
    ray = FakeRay([None], loads=e.value)
    assert work(ray, run) == (Exit.FAILED, "")
    assert [state.status for state in run.history()] == ["CREATED", "FAILED"]
    assert run.state().details == str(e.value)
    assert (ray.actors[0].start.calls, ray.killed) == ([], [0])


_TRACE = "The actor died because of an error, \x1b[36mray::Rank.__init__()\x1b[39m (pid=7, ip=10.0.0.7, a)"


def test_a_node_without_finetuner(work, run):
    ray = FakeRay([None])
    error = ray.exceptions.ActorDiedError(
        f"{_TRACE}\nModuleNotFoundError: No module named 'orjson'"
    )
    error.actor_init_failed = True
    ray.actors[0].check_loads.answers = [error]
    assert work(ray, run) == (Exit.FAILED, "")
    assert run.state().details == (
        "node `10.0.0.7` cannot load finetuner (ModuleNotFoundError: No module named 'orjson'): install "
        "there what is installed here, the same finetuner-flow with the same extras"
    )


def test_a_head_without_finetuner_and_a_run_that_was_cancelled_meanwhile(
    work, run, come_to, caplog
):
    ray = FakeRay([None], loads=ModuleNotFoundError("No module named 'finetuner'"))
    run.step(run.state(), Status.CANCELLED, "", actor=Actor.SERVICE)
    assert work(ray, run) == (Exit.FAILED, "")
    assert "the head of the cluster cannot load finetuner (No module named 'finetun" in caplog.text
    assert run.state().status is Status.CANCELLED


def test_a_client_that_has_lost_its_cluster(work, run):
    ray = FakeRay([None], loads=ConnectionError("Failed to reconnect"))
    assert work(ray, run) == (Exit.LOST, "")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0], 0),
        ([0, 0], 0),
        ([0, None], 0),
        ([1, 68], 1),
        ([74, 1], 74),
        ([75, 0], 75),
        ([75, 1], 1),
        ([68, -9], -9),
        ([68, 0], 68),
        ([-9, None], -9),
        ([None, 1], 1),
        ([None, 0], Exit.LOST),
    ],
)
def test_the_code_of_all(codes, expected):
    assert _code_of_all(codes) == expected

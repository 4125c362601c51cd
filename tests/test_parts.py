"""The caretaker over a Flow of stand-ins; tests/flows/test_survival.py kills real processes."""

import itertools
import logging
import multiprocessing
from types import SimpleNamespace

import pytest
from jina.orchestrate.pods.factory import PodFactory

from finetuner import parts
from finetuner.errors import FinetunerServerError
from finetuner.parts import Caretaker, parts_of


class Process:
    def __init__(self):
        self.exitcode, self.joined_s = None, []

    def is_alive(self):
        return self.exitcode is None

    def kill(self):
        self.exitcode = -9

    terminate = kill

    def join(self, timeout_s=None):
        self.joined_s.append(timeout_s)


class Pod:
    runtime_ctrl_address = "127.0.0.1:1"

    def __init__(self, args):
        self.args, self.worker = args, Process()
        self.is_ready = SimpleNamespace(is_set=lambda: True)

    def start(self):
        return self


def deployment(*pods, gateway=None):
    shards = {0: SimpleNamespace(_pods=list(pods))} if pods else {}
    return SimpleNamespace(head_pod=None, gateway_pod=gateway, shards=shards)


@pytest.fixture
def flow(monkeypatch):
    monkeypatch.setattr(multiprocessing, "set_start_method", lambda *_, **__: None)
    monkeypatch.setattr(PodFactory, "build_pod", Pod)
    monkeypatch.setattr(parts, "_answers", lambda pod: True)
    nodes = {"encoder": deployment(Pod("rep-0"), Pod("rep-1"))}
    nodes["gateway"] = deployment(gateway=Pod("gateway"))
    return SimpleNamespace(_deployment_nodes=nodes)


def test_parts_are_gateway_and_replicas(flow):
    found = [(part.name, part.pod.args, part.is_executor) for part in parts_of(flow)]
    assert found == [
        ("encoder", "rep-0", True),
        ("encoder", "rep-1", True),
        ("gateway", "gateway", False),
    ]


def test_a_dead_executor_gets_a_successor_with_its_arguments(flow, caplog):
    pods = flow._deployment_nodes["encoder"].shards[0]._pods
    first, second = pods
    caretaker = Caretaker(flow)
    caretaker.look()
    assert pods == [first, second]
    second.worker.exitcode = 70
    with caplog.at_level(logging.ERROR):
        caretaker.look()
    assert pods[0] is first
    assert pods[1] is not second
    assert pods[1].args == "rep-1"
    assert "encoder died, exit code 70; it is started again" in caplog.text


def test_the_gateway_has_no_successor(flow):
    caretaker = Caretaker(flow)
    flow._deployment_nodes["gateway"].gateway_pod.worker.exitcode = -9
    with pytest.raises(
        FinetunerServerError, match="A part of the Flow died.*gateway, exit code -9"
    ):
        caretaker.look()


def test_one_that_dies_again_and_again_ends_the_service(flow):
    caretaker = Caretaker(flow)
    pods = flow._deployment_nodes["encoder"].shards[0]._pods
    for _ in range(4):
        pods[0].worker.exitcode = 1
        caretaker.look()
    pods[0].worker.exitcode = 1
    with pytest.raises(FinetunerServerError, match="again and again.*encoder, 5 times in 0 s"):
        caretaker.look()


def test_one_that_is_silent_for_long_is_ended_and_replaced(flow, monkeypatch):
    clock = itertools.count(0, 20)
    monkeypatch.setattr(parts.time, "monotonic", lambda: float(next(clock)))
    caretaker = Caretaker(flow)
    pods = flow._deployment_nodes["encoder"].shards[0]._pods
    silent = pods[1]
    monkeypatch.setattr(parts, "_answers", lambda pod: pod is not silent)
    for _ in range(4):
        caretaker.look()
    assert silent.worker.exitcode == -9
    assert pods[1] is not silent


def test_the_gateway_is_waited_for(flow):
    process = flow._deployment_nodes["gateway"].gateway_pod.worker
    Caretaker(flow).stop_gateway(35.0)
    assert process.exitcode == -9
    assert process.joined_s == [35.0]

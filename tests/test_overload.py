"""The gateway answers for an executor that has just refused."""

import asyncio

import pytest

from finetuner import overload
from finetuner.errors import OverloadedError
from finetuner.overload import OverloadGate


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(overload.time, "monotonic", lambda: now[0])
    return now


def test_a_refusal_stands_for_a_moment_and_for_its_endpoint_alone(clock):
    asked, is_full = [], True

    async def call(endpoint, docs, parameters):
        asked.append(endpoint)
        if is_full and endpoint == "/encode":
            raise OverloadedError("8 tokens wait already; retry in 3 s")
        return endpoint

    gate = OverloadGate(call, hold_s=0.1)
    for _ in range(3):
        with pytest.raises(OverloadedError, match="retry in 3 s") as caught:
            asyncio.run(gate("/encode", None, {}))
        assert caught.value.retry_after_s == 3
    assert asked == ["/encode"]
    assert asyncio.run(gate("/models", None, {})) == "/models"
    is_full = False
    clock[0] += 0.11
    assert asyncio.run(gate("/encode", None, {})) == "/encode"
    assert asked == ["/encode", "/models", "/encode"]


def test_other_errors_close_nothing(clock):
    answers = [ValueError("no"), "yes"]

    async def call(*_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    gate = OverloadGate(call)
    with pytest.raises(ValueError, match="no"):
        asyncio.run(gate("/encode", None, {}))
    assert asyncio.run(gate("/encode", None, {})) == "yes"


@pytest.mark.parametrize(
    ("sentence", "seconds"),
    [("full; retry in 12 s", 12), ("retry in 0 s", 1), ("retry in 5 s or so", 1)],
)
def test_when_to_come_back(sentence, seconds):
    assert OverloadedError(sentence).retry_after_s == seconds

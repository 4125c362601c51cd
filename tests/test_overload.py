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


def test_a_refusal_stands_for_a_moment(clock):
    asked, is_full = [], True

    async def encode(request):
        asked.append(request)
        if is_full:
            raise OverloadedError("8 tokens wait already; retry in 3 s")
        return request

    gate = OverloadGate(encode, hold_s=0.1)
    for number in range(3):
        with pytest.raises(OverloadedError, match="retry in 3 s") as caught:
            asyncio.run(gate(b"%d" % number))
        assert caught.value.retry_after_s == 3
    assert asked == [b"0"]
    is_full = False
    clock[0] += 0.11
    assert asyncio.run(gate(b"x")) == b"x"
    assert asked == [b"0", b"x"]


def test_other_errors_close_nothing(clock):
    answers = [ValueError("no"), "yes"]

    async def call(*_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    gate = OverloadGate(call)
    with pytest.raises(ValueError, match="no"):
        asyncio.run(gate(b"x"))
    assert asyncio.run(gate(b"x")) == "yes"


@pytest.mark.parametrize(
    ("sentence", "seconds"),
    [("full; retry in 12 s", 12), ("retry in 0 s", 1), ("retry in 5 s or so", 1)],
)
def test_when_to_come_back(sentence, seconds):
    assert OverloadedError(sentence).retry_after_s == seconds

"""What the gateway says of itself, over executors of a few lines."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from finetuner.availability import Availability
from finetuner.errors import EndpointNotFoundError, StartingError, UnavailableError
from finetuner.http_api import build_app
from finetuner.wire import DRY_RUN, json_document


class Executors:
    """Answers what it is told to, or raises it, or waits for it."""

    def __init__(self, **answers):
        self.answers = {DRY_RUN: {}, "/ready": {}, **answers}

    async def __call__(self, endpoint, _docs, _parameters):
        answer = self.answers[endpoint]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
        return json_document({})


def check(executors, *, timeout_s=3.0):
    asyncio.run(Availability(executors, timeout_s=timeout_s).check())


def test_ready_when_all_parts_answer():
    check(Executors())
    check(Executors(**{"/ready": EndpointNotFoundError("a Flow without an encoder")}))


def test_a_part_that_does_not_answer_is_told_from_one_that_refuses():
    executors = Executors()
    availability = Availability(executors, timeout_s=0.05)
    asyncio.run(availability.check())
    executors.answers[DRY_RUN] = asyncio.Event()
    with pytest.raises(UnavailableError, match="a part of the Flow has not answered within 0.05 s"):
        asyncio.run(availability.check())
    with pytest.raises(UnavailableError, match="the model hangs"):
        check(Executors(**{"/ready": UnavailableError("the model hangs")}))


def test_until_all_parts_have_answered_once_the_service_is_starting(tmp_path, monkeypatch):
    executors = Executors(**{DRY_RUN: asyncio.Event()})
    availability = Availability(executors, timeout_s=0.05)
    client = TestClient(build_app(executors, tmp_path, availability))
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 12.0)
    monkeypatch.setattr("finetuner.availability.time", clock)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "error": "StartingError",
        "detail": "the service has been starting for 12 s; it answers when all its parts do",
    }
    assert int(answer.headers["retry-after"]) > 0
    monkeypatch.undo()
    executors.answers[DRY_RUN] = {}
    assert client.get("/readyz").json() == {"ready": True}
    told = availability.silence("an executor does not answer")
    assert (type(told), str(told)) == (UnavailableError, "an executor does not answer")
    assert isinstance(Availability(executors).silence(""), StartingError)


def test_stopping_is_said_on_every_answer_and_by_readiness(tmp_path):
    executors = Executors(**{"/models": {}})
    availability = Availability(executors)
    client = TestClient(build_app(executors, tmp_path, availability))
    assert client.get("/readyz").json() == {"ready": True}
    assert "connection" not in client.get("/models").headers

    availability.stop()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the service is stopping")
    assert int(answer.headers["retry-after"]) > 0
    for path in ("/livez", "/models", "/nothing"):
        assert client.get(path).headers["connection"] == "close"
    assert client.get("/livez").status_code == client.get("/models").status_code == 200


def test_drained_waits_for_what_is_in_work():
    async def drain():
        availability = Availability(Executors())
        events = []

        async def request():
            with availability.in_work():
                await asyncio.sleep(0.05)
                events.append("answered")

        assert await availability.drained(0.0)
        task = asyncio.create_task(request())
        await asyncio.sleep(0)
        assert not await availability.drained(0.0)
        assert await availability.drained(5.0)
        assert events == ["answered"]
        await task

    asyncio.run(drain())

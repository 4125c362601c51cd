"""What a run writes while it is at work: log, evaluations and steps, as they are, and as they come.

Following reads the volume and asks no executor: it goes on while one starts again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from finetuner.config import DEFAULT_EXPERIMENT
from finetuner.encode_routes import Call
from finetuner.follow import NEXT_OFFSET, RUN_ENDED, RUN_ID
from finetuner.http_messages import flag, json_response, query, whole_number
from finetuner.log_tail import Followed, Tails
from finetuner.openapi import ERROR
from finetuner.run_metrics import METRICS_FILE
from finetuner.run_store import RunStore
from finetuner.runs import LOG_FILE, STEPS_FILE
from finetuner.wire import read_json_document

_TEXT = "text/plain; charset=utf-8"
_LINES = "application/x-ndjson"
_ERRORS: dict[int | str, dict[str, Any]] = {404: ERROR, 409: ERROR, 422: ERROR}


def add_stream_routes(app: FastAPI, call: Call, workspace: Path, tails: Tails) -> None:
    """Serve what runs write.

    :param app: Gets the routes.
    :param call: Asks an executor for what is there.
    :param workspace: The volume, for what comes.
    :param tails: Of the files that are followed.
    """
    store = RunStore(workspace)
    _add_logs(app, call, store, tails)
    for view, file_name, summary in (
        (
            "epochs",
            METRICS_FILE,
            "Its evaluations so far: before training, by epoch, within epochs",
        ),
        ("steps", STEPS_FILE, "Loss, active share and learning rate of its steps so far"),
    ):
        _add_lines(app, call, store, tails, view=view, file_name=file_name, summary=summary)


def _add_logs(app: FastAPI, call: Call, store: RunStore, tails: Tails) -> None:
    @app.get(
        "/runs/{run_name}/logs",
        tags=["runs"],
        summary="Its log from the byte `offset` on; `?follow=true` goes on until it ends",
        responses=_ERRORS,
    )
    async def logs(run_name: str, request: Request) -> Response:
        parameters = _parameters(request, run_name, "offset", "follow")
        if flag(parameters, "follow"):
            followed, headers = await _followed(store, parameters, LOG_FILE)
            stream = _chunks(tails, followed, parameters["offset"])
            return StreamingResponse(stream, headers=headers, media_type=_TEXT)
        answer = read_json_document(await call("/logs", None, parameters))
        headers = {NEXT_OFFSET: str(answer["offset"]), RUN_ENDED: _word(answer["ended"])}
        return Response(answer["text"], headers=headers, media_type=_TEXT)


def _add_lines(
    app: FastAPI,
    call: Call,
    store: RunStore,
    tails: Tails,
    *,
    view: str,
    file_name: str,
    summary: str,
) -> None:
    @app.get(
        f"/runs/{{run_name}}/{view}",
        tags=["runs"],
        summary=f"{summary}, from the line `offset` on; `?follow=true` goes on, as JSON lines",
        name=view,
        responses=_ERRORS,
    )
    async def lines(run_name: str, request: Request) -> Response:
        parameters = _parameters(request, run_name, "offset", "limit", "follow")
        if flag(parameters, "follow"):
            followed, headers = await _followed(store, parameters, file_name)
            stream = _lines(tails, followed, parameters["offset"])
            return StreamingResponse(stream, headers=headers, media_type=_LINES)
        return json_response(read_json_document(await call(f"/{view}", None, parameters)))


def _parameters(request: Request, run_name: str, *known: str) -> dict[str, Any]:
    given = query(request, "experiment_name", *known)
    for name in {"limit"} & given.keys():
        given[name] = whole_number(given[name], name)
    given["offset"] = whole_number(given.get("offset", "0"), "offset")
    return {"experiment_name": DEFAULT_EXPERIMENT, **given, "run_name": run_name}


async def _followed(
    store: RunStore, parameters: dict[str, Any], file_name: str
) -> tuple[Followed, dict[str, str]]:
    """Return what to follow, and what the answer's head says of it.

    :raises RunNotFoundError: When there is no such run.
    """

    def find() -> tuple[Followed, bool]:
        run = store.get(parameters["run_name"], parameters["experiment_name"])
        return Followed(run, run.spec()["artifact_id"], file_name), run.has_ended()

    followed, has_ended = await asyncio.to_thread(find)
    return followed, {RUN_ID: followed.artifact_id, RUN_ENDED: _word(has_ended)}


def _word(value: bool) -> str:
    return str(value).lower()


async def _chunks(tails: Tails, followed: Followed, offset: int) -> AsyncIterator[bytes]:
    with tails.following(followed) as tail:
        async for chunk in tail.chunks(offset):
            yield chunk


async def _lines(tails: Tails, followed: Followed, offset: int) -> AsyncIterator[bytes]:
    with tails.following(followed) as tail:
        async for lines in tail.lines(offset):
            yield lines

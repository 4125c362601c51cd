"""The HTTP routes of aliases, answered by the EncoderExecutor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from docarray import DocumentArray
from fastapi import FastAPI, Request, Response

from finetuner.alias_api import AliasBody
from finetuner.http_messages import json_response, note, query, read_body
from finetuner.openapi import ERROR, described
from finetuner.schema import describe
from finetuner.wire import read_json_document

Call = Callable[[str, DocumentArray | None, dict[str, Any]], Awaitable[DocumentArray]]

_TEXT = {"type": "string"}
_TARGET = {"type": "object", "properties": {"run": _TEXT, "artifact_id": _TEXT}}
_ALIAS = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "target": _TARGET,
        "split": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"target": _TARGET, "weight": {"type": "number"}},
                },
                {"type": "null"},
            ]
        },
        "shadow": {"anyOf": [_TARGET, {"type": "null"}]},
        "history": {"type": "array", "items": _TARGET, "description": "the newest last"},
        "revision": {"type": "integer"},
        "changed_at": _TEXT,
        "shares": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"run": _TEXT, "weight": {"type": "number"}},
            },
        },
        "missing": {
            "type": "array",
            "items": _TEXT,
            "description": "runs that it points to and that were deleted",
        },
    },
}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


ALIAS = _answer("The alias", _ALIAS)
ALIASES = _answer(
    "The aliases by name",
    {"type": "object", "properties": {"items": {"type": "array", "items": _ALIAS}}},
)
ALIAS_BODY = {
    **describe(AliasBody),
    "example": {"run": "second-run", "split": {"run": "third-run", "weight": 0.1}},
}


def add_alias_routes(app: FastAPI, call: Call) -> None:
    """Serve the aliases.

    :param app: Gets the routes.
    :param call: Asks an executor's endpoint, as in :func:`finetuner.http_api.build_app`.
    """
    _add_reading(app, call)
    _add_changing(app, call)


def _add_reading(app: FastAPI, call: Call) -> None:
    @app.get("/aliases", tags=["aliases"], summary="List aliases", responses={200: ALIASES})
    async def list_aliases(request: Request) -> Response:
        query(request)
        return json_response(read_json_document(await call("/aliases", None, {})))

    @app.get(
        "/aliases/{name}",
        tags=["aliases"],
        summary="What a name points to, and pointed to before",
        responses={200: ALIAS, 404: ERROR},
    )
    async def get_alias(name: str, request: Request) -> Response:
        query(request)
        answer = read_json_document(await call("/aliases", None, {"name": name}))
        return json_response(answer["items"][0])


def _add_changing(app: FastAPI, call: Call) -> None:
    async def ask(request: Request, endpoint: str, parameters: dict[str, Any]) -> Response:
        query(request)
        return json_response(read_json_document(await call(endpoint, None, parameters)))

    @app.put(
        "/aliases/{name}",
        tags=["aliases"],
        summary="Let a name point to a run, which is loaded first",
        openapi_extra=described(ALIAS_BODY),
        responses={200: ALIAS, 404: ERROR, 409: ERROR, 422: ERROR},
    )
    async def set_alias(name: str, request: Request) -> Response:
        body = await read_body(request, tuple(ALIAS_BODY["properties"]))
        note(request, name=name, run=body.get("run"))
        return await ask(request, "/alias/set", {**body, "name": name})

    @app.post(
        "/aliases/{name}/rollback",
        tags=["aliases"],
        summary="Let it point to the run before",
        responses={200: ALIAS, 404: ERROR, 409: ERROR},
    )
    async def rollback_alias(name: str, request: Request) -> Response:
        return await ask(request, "/alias/rollback", {"name": name})

    @app.delete(
        "/aliases/{name}",
        tags=["aliases"],
        summary="Delete a name; the runs stay",
        responses={404: ERROR},
    )
    async def delete_alias(name: str, request: Request) -> Response:
        return await ask(request, "/alias/delete", {"name": name})

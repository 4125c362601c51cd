"""OpenAI's routes, ``/v1/embeddings`` and ``/v1/models``: its clients work with a changed address.

``model`` is an alias, a run name, ``experiment/run`` or an artifact id. Errors below ``/v1/`` have OpenAI's
shape; :mod:`finetuner.http_messages` gives it to them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from finetuner.encode_routes import Call, Encode, provenance, timing_header, vectors_of
from finetuner.errors import ArtifactNotFound, ConfigError, DataError
from finetuner.http_messages import json_response, query, read_body
from finetuner.openapi import EMBEDDINGS_BODY, OPENAI_ERROR, described
from finetuner.schema import convert
from finetuner.wire import read_json_document

_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 404, 409, 413, 422, 429, 504), OPENAI_ERROR
)
# Passed on as they are; the executor checks them.
_PARAMETERS = (
    *("dimensions", "truncate", "prompt", "prompt_name", "dtype", "normalize", "digest"),
    "timeout_s",
)
_FIELDS = ("input", "model", "encoding_format", "user", *_PARAMETERS)


class EncodingFormat(StrEnum):
    """How a vector is written in JSON."""

    FLOAT = "float"
    BASE64 = "base64"


def add_openai_routes(app: FastAPI, call: Call, encode: Encode) -> None:
    """Serve ``/v1/embeddings``, ``/v1/models`` and ``/v1/models/{id}``.

    :param app: Gets the routes.
    :param call: Asks an executor.
    :param encode: Asks the encoder for vectors.
    """

    @app.post(
        "/v1/embeddings",
        tags=["openai"],
        summary="Embed texts",
        openapi_extra=described(EMBEDDINGS_BODY),
        responses=_ERRORS,
    )
    async def embeddings(request: Request) -> Response:
        query(request)
        body = await read_body(request, _FIELDS)
        texts = _inputs(body.get("input"))
        format_ = convert(EncodingFormat, body.get("encoding_format") or "float", "encoding_format")
        vectors, tags = await vectors_of(encode, texts, _parameters(body), request)
        answer = {
            "object": "list",
            "data": _rows(vectors, format_),
            "model": body["model"],
            "usage": dict.fromkeys(("prompt_tokens", "total_tokens"), tags["n_tokens"]),
            **provenance(tags),
        }
        return json_response(answer, headers=timing_header(tags))

    @app.get("/v1/models", tags=["openai"], summary="What can be served")
    async def models(request: Request) -> Response:
        query(request)
        return json_response({"object": "list", "data": await _models(call)})

    @app.get("/v1/models/{id:path}", tags=["openai"], summary="One of them", responses=_ERRORS)
    async def model(id: str, request: Request) -> Response:  # noqa: A002 - OpenAI's name
        query(request)
        for found in await _models(call):
            if id in (found["id"], found["artifact_id"]):
                return json_response(found)
        raise ArtifactNotFound(f"no run and no artifact `{id}`"[:200])


async def _models(call: Call) -> list[dict[str, Any]]:
    answer = read_json_document(await call("/models", None, {}))
    return [{**row, "object": "model", "owned_by": "finetuner"} for row in answer["models"]]


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    model, user = body.get("model"), body.get("user")
    if not isinstance(model, str) or not model:
        raise ConfigError(
            "model must name an alias, a run or an artifact; GET /v1/models lists them"
        )
    if not isinstance(user, str | None):
        raise ConfigError("user must be a string")
    given = {name: body[name] for name in _PARAMETERS if body.get(name) is not None}
    return {**given, "artifact": model, **({"client": user} if user else {})}


def _inputs(value: Any) -> list[Any]:
    """Return texts, or texts as lists of token ids.

    :raises DataError: When it is none of OpenAI's four forms, or empty.
    """
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        value = [value]
    if not isinstance(value, list) or not value:
        raise DataError(
            "input must be a string, a list of strings, a list of token ids, or a list of such lists, "
            "and not empty"
        )
    for position, item in enumerate(value):
        if not isinstance(item, str | list) or not item:
            raise DataError(f"input[{position}] must be a string or a list of token ids, not empty")
    return value


def _rows(vectors: NDArray[Any], format_: EncodingFormat) -> list[dict[str, Any]]:
    if format_ is EncodingFormat.BASE64:
        little_endian = np.ascontiguousarray(vectors.astype(vectors.dtype.newbyteorder("<")))
        embeddings: Any = (base64.b64encode(row.tobytes()).decode() for row in little_endian)
    else:
        embeddings = vectors
    return [
        {"object": "embedding", "index": i, "embedding": embedding}
        for i, embedding in enumerate(embeddings)
    ]

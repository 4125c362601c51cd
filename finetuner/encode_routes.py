"""The HTTP routes that embed texts: ``/encode``, and what follows from vectors and tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from docarray import DocumentArray
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from finetuner.data import check_text
from finetuner.errors import ConfigError, DataError, UnavailableError
from finetuner.http_messages import json_response, query, read_body
from finetuner.openapi import (
    ENCODE_BODY,
    ENCODE_RESULT,
    ERROR,
    RANK_BODY,
    SIMILARITY_BODY,
    TOKENIZE_BODY,
    described,
)
from finetuner.wire import pack_request, read_json_document, request_document, unpack_vectors

Call = Callable[[str, DocumentArray | None, dict[str, Any]], Awaitable[DocumentArray]]
# From what finetuner.wire packs to what it unpacks.
Encode = Callable[[bytes], Awaitable[bytes]]

_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((404, 409, 413, 422, 429, 504), ERROR)
# What an answer says of its vectors.
_SAID = ("artifact", "artifact_id", "digest", "backend", "precision", "dtype", "dim", "n_tokens")
_TIMED = ("tokenize", "queue", "inference")


def encoding_by(call: Call) -> Encode:
    """Return what asks for vectors through Jina.

    :param call: Asks an executor.
    """

    async def encode(request: bytes) -> bytes:
        answer = await call("/encode", request_document(request), {})
        blob: bytes = answer[0].blob
        return blob

    return encode


def add_encode_routes(app: FastAPI, call: Call, encode: Encode) -> None:
    """Serve ``/encode``, ``/similarity``, ``/rank``, ``/tokenize``, ``/models``.

    :param app: Gets the routes.
    :param call: Asks an executor.
    :param encode: Asks the encoder for vectors.
    """
    _add_encode(app, encode)
    _add_comparisons(app, encode)
    _add_views(app, call)


def timing_header(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return where a request's time went, as the header ``Server-Timing`` of the W3C.

    :param tags: What the executor said of its vectors.
    """
    parts = [f"{name};dur={1e3 * tags.get(f'{name}_s', 0):.2f}" for name in _TIMED]
    return {"Server-Timing": ", ".join(parts)}


def provenance(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer says of the model and of its vectors.

    :param tags: What the executor said of its vectors.
    """
    return {name: tags[name] for name in _SAID if name in tags}


def asker(request: Request) -> str:
    """Return who asks, for the turns that clients take."""
    return request.client.host if request.client else ""


async def vectors_of(
    encode: Encode, texts: list[Any], parameters: Mapping[str, Any], request: Request
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Ask for vectors; gives them, *Shape:* ``(n_texts, width)``, and what the executor says of them.

    A client that hangs up takes its texts out of the executor's queue.

    :raises UnavailableError: When it has; nobody reads that.
    """
    asked = {"client": asker(request), **parameters}
    answer = asyncio.ensure_future(encode(pack_request(texts, asked)))
    # The body has been read: what comes next is the end of the connection.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise UnavailableError("the client has gone")
        return unpack_vectors(answer.result())
    finally:
        gone.cancel()
        answer.cancel()


def given_parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a body.

    :raises ConfigError: When they are no object.
    """
    parameters = body.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ConfigError("parameters must be an object")
    return parameters


def _add_encode(app: FastAPI, encode: Encode) -> None:
    @app.post(
        "/encode",
        tags=["encode"],
        summary="Embed texts",
        openapi_extra=described(ENCODE_BODY),
        responses={200: ENCODE_RESULT, **_ERRORS},
    )
    async def encode_(request: Request) -> Response:
        query(request)
        body = await read_body(request, ("data", "parameters"))
        rows = [encode_row(row, i) for i, row in enumerate(given_list(body.get("data")))]
        texts = [text for _, text in rows]
        vectors, tags = await vectors_of(encode, texts, given_parameters(body), request)
        data = [
            {"id": id_ or str(i), "text": text, "embedding": vector}
            for i, ((id_, text), vector) in enumerate(zip(rows, vectors, strict=True))
        ]
        return json_response({"data": data, **provenance(tags)}, headers=timing_header(tags))


def given_list(value: Any) -> list[Any]:
    """Return the field ``data`` of a body.

    :raises ConfigError: When it is no list.
    """
    if not isinstance(value, list):
        raise ConfigError('data must be a list such as [{"text": "some text"}]')
    return value


def encode_row(row: Any, position: int) -> tuple[str | None, str]:
    """Return id and text of an item of ``data``.

    :raises DataError: When it is none.
    """
    row = {"text": row} if isinstance(row, str) else row
    if not isinstance(row, dict) or "text" not in row or set(row) - {"id", "text"}:
        raise DataError(f"data[{position}] must have the field text, and perhaps id, and no other")
    id_ = row.get("id")
    if isinstance(id_, bool) or not isinstance(id_, str | int | None):
        raise DataError(f"data[{position}]: the id must be a string or a whole number")
    return (None if id_ is None else str(id_)), check_text(row["text"], f"data[{position}]")


def _add_comparisons(app: FastAPI, encode: Encode) -> None:
    @app.post(
        "/similarity",
        tags=["encode"],
        summary="Cosines between queries and texts",
        openapi_extra=described(SIMILARITY_BODY),
        responses=_ERRORS,
    )
    async def similarity(request: Request) -> Response:
        query(request)
        body = await read_body(request, ("queries", "texts", "parameters"))
        queries, texts = (_texts(body, name) for name in ("queries", "texts"))
        cosines, tags = await _cosines(encode, request, body, queries=queries, texts=texts)
        return json_response({"similarity": cosines, **tags})

    @app.post(
        "/rank",
        tags=["encode"],
        summary="Texts by their cosine to a query, nearest first",
        openapi_extra=described(RANK_BODY),
        responses=_ERRORS,
    )
    async def rank(request: Request) -> Response:
        query(request)
        body = await read_body(request, ("query", "texts", "top_k", "parameters"))
        queries, texts = [check_text(body.get("query"), "query")], _texts(body, "texts")
        top_k = _top_k(body.get("top_k"), len(texts))
        cosines, tags = await _cosines(encode, request, body, queries=queries, texts=texts)
        # Stable, so that equal texts keep their order.
        order = np.argsort(-cosines[0], kind="stable")[:top_k].tolist() if texts else []
        results = [{"index": i, "score": cosines[0, i], "text": texts[i]} for i in order]
        return json_response({"results": results, **tags})


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    texts = body.get(name)
    if not isinstance(texts, list):
        raise ConfigError(f"{name} must be a list of texts")
    return [check_text(text, f"{name}[{i}]") for i, text in enumerate(texts)]


def _top_k(value: Any, n_texts: int) -> int:
    if value is None:
        return n_texts
    if type(value) is not int or value < 1:
        raise ConfigError(f"top_k must be a whole number above 0, got `{value!r}`"[:200])
    return value


async def _cosines(
    encode: Encode,
    request: Request,
    body: Mapping[str, Any],
    *,
    queries: list[str],
    texts: list[str],
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Return cosines, *Shape:* ``(n_queries, n_texts)`` float32, and what they come from."""
    parameters = given_parameters(body)
    for name in ("dtype", "normalize"):
        if name in parameters:
            raise ConfigError(f"parameters.{name} changes no cosine; leave it out")
    vectors, tags = await vectors_of(encode, [*queries, *texts], parameters, request)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths > 0, lengths, 1)
    cosines = (vectors[: len(queries)] @ vectors[len(queries) :].T).astype(np.float32)
    return cosines, provenance(tags)


def _add_views(app: FastAPI, call: Call) -> None:
    @app.post(
        "/tokenize",
        tags=["encode"],
        summary="The tokens that the model sees of each text",
        openapi_extra=described(TOKENIZE_BODY),
        responses=_ERRORS,
    )
    async def tokenize(request: Request) -> Response:
        query(request)
        body = await read_body(request, ("texts", "parameters"))
        docs = request_document(pack_request(_texts(body, "texts"), given_parameters(body)))
        return json_response(read_json_document(await call("/tokenize", docs, {})))

    @app.get("/models", tags=["encode"], summary="What can be served")
    async def models(request: Request) -> Response:
        query(request)
        return json_response(read_json_document(await call("/models", None, {})))

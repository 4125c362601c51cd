"""Reading HTTP requests, and answering them."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request, Response

from finetuner.errors import ConfigError, FinetunerError, MalformedRequestError, TooLargeError
from finetuner.schema import nearest

MAX_BODY_BYTES = 32 * 2**20


def json_response(value: Any, status_code: int = 200) -> Response:
    """Answer with JSON; float32 arrays keep their short decimal form."""
    return Response(
        orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY),
        status_code,
        media_type="application/json",
    )


def error_response(error: FinetunerError) -> Response:
    """Answer with the error's own status code, its name and its sentence."""
    content = {"error": type(error).__name__, "detail": str(error)}
    return json_response(content, error.http_status)


async def read_body(request: Request, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return a request's JSON object.

    :param request: The request.
    :param known: The fields allowed, when nothing behind checks them.
    :raises TooLargeError: When it is longer than 32 MiB.
    :raises MalformedRequestError: When it is no JSON object in UTF-8.
    :raises ConfigError: When a field is unknown.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLargeError(
                f"the body is longer than {MAX_BODY_BYTES} bytes; store the data with "
                "`DocumentArray.push` and send their name"
            )
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise MalformedRequestError(f"the body is no JSON in UTF-8: {exc}") from exc
    if not isinstance(value, dict):
        raise MalformedRequestError("the body must be a JSON object")
    for key in value:
        if known is not None and key not in known:
            raise ConfigError(
                f"unknown field `{key}`{nearest(key, known)} known: {', '.join(known)}"
            )
    return value


def query(request: Request, *known: str) -> dict[str, Any]:
    """Return the query parameters.

    :raises ConfigError: When one is unknown.
    """
    for key in request.query_params:
        if key not in known:
            raise ConfigError(
                f"unknown query field `{key}`{nearest(key, known)} known: {', '.join(known) or 'none'}"
            )
    return dict(request.query_params)

"""Reading HTTP requests, and answering them."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from finetuner.errors import (
    AuthenticationRequiredError,
    ConfigError,
    EndpointNotFoundError,
    FinetunerError,
    InvalidTokenError,
    MalformedRequestError,
    OverloadedError,
    SlowRequestError,
    TooLargeError,
    UnavailableError,
)
from finetuner.files import volume_trouble
from finetuner.log_format import request_id
from finetuner.schema import nearest

logger = logging.getLogger(__name__)
# What an executor needs to start again, about.
_RESTART_S = "5"
MAX_BODY_BYTES = 32 * 2**20
_MOST_DIGITS = 15  # protobuf carries numbers as doubles
# In the state of a request: what it is about, beside its path and query.
ASKED = "asked"
_OPENAI_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def json_response(
    value: Any, status_code: int = 200, *, headers: dict[str, str] | None = None
) -> Response:
    """Answer with JSON; float32 arrays keep their short decimal form."""
    return Response(
        orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY),
        status_code,
        headers,
        media_type="application/json",
    )


def path_of(request: Request) -> str:
    """Return the path that the router goes by; ``request.url`` takes the header Host into it unchecked."""
    path: str = request.scope["path"]
    return path


def error_response(request: Request, error: FinetunerError) -> Response:
    """Answer with the error's own status code, its name and its sentence.

    :param request: Below ``/v1/`` the answer has OpenAI's shape.
    :param error: What was raised.
    """
    name, sentence = type(error).__name__, str(error)
    headers = None
    if isinstance(error, OverloadedError):
        headers = {"Retry-After": str(error.retry_after_s)}
    elif isinstance(error, UnavailableError):
        headers = {"Retry-After": _RESTART_S}
    elif isinstance(error, AuthenticationRequiredError):
        cause = ', error="invalid_token"' if isinstance(error, InvalidTokenError) else ""
        headers = {"WWW-Authenticate": f'Bearer realm="finetuner"{cause}'}
    return _named_error(request, error.http_status, name, sentence, headers=headers)


def _named_error(
    request: Request,
    status: int,
    name: str,
    sentence: str,
    *,
    headers: dict[str, str] | None = None,
) -> Response:
    content: dict[str, Any] = {"error": name, "detail": sentence}
    if path_of(request).startswith("/v1/"):
        kind = _OPENAI_KINDS.get(
            status, "invalid_request_error" if status < 500 else "server_error"
        )
        content = {"error": {"message": sentence, "type": kind, "param": None, "code": name}}
    return json_response(content, status, headers=headers)


def note(request: Request, **parameters: Any) -> None:
    """Say what a request is about where its path and query do not, for the audit.

    :param request: The request.
    :param parameters: As the endpoints of the executors name them.
    """
    setattr(request.state, ASKED, parameters)


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


def keyed(body: dict[str, Any], request: Request) -> dict[str, Any]:
    """Return a body with the key of the header ``Idempotency-Key``, when there is one.

    :raises ConfigError: When the body has another.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return body
    if body.get("idempotency_key") not in (None, key):
        raise ConfigError(
            "the header Idempotency-Key and the field idempotency_key differ; leave one out"
        )
    return {**body, "idempotency_key": key}


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


def flag(parameters: dict[str, Any], name: str) -> bool:
    """Take a flag out of query parameters; one that is not there is false.

    :raises ConfigError: When it is neither true, false, 1 nor 0.
    """
    allowed = {"true": True, "1": True, "false": False, "0": False}
    value = parameters.pop(name, "false")
    if value.lower() not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got `{value[:80]}`")
    return allowed[value.lower()]


def whole_number(text: str, name: str) -> int:
    """Return a query field's number.

    :param text: As it was sent.
    :param name: Of the field.
    :raises ConfigError: When it is not 0 or more, in at most 15 digits.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise ConfigError(
            f"{name} must be a whole number of at most {_MOST_DIGITS} digits, got `{text[:80]}`"
        )
    return int(text)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error as JSON with its own status code.

    :param app: Gets the handlers.
    """

    @app.exception_handler(FinetunerError)
    async def known_error(request: Request, error: FinetunerError) -> Response:
        return error_response(request, error)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=SlowRequestError.http_status)  # nobody reads it

    @app.exception_handler(RequestValidationError)
    async def wrong_field(request: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        return error_response(request, ConfigError(f"{where}: {problem['msg']}"))

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            paths = [getattr(route, "path", "") for route in app.routes]
            shown = path_of(request)[:100]
            error_ = EndpointNotFoundError(
                f"unknown endpoint `{shown}`{nearest(shown, paths)} see /docs"
            )
            return error_response(request, error_)
        return _named_error(request, error.status_code, "HTTPException", error.detail)

    @app.exception_handler(Exception)
    async def unforeseen_error(request: Request, error: Exception) -> Response:
        return _unforeseen_response(request, error)


def _unforeseen_response(request: Request, error: Exception) -> Response:
    if (trouble := volume_trouble(error)) is not None:
        return error_response(request, trouble)
    logger.error("unforeseen error", exc_info=error)
    sentence = "internal error; the server's log has it"
    # This answer goes past the middleware that gives all others their id.
    known = request_id.get()
    headers = None if known is None else {"X-Request-ID": known}
    return _named_error(request, 500, "FinetunerServerError", sentence, headers=headers)

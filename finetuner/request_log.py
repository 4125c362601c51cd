"""A line for each request of the gateway, and an id that its answer and all its lines carry."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders

from finetuner.log_format import fields, request_id

logger = logging.getLogger(__name__)
REQUEST_ID = "X-Request-ID"
# What may stand in a log and in a header, whoever sent it.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


def new_id(given: str | None) -> str:
    """Return the id that a client or proxy gave a request, or one of our own in its place.

    :param given: Of 1 to 128 letters, digits, and ``.``, ``_``, ``:``, ``-``; others are not taken.
    """
    return given if given is not None and _ID.fullmatch(given) else secrets.token_hex(8)


def log_request(method: str, route: str, status: int, *, took_s: float, caller: str) -> None:
    """Write the line of a request that has been answered: neither its texts nor its token.

    :param method: Of HTTP, or ``gRPC``.
    :param route: As it is declared; names of runs and queries, which may hold signatures, stay out.
    :param status: Of the answer.
    :param took_s: Until its end, in seconds.
    :param caller: Whose token it was.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    values = {"method": method, "route": route, "status": status, "caller": caller}
    told = fields(**values, took_s=round(took_s, 6))
    logger.info("%s %s %d", method, route, status, extra=told)


def add_request_log(app: FastAPI) -> None:
    """Log every request of an application.

    :param app: Gets the middleware, after all others.
    """
    app.add_middleware(RequestLog)


class RequestLog:
    """Gives each request an id, and logs it when its answer has ended.

    :param app: The application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, status = time.perf_counter(), 500
        known = new_id(Headers(scope=scope).get(REQUEST_ID))
        # Each request is a task of its own, so that nobody else's lines get it.
        request_id.set(known)

        async def named_send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = known
            await send(message)

        try:
            await self._app(scope, receive, named_send)
        finally:
            caller = scope.get("state", {}).get("caller")
            log_request(
                scope["method"],
                getattr(scope.get("route"), "path", "unknown"),
                status,
                took_s=time.perf_counter() - started_at,
                caller="anonymous" if caller is None else caller.name,
            )

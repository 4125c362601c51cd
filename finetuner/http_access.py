"""The gatekeeper before the HTTP side: no route is reached past it, be it of ours or not."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from starlette.datastructures import Headers, QueryParams
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Match

from finetuner.audit import Action, target_of
from finetuner.errors import ConfigError, FinetunerError, ForbiddenError
from finetuner.gatekeeper import Caller, Gatekeeper
from finetuner.http_messages import ASKED, error_response
from finetuner.permissions import ADMIN, ANY_TOKEN, ROUTES, Permission
from finetuner.signed_links import LINK_FIELDS, holder

# Opened by a signed link too.
_LINKED = ("GET", "/data/{name:path}")
_METHODS = ("GET", "POST", "PUT", "DELETE")


def add_access(app: FastAPI, gatekeeper: Gatekeeper, *, cors_origins: Sequence[str] = ()) -> None:
    """Ask the gatekeeper about every request.

    :param app: Gets the middleware, before any other of its own.
    :param gatekeeper: Decides.
    :param cors_origins: Of pages that a browser may let read the answers.
    :raises ConfigError: When one is no origin.
    """
    for origin in cors_origins:
        _check_origin(origin)
    app.add_middleware(
        AccessApp, gatekeeper=gatekeeper, routes=app.router.routes, origins=frozenset(cors_origins)
    )
    describe = app.openapi

    def describe_with_tokens() -> dict[str, Any]:
        """Return the description, with what `/docs` needs to ask its reader for a token."""
        description = describe()
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        description.setdefault("components", {})["securitySchemes"] = schemes
        return {**description, "security": [{"token": []}]}

    app.openapi = describe_with_tokens  # type: ignore[method-assign]  # FastAPI's own way to extend it


def add_cors(app: FastAPI, cors_origins: Sequence[str]) -> None:
    """Let pages of other origins read the answers, refusals too.

    :param app: Gets the middleware, after all others.
    :param cors_origins: Those pages'; none when empty.
    """
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=_METHODS,
            allow_headers=("Authorization", "Content-Type"),
            expose_headers=("Retry-After", "Server-Timing", "X-Request-ID"),
        )


def _check_origin(origin: str) -> None:
    """Refuse what a browser would never send.

    :raises ConfigError: When it is no scheme and host, or `*`, which names nobody.
    """
    parts = urlsplit(origin)
    if not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}" or "*" in origin:
        raise ConfigError(
            f"a CORS origin is a scheme and a host, and a port where it is not the usual one, such as "
            f"https://search.example.org; got `{origin[:100]}`"
        )


class AccessApp:
    """Lets a request through to the application, or answers it with 401, 403 or 429.

    :param app: The application.
    :param gatekeeper: Decides.
    :param routes: Of the application, in the order in which it tries them.
    :param origins: Of pages that may ask while nobody needs a token.
    """

    def __init__(
        self,
        app: Any,
        *,
        gatekeeper: Gatekeeper,
        routes: Sequence[BaseRoute],
        origins: frozenset[str],
    ) -> None:
        self._app, self._gatekeeper = app, gatekeeper
        self._routes, self._origins = routes, origins
        # What was found for paths without names in them; to ask all routes takes a tenth of a millisecond.
        self._fixed: dict[tuple[str, str], tuple[tuple[str, str], dict[str, Any]]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route of ours is a WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        key = self._route(scope)
        permission = ANY_TOKEN if key is None else ROUTES.get(key, ADMIN)
        caller, refusal = await self._admitted(scope, key, permission)
        scope.setdefault("state", {})["caller"] = caller
        app = self._app if refusal is None else error_response(Request(scope), refusal)
        if permission.action is not None:
            app = self._audited(app, caller, permission.action)
        await app(scope, receive, send)

    def _route(self, scope: Any) -> tuple[str, str] | None:
        """Return method and path of the route that will answer; None for what ends in a 404 or 405."""
        asked = (scope["method"], scope["path"])
        key, found = self._fixed.get(asked) or self._match(scope)
        if key is None:
            return None
        if not found["path_params"]:  # of these there are only as many as routes without a name
            self._fixed[asked] = (key, found)
        # A refusal is counted and written down by its route and names too.
        scope.update(found)
        return key

    def _match(self, scope: Any) -> tuple[tuple[str, str] | None, dict[str, Any]]:
        """Ask the routes themselves, so that what is checked is what will answer."""
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                method = "GET" if scope["method"] == "HEAD" else scope["method"]
                return (method, getattr(route, "path", "")), dict(found)
        return None, {}

    async def _admitted(
        self, scope: Any, key: tuple[str, str] | None, permission: Permission
    ) -> tuple[Caller, FinetunerError | None]:
        """Return who asks, and why they may not."""
        address = scope["client"][0] if scope.get("client") else ""
        caller = Caller("anonymous", address, frozenset())
        if permission.is_public:
            return caller, None
        try:
            caller = await self._caller(scope, key, address)
            self._gatekeeper.check(caller, permission, f"{scope['method']} {scope['path'][:100]}")
        except FinetunerError as error:
            return caller, error
        return caller, None

    async def _caller(self, scope: Any, key: tuple[str, str] | None, address: str) -> Caller:
        headers = Headers(scope=scope)
        if self._gatekeeper.is_open:
            _check_browser(headers, self._origins)
        authorization = headers.get("authorization")
        if authorization is None and key == _LINKED:
            query, tokens = QueryParams(scope["query_string"]), self._gatekeeper.tokens
            if all(name in query for name in LINK_FIELDS):
                return await self._gatekeeper.admit(
                    lambda: holder(scope["path"], query, tokens), address
                )
        return await self._gatekeeper.identify(authorization, address)

    def _audited(self, app: Any, caller: Caller, action: Action) -> Any:
        """Return an application that writes down what was done before the client is told."""

        async def audited(scope: Any, receive: Any, send: Any) -> None:
            is_written = False

            async def write(status: int) -> None:
                nonlocal is_written
                is_written = True
                target = target_of(_asked(scope))
                await self._gatekeeper.record(caller, action, target=target, status=status)

            async def recording_send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    await write(message["status"])
                await send(message)

            try:
                await app(scope, receive, recording_send)
            except Exception:  # answered further out, with an internal error
                if not is_written:
                    await write(500)
                raise

        return audited


def _asked(scope: Any) -> dict[str, Any]:
    """Return what a request is about, by its query, its path and what was noted of its body."""
    noted = scope["state"].get(ASKED, {})
    return {**QueryParams(scope["query_string"]), **scope.get("path_params", {}), **noted}


def _check_browser(headers: Headers, origins: Iterable[str]) -> None:
    """Refuse a page of another site that asks through the browser of someone on this machine.

    While nobody needs a token, being on this machine is all that counts, and a browser is. A page
    may send requests whose answers it cannot read (then its origin is named), or have a name of its own
    stand for 127.0.0.1 (then that name is asked for; a name without a dot is nobody's to give away).

    :param headers: Of the request.
    :param origins: Of pages that may.
    :raises ForbiddenError: When it is one of those.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if origin is not None and origin not in origins and urlsplit(origin).netloc != host:
        raise ForbiddenError(
            f"a page of {origin[:100]} may not ask this server: start it with --cors-origin to allow that"
        )
    if "." in host and not _is_address(host):
        raise ForbiddenError(
            f"this server is not known as {host[:100]}: ask for it by its address, or make a token with "
            "`finetuner token create NAME --scope SCOPE`, after which its name does not matter"
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
    return True

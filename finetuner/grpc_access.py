"""The gatekeeper before the gRPC side: no service on the port is reached past it, be it ours or Jina's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from itertools import chain
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import grpc
from jina.types.request.data import DataRequest

from finetuner.audit import target_of
from finetuner.errors import (
    AuthenticationRequiredError,
    FinetunerError,
    ForbiddenError,
    OverloadedError,
)
from finetuner.flow_calls import admit, check_size, error_of, refusal
from finetuner.gatekeeper import Caller, Gatekeeper
from finetuner.log_format import request_id
from finetuner.permissions import ADMIN, CLOSED, ENDPOINTS, METHODS, Permission
from finetuner.request_log import log_request, new_id
from finetuner.wire import JSON, holds, read_json_document

_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
_CODES = (
    (AuthenticationRequiredError, grpc.StatusCode.UNAUTHENTICATED),
    (ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (FinetunerError, grpc.StatusCode.UNAVAILABLE),
)
_OK = 200
# What some servers note for a client that has closed its connection.
_GONE = 499
_SENDING_S = 0.05


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Ends calls of those who may not make them, before a message of a stream is read.

    :param gatekeeper: Decides.
    """

    def __init__(self, gatekeeper: Gatekeeper) -> None:
        self._gatekeeper = gatekeeper

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the handler of a call, with the gatekeeper before it."""
        handler = await continuation(details)
        permission = METHODS.get(details.method, CLOSED)
        if handler is None or permission.is_public:
            return handler

        async def admit(context: Any) -> None:
            try:
                caller = await self._gatekeeper.identify(_authorization(context), _address(context))
                self._gatekeeper.check(caller, permission, details.method)
            except FinetunerError as error:
                code = next(code for kind, code in _CODES if isinstance(error, kind))
                # A client that is still sending its first message sees an internal error in its place.
                await asyncio.sleep(_SENDING_S)
                await context.abort(code, f"{type(error).__name__}: {error}")
            _caller.set(caller)

        return _guarded(handler, admit)


def _guarded(handler: Any, admit: Any) -> Any:
    """Return a handler that asks first, and only then reads a message, of which none is too long for Jina.

    As a handler of streams, whatever it serves: gRPC gives any other its message before it is asked.
    """
    kind = (
        f"{'stream' if handler.request_streaming else 'unary'}_"
        f"{'stream' if handler.response_streaming else 'unary'}"
    )
    serve = getattr(handler, kind)

    async def guarded(requests: Any, context: Any) -> AsyncIterator[Any]:
        await admit(context)
        request = requests if handler.request_streaming else await anext(requests, None)
        if request is None:  # the client has closed the call before it said anything
            return
        if handler.response_streaming:
            async for response in serve(request, context):
                yield response
        else:
            yield await serve(request, context)

    return grpc.stream_stream_rpc_method_handler(
        guarded,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _authorization(context: Any) -> str | None:
    """Return what a client calls with as ``metadata=(('authorization', 'Bearer TOKEN'),)``."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return value if isinstance(value, str) else value.decode("latin-1")
    return None


def _address(context: Any) -> str:
    """Return the address in `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    family, _, rest = unquote(context.peer()).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else family


def guard(server: Any, gatekeeper: Gatekeeper) -> Any:
    """Let one of Jina's gRPC servers ask the gatekeeper first, about the services that Jina adds too.

    :param server: Has not started.
    :param gatekeeper: Decides.
    :returns: The server.
    """
    others = server.grpc_tracing_server_interceptors or ()
    server.grpc_tracing_server_interceptors = [AccessInterceptor(gatekeeper), *others]
    return server


class GuardedCall:
    """The requests of one call: whether each may pass, and what the audit says of it.

    As a context manager it writes down at its end what has no answer yet: who hangs up after asking for
    something shall not keep it out of the audit.

    :param gatekeeper: Decides, and writes.
    """

    def __init__(self, gatekeeper: Gatekeeper) -> None:
        self._gatekeeper = gatekeeper
        # By the identity that a client gives a request, which may not be one.
        self._unanswered: dict[str, list[DataRequest]] = {}
        self._started_at: dict[str, float] = {}

    async def __aenter__(self) -> GuardedCall:
        return self

    async def __aexit__(self, *_: object) -> None:
        for request in chain.from_iterable(self._unanswered.values()):
            await self._record(request, _GONE)

    async def refusal(self, request: DataRequest, endpoints: set[str]) -> DataRequest | None:
        """Return the answer to a request that may not pass, None when it may.

        :param request: From a client.
        :param endpoints: What the Flow's executors serve.
        """
        started_at = time.perf_counter()
        try:
            # Before this, nothing may be read of it: it may be no request, or one of a million documents.
            await check_size(request)
            admit(request, endpoints)
        except FinetunerError as error:
            self._log("", None, error.http_status, started_at=started_at)
            return refusal(request, error)
        known, endpoint = request.header.request_id, request.header.exec_endpoint
        self._started_at[known] = started_at
        request_id.set(new_id(known))
        try:
            self._check(endpoint)
        except FinetunerError as error:
            self._log(endpoint, known, error.http_status)
            await self._record(request, error.http_status)
            return refusal(request, error)
        if _permission(request).action is not None:
            self._unanswered.setdefault(request.header.request_id, []).append(request)
        return None

    def _check(self, endpoint: str) -> None:
        caller = _caller.get()
        if caller is None:  # the call did not come through the interceptor
            raise AuthenticationRequiredError("nobody has asked who makes this call")
        permission = ENDPOINTS.get(endpoint, ADMIN)
        self._gatekeeper.check(caller, permission, f"the endpoint {endpoint[:100]}")

    async def answered(self, response: DataRequest) -> None:
        """Write down what a request has done, if it was to do anything.

        :param response: Of an executor, or of Jina when none answers.
        """
        error = error_of(response)
        known = response.header.request_id
        self._log(response.header.exec_endpoint, known, error.http_status if error else _OK)
        requests = self._unanswered.get(known)
        if not requests:
            return
        answer = {}
        if error is None and holds(response.docs, JSON):
            answer = read_json_document(response.docs)
        await self._record(requests.pop(0), error.http_status if error else _OK, answer)

    def _log(
        self, endpoint: str, known: str | None, status: int, *, started_at: float | None = None
    ) -> None:
        """Write the line of a request; the name of an endpoint that is none of ours may be anything."""
        caller = _caller.get()
        if started_at is None:
            started_at = self._started_at.pop(known or "", time.perf_counter())
        request_id.set(new_id(known))
        log_request(
            "gRPC",
            endpoint if endpoint in ENDPOINTS else "unknown",
            status,
            took_s=time.perf_counter() - started_at,
            caller="anonymous" if caller is None else caller.name,
        )

    async def _record(
        self, request: DataRequest, status: int, answer: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        caller, action = _caller.get(), _permission(request).action
        if caller is None or action is None:
            return
        asked = dict(request.parameters)
        if "name" in answer and "experiment_name" in answer:  # a run may have got its name only now
            asked |= {"run_name": answer["name"], "experiment_name": answer["experiment_name"]}
        await self._gatekeeper.record(caller, action, target=target_of(asked), status=status)


def _permission(request: DataRequest) -> Permission:
    return ENDPOINTS.get(request.header.exec_endpoint, ADMIN)

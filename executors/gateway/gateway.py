"""The Flow's gateway: gRPC and HTTP over the same executors, with true errors on both."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from docarray import DocumentArray
from fastapi import FastAPI
from grpc_health.v1.health_pb2 import HealthCheckResponse
from jina.proto import jina_pb2
from jina.serve.runtimes.gateway.gateway import BaseGateway
from jina.serve.runtimes.gateway.grpc import GRPCGateway
from jina.serve.runtimes.gateway.http.fastapi import FastAPIBaseGateway
from jina.serve.runtimes.servers.composite import CompositeBaseServer
from jina.types.request.data import DataRequest

from finetuner.availability import Availability
from finetuner.config import workspace_dir as resolve_workspace
from finetuner.connections import BoundedProtocol, allow_many_files
from finetuner.direct import DirectClient, socket_name, sockets_folder
from finetuner.errors import FinetunerError, UnavailableError
from finetuner.flow_calls import (
    MAX_MESSAGE_BYTES,
    check_endpoint,
    clean,
    error_of,
    refusal,
    request_for,
)
from finetuner.gatekeeper import Gatekeeper
from finetuner.grpc_access import GuardedCall, guard
from finetuner.hardening import harden_docarray
from finetuner.http_api import build_app
from finetuner.log_format import LogFormat, chosen_format, set_up_logs
from finetuner.space import quota_of
from finetuner.wire import request_document

# Answers that ask clients to connect elsewhere are given for so long before the doors close.
_NOTICE_S = 1.0
_ARRIVAL_S = 0.3
_DRAIN_TIMEOUT_S = 30.0
# By then Jina's own count of what is in work is wrong.
_CLOSE_TIMEOUT_S = 1.0
_HEALTH_INTERVAL_S = 2.0
_GRPC_OPTIONS = {"grpc.max_receive_message_length": MAX_MESSAGE_BYTES}
# The empty name stands for the server as a whole.
_HEALTH_SERVICES = ("", *(s.full_name for s in jina_pb2.DESCRIPTOR.services_by_name.values()))


class GuardedHandler:
    """Jina's request handler for gRPC, with unknown endpoints refused and errors without traces.

    :param handler: Jina's own.
    :param gatekeeper: Says which endpoints are open to whom, and writes down what was done.
    """

    def __init__(self, handler: Any, gatekeeper: Gatekeeper) -> None:
        self._handler, self._gatekeeper = handler, gatekeeper
        self.availability = Availability(self.call)
        self._direct = DirectClient()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    async def endpoints(self) -> set[str]:
        """Return the endpoints that the Flow's executors serve.

        :raises UnavailableError: When an executor does not answer.
        """
        streamer = self._handler.streamer
        try:
            found = await streamer.topology_graph._get_all_endpoints(streamer._connection_pool)
        except Exception as exc:  # grpc raises its own kinds, by transport
            raise UnavailableError("an executor of the Flow does not answer") from exc
        return set(found)

    async def call(
        self, endpoint: str, docs: DocumentArray | None, parameters: dict[str, Any]
    ) -> DocumentArray:
        """Ask an executor.

        :raises FinetunerError: What the executor raised, or UnavailableError.
        """
        check_endpoint(endpoint, await self.endpoints())
        request = request_for(endpoint, docs, parameters)
        try:
            response = await self._send(request, endpoint)
        except Exception as exc:  # grpc raises its own kinds, by transport
            raise UnavailableError(f"the executor of `{endpoint}` does not answer") from exc
        if error := error_of(response):
            raise error
        return response.docs

    async def encode(self, request: bytes) -> bytes:
        """Ask the encoder for vectors: directly where it runs on this machine, else through Jina.

        :param request: As :mod:`finetuner.wire` packs it, and so is the answer.
        :raises FinetunerError: As :meth:`call`.
        """
        await self.endpoints()
        if paths := self._sockets("/encode"):
            # One that has just started again answers through Jina before its socket is tried anew.
            with contextlib.suppress(UnavailableError):
                return await self._direct.ask(paths, request)
        answer = await self.call("/encode", request_document(request), {})
        blob: bytes = answer[0].blob
        return blob

    def _sockets(self, endpoint: str) -> list[Path]:
        """Return where the replicas listen that serve an endpoint; none unless all run beside the gateway."""
        nodes, folder = self._nodes(endpoint), sockets_folder()
        if len(nodes) != 1 or folder is None:
            return []
        pool = self._handler.streamer._connection_pool
        replicas = pool._connections.get_replicas(nodes[0].name, head=True)
        n_replicas = len(replicas.get_all_connections()) if replicas else 0
        names = (f"{nodes[0].name}/rep-{number}" for number in range(n_replicas))
        paths = [folder / socket_name(name) for name in names]
        return paths if all(path.exists() for path in paths) else []

    def _nodes(self, endpoint: str) -> list[Any]:
        nodes = self._handler.streamer.topology_graph.all_nodes
        return [node for node in nodes if endpoint in (node.endpoints or ())]

    async def _send(self, request: DataRequest, endpoint: str) -> DataRequest:
        """Send a request where it is served, past Jina's streams: they cost more than our own share."""
        streamer, nodes = self._handler.streamer, self._nodes(endpoint)
        # The dry run, and the Flows of others whose executors share an endpoint.
        if len(nodes) != 1:
            return await streamer.process_single_data(request)
        result = await streamer._connection_pool.send_requests_once(
            [request], deployment=nodes[0].name, head=True, endpoint=endpoint
        )
        if isinstance(result, BaseException):
            raise result
        response, _ = result
        return response

    async def Call(  # noqa: N802 - the name in Jina's protocol
        self, request_iterator: AsyncIterator[DataRequest], context: Any = None, *_: Any
    ) -> AsyncIterator[DataRequest]:
        """Serve a stream of requests, as ``jina.Client`` sends them."""
        refusals: list[DataRequest] = []

        async def admitted(call: GuardedCall) -> AsyncIterator[DataRequest]:
            async for request in request_iterator:
                if (response := await self._refusal(call, request)) is None:
                    yield request
                else:
                    refusals.append(response)

        with self.availability.in_work():
            async with GuardedCall(self._gatekeeper) as call:
                async for response in self._handler.stream(admitted(call), context):
                    await call.answered(response)
                    yield clean(response)
            for response in refusals:
                yield response

    stream = Call

    async def close(self) -> None:
        """Close the connections to the executors; nothing of ours is in work any more.

        A stream that broke while it was read counts as in work for ever with Jina's own handler,
        which then keeps a core busy and the Flow from stopping.
        """
        await self._direct.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._handler.close(), _CLOSE_TIMEOUT_S)
            return
        await self._handler.streamer._connection_pool.close()

    async def process_single_data(self, request: DataRequest, context: Any = None) -> DataRequest:
        """Serve one request."""
        async with GuardedCall(self._gatekeeper) as call:
            if (answer := await self._refusal(call, request)) is not None:
                return answer
            with self.availability.in_work():
                response = await self._handler.process_single_data(request, context)
                await call.answered(response)
                return clean(response)

    async def _refusal(self, call: GuardedCall, request: DataRequest) -> DataRequest | None:
        try:
            endpoints = await self.endpoints()
        except UnavailableError as error:
            return refusal(request, error)
        return await call.refusal(request, endpoints)


class HTTPServer(FastAPIBaseGateway):
    """The HTTP side.

    :param workspace: The volume.
    :param gatekeeper: Shared with the gRPC side.
    :param cors_origins: Of pages that may read the answers in a browser.
    :param quota_bytes: What may lie on the volume in all.
    """

    def __init__(
        self,
        workspace: Path,
        gatekeeper: Gatekeeper,
        *,
        cors_origins: Sequence[str],
        quota_bytes: int | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # There is no WebSocket here.
        self.uvicorn_kwargs |= {"http": BoundedProtocol, "ws": "none"}
        if chosen_format() is LogFormat.JSON:
            self.uvicorn_kwargs["log_config"] = None  # its lines go our way then
        self._build = partial(
            build_app,
            workspace=workspace,
            gatekeeper=gatekeeper,
            cors_origins=cors_origins,
            quota_bytes=quota_of(quota_bytes),
        )

    @property
    def app(self) -> FastAPI:
        """The application."""
        handler = self._request_handler
        return self._build(handler.call, availability=handler.availability, encode=handler.encode)

    def stop_listening(self) -> None:
        """Take no more connections; those that are open go on."""
        for listener in self.server.servers:
            listener.close()


class Gateway(CompositeBaseServer, BaseGateway):
    """gRPC on the first port, HTTP on the second.

    :param workspace_dir: The volume; when None, ``FINETUNER_WORKSPACE``, else the user's data folder.
    :param cors_origins: Of pages that may read the answers of HTTP in a browser.
    :param quota_bytes: What may lie on it in all; an upload beyond is refused. When None,
        ``FINETUNER_QUOTA_BYTES``, else what the disk holds.
    :raises ConfigError: When others can reach the host and the volume has no token.
    """

    def __init__(
        self,
        workspace_dir: str | None = None,
        cors_origins: Sequence[str] = (),
        quota_bytes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        set_up_logs()
        harden_docarray()
        allow_many_files()
        workspace = resolve_workspace(workspace_dir)
        gatekeeper = Gatekeeper(workspace, host=self.host)
        handler = GuardedHandler(self._request_handler, gatekeeper)
        self._availability = handler.availability
        self.servers = []
        for server in self._server_kwargs:
            server["req_handler"] = handler
            if str(server["runtime_args"]["protocol"]).lower() == "grpc":
                options = _GRPC_OPTIONS | (server.pop("grpc_server_options", None) or {})
                gateway = GRPCGateway(grpc_server_options=options, **server)
                self.servers.append(guard(gateway, gatekeeper))
            else:
                self.servers.append(
                    HTTPServer(
                        workspace,
                        gatekeeper,
                        cors_origins=cors_origins,
                        quota_bytes=quota_bytes,
                        **server,
                    )
                )
        self.gateways = self.servers

    async def run_server(self) -> None:
        """Serve, and let gRPC's standard health check say what is true."""
        watch = asyncio.create_task(self._watch_health())
        try:
            await super().run_server()
        finally:
            watch.cancel()

    async def shutdown(self) -> None:
        """Say that it stops, answer what was taken, and stop."""
        self._availability.stop()
        await self._set_health()
        await asyncio.sleep(_NOTICE_S)
        for server in self.servers:
            if isinstance(server, HTTPServer):
                server.stop_listening()
        # A connection taken a moment ago has its request still on the way.
        await asyncio.sleep(_ARRIVAL_S)
        await self._availability.drained(_DRAIN_TIMEOUT_S)
        await super().shutdown()

    async def _watch_health(self) -> None:
        while not self._availability.is_stopping:
            await self._set_health()
            await asyncio.sleep(_HEALTH_INTERVAL_S)

    async def _set_health(self) -> None:
        """Pass on to gRPC's health service whether requests are welcome."""
        try:
            await self._availability.check()
            status = HealthCheckResponse.SERVING
        except FinetunerError:
            status = HealthCheckResponse.NOT_SERVING
        for server in self.servers:
            if isinstance(server, GRPCGateway):
                for service in _HEALTH_SERVICES:
                    await server.health_servicer.set(service, status)

"""The Flow's gateway: gRPC and HTTP over the same executors, with true errors on both."""

import asyncio
from collections.abc import Sequence
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckResponse
from jina.proto import jina_pb2
from jina.serve.runtimes.gateway.gateway import BaseGateway
from jina.serve.runtimes.gateway.grpc import GRPCGateway
from jina.serve.runtimes.servers.composite import CompositeBaseServer

from finetuner.config import workspace_dir as resolve_workspace
from finetuner.connections import allow_many_files
from finetuner.errors import FinetunerError
from finetuner.flow_calls import MAX_MESSAGE_BYTES
from finetuner.gatekeeper import Gatekeeper
from finetuner.grpc_access import guard
from finetuner.guarded_handler import GuardedHandler
from finetuner.hardening import harden_docarray
from finetuner.http_server import HTTPServer
from finetuner.log_format import set_up_logs

# Answers that ask clients to connect elsewhere are given for so long before the doors close.
_NOTICE_S = 1.0
_ARRIVAL_S = 0.3
_DRAIN_TIMEOUT_S = 30.0
_HEALTH_INTERVAL_S = 2.0
_GRPC_OPTIONS = {"grpc.max_receive_message_length": MAX_MESSAGE_BYTES}
# The empty name stands for the server as a whole.
_HEALTH_SERVICES = ("", *(s.full_name for s in jina_pb2.DESCRIPTOR.services_by_name.values()))


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

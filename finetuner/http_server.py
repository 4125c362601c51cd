"""The server of the gateway's HTTP side: uvicorn with our application, as Jina starts and ends it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jina.serve.runtimes.gateway.http.fastapi import FastAPIBaseGateway

from finetuner.connections import BoundedProtocol
from finetuner.gatekeeper import Gatekeeper
from finetuner.http_api import build_app
from finetuner.log_format import LogFormat, chosen_format
from finetuner.space import quota_of


class HTTPServer(FastAPIBaseGateway):  # type: ignore[misc]  # jina has no types
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

"""Jina's request handler with our own rules around it; the one way from both sides to the executors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from docarray import DocumentArray
from jina.types.request.data import DataRequest

from finetuner.availability import Availability
from finetuner.direct import DirectClient, socket_name, sockets_folder
from finetuner.errors import UnavailableError
from finetuner.flow_calls import check_endpoint, clean, error_of, refusal, request_for
from finetuner.gatekeeper import Gatekeeper
from finetuner.grpc_access import GuardedCall
from finetuner.wire import request_document

# By then Jina's own count of what is in work is wrong.
_CLOSE_TIMEOUT_S = 1.0


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
            raise self.availability.silence("an executor of the Flow does not answer") from exc
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

    async def Call(  # the name in Jina's protocol
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

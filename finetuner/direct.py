"""The short way from the gateway to an encoder on the same machine: bytes over a Unix socket.

Through Jina's layers a request takes as much processor time as embedding a short text. Where the executor
runs beside the gateway, its requests for vectors go past them; all else, and executors on other machines,
are asked through Jina as before.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import orjson

from finetuner.errors import FinetunerError, UnavailableError
from finetuner.flow_calls import named_error

logger = logging.getLogger(__name__)
Answer = Callable[[bytes], Awaitable[bytes]]
# Set by the service, for its own parts alone: the folder is theirs.
SOCKETS_VARIABLE = "FINETUNER_SOCKETS"
_SERVICE, _METHOD = "finetuner.Encoder", "Encode"
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # An executor that was started again shall be found at once, not after a minute.
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.initial_reconnect_backoff_ms", 100),
]
# First byte of an answer: vectors follow, or the name and the sentence of an error.
_VECTORS, _ERROR = b"v", b"e"


def sockets_folder() -> Path | None:
    """Return where the parts of this service find each other's sockets; None where they do not look."""
    folder = os.environ.get(SOCKETS_VARIABLE)
    return Path(folder) if folder else None


def socket_name(executor: str) -> str:
    """Return the file name of an executor's socket.

    :param executor: Its name in the Flow, such as ``encoder/rep-0``.
    """
    return f"{executor.replace('/', '-')}.sock"


class DirectServer:
    """Answers on a Unix socket.

    :param path: Of the socket; what a dead process left there is removed.
    :param answer: Gives an answer's bytes for a request's, or raises a FinetunerError.
    """

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path, self._answer = path, answer
        self._server: Any = None

    async def start(self) -> None:
        """Listen, in the running loop."""
        self._path.unlink(missing_ok=True)
        self._server = grpc.aio.server(options=_OPTIONS)
        method = grpc.unary_unary_rpc_method_handler(self._serve)
        handler = grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method})
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()

    def stop_listening(self) -> None:
        """Take no new connections."""
        self._path.unlink(missing_ok=True)

    async def stop(self) -> None:
        """Break off what is in work, and end."""
        self.stop_listening()
        await self._server.stop(grace=None)

    async def _serve(self, request: bytes, _context: Any) -> bytes:
        try:
            return _VECTORS + await self._answer(request)
        except Exception as error:  # the gateway tells the client what of it may be told
            if not isinstance(error, FinetunerError):
                logger.exception("a request for vectors failed")
            sentence = str(error.args[0]) if error.args else ""
            return _ERROR + orjson.dumps([type(error).__name__, sentence])


class DirectClient:
    """Asks executors of this machine on their Unix sockets; keeps a connection to each."""

    def __init__(self) -> None:
        self._channels: dict[Path, tuple[Any, Any]] = {}
        self._n_in_work: Counter[Path] = Counter()

    async def ask(self, paths: Sequence[Path], request: bytes) -> bytes:
        """Return an answer of the executor that has least to do; of another when it does not answer.

        :param paths: Where the replicas listen, one or more.
        :param request: Its bytes; to ask for vectors twice does no harm.
        :raises FinetunerError: What the executor raised.
        :raises UnavailableError: When none answers.
        """
        for path in sorted(paths, key=self._n_in_work.__getitem__):
            self._n_in_work[path] += 1
            try:
                answer: bytes = await self._method(path)(request)
            except grpc.aio.AioRpcError as exc:
                failure = exc
            else:
                return _read(answer)
            finally:
                self._n_in_work[path] -= 1
        raise UnavailableError("the encoder does not answer") from failure

    def _method(self, path: Path) -> Any:
        if path not in self._channels:
            channel = grpc.aio.insecure_channel(f"unix:{path}", options=_OPTIONS)
            self._channels[path] = (channel, channel.unary_unary(f"/{_SERVICE}/{_METHOD}"))
        return self._channels[path][1]

    async def close(self) -> None:
        """Close all connections."""
        for channel, _ in self._channels.values():
            await channel.close()
        self._channels.clear()


def _read(answer: bytes) -> bytes:
    if answer[:1] == _VECTORS:
        return answer[1:]
    raise named_error(*orjson.loads(answer[1:]))

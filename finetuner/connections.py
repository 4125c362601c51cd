"""HTTP connections that end when nothing comes of them.

uvicorn waits for ever for the rest of a request: a hundred clients that send a byte a minute hold a hundred
connections, and one that never ends its headers fills the memory. Here the head of a request must arrive
within a time, its body at a least rate, and what is neither head nor body is bounded too.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from finetuner.errors import FinetunerError, SlowRequestError, TooLargeError

_HEAD_TOO_LARGE = 431
# Of a chunked body each byte may come as a chunk of its own, with its length before and two line ends.
_FRAMING_RATIO = 8
_MANY_FILES = 2**16


@dataclass(frozen=True)
class ConnectionLimits:
    """What a client may take.

    :param head_timeout_s: For the request line and the headers, from the first byte; and for that byte.
    :param body_timeout_s: For a body, beside what its length is given.
    :param body_rate: Bytes of a body a second, on the mean.
    :param head_bytes: Request line and headers.
    :param unread_bytes: Of a body that goes on after its request was answered.
    :param share_of_files: Of the files that the process may have open, how many may be connections.
    """

    head_timeout_s: float = 15.0
    body_timeout_s: float = 30.0
    body_rate: float = 16_000.0
    head_bytes: int = 2**16
    unread_bytes: int = 2**26
    share_of_files: float = 0.75

    @property
    def n_connections(self) -> int:
        """How many may be open; those beyond are closed at once."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return int(self.share_of_files * (_MANY_FILES if soft == resource.RLIM_INFINITY else soft))


def allow_many_files() -> None:
    """Raise this process's own bound on open files, often 1024, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class BoundedProtocol(HttpToolsProtocol):
    """One connection of uvicorn's, with an end.

    A timer runs while the server waits for the client, that is outside of answering.
    """

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._started_s = 0.0
        self._n_body_bytes = self._n_other_bytes = self._n_unread_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Begin, unless too many have begun."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.n_connections:
            transport.abort()
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came; the counts of the body are those that the parser gave meanwhile."""
        if self._timer is None:
            self._wait_for_head()
        self._n_other_bytes += len(data)
        super().data_received(data)
        allowed_bytes = self.limits.head_bytes + _FRAMING_RATIO * self._n_body_bytes
        if self._n_other_bytes > allowed_bytes:
            sentence = f"the request's headers are longer than {self.limits.head_bytes} bytes"
            self._refuse(_HEAD_TOO_LARGE, TooLargeError(sentence))

    def on_headers_complete(self) -> None:
        """Wait for the body from now on."""
        super().on_headers_complete()
        self._n_unread_bytes = 0
        self._wait(self._body_timeout_s, self._on_slow_body)

    def on_body(self, body: bytes) -> None:
        """Count a part of the body."""
        self._n_body_bytes += len(body)
        self._n_other_bytes -= len(body)
        if self.cycle.response_complete:
            self._n_unread_bytes += len(body)
            if self._n_unread_bytes > self.limits.unread_bytes:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for nothing: it is the server's turn."""
        self._stop_timer()
        self._n_body_bytes = self._n_other_bytes = 0
        super().on_message_complete()

    def _body_timeout_s(self) -> float:
        return self.limits.body_timeout_s + self._n_body_bytes / self.limits.body_rate

    def _wait_for_head(self) -> None:
        self._wait(lambda: self.limits.head_timeout_s, self._on_slow_head)

    def _wait(self, timeout_s: Callable[[], float], on_timeout: Callable[[], None]) -> None:
        """Call back when the client has had its time, which may grow with what it sends."""
        self._stop_timer()
        self._started_s = time.monotonic()

        def look() -> None:
            left_s = self._started_s + timeout_s() - time.monotonic()
            if left_s > 0:
                self._timer = self.loop.call_later(left_s, look)
            else:
                self._timer = None
                on_timeout()

        self._timer = self.loop.call_later(timeout_s(), look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _on_slow_head(self) -> None:
        if self._is_answering():  # bytes behind a request that is in work
            self._wait_for_head()
            return
        sentence = f"the request's headers did not arrive within {self.limits.head_timeout_s:g} s"
        self._refuse(SlowRequestError.http_status, SlowRequestError(sentence))

    def _on_slow_body(self) -> None:
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            # It is the server that does not take it.
            self._wait(self._body_timeout_s, self._on_slow_body)
            return
        sentence = (
            f"the body did not arrive within {self.limits.body_timeout_s:g} s and its length by "
            f"{self.limits.body_rate:g} bytes a second; got {self._n_body_bytes} bytes"
        )
        self._refuse(SlowRequestError.http_status, SlowRequestError(sentence))

    def _refuse(self, status: int, error: FinetunerError) -> None:
        """Say why, where an answer has not begun, and close."""
        if self.transport.is_closing():
            return
        # Silence is for those who have said nothing, and for an answer that is half written.
        if self._n_other_bytes and not (self.cycle and self.cycle.response_started):
            content = orjson.dumps({"error": type(error).__name__, "detail": str(error)})
            lines = (
                b"content-type: application/json",
                b"content-length: %d" % len(content),
                b"connection: close",
            )
            self.transport.write(STATUS_LINE[status] + b"\r\n".join(lines) + b"\r\n\r\n" + content)
        self.transport.close()

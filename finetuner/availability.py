"""Whether the gateway may be sent requests, and how it stops without breaking off one that it has taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetuner.encode_routes import Call
from finetuner.errors import NotFoundError, StartingError, UnavailableError
from finetuner.wire import DRY_RUN

_CONNECTION_CLOSE = (b"connection", b"close")


class Availability:
    """Whether requests are welcome: all parts answer, no model is stuck, and nobody has asked to stop.

    :param call: Asks an executor.
    :param timeout_s: Within which the parts must answer.
    """

    def __init__(self, call: Call, *, timeout_s: float = 3.0) -> None:
        self._call = call
        self._timeout_s = timeout_s
        self._n_in_work = 0
        self._is_stopping = False
        self._began_at = time.monotonic()
        self._has_started = False

    @property
    def is_stopping(self) -> bool:
        """Whether the service finishes what it has and should get nothing more."""
        return self._is_stopping

    async def check(self) -> None:
        """Pass when requests are welcome.

        :raises UnavailableError: When they are not; the sentence says why.
        :raises StartingError: When they never were.
        """
        if self._is_stopping:
            raise UnavailableError("the service is stopping")
        try:
            await asyncio.wait_for(self._ask(), self._timeout_s)
        except TimeoutError as exc:
            raise self.silence(
                f"a part of the Flow has not answered within {self._timeout_s:g} s"
            ) from exc
        self._has_started = True

    def silence(self, sentence: str) -> UnavailableError:
        """Return the error of a part that does not answer: until all have, that is the service's start.

        :param sentence: Says so of a service that has started.
        """
        if self._has_started:
            return UnavailableError(sentence)
        return StartingError(
            f"the service has been starting for {time.monotonic() - self._began_at:.0f} s; it answers when "
            "all its parts do"
        )

    async def _ask(self) -> None:
        await self._call(DRY_RUN, None, {})
        try:
            await self._call("/ready", None, {})
        except NotFoundError:  # a Flow without an encoder
            return

    @contextmanager
    def in_work(self) -> Iterator[None]:
        """Count a request while it is in work."""
        self._n_in_work += 1
        try:
            yield
        finally:
            self._n_in_work -= 1

    def stop(self) -> None:
        """Be unavailable from now on."""
        self._is_stopping = True

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nothing is in work; return whether that came true in time."""
        deadline = time.monotonic() + timeout_s
        while self._n_in_work and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return not self._n_in_work


class DrainingApp:
    """Counts each HTTP request while it is in work, and asks clients to connect anew once it stops.

    A client whose connection is closed with an answer knows that its next request was not taken; one
    whose idle connection is cut may find out only after sending it.

    :param app: The application.
    :param availability: Counts.
    """

    def __init__(self, app: Any, availability: Availability) -> None:
        self._app, self._availability = app, availability

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def closing_send(message: Any) -> None:
            if message["type"] == "http.response.start" and self._availability.is_stopping:
                message = {**message, "headers": [*message["headers"], _CONNECTION_CLOSE]}
            await send(message)

        with self._availability.in_work():
            await self._app(scope, receive, closing_send)

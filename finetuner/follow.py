"""Following a run from the client: over as many connections as it takes, each byte once.

The reader counts what it has got and asks each new connection for what comes behind that. A stream that
ends says by its head whether the run had ended before: only then is it the last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import orjson
import requests

from finetuner.client import Client
from finetuner.errors import OverloadedError, RunNotFoundError, UnavailableError

NEXT_OFFSET = "Next-Offset"
RUN_ID = "Run-Id"
RUN_ENDED = "Run-Ended"
# How long a server may be away.
PATIENCE_S = 60.0
LONGEST_PAUSE_S = 2.0
_FIRST_PAUSE_S = 0.1

T = TypeVar("T", covariant=True)


class Reader(Protocol[T]):
    """Makes something of a stream's bytes."""

    offset: int

    def begin(self) -> None:
        """Take note of a new connection, which begins at the offset."""

    def take(self, chunk: bytes) -> Iterator[T]:
        """Yield what a chunk completes."""

    def end(self) -> Iterator[T]:
        """Yield what is left when no more will come."""


class TextLines:
    """Lines of text; the offset counts bytes.

    :param offset: Bytes that were read before.
    """

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._rest = b""

    def begin(self) -> None:
        """Go on within a line: its first bytes are kept."""

    def take(self, chunk: bytes) -> Iterator[str]:
        """Yield the lines that a chunk completes."""
        self.offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        yield from map(_text, lines)

    def end(self) -> Iterator[str]:
        """Yield a last line that has no end."""
        if self._rest:
            yield _text(self._rest)


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")


class JSONLines:
    """Values, one a line; the offset counts lines.

    :param offset: Lines that were read before.
    """

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._rest = b""

    def begin(self) -> None:
        """Forget half a line: it comes again."""
        self._rest = b""

    def take(self, chunk: bytes) -> Iterator[Any]:
        """Yield the values whose lines a chunk completes; an empty line holds none."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self.offset += 1
            if line:
                yield orjson.loads(line)

    def end(self) -> Iterator[Any]:
        """Yield nothing: a line without its end is not whole."""
        yield from ()


class Patience:
    """Waits longer each time, and gives up when nothing has answered for a while.

    :param longest_pause_s: Between two attempts.
    """

    def __init__(self, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        self._longest_pause_s = longest_pause_s
        self.answered()

    def answered(self) -> None:
        """Begin anew."""
        self._failing_since: float | None = None
        self._pause_s = min(_FIRST_PAUSE_S, self._longest_pause_s)

    def failed(self, error: Exception) -> None:
        """Take note of a failure.

        :raises UnavailableError: When it goes on for too long.
        """
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since > PATIENCE_S:
            raise UnavailableError(f"tried for {PATIENCE_S:.0f} s; {error}") from error

    def wait(self) -> None:
        """Let the server come to itself."""
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, self._longest_pause_s)


def follow(
    client: Client,
    path: str,
    reader: Reader[T],
    *,
    run_id: str,
    longest_pause_s: float = LONGEST_PAUSE_S,
    **parameters: Any,
) -> Iterator[T]:
    """Yield what a run writes until it ends, however often the connection breaks.

    :param client: The server.
    :param path: What to follow.
    :param reader: Makes values of the bytes, and knows where to go on.
    :param run_id: The run's artifact id, which tells it from a later one of the same name.
    :param longest_pause_s: Between two attempts to reach a server that does not answer.
    :param parameters: Of the query.
    :raises RunNotFoundError: When the run was deleted.
    :raises UnavailableError: When the server has not answered for a minute.
    """
    patience = Patience(longest_pause_s)
    is_last = False
    while not is_last:
        try:
            with client.stream(path, **parameters, follow="true", offset=reader.offset) as answer:
                _check_same_run(answer, run_id)
                reader.begin()
                patience.answered()
                for chunk in answer.iter_content(None):
                    yield from reader.take(chunk)
                is_last = answer.headers.get(RUN_ENDED) == "true"
        except (UnavailableError, OverloadedError) as error:
            patience.failed(error)
        if not is_last:
            patience.wait()
    yield from reader.end()


def _check_same_run(answer: requests.Response, run_id: str) -> None:
    if answer.headers.get(RUN_ID) != run_id:
        raise RunNotFoundError(
            "the run was deleted, and another one has its name now; get that by `finetuner.get_run`"
        )

"""What a worker says while it works: that it lives, and how far it is.

The file keeps its size and place on the disk, so that a full disk does not silence a worker. It tells the
others; what it says is lost in a power cut, with the process that said it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import orjson

logger = logging.getLogger(__name__)
INTERVAL_S = 1.0
_SIZE_BYTES = 1024
_MAX_DETAILS = 300


@dataclass(frozen=True)
class Beat:
    """One heartbeat.

    :param number: Of the state that the worker's claim is.
    :param n_beats: Rises while the process lives.
    :param n_said: Rises while it gets on with its work.
    :param details: How far it is, for people.
    :param progress: The same in numbers, for programs; None until there are any.
    """

    number: int
    n_beats: int = 0
    n_said: int = 0
    details: str = ""
    progress: dict[str, Any] | None = None


class Say(Protocol):
    """Takes how far the work is: for people, and in numbers, which stay when there are no new ones."""

    def __call__(self, details: str, progress: dict[str, Any] | None = None, /) -> None:
        """Say it."""


def read_beat(path: Path) -> Beat | None:
    """Return the last heartbeat; None when there is none, or it is being written."""
    try:
        return Beat(**orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class Heartbeat:
    """Writes heartbeats from a thread of its own.

    :param path: The file; its folder must exist.
    :param number: Of the state that the worker's claim is.
    :param look: Called with each beat: sees whether the claim still holds and whether the run is cancelled.
    """

    def __init__(self, path: Path, number: int, *, look: Callable[[], None]) -> None:
        self._path, self._look = path, look
        self._beat = Beat(number)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._write(n_said=1)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def say(self, details: str, progress: dict[str, Any] | None = None, /) -> None:
        """Say how far the work is, and by that that it gets on; a :class:`Say`."""
        self._write(n_said=1, details=details[:_MAX_DETAILS], progress=progress)

    def _go_on(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._write()
            try:
                self._look()
            except OSError:  # the volume is away for a moment
                logger.debug("cannot look at the run", exc_info=True)

    def _write(
        self,
        *,
        n_said: int = 0,
        details: str | None = None,
        progress: dict[str, Any] | None = None,
    ) -> None:
        with self._lock:
            beat = self._beat
            self._beat = Beat(
                beat.number,
                beat.n_beats + 1,
                beat.n_said + n_said,
                beat.details if details is None else details,
                beat.progress if progress is None else progress,
            )
            content = orjson.dumps(self._beat)
            while len(content) > _SIZE_BYTES:  # characters that take several bytes
                self._beat = Beat(**{**vars(self._beat), "details": self._beat.details[:-20]})
                content = orjson.dumps(self._beat)
            try:
                _overwrite(self._path, content.ljust(_SIZE_BYTES))
            except OSError:
                logger.debug("cannot write a heartbeat", exc_info=True)


def _overwrite(path: Path, content: bytes) -> None:
    """Write over a file in place; closing it sends it to a network volume."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, content, 0)
    finally:
        os.close(descriptor)

"""How a worker is asked to end: at once, or in training after the step, with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The process was asked to end; no Exception, so that nothing on the way swallows it."""


class StopSignal:
    """A signal handler that raises :class:`Stopped`, except where it is deferred."""

    def __init__(self) -> None:
        self._is_set = False
        self._is_deferred = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Take the signal."""
        self._is_set = True
        if not self._is_deferred:
            raise Stopped

    def is_set(self) -> bool:
        """Whether the signal came."""
        return self._is_set

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a block ask :meth:`is_set` itself; the exception is raised when the block is left."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self._is_set:
            raise Stopped

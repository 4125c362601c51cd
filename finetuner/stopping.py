"""How a worker is asked to end: at once, or in training after the step, with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The process was asked to end; no Exception, so that nothing on the way swallows it."""


class StopSignal:
    """A signal handler that notes the signal, and raises :class:`Stopped` in the blocks that want it."""

    def __init__(self) -> None:
        self._is_set = False
        self._is_raising = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Take the signal."""
        self._is_set = True
        if self._is_raising:
            raise Stopped

    def is_set(self) -> bool:
        """Whether the signal came."""
        return self._is_set

    @contextmanager
    def raising(self) -> Iterator[None]:
        """End a block with :class:`Stopped` when the signal comes, or has come already."""
        self._is_raising = True
        try:
            if self._is_set:
                raise Stopped
            yield
        finally:
            self._is_raising = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within such a block, let another ask :meth:`is_set` itself; the exception comes when it is left."""
        was_raising, self._is_raising = self._is_raising, False
        try:
            yield
        finally:
            self._is_raising = was_raising
        if self._is_set:
            raise Stopped

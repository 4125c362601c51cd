"""What small files hold, read again only when they have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
# Coarser than the clock of any file system.
_SETTLED_NS = 2 * 10**9


class FileCache(Generic[T]):
    """Asks for a file's state at each call, and reads the file when that is new.

    :param load: Reads a file.
    """

    def __init__(self, load: Callable[[Path], T]) -> None:
        self._load = load
        self._known: dict[Path, tuple[tuple[int, int, int], T]] = {}

    def get(self, path: Path) -> T:
        """Return what a file holds now.

        :param path: A file that is replaced as a whole, as :mod:`finetuner.files` does.
        :raises FileNotFoundError: When there is none.
        """
        try:
            found = os.stat(path)
        except FileNotFoundError:
            self._known.pop(path, None)
            raise
        # Taken before reading: what is replaced between the two is read again the next time.
        state = (found.st_mtime_ns, found.st_ino, found.st_size)
        known = self._known.get(path)
        if known is not None and known[0] == state:
            return known[1]
        value = self._load(path)
        # Replaced twice within one tick of the clock, a file can have its old state and new content.
        if time.time_ns() - found.st_mtime_ns > _SETTLED_NS:
            self._known[path] = (state, value)
        return value

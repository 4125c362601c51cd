"""A lock on a file that a process holds while it lives, and no longer."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Try to take a lock; the system frees it when the process dies, however it dies.

    :param path: The lock file, made when needed; its folder must exist.
    :yields: Whether the lock was free, and is held while the block lasts.
    :raises FileNotFoundError: When there is no folder.
    """
    with path.open("ab") as file:
        yield _take(file)


def _take(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

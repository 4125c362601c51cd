"""A lock on a file that a process holds while it lives, and no longer."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from finetuner.errors import ConflictError

TIMEOUT_S = 30.0
_INTERVAL_S = 0.005


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Try to take a lock; the system frees it when the process dies, however it dies.

    :param path: The lock file, made when needed; its folder must exist.
    :yields: Whether the lock was free, and is held while the block lasts.
    :raises FileNotFoundError: When there is no folder.
    """
    with path.open("ab") as file:
        yield _take(file)


@contextmanager
def wait_for(path: Path, *, doing: str) -> Iterator[None]:
    """Take a lock, after those who have it.

    :param path: The lock file, made when needed; its folder must exist.
    :param doing: What it is for, should it not come free.
    :raises ConflictError: When it is not free within :data:`TIMEOUT_S`.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        with hold(path) as is_free:
            if is_free:
                yield
                return
        time.sleep(_INTERVAL_S)
    raise ConflictError(f"another server is {doing} and does not end; try again")


def _take(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""A lock on a file that a process holds while it lives, and that says which process that is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_START_TIME = 19  # its place in /proc/PID/stat behind the command's name, see proc_pid_stat(5)


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Try to take a lock; the system frees it when the process dies, however it dies.

    :param path: The lock file, made when needed; its folder must exist.
    :yields: Whether the lock was free, and is held while the block lasts.
    :raises FileNotFoundError: When there is no folder.
    """
    with path.open("ab") as file:
        is_free = _take(file)
        if is_free:
            file.truncate(0)
            file.write(_identity(os.getpid()))
            file.flush()
        yield is_free


def is_held(path: Path) -> bool:
    """Whether a process holds a lock; nobody holds a file that is not there."""
    try:
        with path.open("r+b") as file:
            return not _take(file)
    except FileNotFoundError:
        return False


def signal_holder(path: Path, number: int) -> bool:
    """Send a signal to the process that holds a lock.

    :param path: The lock file.
    :param number: The signal.
    :returns: Whether there was such a process here; one in another container, or of another user,
        is out of reach.
    """
    holder = path.read_bytes() if is_held(path) else b""
    # The number alone could be that of another process by now, or of one in another container.
    if not holder or _identity(pid := int(holder.split()[0])) != holder:
        return False
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _take(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identity(pid: int) -> bytes:
    """Return a process's id and start time, which no other process has; empty when it is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
    return b"%d %s" % (pid, status.rpartition(b")")[2].split()[_START_TIME])

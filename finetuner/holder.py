"""Which process has claimed a run, so that others can tell whether it lives, here or on another machine.

On the same machine the system is asked. Of a process on another machine, or in another container, only its
heartbeats are known, so that its silence must last :data:`EXPIRY_S` before it counts as gone.
"""

from __future__ import annotations

import os
import socket
from enum import StrEnum
from pathlib import Path

# Their places in /proc/PID/stat behind the command's name, see proc_pid_stat(5).
_STATE, _START_TIME = 0, 19
_ZOMBIE, _STOPPED = b"Z", b"T"
# Longer than a network volume may hide what another machine wrote (NFS: actimeo, 60 s at most by default
# for what is opened by name far less), and than a machine under load forgets a thread.
EXPIRY_S = 30.0


class Life(StrEnum):
    """What is known of a process."""

    ALIVE = "alive"
    DEAD = "dead"
    ELSEWHERE = "elsewhere"


def own_name() -> str:
    """Return the name of this process, which no other has had or will have."""
    return name_of(os.getpid())


def name_of(pid: int) -> str:
    """Return the name that :func:`own_name` gives in another process here.

    :param pid: Of that process, which lives.
    """
    return f"{_place()} {pid} {_start_time(pid)}"


def life_of(name: str) -> Life:
    """Return whether a process lives.

    :param name: As :func:`own_name` gave it there; empty for none.
    """
    if not name:
        return Life.DEAD
    place, pid, start_time = _parts(name)
    if place != _place():
        return Life.ELSEWHERE
    return Life.ALIVE if _start_time(pid) == start_time else Life.DEAD


def is_frozen(name: str) -> bool:
    """Whether a process is here and does not run, as after SIGSTOP.

    :param name: As :func:`own_name` gave it there.
    """
    if life_of(name) is not Life.ALIVE:
        return False
    status = Path(f"/proc/{_parts(name)[1]}/stat").read_bytes()
    return status.rpartition(b")")[2].split()[_STATE] == _STOPPED


def send_signal(name: str, number: int) -> bool:
    """Send a signal to a process.

    :param name: As :func:`own_name` gave it there.
    :param number: The signal.
    :returns: Whether there was such a process here; one elsewhere, or of another user, is out of reach.
    """
    if life_of(name) is not Life.ALIVE:
        return False
    try:
        os.kill(_parts(name)[1], number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _parts(name: str) -> tuple[str, int, str]:
    place, pid, start_time = name.rsplit(" ", 2)
    return place, int(pid), start_time


def _place() -> str:
    """Return where process ids mean something: one boot of one machine, and one container there."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _start_time(pid: int) -> str:
    """Return when a process was started, in ticks since the boot; empty when it is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = status.rpartition(b")")[2].split()
    return "" if fields[_STATE] == _ZOMBIE else fields[_START_TIME].decode()

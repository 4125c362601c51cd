"""What a worker process exits with."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; above 1 they are those of sysexits.h."""

    FINISHED = 0
    FAILED = 1
    LOST = 68
    """EX_NOHOST: a node, or another process of the run, is gone."""
    UNAVAILABLE = 69
    """EX_UNAVAILABLE: no cluster takes the run."""
    VOLUME = 74
    """EX_IOERR: the volume is full or away, so that perhaps not even the state could be written."""
    STOPPED = 75
    """EX_TEMPFAIL: it was asked to end."""
    TAKEN = 76
    """The run is another's, or has ended."""

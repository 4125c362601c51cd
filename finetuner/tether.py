"""A command that ends with the process that has started it: ``python -m finetuner.tether PID COMMAND…``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

# Of <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> NoReturn:
    """Become the command; the kernel kills it as soon as its parent is gone, however that ends.

    :param parent_pid: The process that has started this one, by the thread that it lives by.
    :param command: What is run; it keeps the process id.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it was gone before it could be asked for
        os._exit(128 + signal.SIGKILL)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

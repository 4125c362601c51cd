"""How the processes that work on a run are started: their command and their environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import finetuner

# Threads that wait give their core away: an encoder, or another run, works beside this one.
_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true"}


def python_command(*words: str) -> list[str]:
    """Return the command that runs a module in this Python.

    :param words: The module and its arguments.
    """
    # -P: a file `torch.py` in the current folder must not take the place of torch.
    return [sys.executable, "-P", "-m", *words]


def worker_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment, with this finetuner in it and what a worker needs.

    :param variables: What is set beside that.
    """
    package_parent = str(Path(finetuner.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    return {**_DEFAULTS, **os.environ, "PYTHONPATH": path, **variables}

"""Which GPUs of this machine a run may have: each belongs to one run at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    import torch  # seconds; a machine of several GPUs names them

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def choose_gpus(
    n_wanted: int, gpus: Iterable[str], in_use: Iterable[str]
) -> tuple[str, ...] | None:
    """Return GPUs for a run, or None when it must wait for others to end.

    :param n_wanted: One for each of its processes.
    :param gpus: All that there are; a run that wants more gets all of them once they are free.
    :param in_use: Those of runs at work.
    """
    gpus, taken = tuple(gpus), set(in_use)
    free = [gpu for gpu in gpus if gpu not in taken]
    n_needed = min(n_wanted, len(gpus))
    return tuple(free[:n_needed]) if len(free) >= n_needed else None

"""Where a training was, on disk: whole or not at all, and tensors and plain values only."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from finetuner.files import read_json, replacing, write_json

logger = logging.getLogger(__name__)
_N_KEPT = 2


@dataclass(frozen=True)
class CheckpointStore:
    """Checkpoints of one run, ``step-000000042.pt`` with its digest beside it.

    :param folder: Made when the first is written.
    """

    folder: Path

    def save(self, state: Mapping[str, Any], *, step: int) -> None:
        """Write a checkpoint, and remove all but the two newest.

        :param state: Tensors, numbers, strings, and lists and dicts of these.
        :param step: Steps done in the whole run; a later checkpoint has a higher one.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:09}.pt"
        with replacing(path) as file:
            hashing = _HashingFile(file)
            torch.save(dict(state), hashing)  # type: ignore[arg-type]  # it only calls write and flush
        write_json(path.with_suffix(".json"), {"sha256": hashing.hexdigest()})
        for old in self._paths()[:-_N_KEPT]:
            old.with_suffix(".json").unlink(missing_ok=True)
            old.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, or None; a torn one is passed over for the one before."""
        for path in reversed(self._paths()):
            if _is_whole(path):
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
            logger.warning("Checkpoint %s is damaged; using the one before it", path.name)
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        for path in self.folder.glob("step-*"):
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))


class _HashingFile:
    """A file that is written once, and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _is_whole(path: Path) -> bool:
    try:
        expected = read_json(path.with_suffix(".json"))["sha256"]
        with path.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False

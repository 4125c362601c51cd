"""Where a training was, on disk: whole or not at all, and tensors and plain values only."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from finetuner.files import make_folder, read_json, replacing, write_json

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
        make_folder(self.folder)
        path = self.folder / f"step-{step:09}.pt"
        with replacing(path) as file:
            hashing = _HashingFile(file)
            torch.save(dict(state), hashing)  # type: ignore[arg-type]  # it only calls write and flush
        write_json(path.with_suffix(".json"), {"sha256": hashing.hexdigest()})
        for old in self._paths()[:-_N_KEPT]:
            _remove(old)

    def newest(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, or None; torn ones are removed for those before them.

        What a killed process left half written is removed too.
        """
        for temporary in self.folder.glob(".step-*"):
            temporary.unlink(missing_ok=True)
        for path in reversed(self._paths()):
            state = _read(path)
            if state is not None:
                return state
            logger.warning("Checkpoint %s is damaged; using the one before it", path.name)
            _remove(path)  # or it would take the place of a whole one among those kept
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

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


def _remove(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint, or None for one that is torn or holds more than tensors and plain values."""
    if not _is_whole(path):
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # torch raises many kinds for what it does not read
        logger.debug("Checkpoint %s cannot be read: %s", path.name, exc)
        return None
    return state


def _is_whole(path: Path) -> bool:
    try:
        expected = read_json(path.with_suffix(".json"))["sha256"]
        with path.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False

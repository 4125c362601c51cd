"""Whether the volume has room: what is free, what a quota leaves, and what a run will need.

All figures of a run are estimates on the safe side; what runs that train beside it have yet to write is
not counted, so a run is checked when it is submitted and again before it starts.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
from rich.filesize import decimal
from safetensors import SafetensorError, safe_open

from finetuner.backbones import locate_on_disk
from finetuner.callback import BestModelCheckpoint, TrainingCheckpoint
from finetuner.config import OnnxVariant, RunConfig
from finetuner.data import HasRows
from finetuner.errors import ConfigError, FinetunerError, InsufficientSpaceError
from finetuner.run_store import RunStore

QUOTA_VARIABLE = "FINETUNER_QUOTA_BYTES"
# BERT base in 32 bits, for a model that is not on this machine yet.
ASSUMED_WEIGHTS_BYTES = 440 * 10**6
# Checkpoints that a run keeps (finetuner.checkpoint), and moments that Adam has of each trained weight.
_N_CHECKPOINTS = 2
_N_MOMENTS = 2
# What LoRA or a head adds, at most; the rest of the model has no moments then.
_ADAPTER_SHARE = 0.05
# Of the weights; measured on all-MiniLM-L6-v2, and less for models with larger layers.
_VARIANT_SHARES = {OnnxVariant.INT8: 0.3, OnnxVariant.WEIGHT_INT8: 0.7}
# Tokenizer, logs, metrics.
_SMALL_FILES_BYTES = 16 * 2**20
_RECOUNT_S = 30.0
_ADVICE = "`finetuner gc` on the server shows what can be removed there, `finetuner.delete_run` deletes a run"


def quota_of(quota_bytes: int | None = None) -> int | None:
    """Return the quota of the workspace: the one given, else ``FINETUNER_QUOTA_BYTES``, else None.

    :raises ConfigError: When it is no whole number of at least 1.
    """
    given = os.environ.get(QUOTA_VARIABLE) if quota_bytes is None else quota_bytes
    if given in (None, ""):
        return None
    with suppress(ValueError, TypeError):
        if not isinstance(given, bool) and (quota := int(str(given))) >= 1:
            return quota
    raise ConfigError(
        f"quota_bytes ({QUOTA_VARIABLE}) must be a whole number of bytes, at least 1, got `{given}`; "
        "leave it out for no quota"
    )


def size_bytes_of(path: Path | str) -> int:
    """Return the bytes of a file, or of all files in a folder; links count as themselves."""
    with suppress(FileNotFoundError):  # removed while we count
        if not os.path.isdir(path) or os.path.islink(path):
            return os.lstat(path).st_size
        with os.scandir(path) as entries:
            return sum(map(_entry_bytes, entries))
    return 0


def _entry_bytes(entry: os.DirEntry[str]) -> int:
    if entry.is_dir(follow_symlinks=False):
        return size_bytes_of(entry.path)
    with suppress(FileNotFoundError):
        return entry.stat(follow_symlinks=False).st_size
    return 0


class Space:
    """The room on one volume.

    :param workspace: The volume; may be missing as yet.
    :param quota_bytes: What may lie in it in all; None for what the disk holds.
    """

    def __init__(self, workspace: Path, quota_bytes: int | None = None) -> None:
        self.workspace = workspace
        self._quota_bytes = quota_bytes
        self._used_bytes = 0
        self._counted_at = -math.inf

    def require(self, n_bytes: int, purpose: str) -> None:
        """Pass when there is room.

        :param n_bytes: How much is needed.
        :param purpose: What for; begins the message.
        :raises InsufficientSpaceError: When the disk or the quota has less.
        """
        for left, where in (self._free(), self._left_of_quota(n_bytes)):
            if n_bytes > left:
                shown = f"{decimal(n_bytes)}, and {decimal(max(0, left))} {where}"
                raise InsufficientSpaceError(f"{purpose} needs about {shown}: {_ADVICE}")

    def free_bytes(self) -> int:
        """Return what may still be written: what the disk holds, or the quota leaves if that is less."""
        free, _ = self._free()
        if self._quota_bytes is None:
            return free
        left, _ = self._left_of_quota(0)
        return max(0, min(free, left))

    def _free(self) -> tuple[int, str]:
        there = next(p for p in (self.workspace, *self.workspace.parents) if p.exists())
        return shutil.disk_usage(there).free, "are free on the volume"

    def _left_of_quota(self, n_bytes: int) -> tuple[int, str]:
        """Return what the quota leaves; counted anew now and then, and before anything is refused."""
        if self._quota_bytes is None:
            return n_bytes, "are asked for"
        age_s = time.monotonic() - self._counted_at
        if age_s > _RECOUNT_S or self._used_bytes + n_bytes > self._quota_bytes:
            self._used_bytes = size_bytes_of(self.workspace)
            self._counted_at = time.monotonic()
        left = self._quota_bytes - self._used_bytes
        return left, f"are left of the workspace's quota of {decimal(self._quota_bytes)}"


@dataclass(frozen=True)
class Footprint:
    """What a run needs on the volume, in bytes, at the moment when it needs most.

    :param data: Its texts.
    :param checkpoints: Those that it keeps.
    :param epochs: Models that TrainingCheckpoint keeps.
    :param artifact: The zip.
    :param in_work: What is written beside that before it takes its place.
    :param is_assumed: Whether the size of the model was not known.
    """

    data: int
    checkpoints: int
    epochs: int
    artifact: int
    in_work: int
    is_assumed: bool

    @property
    def total_bytes(self) -> int:
        """All of it."""
        parts = (self.data, self.checkpoints, self.epochs, self.artifact, self.in_work)
        return sum(parts) + _SMALL_FILES_BYTES


def footprint(config: RunConfig, workspace: Path, *, data_bytes: int = 0) -> Footprint:
    """Estimate what a run needs.

    :param config: Its settings.
    :param workspace: The volume.
    :param data_bytes: Of its texts; 0 where they lie there already.
    """
    known = _weights_bytes(config, workspace)
    weights = ASSUMED_WEIGHTS_BYTES if known is None else known
    is_adapter = config.freeze or config.lora is not None
    trained = weights * (_ADAPTER_SHARE if is_adapter else 1)
    n_best = len(config.callbacks_of(BestModelCheckpoint))
    checkpoint = round(weights * (1 + n_best) + _N_MOMENTS * trained)
    n_epochs = sum(c.last_k_epochs for c in config.callbacks_of(TrainingCheckpoint))
    shares = 1 + config.to_onnx + sum(_VARIANT_SHARES[name] for name in config.onnx_variants)
    artifact = round(weights * shares)
    return Footprint(
        data=data_bytes,
        checkpoints=_N_CHECKPOINTS * checkpoint,
        epochs=n_epochs * weights,
        artifact=artifact,
        in_work=max(checkpoint, artifact),
        is_assumed=known is None,
    )


def check_space(
    config: RunConfig, space: Space, *, data_bytes: int = 0, present_bytes: int = 0
) -> None:
    """Pass when a run can be expected to fit on the volume.

    :param config: Its settings.
    :param space: The room there is.
    :param data_bytes: Of its texts, where they are yet to be written.
    :param present_bytes: Of what it has written already, before it starts again.
    :raises InsufficientSpaceError: When there is less room than it will need.
    """
    found = footprint(config, space.workspace, data_bytes=data_bytes)
    assumed = f" (the size of `{config.model}` is not known; BERT base's was taken)"
    space.require(
        max(0, found.total_bytes - present_bytes),
        f"run `{config.run_name}`{assumed if found.is_assumed else ''}",
    )


@contextmanager
def full_disk_named(purpose: str) -> Iterator[None]:
    """Say what it means when a disk fills up while something is written.

    :param purpose: What is written; begins the message.
    :raises InsufficientSpaceError: In place of the system's error.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InsufficientSpaceError(
            f"{purpose} does not fit on the volume, which is full: {_ADVICE}"
        ) from exc


def rows_bytes(data: Mapping[str, HasRows]) -> int:
    """Return how long the files of a run's data will be."""
    return sum(len(orjson.dumps(row)) + 1 for texts in data.values() for row in texts.rows())


def _weights_bytes(config: RunConfig, workspace: Path) -> int | None:
    """Return the size of the model's weights in 32 bits, or None where they are not on this machine."""
    with suppress(FinetunerError, OSError, zipfile.BadZipFile):  # the run itself says what is wrong
        if config.model_artifact is not None:
            path = RunStore(workspace).find_artifact(config.model_artifact)
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            return sum(m.file_size for m in members if m.filename.endswith(".safetensors")) or None
        folder = locate_on_disk(config.model, workspace)
        if folder is not None:
            files = [*folder.glob("*.safetensors")]
            sizes = map(_tensors_bytes, files) if files else map(_file_bytes, folder.glob("*.bin"))
            return sum(sizes) or None
    return None


def _file_bytes(path: Path) -> int:
    return path.stat().st_size


def _tensors_bytes(path: Path) -> int:
    """Return the size that a file's tensors have in 32 bits, whatever they have there."""
    try:
        with safe_open(path, framework="np") as file:
            # What safe_open gives has `keys` and cannot be iterated itself.
            return sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError:
        return _file_bytes(path)

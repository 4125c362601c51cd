"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from finetuner.errors import UnavailableError

# What a volume says that is full, read-only, away or broken.
_VOLUME_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES)
)


def is_volume_error(error: BaseException) -> bool:
    """Whether the volume is to blame for an error, and nothing that a request or a run did."""
    return isinstance(error, OSError) and error.errno in _VOLUME_ERRORS


def volume_trouble(error: BaseException) -> UnavailableError | None:
    """Return what clients are told of an error that the volume is to blame for; None for any other."""
    if not (isinstance(error, OSError) and is_volume_error(error)):
        return None
    return UnavailableError(
        f"the server's volume cannot be used now ({error.strerror}): ask again when that is mended"
    )


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of ``path`` when the block ends without an error.

    The bytes are on disk before the name is: a reader sees the old file or the new one, whole.

    :param path: The final name; its folder must exist.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner may read; a volume is read by other users too.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make what was added to a file durable; a power cut may leave zeros in the place of what was not."""
    with path.open("ab") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new_json(path: Path, value: Any) -> None:
    """Write a value as JSON under a name that must be free, whole or not at all.

    :raises FileExistsError: When there is such a file; of two that write it at once, one gets this.
    :raises FileNotFoundError: When its folder is gone.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_json(value))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.link(temporary, path)  # unlike a rename, it does not replace
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_folder(path.parent)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with replacing(path) as file:
        file.write(_json(value))


def read_json(path: Path) -> Any:
    """Return what :func:`write_json` wrote.

    :raises FileNotFoundError: When there is no such file.
    """
    return orjson.loads(path.read_bytes())

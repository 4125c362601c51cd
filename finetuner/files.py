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
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of ``path`` when the block ends without an error.

    The bytes are on disk before the name is: a reader sees the old file or the new one, whole.

    :param path: The final name; its folder must exist.
    :param mode: Who may read and write it.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner may read; a volume is read by other users too.
        os.chmod(temporary, mode)
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


def sync_tree(folder: Path) -> None:
    """Make a new folder durable with all that is in it, before it gets the name that others look for."""
    for path, _, names in os.walk(folder):
        for name in names:
            sync_folder(Path(path) / name)  # of a file it is its content
        sync_folder(Path(path))


def make_folder(path: Path, *, parents: bool = False) -> Path:
    """Return a folder, made durably when it is new.

    :param path: The folder.
    :param parents: Make those above it too.
    :raises FileNotFoundError: When the one above it is gone, and must not be made.
    """
    new = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=parents, exist_ok=True)
    for folder in new:
        sync_folder(folder.parent)
    return path


def remove_folder(folder: Path, *, by_way_of: Path) -> None:
    """Remove a folder: first out of sight, at once and for good, then file by file.

    :param folder: It.
    :param by_way_of: Where what is being removed lies, under a name with a dot; on the same volume.
    :raises FileNotFoundError: When it is gone already.
    """
    with tempfile.TemporaryDirectory(dir=by_way_of, prefix=".deleted-") as temporary:
        folder.rename(Path(temporary) / folder.name)
        sync_folder(folder.parent)


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
        _link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_folder(path.parent)


def _link(temporary: str, path: Path) -> None:
    """Give a file its name; unlike a rename, that does not replace another."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS asks again when an answer was lost, and is told that the name, its own, exists.
        if os.stat(temporary).st_nlink != 2:
            raise


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write a value as indented JSON, whole or not at all.

    :param path: The file.
    :param value: What JSON can hold.
    :param mode: Who may read and write it.
    """
    with replacing(path, mode=mode) as file:
        file.write(_json(value))


def read_json(path: Path) -> Any:
    """Return what :func:`write_json` wrote.

    :raises FileNotFoundError: When there is no such file.
    """
    return orjson.loads(path.read_bytes())


def file_version(path: Path | str) -> tuple[int, int]:
    """Return what changes when a file is replaced: its inode, and its time in nanoseconds.

    :raises FileNotFoundError: When there is no such file.
    """
    stat = os.stat(path)
    return stat.st_ino, stat.st_mtime_ns

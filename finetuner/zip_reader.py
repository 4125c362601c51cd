"""Zips that others made: read within limits, into one folder, and nothing in them but plain files.

What a zip says of itself is checked before anything is unpacked, and the bytes are counted again while
they are: a header may lie.
"""

from __future__ import annotations

import errno
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from finetuner.errors import CorruptedArtifact, FinetunerError, TooLargeError

_CHUNK_BYTES = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FILE_KINDS = (0, stat.S_IFREG, stat.S_IFDIR)
_IS_ENCRYPTED = 0x1
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
# RuntimeError: zipfile's answer to versions and methods it does not know.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, OverflowError),
)
# Of the machine, not of the zip.
_SHORTAGES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True)
class ZipLimits:
    """What a zip may hold at most.

    :param n_members: Files and folders.
    :param size_bytes: Of all files, unpacked.
    :param ratio: Of a file's size to what it takes in the zip.
    :param free_bytes: Files up to this size may have any ratio: a page of blanks packs well.
    """

    n_members: int = 200
    size_bytes: int = 20 * 2**30
    ratio: int = 100
    free_bytes: int = 2**20


class _Source(io.FileIO):
    """A file that refuses long reads: only a directory of very many members would need one."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _CHUNK_BYTES:
            raise TooLargeError(
                f"the zip's directory has {size} bytes, {_CHUNK_BYTES} are allowed: it lists too many files"
            )
        return super().read(size)


def extract(path: Path, target: Path, *, limits: ZipLimits) -> None:
    """Unpack a zip.

    :param path: The zip.
    :param target: An empty folder; what was written when an error comes stays there.
    :param limits: What it may hold.
    :raises TooLargeError: When it holds more.
    :raises CorruptedArtifact: When it is no zip, is damaged, or holds anything but plain files inside it.
    """
    n_left = limits.size_bytes
    with _checked(path, limits) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            destination = target / member.filename
            destination.parent.mkdir(parents=True, exist_ok=True)
            with destination.open("xb") as file:
                n_left -= _copy(archive, member, file, limit_bytes=n_left)


def read_member(path: Path, name: str, *, limits: ZipLimits) -> bytes:
    """Return one file of a zip; the zip is checked as for :func:`extract`.

    :param path: The zip.
    :param name: Of the file.
    :param limits: What the zip may hold; ``free_bytes`` is the longest that the file may be.
    :raises TooLargeError: When it is longer, or the zip holds more than it may.
    :raises CorruptedArtifact: When it is not there, or as :func:`extract`.
    """
    content = io.BytesIO()
    with _checked(path, limits) as archive:
        try:
            member = archive.getinfo(name)
        except KeyError as exc:
            raise CorruptedArtifact(f"`{path.name}` holds no `{name}`") from exc
        _copy(archive, member, content, limit_bytes=limits.free_bytes)
    return content.getvalue()


@contextmanager
def _checked(path: Path, limits: ZipLimits) -> Iterator[zipfile.ZipFile]:
    try:
        with _Source(path) as source, zipfile.ZipFile(source) as archive:
            _check_sizes(path, archive.infolist(), limits)
            _check_members(path.name, archive.infolist())
            yield archive
    except FinetunerError:
        raise
    except _DAMAGE as exc:
        if isinstance(exc, OSError) and exc.errno in _SHORTAGES:
            raise
        raise CorruptedArtifact(
            f"`{path.name}` is not a zip file, or is damaged: {exc}; fetch or make it again"
        ) from exc


def _check_sizes(path: Path, members: Sequence[zipfile.ZipInfo], limits: ZipLimits) -> None:
    if len(members) > limits.n_members:
        raise TooLargeError(
            f"`{path.name}` holds {len(members)} files, {limits.n_members} are allowed"
        )
    size_bytes = sum(member.file_size for member in members)
    if size_bytes > limits.size_bytes:
        raise TooLargeError(
            f"`{path.name}` holds {size_bytes} bytes, {limits.size_bytes} are allowed"
        )
    for member in members:
        allowed_bytes = max(limits.free_bytes, limits.ratio * member.compress_size)
        if member.file_size > allowed_bytes:
            raise TooLargeError(
                f"`{_shown(member)}` of `{path.name}` grows from {member.compress_size} bytes to "
                f"{member.file_size}, {limits.ratio} times is allowed"
            )
    # Members that lie over each other would let few bytes stand for many.
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise CorruptedArtifact(
            f"the files in `{path.name}` lie over each other; make the zip again"
        )


def _is_outside(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    return path.is_absolute() or ".." in path.parts or not path.parts


def _is_of_other_systems(member: zipfile.ZipInfo) -> bool:
    name = member.orig_filename
    return "\\" in name or ":" in name or bool(_UNPRINTABLE.search(name))


def _is_written_oddly(member: zipfile.ZipInfo) -> bool:
    return PurePosixPath(member.filename).as_posix() != member.filename.removesuffix("/")


def _is_special(member: zipfile.ZipInfo) -> bool:
    return stat.S_IFMT(member.external_attr >> 16) not in _FILE_KINDS


_UNSAFE: tuple[tuple[Callable[[zipfile.ZipInfo], bool], str], ...] = (
    (_is_outside, "it lies outside the zip's folder"),
    (_is_of_other_systems, "its name has a backslash, a colon or a control character"),
    (_is_written_oddly, "its path is not in its shortest form"),
    (_is_special, "it is a link or a special file"),
    (lambda member: bool(member.flag_bits & _IS_ENCRYPTED), "it is encrypted"),
    (lambda member: member.compress_type not in _METHODS, "it is neither stored nor deflated"),
)


def _check_members(name: str, members: Sequence[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for member in members:
        for is_unsafe, reason in _UNSAFE:
            if is_unsafe(member):
                raise CorruptedArtifact(
                    f"`{name}` holds the unsafe member `{_shown(member)}`: {reason}; allowed are plain "
                    "files by paths inside one folder, stored or deflated"
                )
        key = member.filename.removesuffix("/")
        if key in seen:
            raise CorruptedArtifact(f"`{name}` holds `{_shown(member)}` twice")
        seen.add(key)


def _shown(member: zipfile.ZipInfo) -> str:
    return _UNPRINTABLE.sub("?", member.orig_filename)[:100]


def _copy(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: IO[bytes], *, limit_bytes: int
) -> int:
    """Unpack one file and return its size, which is that of the header or an error."""
    size_bytes = 0
    with archive.open(member) as source:
        while chunk := source.read(_CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise TooLargeError(
                    f"`{_shown(member)}` has more than the {limit_bytes} bytes that are allowed"
                )
            target.write(chunk)
    if size_bytes != member.file_size:
        raise CorruptedArtifact(
            f"`{_shown(member)}` has {size_bytes} bytes, and the zip's header says {member.file_size}"
        )
    return size_bytes

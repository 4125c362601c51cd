"""The files of a corpus: where they lie, on a disk or in an object store, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from finetuner.errors import ConfigError, DataNotFoundError
from finetuner.object_store import file_system, is_local

_COMPRESSIONS = frozenset((".gz", ".bz2", ".xz", ".zst"))


class CorpusFormat(StrEnum):
    """How a file of a corpus is written."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"
    TEXT = "text"


FORMAT_OF_SUFFIX = {
    ".parquet": CorpusFormat.PARQUET,
    ".pq": CorpusFormat.PARQUET,
    ".jsonl": CorpusFormat.JSONL,
    ".ndjson": CorpusFormat.JSONL,
    ".csv": CorpusFormat.CSV,
    ".txt": CorpusFormat.TEXT,
}


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus.

    :param url: As fsspec opens it; a path for a file on this machine.
    :param format: How it is written.
    :param size_bytes: Its size.
    :param version: Changes when the file does: the store's tag of it, or when it was written.
    """

    url: str
    format: CorpusFormat
    size_bytes: int
    version: str

    @property
    def name(self) -> str:
        """Its name without the folders above it."""
        return PurePosixPath(self.url).name


def list_files(inputs: Sequence[str], format_: CorpusFormat | None = None) -> list[CorpusFile]:
    """Return the files that inputs name, in the order of the inputs and then of their names.

    :param inputs: Paths, globs or fsspec URLs such as ``s3://bucket/texts/*.jsonl``; a folder stands for
        all files in it, and below it, whose suffix is known.
    :param format_: Of all of them; by their suffix when None. ``.gz`` and the like may follow it.
    :raises DataNotFoundError: When an input names no file.
    :raises ConfigError: When a suffix is unknown, or a file system needs a package that is missing.
    """
    found: dict[str, CorpusFile] = {}
    for given in inputs:
        files = list(_files_of(given, format_))
        if not files:
            raise DataNotFoundError(
                f"no file at `{given}`; a glob stands in quotes, as 'texts/*.csv'"
            )
        found.update((file.url, file) for file in files)
    return list(found.values())


def _files_of(given: str, format_: CorpusFormat | None) -> Iterator[CorpusFile]:
    system, path = file_system(given)
    if system.isdir(path):
        paths = [p for p in system.find(path) if format_ or _format_of(p) is not None]
        paths = [p for p in paths if not PurePosixPath(p).name.startswith((".", "_"))]
    elif system.exists(path):  # before the glob: a name may hold brackets
        paths = [path]
    else:
        paths = [p for p in system.glob(path) if not system.isdir(p)]
    for path in sorted(paths):
        yield _described(system, path, format_)


def _described(system: Any, path: str, format_: CorpusFormat | None) -> CorpusFile:
    chosen = format_ or _format_of(path)
    if chosen is None:
        known = ", ".join(FORMAT_OF_SUFFIX)
        raise ConfigError(f"`{path}`: its suffix is none of {known}; say which by --format")
    about = system.info(path)
    version = next(
        (str(about[key]) for key in ("ETag", "etag", "LastModified", "mtime") if about.get(key)), ""
    )
    url = path if is_local(system) else system.unstrip_protocol(path)
    return CorpusFile(url, chosen, int(about["size"] or 0), version)


def _format_of(path: str) -> CorpusFormat | None:
    name = PurePosixPath(path.lower())
    if name.suffix in _COMPRESSIONS:
        name = name.with_suffix("")
    return FORMAT_OF_SUFFIX.get(name.suffix)

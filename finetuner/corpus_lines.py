"""Parts of files that are read from the front to the end: a text a line, JSON lines, CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any

import orjson

from finetuner.corpus_files import CorpusFile
from finetuner.corpus_parts import Columns, Part, Problem
from finetuner.errors import ConfigError, DataError
from finetuner.object_store import file_system

_BOM = b"\xef\xbb\xbf"
# A longer one is a quote that was left open, which would take the rest of the file into one field.
_LONGEST_FIELD = 2**24


def cut(file: CorpusFile, columns: Columns, rows_per_part: int) -> Iterator[Part]:
    """Yield the parts of a file with a row a line."""
    with _opened(file) as opened:
        yield from _cut(file, _ends(opened), rows_per_part, start=opened.tell())


def cut_csv(file: CorpusFile, columns: Columns, rows_per_part: int) -> Iterator[Part]:
    """Yield the parts of a CSV; its first record names the columns.

    :raises ConfigError: When one of ours is not among them.
    """
    with _opened(file) as opened:
        records = _Records(opened)
        header = tuple(next(records, []))
        for wanted in filter(None, (columns.text, columns.id)):
            if wanted not in header:
                raise ConfigError(
                    f"`{file.url}` has no column `{wanted}`, it has: {', '.join(header) or 'none'}"
                )
        start = records.offset_bytes
        ends = (records.offset_bytes for _ in records)
        yield from _cut(file, ends, rows_per_part, start=start, header=header)


def text_values(part: Part, columns: Columns) -> Iterator[tuple[object, object]]:
    """Yield no id and the text of each line."""
    with _opened(part.file, part.offset_bytes) as opened:
        for line in islice(opened, part.n_rows):
            yield None, _decoded(line.rstrip(b"\r\n"))


def json_values(part: Part, columns: Columns) -> Iterator[tuple[object, object]]:
    """Yield id and text of each line, an object of JSON."""
    with _opened(part.file, part.offset_bytes) as opened:
        for line in islice(opened, part.n_rows):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as exc:
                yield None, Problem(f"no JSON: {exc}")
                continue
            if isinstance(row, dict):
                yield _id_and_text(row, columns)
            else:
                yield None, Problem(f"an object must be on each line, got {type(row).__name__}")


def csv_values(part: Part, columns: Columns) -> Iterator[tuple[object, object]]:
    """Yield id and text of each record."""
    with _opened(part.file, part.offset_bytes) as opened:
        for record in islice(_Records(opened), part.n_rows):
            if len(record) != len(part.header):
                yield (
                    None,
                    Problem(f"{len(record)} columns where the header has {len(part.header)}"),
                )
                continue
            id_, text = _id_and_text(dict(zip(part.header, record, strict=True)), columns)
            yield id_, _decoded(str(text).encode(errors="surrogateescape"))


def _id_and_text(row: dict[str, Any], columns: Columns) -> tuple[object, object]:
    if columns.text not in row:
        return None, Problem(f"no `{columns.text}`, it has: {', '.join(row) or 'nothing'}")
    if columns.id is None:
        return None, row[columns.text]
    if row.get(columns.id) is None:
        return None, Problem(f"no `{columns.id}` for its id")
    return row[columns.id], row[columns.text]


def _decoded(text: bytes) -> str | Problem:
    try:
        return text.decode()
    except UnicodeDecodeError as exc:
        return Problem(f"no UTF-8 at byte {exc.start + 1}: {exc.reason}")


def _cut(
    file: CorpusFile,
    ends: Iterable[int],
    rows_per_part: int,
    *,
    start: int,
    header: tuple[str, ...] = (),
) -> Iterator[Part]:
    """Yield the parts of rows.

    :param ends: Where each row ends.
    :param start: Where the first begins.
    """
    iterator, first_row, offset = iter(ends), 0, start
    while chosen := list(islice(iterator, rows_per_part)):
        yield Part(file, first_row, len(chosen), offset_bytes=offset, header=header)
        first_row += len(chosen)
        offset = chosen[-1]


def _ends(file: IO[bytes]) -> Iterator[int]:
    offset = file.tell()
    for line in file:
        offset += len(line)
        yield offset


class _Records:
    """Iterates over the records of a CSV, which may go over several lines, and knows where it is.

    Bytes that are no UTF-8 are kept as half surrogates.

    :param file: Read from where it is.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.offset_bytes = file.tell()
        csv.field_size_limit(_LONGEST_FIELD)
        self._reader = csv.reader(self._lines(file))

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error as exc:
            raise DataError(f"byte {self.offset_bytes}: {exc}; is a quote left open?") from exc

    def _lines(self, file: IO[bytes]) -> Iterator[str]:
        for line in file:
            # The reader asks for no line before it needs it.
            self.offset_bytes += len(line)
            yield line.decode(errors="surrogateescape")


@contextmanager
def _opened(file: CorpusFile, offset_bytes: int = 0) -> Iterator[IO[bytes]]:
    """Give a file, unpacked, from a place on; at its front, behind the mark of UTF-8.

    :raises DataError: When it cannot be unpacked, or a record of it cannot be read.
    """
    try:
        system, path = file_system(file.url)
        with system.open(path, "rb", compression="infer") as opened:
            if offset_bytes > 0 or opened.read(len(_BOM)) != _BOM:
                opened.seek(offset_bytes)
            yield opened
    except (DataError, EOFError, OSError) as exc:
        raise DataError(f"`{file.url}` cannot be read: {exc}") from exc

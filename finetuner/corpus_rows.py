"""The rows of a corpus, in parts that can each be read alone: by another process, or after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from finetuner import corpus_lines, corpus_parquet
from finetuner.corpus_files import CorpusFile, CorpusFormat
from finetuner.corpus_parts import Columns, Part, Problem
from finetuner.data import check_text
from finetuner.errors import DataError

Cut = Callable[[CorpusFile, Columns, int], Iterator[Part]]
Values = Callable[[Part, Columns], Iterator[tuple[object, object]]]


@dataclass(frozen=True)
class SkippedRow:
    """A row without a text that can be encoded.

    :param url: The file it is in.
    :param row: Its number, from 1; a header is none.
    :param reason: Why.
    """

    url: str
    row: int
    reason: str


@dataclass
class Rows:
    """What was read of a part; ids and texts are of one length."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)


_READERS: dict[CorpusFormat, tuple[Cut, Values]] = {
    CorpusFormat.PARQUET: (corpus_parquet.cut, corpus_parquet.values),
    CorpusFormat.JSONL: (corpus_lines.cut, corpus_lines.json_values),
    CorpusFormat.CSV: (corpus_lines.cut_csv, corpus_lines.csv_values),
    CorpusFormat.TEXT: (corpus_lines.cut, corpus_lines.text_values),
}


def parts_of(files: list[CorpusFile], columns: Columns, *, rows_per_part: int) -> Iterator[Part]:
    """Yield the parts of a corpus; the same files give the same ones.

    :param files: Each is read through once, but for Parquet, whose end says all.
    :param columns: Must be in each file that has columns.
    :param rows_per_part: At least 1; the last part of a file, or of a group of Parquet, has fewer.
    :raises ConfigError: When a file has no such column.
    :raises DataError: When a file cannot be read.
    """
    number = 0
    for file in files:
        cut, _ = _READERS[file.format]
        for part in cut(file, columns, rows_per_part):
            yield replace(part, number=number)
            number += 1


def read_part(part: Part, columns: Columns) -> Rows:
    """Read the rows of a part; those without a usable text are skipped, with the reason.

    :raises DataError: When the file has not the rows that it had when it was cut.
    """
    rows = Rows()
    _, values = _READERS[part.file.format]
    number = part.first_row
    for id_, text in values(part, columns):
        number += 1
        id_ = f"{part.file.name}:{number}" if id_ is None else str(id_)
        if (reason := _problem_of(text, "text") or _problem_of(id_, "id")) is None:
            rows.ids.append(id_)
            rows.texts.append(str(text))
        else:
            rows.skipped.append(SkippedRow(part.file.url, number, reason))
    if number - part.first_row != part.n_rows:
        raise DataError(
            f"`{part.file.url}` has changed: it had {part.n_rows} rows from row {part.first_row + 1}, "
            f"and has {number - part.first_row}"
        )
    return rows


def _problem_of(value: object, what: str) -> str | None:
    if isinstance(value, Problem):
        return value.reason
    if value is None:
        return f"no {what}"
    try:
        check_text(value, what)
    except DataError as exc:
        return str(exc)
    return None

"""Labelled texts and pairs from CSV and to it; a header names the columns, else their number decides."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from finetuner.errors import DataError, TooLargeError
from finetuner.pairs import PAIR_HEADERS, TextPairs, Texts, read_rows

_HEADERS = ({"text", "label"}, {"text", "label", "id"}, *PAIR_HEADERS)
_DELIMITERS = ",;\t|"
# In characters; what is longer is a text.
_LONGEST_LABEL = 80
_ROW = re.compile(r"row (\d+)\b")
# The cells of a row, behind the line of the file on which it begins: a quoted text may have several.
_NumberedRow = tuple[int, list[str]]


@dataclass(frozen=True)
class CSVOptions:
    """How a CSV is read; the fields of the old API that concern text.

    :param size: Rows to keep, all when None.
    :param sampling_rate: Share of the rows to keep, over 0 to 1, drawn with a fixed seed.
    :param dialect: ``auto`` (sniffed), or a name that the ``csv`` module knows.
    :param encoding: Of a file given by path.
    :param is_labeled: Two columns are text and label; else, two texts that mean the same. By what stands
        in them when None: see :func:`looks_labelled`; a first row of other names is then passed over. A
        header row decides too: ``text,label[,id]``, ``anchor,positive[,negative]`` or
        ``sentence1,sentence2,score``.
    """

    size: int | None = None
    sampling_rate: float | None = None
    dialect: str = "auto"
    encoding: str = "utf-8"
    is_labeled: bool | None = False


def read_csv(
    file: str | os.PathLike[str] | TextIO,
    options: CSVOptions | None = None,
    *,
    max_rows: int | None = None,
) -> Texts:
    """Read labelled texts, or pairs of texts, from a CSV.

    Without a header, two columns are pairs unless ``is_labeled``, and three are pairs with a score; the
    third must then be a number in every row. Messages count rows without the header, and name the line
    of the file, which an editor shows.

    :param file: A path or an open text file.
    :param options: How to read it.
    :param max_rows: So many may be there, the header among them; any number when None.
    :raises DataError: When the file is missing or empty, is no text, or has other columns.
    :raises TooLargeError: When it has more rows.
    """
    options = options or CSVOptions()
    numbered = _csv_rows(_csv_content(file, options), options.dialect, max_rows=max_rows)
    if not numbered:
        raise DataError("the CSV file does not exist or is empty")
    rows = [row for _, row in numbered]
    header = [cell.strip().lower() for cell in rows[0]]
    has_header = set(header) in _HEADERS and len(set(header)) == len(header)
    is_labeled = options.is_labeled
    if not has_header and is_labeled is None:
        is_labeled = looks_labelled(rows)
        has_header = is_labeled and _is_first_label_alone(rows)
        header = ["text", "label"]
    numbered = _sample(numbered[has_header:], options)
    if not numbered:
        raise DataError(
            "no row of the CSV is left; it is a header alone, or the options leave none"
        )
    names = header if has_header else _names_by_columns(numbered, is_labeled=bool(is_labeled))
    _check_widths(numbered, len(names))
    try:
        return read_rows([dict(zip(names, row, strict=True)) for _, row in numbered])
    except DataError as exc:
        raise DataError(_with_line(str(exc), numbered)) from exc


def _with_line(message: str, numbered: Sequence[_NumberedRow]) -> str:
    """Return a message about a row with the line on which the row begins."""
    found = _ROW.match(message)
    if found is None:
        return message
    line = numbered[int(found[1]) - 1][0]
    return f"CSV {found[0]} (line {line} of the file){message[found.end() :]}"


def _names_by_columns(numbered: Sequence[_NumberedRow], *, is_labeled: bool) -> Sequence[str]:
    if is_labeled:
        return ("text", "label")
    if len(numbered[0][1]) != 3:
        return ("anchor", "positive")
    for number, (line, row) in enumerate(numbered, start=1):
        if len(row) == 3 and not _is_number(row[2]):
            raise DataError(
                f"CSV row {number} (line {line} of the file): the third column must be a number, got "
                f"`{row[2][:80]}`. Three columns without a header are two texts and their score; put quotes "
                "around a text that holds commas, or name the columns: anchor,positive,negative or "
                "sentence1,sentence2,score"
            )
    return ("sentence1", "sentence2", "score")


def looks_labelled(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the second of two columns holds labels and not texts: short ones, each twice on average.

    :param rows: With a row of names at most; none are not labelled.
    """
    if not rows or any(len(row) != 2 for row in rows):
        return False
    labels = [row[1].strip() for row in rows]
    # One may be a name of the column.
    n_labels = max(1, len(set(labels)) - 1)
    return max(map(len, labels)) <= _LONGEST_LABEL and 2 * n_labels <= len(labels) - 1


def _is_first_label_alone(rows: list[list[str]]) -> bool:
    """Whether the first row's label is no other row's: a name of the column, and if not, of no use."""
    first, *others = (row[1].strip() for row in rows)
    return first not in others


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _csv_content(file: str | os.PathLike[str] | TextIO, options: CSVOptions) -> str:
    if not isinstance(file, str | os.PathLike):
        return file.read()
    try:
        return Path(file).read_text(encoding=options.encoding)
    except FileNotFoundError as exc:
        raise DataError(f"there is no CSV file `{file}`") from exc
    except (UnicodeDecodeError, LookupError) as exc:
        raise DataError(
            f"`{file}` is not {options.encoding} text ({exc}); name its encoding in CSVOptions"
        ) from exc


def _csv_rows(content: str, dialect: str, *, max_rows: int | None) -> list[_NumberedRow]:
    # A spreadsheet's byte order mark would be taken for a part of the first column's name.
    content = content.removeprefix("\ufeff")
    file = io.StringIO(content, newline="")
    try:
        reader = (
            csv.reader(file, delimiter=_delimiter(content))
            if dialect == "auto"
            else csv.reader(file, dialect)
        )
        rows = list(islice(_numbered(reader), None if max_rows is None else max_rows + 1))
    except csv.Error as exc:
        raise DataError(f"the CSV cannot be read as dialect `{dialect}`: {exc}") from exc
    if max_rows is not None and len(rows) > max_rows:
        raise TooLargeError(f"the CSV has more than {max_rows} rows; store it in parts")
    return rows


def _numbered(reader: Any) -> Iterator[_NumberedRow]:
    """Yield the rows of a CSV reader that are not empty, with the lines on which they begin."""
    begin = 1
    for row in reader:
        if row:
            yield begin, row
        begin = reader.line_num + 1


def _delimiter(content: str) -> str:
    """Return what a known header has between its names, else what the sniffer finds, else a comma."""
    header = content.lstrip("\r\n").partition("\n")[0]
    for delimiter in _DELIMITERS:
        names = [name.strip(' \r"').lower() for name in header.split(delimiter)]
        if set(names) in _HEADERS:
            return delimiter
    # Only the delimiter is taken from the sniffer: its guess at doubled quotes is often wrong.
    with contextlib.suppress(csv.Error):
        return csv.Sniffer().sniff(content[:1024], delimiters=_DELIMITERS).delimiter
    return ","


def _sample(rows: list[_NumberedRow], options: CSVOptions) -> list[_NumberedRow]:
    if options.sampling_rate is not None:
        generator = np.random.default_rng(0)
        rows = [row for row in rows if generator.random() < options.sampling_rate]
    return rows if options.size is None else rows[: options.size]


def _check_widths(numbered: Sequence[_NumberedRow], width: int) -> None:
    for number, (line, row) in enumerate(numbered, start=1):
        if len(row) != width:
            raise DataError(
                f"CSV row {number} (line {line} of the file) has {_counted(len(row))}, {width} are needed; "
                f"put quotes around a text that holds commas. The row: `{','.join(row)}`"[:300]
            )


def _counted(n_columns: int) -> str:
    return "1 column" if n_columns == 1 else f"{n_columns} columns"


def write_csv(data: Texts, file: TextIO) -> None:
    """Write labelled texts or pairs under a header, so that :func:`read_csv` gives them back.

    :param data: The texts; their ids are written where there are any.
    :param file: Open for text, with ``newline=""``, or the line ends within texts change.
    """
    names = _column_names(data)
    # All quoted: the writer lets a lone carriage return pass, which the reader takes for a row's end.
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([row.get(name) for name in names] for row in data.rows())


def _column_names(data: Texts) -> tuple[str, ...]:
    if not isinstance(data, TextPairs):
        has_ids = any(id_ is not None for id_ in data.ids)
        return ("text", "label", "id") if has_ids else ("text", "label")
    if data.has_scores:
        return ("sentence1", "sentence2", "score")
    return ("anchor", "positive", "negative") if data.has_negatives else ("anchor", "positive")

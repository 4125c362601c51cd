"""Labelled texts and pairs from CSV; a header names the columns, and without one their number decides."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from finetuner.errors import DataError
from finetuner.pairs import PAIR_HEADERS, Texts, read_rows

_HEADER = {"text", "label"}


@dataclass(frozen=True)
class CSVOptions:
    """How a CSV is read; the fields of the old API that concern text.

    :param size: Rows to keep, all when None.
    :param sampling_rate: Share of the rows to keep, over 0 to 1, drawn with a fixed seed.
    :param dialect: ``auto`` (sniffed), or a name that the ``csv`` module knows.
    :param encoding: Of a file given by path.
    :param is_labeled: Two columns are text and label; else, two texts that mean the same. A header
        row decides too: ``text,label``, ``anchor,positive[,negative]`` or ``sentence1,sentence2,score``.
    """

    size: int | None = None
    sampling_rate: float | None = None
    dialect: str = "auto"
    encoding: str = "utf-8"
    is_labeled: bool = False


def read_csv(file: str | os.PathLike[str] | TextIO, options: CSVOptions | None = None) -> Texts:
    """Read labelled texts, or pairs of texts, from a CSV.

    Without a header, two columns are pairs unless ``is_labeled``, and three are pairs with a score; the
    third must then be a number in every row. Messages count rows without the header.

    :param file: A path or an open text file.
    :param options: How to read it.
    :raises DataError: When the file is missing or empty, is no text, or has other columns.
    """
    options = options or CSVOptions()
    rows = _csv_rows(_csv_content(file, options), options.dialect)
    if not rows:
        raise DataError("the CSV file does not exist or is empty")
    header = [cell.strip().lower() for cell in rows[0]]
    has_header = set(header) in (_HEADER, *PAIR_HEADERS) and len(set(header)) == len(header)
    rows = _sample(rows[has_header:], options)
    if not rows:
        raise DataError(
            "no row of the CSV is left; it is a header alone, or the options leave none"
        )
    names = header if has_header else _names_by_columns(rows, is_labeled=options.is_labeled)
    return read_rows([dict(zip(names, row, strict=True)) for row in _of_width(rows, len(names))])


def _names_by_columns(rows: list[list[str]], *, is_labeled: bool) -> Sequence[str]:
    if is_labeled:
        return ("text", "label")
    if len(rows[0]) != 3:
        return ("anchor", "positive")
    for number, row in enumerate(rows, start=1):
        if len(row) == 3 and not _is_number(row[2]):
            raise DataError(
                f"CSV row {number}: the third column must be a number, got `{row[2][:80]}`. Three columns "
                "without a header are two texts and their score; put quotes around a text that holds "
                "commas, or name the columns: anchor,positive,negative or sentence1,sentence2,score"
            )
    return ("sentence1", "sentence2", "score")


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


def _csv_rows(content: str, dialect: str) -> list[list[str]]:
    # A spreadsheet's byte order mark would be taken for a part of the first column's name.
    content = content.removeprefix("\ufeff")
    delimiter = ","
    if dialect == "auto":
        # Only the delimiter is taken from the sniffer: its guess at doubled quotes is often wrong.
        with contextlib.suppress(csv.Error):
            delimiter = csv.Sniffer().sniff(content[:1024], delimiters=",;\t|").delimiter
    try:
        file = io.StringIO(content, newline="")
        reader = (
            csv.reader(file, delimiter=delimiter)
            if dialect == "auto"
            else csv.reader(file, dialect)
        )
        return [row for row in reader if row]
    except csv.Error as exc:
        raise DataError(f"the CSV cannot be read as dialect `{dialect}`: {exc}") from exc


def _sample(rows: list[list[str]], options: CSVOptions) -> list[list[str]]:
    if options.sampling_rate is not None:
        generator = np.random.default_rng(0)
        rows = [row for row in rows if generator.random() < options.sampling_rate]
    return rows if options.size is None else rows[: options.size]


def _of_width(rows: list[list[str]], width: int) -> list[list[str]]:
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise DataError(
                f"CSV row {number} has {len(row)} columns, {width} are needed; put quotes around a text "
                f"that holds commas. The row: `{','.join(row)}`"[:300]
            )
    return rows

"""Labelled texts from CSV: two columns, text and label, or two texts that mean the same."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from finetuner.data import LabelledTexts, from_rows
from finetuner.errors import DataError

_HEADER = {"text", "label"}


@dataclass(frozen=True)
class CSVOptions:
    """How a CSV is read; the fields of the old API that concern text.

    :param size: Rows to keep, all when None.
    :param sampling_rate: Share of the rows to keep, over 0 to 1, drawn with a fixed seed.
    :param dialect: ``auto`` (sniffed), or a name that the ``csv`` module knows.
    :param encoding: Of a file given by path.
    :param is_labeled: Two columns are text and label; else, two texts that mean the same. A header
        row ``text,label`` says so too.
    """

    size: int | None = None
    sampling_rate: float | None = None
    dialect: str = "auto"
    encoding: str = "utf-8"
    is_labeled: bool = False


def read_csv(
    file: str | os.PathLike[str] | TextIO, options: CSVOptions | None = None
) -> LabelledTexts:
    """Read labelled texts, or pairs of texts that mean the same, from a CSV of two columns.

    :param file: A path or an open text file.
    :param options: How to read it.
    :raises DataError: When the file is missing or empty, is no text, or has other columns.
    """
    options = options or CSVOptions()
    rows = _sample(_csv_rows(_csv_content(file, options), options.dialect), options)
    if not rows:
        raise DataError("the CSV file does not exist or is empty")
    header = [cell.strip().lower() for cell in rows[0]]
    if set(header) == _HEADER and len(header) == 2:
        text_column = header.index("text")
        return from_rows(
            [(row[text_column], row[1 - text_column]) for row in _two_columns(rows)[1:]]
        )
    if options.is_labeled:
        return from_rows(_two_columns(rows))
    return _from_pairs(_two_columns(rows))


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


def _two_columns(rows: list[list[str]]) -> list[list[str]]:
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise DataError(
                f"CSV row {number} has {len(row)} columns, two are needed; put quotes around a text "
                f"that holds commas. The row: `{','.join(row)}`"[:300]
            )
    return rows


def _from_pairs(pairs: list[list[str]]) -> LabelledTexts:
    """Label texts so that all that are linked by pairs, directly or not, share one label."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            parent[text] = text = parent[parent[text]]
        return text

    for left, right in pairs:
        parent[root(right)] = root(left)
    numbers: dict[str, int] = {}
    rows = [(text, numbers.setdefault(root(text), len(numbers))) for text in parent]
    return from_rows(rows)

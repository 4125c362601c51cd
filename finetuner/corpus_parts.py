"""What a part of a corpus is."""

from __future__ import annotations

from dataclasses import dataclass

from finetuner.corpus_files import CorpusFile


@dataclass(frozen=True)
class Columns:
    """Where the texts are.

    :param text: The column, or the key in JSON, that holds the text; a file of lines has none.
    :param id: That of the id; None for the file's name and the number of the row, from 1.
    """

    text: str = "text"
    id: str | None = None


@dataclass(frozen=True)
class Part:
    """Rows that follow each other in one file; what is read, encoded and written at once.

    :param file: Where they are.
    :param first_row: Their first, from 0.
    :param n_rows: How many, at least 1.
    :param number: In the corpus, from 0.
    :param offset_bytes: Of lines: where the first begins, when the file is unpacked.
    :param header: Of CSV: the names of its columns.
    :param row_group: Of Parquet: the group they are all in.
    :param first_in_group: Of Parquet: how many rows of the group are before them.
    """

    file: CorpusFile
    first_row: int
    n_rows: int
    number: int = 0
    offset_bytes: int = 0
    header: tuple[str, ...] = ()
    row_group: int = 0
    first_in_group: int = 0


@dataclass(frozen=True)
class Problem:
    """Stands in the place of a text that could not be read.

    :param reason: Why, for people.
    """

    reason: str

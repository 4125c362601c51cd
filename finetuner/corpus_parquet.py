"""Parts of Parquet files: rows of one row group each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from finetuner.corpus_files import CorpusFile
from finetuner.corpus_parts import Columns, Part
from finetuner.errors import ConfigError, DataError
from finetuner.object_store import file_system

_ROWS_AT_ONCE = 4096


def cut(file: CorpusFile, columns: Columns, rows_per_part: int) -> Iterator[Part]:
    """Yield the parts of a file; only its end is read.

    :raises ConfigError: When it has no such column, or the texts are of another type.
    """
    with _opened(file) as opened:
        _check_columns(file, opened.schema_arrow, columns)
        first_row = 0
        for group in range(opened.num_row_groups):
            n_in_group = opened.metadata.row_group(group).num_rows
            for start in range(0, n_in_group, rows_per_part):
                n_rows = min(rows_per_part, n_in_group - start)
                yield Part(file, first_row, n_rows, row_group=group, first_in_group=start)
                first_row += n_rows


def values(part: Part, columns: Columns) -> Iterator[tuple[object, object]]:
    """Yield id and text of each row; the rows before them in their group are read over."""
    names = [name for name in (columns.text, columns.id) if name is not None]
    with _opened(part.file) as opened:
        rows = _rows(opened, part.row_group, names)
        stop = part.first_in_group + part.n_rows
        for row in islice(rows, part.first_in_group, stop):
            yield row.get(columns.id) if columns.id else None, row[columns.text]


def _rows(opened: Any, group: int, names: list[str]) -> Iterator[dict[str, Any]]:
    for batch in opened.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=names):
        yield from batch.to_pylist()


def _check_columns(file: CorpusFile, schema: Any, columns: Columns) -> None:
    import pyarrow as pa

    for wanted in filter(None, (columns.text, columns.id)):
        if wanted not in schema.names:
            raise ConfigError(
                f"`{file.url}` has no column `{wanted}`, it has: {', '.join(schema.names)}"
            )
    kind = schema.field(columns.text).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ConfigError(f"`{file.url}`: its column `{columns.text}` holds {kind}, not text")


@contextmanager
def _opened(file: CorpusFile) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    system, path = file_system(file.url)
    try:
        with system.open(path, "rb") as opened:
            yield parquet.ParquetFile(opened)
    except (OSError, pa.ArrowException) as exc:
        raise DataError(f"`{file.url}` cannot be read: {exc}") from exc

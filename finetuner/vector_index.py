"""What is searched: vectors in memory, in a file of NumPy, or in the Parquet that `encode-corpus` writes.

All give their rows in blocks, so that a search holds a block of them and not the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetuner.errors import ConfigError, DataError, DataNotFoundError

Block = NDArray[Any]

_COLUMN = "embedding"
_SEARCHABLE = tuple(np.dtype(name) for name in ("float16", "float32", "float64", "int8"))


class VectorIndex(Protocol):
    """Vectors with a place each, from 0.

    Several threads may read one at once.
    """

    n_vectors: int
    dim: int

    def blocks(self, start: int, stop: int, rows_per_block: int) -> Iterator[tuple[int, Block]]:
        """Yield the vectors of places from ``start`` to before ``stop``, in order.

        :param rows_per_block: So many at once at most.
        :returns: The place of the first, and *Shape:* ``(n_rows, dim)``.
        """


class ArrayIndex:
    """Vectors in memory.

    :param vectors: *Shape:* ``(n_vectors, dim)``.
    """

    def __init__(self, vectors: Block) -> None:
        self._vectors = vectors
        self.n_vectors, self.dim = vectors.shape

    def blocks(self, start: int, stop: int, rows_per_block: int) -> Iterator[tuple[int, Block]]:
        """Yield views."""
        for first in range(start, stop, rows_per_block):
            yield first, self._vectors[first : min(first + rows_per_block, stop)]


class NpyIndex:
    """Vectors in a file of NumPy.

    :param path: Of the file.
    :raises DataError: When it holds no rows of numbers that can be searched.
    """

    def __init__(self, path: Path) -> None:
        try:
            whole = np.load(path, mmap_mode="r")
        except ValueError as exc:
            raise DataError(f"`{path}` cannot be read: {exc}") from exc
        if whole.ndim != 2 or not whole.flags.c_contiguous:
            raise DataError(
                f"`{path}` has the shape {whole.shape}; a row for each vector is needed"
            )
        _check_dtype(path, whole.dtype)
        self._path, self._dtype, self._offset = path, whole.dtype, whole.offset
        self.n_vectors, self.dim = whole.shape

    def blocks(self, start: int, stop: int, rows_per_block: int) -> Iterator[tuple[int, Block]]:
        """Yield blocks, each mapped alone: what was read of one map would count as memory until its end."""
        row_bytes = self.dim * self._dtype.itemsize
        for first in range(start, stop, rows_per_block):
            shape = (min(rows_per_block, stop - first), self.dim)
            offset = self._offset + first * row_bytes
            yield first, np.memmap(self._path, self._dtype, "r", offset, shape)


class ParquetIndex:
    """Vectors in Parquet, in the column ``embedding``; a vector's place counts through all files.

    :param paths: The files, in the order of their vectors; at least one.
    :raises DataError: When they have no such column, or not all of one width.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        kinds = {_vector_kind(path): path for path in paths}
        if len(kinds) > 1:
            (dim, dtype), (other_dim, other_dtype) = list(kinds)[:2]
            raise DataError(
                f"`{paths[0].parent}` holds vectors of {dim} {dtype} and of {other_dim} {other_dtype}"
            )
        ((self.dim, dtype),) = kinds
        _check_dtype(paths[0], dtype)
        self._groups = [(path, *place) for path in paths for place in _row_groups(path)]
        self._ends = np.cumsum([n_rows for _, _, n_rows in self._groups])
        self.n_vectors = int(self._ends[-1]) if len(self._ends) else 0

    def blocks(self, start: int, stop: int, rows_per_block: int) -> Iterator[tuple[int, Block]]:
        """Yield blocks, none of which goes over the end of a row group."""
        for number in range(int(np.searchsorted(self._ends, start, "right")), len(self._groups)):
            path, group, n_rows = self._groups[number]
            place = int(self._ends[number]) - n_rows
            if place >= stop:
                return
            for block in _read_group(path, group, self.dim, rows_per_block):
                cut = slice(max(start - place, 0), max(stop - place, 0))
                if len(block[cut]):
                    yield max(place, start), block[cut]
                place += len(block)


def open_vectors(source: Block | str | Path) -> VectorIndex:
    """Return vectors to be searched.

    :param source: An array; a file of NumPy (``.npy``) or Parquet; or a folder of Parquet files, which
        follow each other by name, as ``encode-corpus`` writes it.
    :raises DataNotFoundError: When nothing is there.
    :raises DataError: When it cannot be searched, or its ``encode-corpus`` has not come to its end.
    :raises ConfigError: When pyarrow is needed and missing.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 2:
            raise DataError(f"vectors have the shape {source.shape}; a row for each is needed")
        _check_dtype("the array", source.dtype)
        return ArrayIndex(source)
    path = Path(source)
    if path.is_dir():
        return ParquetIndex(_parts(path))
    if not path.is_file():
        raise DataNotFoundError(f"no vectors at `{path}`: neither a file nor a folder is there")
    return ParquetIndex([path]) if path.suffix == ".parquet" else NpyIndex(path)


def _check_dtype(where: str | Path, dtype: np.dtype[Any]) -> None:
    if dtype not in _SEARCHABLE:
        known = ", ".join(map(str, _SEARCHABLE))
        raise DataError(f"`{where}` holds {dtype}, which cannot be searched; what can: {known}")


def _parts(folder: Path) -> list[Path]:
    if (folder / "_corpus.json").exists() and not (folder / "_summary.json").exists():
        raise DataError(
            f"`{folder}` is not whole yet; let the same `encode-corpus` come to its end"
        )
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise DataNotFoundError(f"no Parquet file in `{folder}`")
    return paths


def _opened(path: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as exc:
        message = "Parquet needs pyarrow: `pip install 'finetuner-flow[corpus]'`"
        raise ConfigError(message) from exc
    try:
        return parquet.ParquetFile(path)
    except pa.ArrowException as exc:
        raise DataError(f"`{path}` cannot be read: {exc}") from exc


def _vector_kind(path: Path) -> tuple[int, np.dtype[Any]]:
    """Return how many elements a vector has, and of what."""
    with _opened(path) as file:
        schema = file.schema_arrow
    import pyarrow as pa

    kind = schema.field(_COLUMN).type if _COLUMN in schema.names else None
    if not isinstance(kind, pa.FixedSizeListType):
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"`{path}` has no column `{_COLUMN}` of lists of one length; it has: {found}"
        )
    return kind.list_size, np.dtype(kind.value_type.to_pandas_dtype())


def _row_groups(path: Path) -> list[tuple[int, int]]:
    """Return number and rows of each group; only the file's end is read."""
    with _opened(path) as file:
        about = file.metadata
        return [
            (number, about.row_group(number).num_rows) for number in range(about.num_row_groups)
        ]


def _read_group(path: Path, group: int, dim: int, rows_per_block: int) -> Iterator[Block]:
    with _opened(path) as file:
        for batch in file.iter_batches(rows_per_block, row_groups=[group], columns=[_COLUMN]):
            column = batch.column(0)
            if column.null_count:
                raise DataError(f"`{path}` has {column.null_count} rows without a vector")
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)

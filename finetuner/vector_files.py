"""Vectors written as they come, whose number is known only at the end."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from finetuner.files import replacing

Vectors = NDArray[np.float32]


class Format(StrEnum):
    """How vectors are written."""

    NPY = "npy"
    JSONL = "jsonl"
    CSV = "csv"


class Writer(Protocol):
    """Takes batches of vectors."""

    def write(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Write one batch.

        :param texts: What was embedded.
        :param vectors: *Shape:* ``(n_texts, dim)`` float32.
        """

    def close(self, dim: int) -> None:
        """Write what comes at the end.

        :param dim: Of the vectors, for a file without any.
        """


class NpyWriter:
    """NumPy's format. Zeros hold the place of its head, so that half a file is none.

    :param file: Can seek; is written from where it is.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._start = file, file.tell()
        self._n_rows = 0
        # NumPy leaves room in the head for the first axis to grow: its length does not depend on that.
        file.write(bytes(len(_npy_head(0, dim=1))))

    def write(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Write one batch."""
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._n_rows += len(vectors)

    def close(self, dim: int) -> None:
        """Write the head."""
        end = self._file.tell()
        self._file.seek(self._start)
        self._file.write(_npy_head(self._n_rows, dim=dim))
        self._file.seek(end)
        self._file.flush()


def _npy_head(n_rows: int, *, dim: int) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, dim)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


class LineWriter:
    """A line a text, written at once; numbers as short as they can be read back exactly.

    :param file: Where to.
    :param format_: ``jsonl``, with the text; or ``csv``, numbers alone.
    """

    def __init__(self, file: IO[bytes], format_: Format) -> None:
        self._file, self._is_json = file, format_ is Format.JSONL

    def write(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Write one batch."""
        for text, vector in zip(texts, vectors, strict=True):
            row = {"text": text, "embedding": vector} if self._is_json else vector
            line = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
            self._file.write((line if self._is_json else line[1:-1]) + b"\n")
        self._file.flush()

    def close(self, dim: int) -> None:
        """Write nothing more."""


@contextmanager
def opened(path: Path | None, format_: Format, stdout: IO[bytes]) -> Iterator[Writer]:
    """Give what writes vectors.

    A file appears whole or not at all. What cannot seek gets NumPy's format at the end, from a temporary
    file.

    :param path: The file; standard output when None.
    :param format_: How they are written.
    :param stdout: Standard output, as bytes.
    """
    if path is not None and (path.is_file() or not path.exists()):
        with replacing(path) as file:
            yield _writer(file, format_)
    elif path is not None:  # a pipe with a name, or /dev/stdout
        with path.open("wb") as file, _spooled(file, format_) as writer:
            yield writer
    else:
        with _spooled(stdout, format_) as writer:
            yield writer


def _writer(file: IO[bytes], format_: Format) -> Writer:
    return NpyWriter(file) if format_ is Format.NPY else LineWriter(file, format_)


@contextmanager
def _spooled(file: IO[bytes], format_: Format) -> Iterator[Writer]:
    if format_ is not Format.NPY or can_be_patched(file):
        yield _writer(file, format_)
        file.flush()
        return
    with tempfile.TemporaryFile() as spool:
        yield NpyWriter(spool)
        spool.seek(0)
        shutil.copyfileobj(spool, file)
        file.flush()


def can_be_patched(file: IO[bytes]) -> bool:
    """Whether bytes that were written can be written over: in a file, unless it is open for appending."""
    try:
        descriptor = file.fileno()
    except (OSError, ValueError):  # no file of the system
        return False
    is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    return is_regular and not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND

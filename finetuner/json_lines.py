"""Reading JSON lines while another process writes them, or after it was killed in the middle of one."""

from __future__ import annotations

import sys
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from finetuner.files import replacing

_UNREADABLE = object()
_LONGEST_LINE_BYTES = 256 * 1024


def read_page(path: Path, offset: int = 0, *, limit: int | None = None) -> tuple[list[Any], int]:
    """Return the values from a line on, and the number of the line that comes next.

    A line without its end yet is left for the next time; one that is no JSON, which a power cut can
    leave, is passed over but counted.

    :param path: There need be no such file.
    :param offset: Lines to pass over.
    :param limit: Most lines to read; all when None.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return [], offset
    with file:
        last = None if limit is None else min(offset + limit, sys.maxsize)
        lines = [line for line in islice(file, offset, last) if line.endswith(b"\n")]
    values = [value for line in lines if (value := _parsed(line)) is not _UNREADABLE]
    return values, offset + len(lines)


@lru_cache(maxsize=64)
def without_unreadable(lines: bytes) -> bytes:
    """Return whole lines with those that are no JSON emptied, so that the others keep their numbers.

    The last results are kept, as many followers of one file ask for the same.
    """
    kept = [b"" if _parsed(line) is _UNREADABLE else line for line in lines.split(b"\n")]
    return b"\n".join(kept)


class NewLines:
    """Picks what was not given yet from a file that is read in chunks.

    :param n_given: Lines given before.
    """

    def __init__(self, n_given: int) -> None:
        self._n_given = n_given
        self._n_read, self._rest = 0, b""

    def restart(self) -> None:
        """Begin with the file anew."""
        self._n_read, self._rest = 0, b""

    def take(self, chunk: bytes) -> bytes:
        """Return the whole lines that are new."""
        whole, end, rest = (self._rest + chunk).rpartition(b"\n")
        self._rest = rest[-_LONGEST_LINE_BYTES:]  # what is longer is no line of ours
        n_lines = whole.count(b"\n") + len(end)
        n_skipped = min(self._n_given - self._n_read, n_lines)
        self._n_read += n_lines
        if n_skipped == n_lines:
            return b""
        self._n_given = self._n_read
        return without_unreadable(whole.split(b"\n", n_skipped)[-1] + end)


def count_lines(path: Path) -> int:
    """Return how many lines a file has; 0 for none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def keep_lines(path: Path, n_lines: int) -> None:
    """Cut a file to its first lines: those after a checkpoint are written again."""
    lines = path.read_bytes().splitlines(keepends=True)[:n_lines] if path.exists() else []
    with replacing(path) as file:
        file.writelines(lines)


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return _UNREADABLE

"""What a corpus is encoded into: a folder with a Parquet file for each part, each whole or not there."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from finetuner.corpus_rows import SkippedRow
from finetuner.errors import ConflictError
from finetuner.files import make_folder, replacing
from finetuner.object_store import file_system, is_local

# Readers of a folder of Parquet pass over names that begin so.
_PLAN, _SUMMARY = "_corpus.json", "_summary.json"
_N_SHOWN = 3  # files of each kind, in a message
_PART_NAME = re.compile(r"part-(\d{8})\.parquet")


class CorpusOutput:
    """The folder; safe to be written by several processes, each of which writes the same for a part.

    :param url: On a disk, or in an object store by fsspec.
    :raises ConfigError: When its protocol is unknown or needs a package that is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._system, self._path = file_system(url)
        self._is_local = is_local(self._system)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Write down what is encoded here, and how; or see that it is the same as before.

        :param plan: As JSON.
        :raises ConflictError: When the folder was begun for something else, or holds other files.
        """
        if self._is_local:
            make_folder(Path(self._path), parents=True)
        wanted = orjson.loads(orjson.dumps(plan))
        begun = self._read(_PLAN)
        if begun is None:
            if self._names():
                raise ConflictError(f"`{self.url}` is not empty; choose a new folder")
            self._put(_PLAN, _json(wanted))
        elif differences := list(_differences(orjson.loads(begun), wanted)):
            raise ConflictError(
                f"`{self.url}` was begun for something else ({'; '.join(differences)}); choose a new "
                "folder, or give what was given then"
            )

    def done(self) -> set[int]:
        """Return the numbers of the parts that are there."""
        found = (_PART_NAME.fullmatch(name) for name in self._names())
        return {int(match[1]) for match in found if match}

    def put(
        self,
        number: int,
        ids: list[str],
        vectors: NDArray[Any],
        *,
        skipped: Iterable[SkippedRow],
        about: Mapping[str, str],
    ) -> None:
        """Write a part.

        :param number: The part's.
        :param ids: One for each vector.
        :param vectors: *Shape:* ``(n_rows, dim)``, of float32, float16, int8 or uint8.
        :param skipped: The rows of the part without a vector.
        :param about: Kept in the file's schema.
        """
        if lines := [orjson.dumps(asdict(row)) for row in skipped]:
            # First: a part that is there is not looked at again.
            self._put(f"_skipped-{number:08d}.jsonl", b"\n".join(lines) + b"\n")
        self._put(f"part-{number:08d}.parquet", _parquet(ids, vectors, about))

    def n_skipped(self) -> int:
        """Return how many rows the parts that are there have left out."""
        names = [name for name in self._names() if name.startswith("_skipped-")]
        return sum((self._read(name) or b"").count(b"\n") for name in names)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what came of it; that this is there says that all parts are."""
        for name in self._names():
            if name.startswith(".part-"):  # of one that was killed while it wrote
                self._system.rm_file(f"{self._path}/{name}")
        self._put(_SUMMARY, _json(summary))

    def _names(self) -> list[str]:
        self._system.invalidate_cache()
        if not self._system.isdir(self._path):
            return []
        return [path.rpartition("/")[2] for path in self._system.ls(self._path, detail=False)]

    def _read(self, name: str) -> bytes | None:
        try:
            return bytes(self._system.cat_file(f"{self._path}/{name}"))
        except FileNotFoundError:
            return None

    def _put(self, name: str, content: bytes) -> None:
        path = f"{self._path}/{name}"
        if self._is_local:
            with replacing(Path(path)) as file:
                file.write(content)
        else:
            self._system.pipe_file(path, content)  # object stores show it when it is whole


def _json(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)


def _parquet(ids: list[str], vectors: NDArray[Any], about: Mapping[str, str]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    embeddings = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pa.table({"id": pa.array(ids, pa.string()), "embedding": embeddings})
    buffer = io.BytesIO()
    # Neither ids nor numbers repeat, and numbers of a model hardly get smaller by packing.
    parquet.write_table(
        table.replace_schema_metadata(dict(about)),
        buffer,
        use_dictionary=False,
        compression={"id": "zstd", "embedding.list.element": "none"},
    )
    return buffer.getvalue()


def _differences(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is not the same, for people."""
    for key in sorted(begun.keys() | wanted.keys()):
        then, now = begun.get(key), wanted.get(key)
        if then == now:
            continue
        if key == "files":
            yield from _file_differences(then or [], now or [])
        elif isinstance(then, dict) and isinstance(now, dict):
            yield from _differences(then, now)
        else:
            yield f"{key}: {then} then, {now} now"


def _file_differences(then: list[Any], now: list[Any]) -> Iterator[str]:
    before, after = ({file["url"]: file for file in files} for files in (then, now))
    changed = [url for url in before.keys() & after.keys() if before[url] != after[url]]
    for urls, what in (
        (before.keys() - after.keys(), "is not given now"),
        (after.keys() - before.keys(), "is new"),
        (changed, "has changed"),
    ):
        yield from (f"`{url}` {what}" for url in sorted(urls)[:_N_SHOWN])
    if before == after:
        yield "its files were given in another order"

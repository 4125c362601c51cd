"""Stored data: DocumentArrays on the volume under a name, as docarray's ``push`` and ``pull`` move them.

``data/{name}/documents`` holds the stream that a client pushed (:mod:`finetuner.document_stream`).
``texts.jsonl`` holds its texts and labels in our own form,
made once at the push, so that starting a run on 100,000 documents costs no decoding. Nothing here
reads pickle.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import zlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from docarray import DocumentArray

from finetuner.data import write_jsonl
from finetuner.document_stream import read_documents
from finetuner.errors import DataError, DataNotFoundError
from finetuner.files import read_json, sync_folder, write_json
from finetuner.names import check_data_name
from finetuner.pairs import Texts, read_data
from finetuner.pairs import read_documents as read_texts

_PADDING_BYTES = 8192


@dataclass(frozen=True)
class StoredData:
    """One entry of the store."""

    name: str
    n_documents: int
    size_bytes: int
    created_at: str


class DataStore:
    """The stored data of one volume.

    :param workspace: The volume; its folder ``data`` is made when needed.
    """

    def __init__(self, workspace: Path) -> None:
        self._root = workspace / "data"
        self._swapping = threading.Lock()

    def _folder(self, name: str) -> Path:
        # One level only: `a` and `a/b` must not lie in each other.
        return self._root / quote(check_data_name(name), safe="")

    def put(self, name: str, stream: IO[bytes]) -> StoredData:
        """Store a stream of documents, in place of what had the name.

        :param name: The name.
        :param stream: What ``DocumentArray.push`` sends.
        :raises DataError: When the stream is anything else, or cut short.
        :raises TooLargeError: When it holds more than the limits of such a stream.
        """
        folder = self._folder(name)
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".upload-") as temporary:
            upload = Path(temporary) / "whole"
            upload.mkdir()
            with (upload / "documents").open("wb") as file:
                shutil.copyfileobj(stream, file)
                os.fsync(file.fileno())
            documents = DocumentArray(read_documents(upload / "documents"))
            entry = StoredData(
                name=name,
                n_documents=len(documents),
                size_bytes=(upload / "documents").stat().st_size,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            _write_texts(documents, upload)
            _pad(upload / "documents")
            write_json(upload / "entry.json", asdict(entry))
            with self._swapping:
                if folder.exists():
                    folder.rename(Path(temporary) / "replaced")
                upload.rename(folder)
        sync_folder(self._root)
        return entry

    def get(self, name: str) -> StoredData:
        """Return an entry.

        :raises DataNotFoundError: When nothing has the name.
        """
        try:
            return StoredData(**read_json(self._folder(name) / "entry.json"))
        except FileNotFoundError as exc:
            known = ", ".join(entry.name for entry in self.list()) or "none"
            raise DataNotFoundError(
                f"no stored data `{name}`; stored: {known}. Store a DocumentArray with "
                f"`.push('{name}')` after `eval \"$(finetuner env)\"`"
            ) from exc

    def list(self) -> list[StoredData]:
        """Return all entries by name; none when nothing was stored."""
        if not self._root.is_dir():
            return []
        names = [unquote(f.name) for f in self._root.iterdir() if (f / "entry.json").is_file()]
        return [
            StoredData(**read_json(self._folder(name) / "entry.json")) for name in sorted(names)
        ]

    def delete(self, name: str) -> None:
        """Remove an entry.

        :raises DataNotFoundError: When nothing has the name.
        """
        self.get(name)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".deleted-") as temporary:
            # First out of sight at once, then file by file.
            self._folder(name).rename(Path(temporary) / "deleted")

    def documents_path(self, name: str) -> Path:
        """Return the file that ``DocumentArray.pull`` reads.

        :raises DataNotFoundError: When nothing has the name.
        """
        self.get(name)
        return self._folder(name) / "documents"

    def texts(self, name: str) -> Texts:
        """Return the texts and labels, or the pairs, of stored documents.

        :raises DataNotFoundError: When nothing has the name.
        :raises DataError: When a document has no text.
        """
        self.get(name)
        path = self._folder(name) / "texts.jsonl"
        if not path.exists():
            reason = read_json(self._folder(name) / "no-texts.json")
            raise DataError(f"the stored data `{name}` cannot be used as texts: {reason}")
        return read_data(path)


def _pad(path: Path) -> None:
    """Make a stream's length depend on its content, by bytes that docarray does not read.

    ``DocumentArray.pull`` takes its cached copy of a name whenever the lengths agree, so data pushed
    again with other labels would go unseen.
    """
    with path.open("r+b") as file:
        checksum = zlib.crc32(file.read())
        file.write(bytes(1 + checksum % _PADDING_BYTES))


def _write_texts(documents: DocumentArray, folder: Path) -> None:
    """Write the texts, or, for documents that are no texts, the reason why not."""
    try:
        write_jsonl(read_texts(documents), folder / "texts.jsonl")
    except DataError as exc:
        write_json(folder / "no-texts.json", str(exc))


def summary_of(entry: StoredData) -> dict[str, Any]:
    """Return an entry as docarray's ``cloud_list`` reads it."""
    return {
        "name": entry.name,
        "visibility": "private",
        "createdAt": entry.created_at,
        "updatedAt": entry.created_at,
        "metaData": {"summary": [{"name": "Length", "value": entry.n_documents}]},
    }

"""Stored data: DocumentArrays on the volume under a name, as docarray's ``push`` and ``pull`` move them.

``data/{name}/entry.json`` describes what has the name, and says in which folder beside it that lies, so
that pushing it again replaces all of it at once. There, ``documents`` holds the stream that a client
pushed, or would push of the texts that it sent (:mod:`finetuner.document_stream`). ``texts.jsonl`` holds
its texts and labels in our own form, made once at the push, so that starting a run on 100,000 documents
costs no decoding. Nothing here reads pickle.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from docarray import DocumentArray

from finetuner import lock
from finetuner.data import LabelledTexts, write_jsonl
from finetuner.document_stream import as_documents, read_documents, write_documents
from finetuner.errors import DataError, DataNotFoundError
from finetuner.files import (
    make_folder,
    read_json,
    remove_folder,
    sync_folder,
    sync_tree,
    write_json,
)
from finetuner.names import check_data_name
from finetuner.pairs import Texts, read_data
from finetuner.pairs import read_documents as read_texts

_PADDING_BYTES = 8192
_ENTRY = "entry.json"
_DOCUMENTS = "documents"
_TEXTS = "texts.jsonl"


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
        with self._upload(name) as upload:
            with (upload / _DOCUMENTS).open("wb") as file:
                shutil.copyfileobj(stream, file)
            documents = DocumentArray(read_documents(upload / _DOCUMENTS))
            _write_texts(documents, upload)
            return self._publish(name, upload, n_documents=len(documents))

    def put_texts(self, name: str, texts: Texts) -> StoredData:
        """Store texts or pairs as the documents that ``DocumentArray.push`` sends of them.

        :param name: The name; what had it is replaced.
        :param texts: Those without ids get some, as documents do.
        :raises DataError: When a text is empty.
        """
        texts = _with_ids(texts) if isinstance(texts, LabelledTexts) else texts
        with self._upload(name) as upload:
            write_documents(as_documents(texts), upload / _DOCUMENTS, n_documents=len(texts))
            write_jsonl(texts, upload / _TEXTS)
            return self._publish(name, upload, n_documents=len(texts))

    @contextlib.contextmanager
    def _upload(self, name: str) -> Iterator[Path]:
        """Make a folder for what shall have a name; it is gone at the end, unless it was published."""
        check_data_name(name)
        make_folder(self._root, parents=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".upload-") as temporary:
            upload = Path(temporary) / secrets.token_hex(8)
            upload.mkdir()
            yield upload

    def _publish(self, name: str, upload: Path, *, n_documents: int) -> StoredData:
        """Let a name stand for an upload that is complete."""
        entry = StoredData(
            name=name,
            n_documents=n_documents,
            size_bytes=(upload / _DOCUMENTS).stat().st_size,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        _pad(upload / _DOCUMENTS)
        sync_tree(upload)
        with self._changing():
            self._put(entry, upload)
        return entry

    def _put(self, entry: StoredData, upload: Path) -> None:
        """Let a name stand for an upload, and remove what it stood for; the lock is held."""
        folder = make_folder(self._folder(entry.name))
        upload.rename(folder / upload.name)
        sync_folder(folder)
        write_json(folder / _ENTRY, {**asdict(entry), "folder": upload.name})
        for path in folder.iterdir():
            if path.name in (upload.name, _ENTRY):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _changing(self) -> AbstractContextManager[None]:
        return lock.wait_for(self._root / ".lock", doing="changing stored data")

    def _read(self, name: str) -> tuple[StoredData, Path]:
        """Return an entry and where it lies."""
        content = read_json(self._folder(name) / _ENTRY)
        # Version 0.1.0 had no folder of its own for it.
        folder = self._folder(name) / content.pop("folder", "")
        return StoredData(**content), folder

    def get(self, name: str) -> StoredData:
        """Return an entry.

        :raises DataNotFoundError: When nothing has the name.
        """
        return self._find(name)[0]

    def _find(self, name: str) -> tuple[StoredData, Path]:
        try:
            return self._read(name)
        except FileNotFoundError as exc:
            known = ", ".join(entry.name for entry in self.list()) or "none"
            raise DataNotFoundError(
                f"no stored data `{name}`; stored: {known}. Store a CSV with `finetuner data push {name} "
                f"FILE.csv`, or a DocumentArray with `.push('{name}')` after `eval \"$(finetuner env)\"`"
            ) from exc

    def list(self) -> list[StoredData]:
        """Return all entries by name; none when nothing was stored."""
        if not self._root.is_dir():
            return []
        names = [unquote(f.name) for f in self._root.iterdir() if (f / _ENTRY).is_file()]
        entries = []
        for name in sorted(names):
            with contextlib.suppress(FileNotFoundError):  # deleted since the folder was listed
                entries.append(self._read(name)[0])
        return entries

    def delete(self, name: str) -> StoredData:
        """Remove an entry, and return what it was.

        :raises DataNotFoundError: When nothing has the name.
        """
        self.get(name)
        with self._changing():
            entry = self.get(name)  # perhaps no longer
            remove_folder(self._folder(name), by_way_of=self._root)
        return entry

    def documents_path(self, name: str) -> Path:
        """Return the file that ``DocumentArray.pull`` reads.

        :raises DataNotFoundError: When nothing has the name.
        """
        return self._find(name)[1] / _DOCUMENTS

    def texts(self, name: str) -> Texts:
        """Return the texts and labels, or the pairs, of stored documents.

        :raises DataNotFoundError: When nothing has the name.
        :raises DataError: When a document has no text.
        """
        return read_data(self.texts_path(name))

    def texts_path(self, name: str) -> Path:
        """Return the file with the texts, which is another after each push; refused as :meth:`texts`."""
        folder = self._find(name)[1]
        path = folder / _TEXTS
        if not path.exists():
            reason = read_json(folder / "no-texts.json")
            raise DataError(f"the stored data `{name}` cannot be used as texts: {reason}")
        return path


def _pad(path: Path) -> None:
    """Make a stream's length depend on its content, by bytes that docarray does not read.

    ``DocumentArray.pull`` takes its cached copy of a name whenever the lengths agree, so data pushed
    again with other labels would go unseen.
    """
    with path.open("r+b") as file:
        checksum = zlib.crc32(file.read())
        file.write(bytes(1 + checksum % _PADDING_BYTES))


def _with_ids(data: LabelledTexts) -> LabelledTexts:
    """Give an id to each text without one, and refuse texts that are none."""
    for number, text in enumerate(data.texts, start=1):
        if not text.strip():
            raise DataError(
                f"row {number}, a header not counted, holds an empty text; leave it out"
            )
    return replace(data, ids=[id_ or secrets.token_hex(16) for id_ in data.ids])


def _write_texts(documents: DocumentArray, folder: Path) -> None:
    """Write the texts, or, for documents that are no texts, the reason why not."""
    try:
        write_jsonl(read_texts(documents), folder / _TEXTS)
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

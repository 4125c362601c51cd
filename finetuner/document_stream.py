"""The stream that ``DocumentArray.push`` sends, from anyone: version byte, count, then each document as
length and gzipped protobuf.

Read are the fields that texts, labels and pairs are made of, one document at a time and within bounds.
Tensors, blobs and what else a document may hold are never built: a shape of a few bytes can stand for
any amount of memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from docarray import Document
from docarray.proto.docarray_pb2 import DocumentProto
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from finetuner.data import LABEL_TAG, LabelledTexts
from finetuner.errors import DataError, TooLargeError
from finetuner.message_shape import ShapeLimits, check_shape
from finetuner.pairs import SCORE_TAG, Texts

_VERSION = 1
_HEADER = struct.Struct(">BQ")
_LENGTH = struct.Struct(">I")
# What a text, its label and a pair's parts lie in.
_KEPT = frozenset({"id", "text", "tags", "chunks"})
_KEPT_OF_CHUNKS = _KEPT - {"chunks"}
_UNREADABLE = (DecodeError, json_format.Error, zlib.error, ValueError, TypeError, RecursionError)


@dataclass(frozen=True)
class StreamLimits:
    """What a stream may hold.

    :param n_texts: Documents and their chunks.
    :param document_bytes: Of one document, unpacked.
    :param kept_bytes: Of all that is kept in memory: texts, ids and tags.
    :param ratio: Of the unpacked size of all documents so far to what they took in the stream.
    :param free_bytes: So much may be unpacked at any ratio.
    :param shape: What one document may hold.
    """

    n_texts: int = 2_000_000
    document_bytes: int = 64 * 2**20
    kept_bytes: int = 2 * 2**30
    ratio: int = 100
    free_bytes: int = 64 * 2**20
    shape: ShapeLimits = field(default_factory=ShapeLimits)


@dataclass
class _Used:
    """What has been read so far."""

    limits: StreamLimits
    packed_bytes: int = 0
    unpacked_bytes: int = 0
    kept_bytes: int = 0
    n_texts: int = 0

    def check(self) -> None:
        """:raises TooLargeError: When it is more than allowed."""
        limits = self.limits
        unpacked_limit = limits.free_bytes + limits.ratio * self.packed_bytes
        rows = (
            (self.n_texts, limits.n_texts, "documents and chunks"),
            (self.kept_bytes, limits.kept_bytes, "bytes of texts and tags"),
            (self.unpacked_bytes, unpacked_limit, "bytes unpacked, by what they took packed"),
        )
        for found, allowed, unit in rows:
            if found > allowed:
                raise TooLargeError(
                    f"the upload holds {found} {unit} or more, {allowed} are allowed; push it in parts"
                )


def read_documents(path: Path, *, limits: StreamLimits | None = None) -> Iterator[Document]:
    """Yield the documents of a stream as docarray writes it with ``protobuf`` and ``gzip``.

    :param path: The file.
    :param limits: What it may hold; the usual ones when None.
    :returns: Documents with id, text and tags, and with chunks that have the same.
    :raises DataError: When it is not such a stream, above all when it is a pickle.
    :raises TooLargeError: When it holds more than it may.
    """
    used = _Used(limits or StreamLimits())
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[0] != _VERSION:
            raise DataError(
                "the upload is not a DocumentArray as `push` sends it (a protobuf stream); "
                "pickle and other formats are refused"
            )
        for number in range(1, _HEADER.unpack(header)[1] + 1):
            yield _read_document(file, number, used)
        if file.read(1):
            raise DataError("the upload goes on behind its last document")


def write_documents(documents: Iterable[Document], path: Path, *, n_documents: int) -> None:
    """Write documents as ``push`` sends them, one at a time.

    :param documents: So many as ``n_documents`` says, which stands before them.
    :param path: The file.
    """
    with path.open("wb") as file:
        file.write(_HEADER.pack(_VERSION, n_documents))
        for document in documents:
            body = document.to_bytes(protocol="protobuf", compress="gzip")
            file.write(_LENGTH.pack(len(body)) + body)


def as_documents(data: Texts) -> Iterator[Document]:
    """Yield the documents that :func:`finetuner.pairs.read_documents` reads as these texts or pairs."""
    if isinstance(data, LabelledTexts):
        for text, label, id_ in zip(data.texts, data.labels, data.ids, strict=True):
            tags = {} if label is None else {LABEL_TAG: label}
            yield Document(text=text, tags=tags, **({} if id_ is None else {"id": id_}))
        return
    for row in data.rows():
        score = row.pop("score", None)
        tags = {} if score is None else {SCORE_TAG: score}
        yield Document(chunks=[Document(text=text) for text in row.values()], tags=tags)


def _read_document(file: IO[bytes], number: int, used: _Used) -> Document:
    body = _read_body(file, number, used.limits)
    try:
        content = _gunzip(body, used.limits.document_bytes)
        used.packed_bytes += len(body)
        used.unpacked_bytes += len(content)
        used.check()
        check_shape(content, DocumentProto.DESCRIPTOR, limits=used.limits.shape)
        message = DocumentProto.FromString(content)
        _strip(message)
        used.kept_bytes += message.ByteSize()
        used.n_texts += 1 + len(message.chunks)
        used.check()
        return Document.from_protobuf(message)
    except TooLargeError as exc:
        raise TooLargeError(f"document {number} of the upload: {exc}") from exc
    except _UNREADABLE as exc:
        raise DataError(f"document {number} of the upload is no gzipped protobuf: {exc}") from exc


def _read_body(file: IO[bytes], number: int, limits: StreamLimits) -> bytes:
    length = file.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        raise DataError(f"the upload ends within document {number}")
    size_bytes = _LENGTH.unpack(length)[0]
    if size_bytes > limits.document_bytes:
        raise TooLargeError(
            f"document {number} of the upload takes {size_bytes} bytes, {limits.document_bytes} are allowed"
        )
    body = file.read(size_bytes)
    if not body or len(body) < size_bytes:
        raise DataError(f"the upload ends within document {number}")
    return body


def _gunzip(body: bytes, limit_bytes: int) -> bytes:
    """Decompress with a bound: a kilobyte of gzip can stand for a gigabyte."""
    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    content = decompressor.decompress(body, limit_bytes + 1)
    if len(content) > limit_bytes:
        raise TooLargeError(f"it is larger than {limit_bytes} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("its gzip is cut short, or goes on behind its end")
    return content


def _strip(message: DocumentProto) -> None:
    """Leave the fields that are needed; a document nobody gives a text keeps its id."""
    _keep(message, _KEPT)
    for chunk in message.chunks:
        _keep(chunk, _KEPT_OF_CHUNKS)


def _keep(message: DocumentProto, names: frozenset[str]) -> None:
    for descriptor, _ in message.ListFields():
        if descriptor.name not in names:
            message.ClearField(descriptor.name)

"""What travels between gateway and executors: JSON, or many texts and vectors, packed in one document.

A document a text costs protobuf 30 µs on each side; packed, a thousand texts cost a millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from docarray import Document, DocumentArray
from numpy.typing import NDArray

from finetuner.data import check_text
from finetuner.errors import ConfigError, DataError, MalformedRequestError

JSON = "application/json"
# The endpoint that every executor of Jina has and that does nothing.
DRY_RUN = "_jina_dry_run_"
PACKED_TEXTS = "application/vnd.finetuner.texts+json"


def json_document(value: Any) -> DocumentArray:
    """Pack a JSON value into one document's text.

    :raises MalformedRequestError: When it nests too deep; more can be read than written.
    """
    try:
        text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    except orjson.JSONEncodeError as exc:
        raise MalformedRequestError(f"the value cannot be written as JSON: {exc}") from exc
    return DocumentArray([Document(text=text, mime_type=JSON)])


def read_json_document(docs: DocumentArray) -> Any:
    """Return what :func:`json_document` packed.

    :raises MalformedRequestError: When the text is no JSON.
    """
    try:
        return orjson.loads(docs[0].text)
    except orjson.JSONDecodeError as exc:
        raise MalformedRequestError(f"the document's text is no JSON: {exc}") from exc


def holds(docs: DocumentArray, mime_type: str) -> bool:
    """Whether the documents are one packed document of that kind."""
    return len(docs) == 1 and docs[0].mime_type == mime_type


def pack_request(texts: Sequence[Any], parameters: Mapping[str, Any]) -> bytes:
    """Pack texts, or lists of token ids, and what is asked of them.

    :param texts: Any number.
    :param parameters: Of the request; as JSON they cost a tenth of what protobuf's structs do.
    :raises MalformedRequestError: When they nest too deep.
    """
    try:
        return orjson.dumps({"texts": texts, "parameters": parameters})
    except orjson.JSONEncodeError as exc:
        raise MalformedRequestError(f"the request cannot be written as JSON: {exc}") from exc


def request_document(request: bytes) -> DocumentArray:
    """Put what :func:`pack_request` packed into a document, for the way through Jina."""
    return DocumentArray([Document(blob=request, mime_type=PACKED_TEXTS)])


def read_request(
    docs: DocumentArray, parameters: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the texts of documents, packed or one each, and what is asked of them.

    :param docs: From the gateway or from any client.
    :param parameters: Of Jina's request.
    :raises DataError: When a document has no text.
    :raises MalformedRequestError: When the packed document does not hold what :func:`pack_request` writes.
    """
    if holds(docs, PACKED_TEXTS):
        return unpack_request(docs[0].blob)
    return read_texts(docs), own_parameters(parameters)


def read_texts(docs: DocumentArray) -> list[str]:
    """Return the texts of documents, one each.

    :raises DataError: When a document has no text, or half a surrogate pair.
    """
    for number, document in enumerate(docs, start=1):
        if not document.text:  # on the wire an empty text and none at all are the same
            raise DataError(f"document {number} (`{document.id}`) has no text")
    return [check_text(doc.text, f"document {i}") for i, doc in enumerate(docs, start=1)]


def unpack_request(request: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Return the texts and the parameters that :func:`pack_request` packed.

    :raises MalformedRequestError: When that is something else: any gRPC client may send it.
    """
    try:
        packed = orjson.loads(request)
    except orjson.JSONDecodeError as exc:
        raise MalformedRequestError(f"the packed texts are no JSON: {exc}") from exc
    kinds = {"texts": list, "parameters": dict}
    if not isinstance(packed, dict) or {k: type(v) for k, v in packed.items()} != kinds:
        raise MalformedRequestError(
            "packed texts must be a list `texts` and an object `parameters`"
        )
    return packed["texts"], packed["parameters"]


def pack_vectors(vectors: NDArray[Any], tags: Mapping[str, Any]) -> bytes:
    """Pack vectors, *Shape:* ``(n_texts, width)`` of any dtype, and what is to be said of them."""
    head = {"tags": tags, "shape": vectors.shape, "type": vectors.dtype.str}
    # JSON as it is written here has no line break inside.
    return orjson.dumps(head) + b"\n" + vectors.tobytes()


def unpack_vectors(answer: bytes) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return what :func:`pack_vectors` packed; the vectors cannot be written to."""
    head, _, body = answer.partition(b"\n")
    said = orjson.loads(head)
    return np.frombuffer(body, dtype=said["type"]).reshape(said["shape"]), said["tags"]


def own_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's parameters without those that Jina adds on the way (``__results__``)."""
    return {name: value for name, value in parameters.items() if not name.startswith("__")}


# What Jina itself passes to an executor's constructor.
_JINA_ARGUMENTS = {"metas", "requests", "runtime_args", "workspace", "dynamic_batching"}


def unknown_arguments(executor: object, kwargs: Mapping[str, Any]) -> None:
    """Refuse constructor arguments that neither an executor nor Jina knows; Jina only logs them.

    :raises ConfigError: When there is one.
    """
    unknown = set(kwargs) - _JINA_ARGUMENTS
    if unknown:
        name = type(executor).__name__
        raise ConfigError(f"{name} does not know the argument `{', '.join(sorted(unknown))}`")

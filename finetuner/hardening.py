"""docarray made safe for what strangers send; called once by each part of the service.

A request of Jina's protocol may carry its documents as bytes, which docarray reads as a pickle: whoever
reaches a port could run code. And an array in a document may state a shape without any content, for which
docarray takes as much memory as the shape says.
"""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any, NoReturn

from finetuner.errors import MalformedRequestError, TooLargeError

# Where docarray imports pickle.
_READERS = ("docarray.array.mixins.io.binary", "docarray.document.mixins.porting")
_ARRAYS = "docarray.proto.io.ndarray"
_MESSAGES = "docarray.proto.io"
_MAX_SPARSE_SIZE = 2**27


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise MalformedRequestError(
        "the documents are a pickle, which is never read: send them as protobuf, as `jina.Client` and "
        "`DocumentArray.push` do"
    )


def harden_docarray() -> None:
    """Let docarray neither read pickles nor build arrays without content, in this whole process."""
    for name in _READERS:
        reader: Any = importlib.import_module(name)
        # What is written is our own.
        writers = {"dump": reader.pickle.dump, "dumps": reader.pickle.dumps}
        reader.pickle = SimpleNamespace(load=_refuse, loads=_refuse, **writers)
    read = importlib.import_module(_ARRAYS).read_ndarray

    def read_checked(message: Any) -> Any:
        _check_array(message)
        return read(message)

    messages: Any = importlib.import_module(_MESSAGES)
    if not hasattr(messages.read_ndarray, "is_checked"):
        read_checked.is_checked = True  # type: ignore[attr-defined]  # functions may have one
        messages.read_ndarray = read_checked


def _check_array(message: Any) -> None:
    parts = (message.dense, message.sparse.indices, message.sparse.values)
    stated = [math.prod(part.shape) for part in parts if part.shape and not part.buffer]
    largest = max(stated, default=0)
    if largest:
        raise TooLargeError(
            f"an array in a document states {largest} numbers and holds none; send texts alone"
        )
    if math.prod(message.sparse.shape) > _MAX_SPARSE_SIZE and len(message.sparse.shape):
        raise TooLargeError(
            f"a sparse array in a document states more than {_MAX_SPARSE_SIZE} numbers; send texts alone"
        )

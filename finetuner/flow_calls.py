"""Requests to executors and their errors, as the gateway sees them; imports jina."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from docarray import DocumentArray
from google.protobuf.message import DecodeError
from jina.proto.jina_pb2 import DataRequestProto
from jina.types.request.data import DataRequest

from finetuner.errors import (
    DataError,
    EndpointNotFoundError,
    FinetunerError,
    FinetunerServerError,
    MalformedRequestError,
    error_class,
)
from finetuner.message_shape import ShapeLimits, check_shape
from finetuner.schema import nearest
from finetuner.wire import DRY_RUN

# Of one gRPC request; Jina's client sends 100 documents in each.
MAX_MESSAGE_BYTES = 64 * 2**20
# Some 70,000 labelled documents.
_SHAPE = ShapeLimits(n_values=1_000_000, free_bytes=2**18)
_ERROR = 1  # StatusProto.ERROR
# The HTTP paths, for gRPC clients: `/runs/NAME/status` is `/status` with the parameter run_name.
_RUN_PATH = re.compile(
    r"/runs/(?P<run_name>[^/]+)(?P<view>/(status|logs|metrics|epochs|steps|examples|map))?"
)
_INTERNAL = "internal error; the server's log has it"
_UNREADABLE = (
    "the request cannot be read: parameters and tags may not hold NaN or infinity, nor nest deeper "
    "than 30 levels"
)


def request_for(
    endpoint: str, docs: DocumentArray | None, parameters: dict[str, Any]
) -> DataRequest:
    """Return a request to an endpoint.

    :raises MalformedRequestError: When the parameters nest too deep.
    """
    request = DataRequest()
    request.data.docs = DocumentArray() if docs is None else docs
    request.header.exec_endpoint = endpoint
    try:
        request.parameters = parameters
    except RecursionError as exc:
        raise MalformedRequestError(_UNREADABLE) from exc
    return request


async def check_size(request: DataRequest) -> None:
    """Refuse a request with more in it than an executor could hold.

    :param request: From a client, not read yet.
    :raises TooLargeError: When it holds too many documents.
    :raises MalformedRequestError: When the bytes are no request.
    """
    if not request.buffer or len(request.buffer) <= _SHAPE.free_bytes:
        return
    try:
        # In a thread: to look takes microseconds a value, and all requests share this loop.
        await asyncio.to_thread(
            check_shape, request.buffer, DataRequestProto.DESCRIPTOR, limits=_SHAPE
        )
    except DataError as exc:
        raise MalformedRequestError(_UNREADABLE) from exc


def admit(request: DataRequest, endpoints: set[str]) -> None:
    """Let a request pass to the executors, with an HTTP path turned into endpoint and parameter.

    :param request: From a client.
    :param endpoints: What the Flow's executors serve.
    :raises EndpointNotFoundError: When none serves the endpoint; Jina would echo the request.
    :raises MalformedRequestError: When the bytes are no request, or the parameters hold NaN or
        infinity, or nest too deep.
    """
    try:
        # Jina parses the bytes here, and protobuf refuses NaN only when it is read.
        endpoint, parameters = request.header.exec_endpoint, request.parameters
    except (DecodeError, ValueError, RecursionError) as exc:
        raise MalformedRequestError(_UNREADABLE) from exc
    if endpoint not in endpoints and (match := _RUN_PATH.fullmatch(endpoint)):
        endpoint = match["view"] or "/run"
        request.parameters = {**parameters, "run_name": match["run_name"]}
        request.header.exec_endpoint = endpoint
    check_endpoint(endpoint, endpoints)


def check_endpoint(endpoint: str, endpoints: set[str]) -> None:
    """Refuse an endpoint that no executor serves.

    :raises EndpointNotFoundError: With the nearest of those that are.
    """
    if endpoint not in endpoints and endpoint != DRY_RUN:
        known = sorted(name for name in endpoints if name.startswith("/"))
        raise EndpointNotFoundError(
            f"unknown endpoint `{endpoint}`{nearest(endpoint, known)} this Flow serves: "
            f"{', '.join(known)}"
        )


def refusal(request: DataRequest, error: FinetunerError) -> DataRequest:
    """Return a response that says why a request was not passed on."""
    response = DataRequest()
    # The header is there even when the parameters behind it could not be read.
    response.header.request_id = request.header.request_id
    response.header.exec_endpoint = request.header.exec_endpoint
    response.add_exception(error)
    return clean(response)


def error_of(response: DataRequest) -> FinetunerError | None:
    """Return the error that an executor raised, or None.

    One of our own tree comes back as itself; anything else becomes a FinetunerServerError without
    what it said, which could hold paths of the server.
    """
    status = response.header.status
    if status.code != _ERROR:
        return None
    name = status.exception.name
    if error_class(name) is None and _is_unreadable(status.exception):
        return MalformedRequestError(_UNREADABLE)
    return named_error(name, status.exception.args[0] if status.exception.args else name)


def named_error(name: str, sentence: str) -> FinetunerError:
    """Return an error that an executor raised, as far as it may be told.

    :param name: Of its class; one that is not of our tree may say where the server keeps its files.
    :param sentence: What it said.
    """
    cls = error_class(name)
    if cls is None:
        return FinetunerServerError("The executor failed", _INTERNAL, 500)
    if issubclass(cls, FinetunerServerError):
        return cls(sentence, _INTERNAL, 500)
    return cls(sentence)


def _is_unreadable(exception: Any) -> bool:
    """Whether an executor could not read the documents, which Jina does before it calls ours."""
    name, args = exception.name, exception.args
    return name == "DecodeError" or (
        name == "ValueError" and bool(args) and args[0].startswith("Fail to serialize")
    )


def clean(response: DataRequest) -> DataRequest:
    """Take traces and paths out of an error response."""
    error = error_of(response)
    if error is not None:
        status = response.header.status
        status.description = f"{type(error).__name__}: {error}"
        status.exception.name = type(error).__name__
        del status.exception.stacks[:]
        del status.exception.args[:]
        status.exception.args.append(str(error))
    return response

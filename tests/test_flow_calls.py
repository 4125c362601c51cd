"""Requests that cannot be read, as the bytes that a client sends and as an executor's answer."""

import pytest
from docarray import Document, DocumentArray
from jina.types.request.data import DataRequest

from finetuner.errors import FinetunerServerError, MalformedRequestError
from finetuner.flow_calls import admit, clean, error_of, refusal, request_for
from finetuner.wire import json_document

NAN = float("nan")


def nested(n_levels):
    value = 1
    for _ in range(n_levels):
        value = {"a": value}
    return value


def sent(parameters, **document):
    """Return a request as it comes from the network: bytes that nobody has read."""
    request = request_for("/status", DocumentArray([Document(**document)]), parameters)
    request.header.request_id = "its-id"
    return DataRequest(request.proto.SerializePartialToString())


@pytest.mark.parametrize(
    ("request_", "request_id"),
    [
        *((sent(nested(n)), "its-id") for n in (34, 40, 100, 200)),
        (sent({"x": NAN}), "its-id"),
        (sent({"x": [{"y": -float("inf")}]}), "its-id"),
        (DataRequest(b"\xff\xfenonsense"), ""),
    ],
    ids=["34 levels", "40 levels", "100 levels", "200 levels", "NaN", "infinity", "no request"],
)
def test_unreadable_request_is_refused_with_its_id(request_, request_id):
    with pytest.raises(MalformedRequestError, match="may not hold NaN .* than 30 levels") as caught:
        admit(request_, {"/status"})
    response = refusal(request_, caught.value)
    assert response.header.request_id == request_id
    assert isinstance(error_of(response), MalformedRequestError)


def test_32_levels_are_admitted():
    request = sent(nested(32))
    admit(request, {"/status"})
    assert request.parameters == nested(32)


@pytest.mark.parametrize(
    "document",
    [{"tags": {"x": NAN}}, {"tags": {"x": [float("inf")]}}, {"tags": nested(33)}],
    ids=["NaN", "infinity", "33 levels"],
)
def test_documents_that_an_executor_cannot_read(document):
    request = sent({}, text="a", **document)
    with pytest.raises(Exception, match="Fail to serialize|Error parsing") as caught:
        _ = request.docs  # what Jina does in the executor
    response = DataRequest()
    response.add_exception(caught.value)

    assert isinstance(error_of(response), MalformedRequestError)
    assert clean(response).header.status.exception.name == "MalformedRequestError"


def test_other_errors_of_an_executor_stay_unforeseen():
    for error in (ValueError("x"), ValueError(), KeyError("Fail to serialize")):
        response = DataRequest()
        response.add_exception(error)
        assert isinstance(error_of(response), FinetunerServerError)


@pytest.mark.parametrize("n_levels", [900, 5000])
def test_depth_beyond_what_can_be_packed(n_levels):
    with pytest.raises(MalformedRequestError, match="cannot be read"):
        request_for("/encode", None, nested(n_levels))
    with pytest.raises(MalformedRequestError, match="cannot be written as JSON"):
        json_document(nested(n_levels))

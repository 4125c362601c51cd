"""Malformed requests: each gets a clear refusal, and the server still serves after them."""

import re
from pathlib import Path

import grpc
import numpy as np
import pytest
from docarray import Document, DocumentArray
from jina import Client
from jina.excepts import BadServer
from jina.types.request.data import DataRequest

from finetuner.wire import JSON, PACKED_TEXTS

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]

ROWS = [["a", 1], ["b", 1], ["c", 2], ["d", 2]]


def fit(**changes):
    body = {"model": "tiny", "train_data": ROWS, "run_name": "never", "device": "cpu", **changes}
    return "POST", "/fit", {"json": body}


def encode(**changes):
    body = {"data": [{"text": "a"}], "parameters": {"artifact": "finished"}, **changes}
    return "POST", "/encode", {"json": body}


def upload(name, content):
    files = {"file": ("DocumentArray", content)}
    return "POST", "/v2/rpc/artifact.upload", {"files": files, "data": {"name": name}}


def evaluation(**options):
    return [{"name": "EvaluationCallback", "options": options}]


FORM = {"content-type": "multipart/form-data; boundary=zz"}
NAN = b'{"model": "tiny", "train_data": [["a", NaN]]}'
SURROGATE = b'{"data": [{"text": "\\ud800"}]}'
PICKLE = DocumentArray([Document(text="a")]).to_bytes(protocol="pickle-array")
STREAM = DocumentArray([Document(text="a" * 99)]).to_bytes(protocol="protobuf", compress="gzip")


def nested(n_levels):
    value = 1
    for _ in range(n_levels):
        value = {"a": value}
    return value


HTTP = {
    "no JSON": (("POST", "/fit", {"data": b"hello"}), 400, "the body is no JSON in UTF-8"),
    "an array": (("POST", "/fit", {"json": []}), 400, "must be a JSON object"),
    "nested too deep": (("POST", "/fit", {"data": b"[" * 5000}), 400, "depth limit exceeded"),
    "no body": (("POST", "/fit", {}), 400, "no JSON in UTF-8"),
    "fit nested 900 deep": (fit(loss_options=nested(900)), 400, "cannot be written as JSON"),
    "parameters nested 50 deep": (encode(parameters=nested(50)), 422, "unknown field `a`"),
    "parameters nested 900 deep": (
        encode(parameters=nested(900)),
        400,
        "cannot be written as JSON",
    ),
    "invalid UTF-8": (
        ("POST", "/encode", {"data": b'{"data": ["\xff"]}'}),
        400,
        "no JSON in UTF-8",
    ),
    "lone surrogate": (("POST", "/encode", {"data": SURROGATE}), 400, "no JSON in UTF-8"),
    "NaN": (("POST", "/fit", {"data": NAN}), 400, "no JSON in UTF-8"),
    "50 MB": (("POST", "/fit", {"data": b" " * 50_000_000}), 413, "longer than 33554432 bytes"),
    "unknown endpoint": (
        ("POST", "/encdoe", {}),
        404,
        "unknown endpoint `/encdoe`; did you mean `/encode",
    ),
    "wrong method": (("PUT", "/fit", {}), 405, "Method Not Allowed"),
    "GET of encode": (("GET", "/encode", {}), 405, "Method Not Allowed"),
    "run without name": (("DELETE", "/runs/", {}), 404, "unknown endpoint `/runs/`"),
    "unknown field": (fit(epoch=1), 422, "unknown field `epoch` in fit; did you mean `epochs`"),
    "unknown query": (
        ("GET", "/runs?pgae=2", {}),
        422,
        "unknown query field `pgae`; did you mean `page`",
    ),
    "page no number": (("GET", "/runs?page=two", {}), 422, "page and size must be whole numbers"),
    "page of 30 digits": (("GET", f"/runs?page={'9' * 30}", {}), 422, "page must be at least 1"),
    "page zero": (("GET", "/runs?page=0", {}), 422, "page must be at least 1"),
    "epochs as word": (fit(epochs="three"), 422, "epochs must be a whole number, got a string"),
    "epochs true": (fit(epochs=True), 422, "epochs must be a whole number, got a boolean"),
    "epochs negative": (fit(epochs=-1), 422, "epochs must be from 0 to 1000, got -1"),
    "seed negative": (fit(seed=-1), 422, "seed must be from 0"),
    "seed of 100 bits": (fit(seed=2**100), 422, "seed must be a whole number of 64 bits"),
    "batch_size 1": (fit(batch_size=1), 422, "batch_size must be from 4"),
    "learning_rate 0": (fit(learning_rate=0), 422, "learning_rate must lie between 0 and 1"),
    "learning_rate 2": (fit(learning_rate=2), 422, "learning_rate must lie between 0 and 1"),
    "one item a class": (fit(num_items_per_class=1), 422, "num_items_per_class must be at least 2"),
    "unknown device": (fit(device="tpu"), 422, "device must be one of cpu, cuda; got `tpu`"),
    "unknown model": (fit(model="tyni"), 404, "no model `tyni`"),
    "model path trick": (fit(model="../../../etc"), 404, "no model"),
    "model of no user": (fit(model="~nosuchuser/x"), 404, "no model `~nosuchuser/x`"),
    "model too long": (fit(model="x" * 5000), 404, "no model `x"),
    "unknown miner": (fit(miner="TripletMarginMinr"), 422, "did you mean `TripletMarginMiner`"),
    "unknown optimizer": (fit(optimizer="Adm"), 422, "unknown optimizer `Adm`; .* `Adam`"),
    "unknown scheduler": (fit(scheduler="liner"), 422, "unknown scheduler `liner`; .* `linear`"),
    "unknown loss": (fit(loss="SupConLos"), 422, "did you mean `SupConLoss`"),
    "abstract loss": (fit(loss="BaseMetricLossFunction"), 422, "is a base class of others"),
    "loss option": (fit(loss_options={"margins": 1}), 422, "did you mean `margin`"),
    "loss option value": (fit(loss_options={"margin": "x"}), 422, "cannot make a step"),
    "model option": (fit(model_options={"pooler": "sum"}), 422, "must be one of mean, cls, max"),
    "unknown model option": (fit(model_options={"poolr": "cls"}), 422, "did you mean `pooler`"),
    "near callback": (
        fit(callbacks=[{"name": "EvaluationCalback"}]),
        422,
        "unknown callback `EvaluationCalback`; did you mean `EvaluationCallback`",
    ),
    "callback": (fit(callbacks=[{"name": "Evaluate"}]), 422, "unknown callback `Evaluate`"),
    "callbacks no list": (fit(callbacks={}), 422, "callbacks must be a list, got an object"),
    "callback option": (
        fit(callbacks=evaluation(query_data=ROWS, k=3)),
        422,
        "unknown field `k` in EvaluationCallback",
    ),
    "queries match nothing": (
        fit(callbacks=evaluation(query_data=[["q", 1]], index_data=[["i", 9]])),
        422,
        "none of the 1 evaluation queries",
    ),
    "unknown data": (fit(train_data="none.da"), 404, "no stored data `none.da`"),
    "data path trick": (fit(train_data="../../etc/passwd"), 422, "the data name .* is not allowed"),
    "data a number": (fit(train_data=5), 422, "train_data must be the name .* got int"),
    "data missing": (fit(train_data=None), 422, "train_data must be .* it is missing"),
    "empty data": (fit(train_data=[]), 422, "the training data are empty"),
    "missing label": (
        fit(train_data=[*ROWS, {"text": "e"}]),
        422,
        "1 of 5 training texts have no label",
    ),
    "text a number": (fit(train_data=[*ROWS, [5, 1]]), 422, "row 5: the text must be a string"),
    "one label": (fit(train_data=ROWS[:2]), 422, "found 2 different texts with 1 labels"),
    "no label twice": (
        fit(train_data=ROWS[::2]),
        422,
        "training needs a label with at least two texts",
    ),
    "run name taken": (fit(run_name="finished"), 409, "already has a run `finished`"),
    "run name with path": (fit(run_name="../x"), 422, "the run name .* is not allowed"),
    "run name of passwd": (fit(run_name="../../etc/passwd"), 422, "the run name .* is not allowed"),
    "run name absolute": (fit(run_name="/etc/passwd"), 422, "the run name .* is not allowed"),
    "run name with NUL": (fit(run_name="a\0b"), 422, "the run name .* is not allowed"),
    "unknown run": (("GET", "/runs/none/status", {}), 404, "no run `none`"),
    "encoded path in run": (("GET", "/runs/..%2F..%2Fetc/status", {}), 404, "unknown endpoint"),
    "path in run": (
        ("GET", "/runs/..%2F..%2Fetc%2Fpasswd", {}),
        404,
        "unknown endpoint `/runs/../../etc/passwd`",
    ),
    "NUL in run": (("GET", "/runs/a%00b", {}), 422, "the run name .* is not allowed"),
    "experiment path": (("GET", "/runs/x?experiment_name=../..", {}), 422, "is not allowed"),
    "unknown field in encode": (encode(dat=[]), 422, "unknown field `dat`; did you mean `data`"),
    "parameters no object": (encode(parameters=[]), 422, "parameters must be an object"),
    "no data": (encode(data=None), 422, "data must be a list"),
    "text no string": (encode(data=[{"text": 5}]), 422, r"data\[0\]: the text must be a string"),
    "other field": (encode(data=[{"txt": "a"}]), 422, r"data\[0\] must have the field text"),
    "unknown artifact": (encode(parameters={"artifact": "none"}), 404, "no artifact `none`"),
    "artifact path": (encode(parameters={"artifact": "../../x.zip"}), 404, "no artifact"),
    "no artifact": (encode(parameters={}), 422, "name the artifact"),
    "unknown parameter": (encode(parameters={"artefact": "x"}), 422, "did you mean `artifact`"),
    "batch_size zero": (
        encode(parameters={"artifact": "finished", "batch_size": 0}),
        422,
        "batch_size must be at least 1",
    ),
    "pickle": (upload("x.da", PICKLE), 422, "not a DocumentArray as `push` sends it"),
    "cut stream": (upload("x.da", STREAM[:-9]), 422, "the upload ends within document 1"),
    "upload name": (upload("../x", STREAM), 422, "the data name `../x` is not allowed"),
    "empty upload": (upload("x.da", b""), 422, "not a DocumentArray as `push` sends it"),
    "broken form": (
        ("POST", "/v2/rpc/artifact.upload", {"data": b"xyz", "headers": FORM}),
        400,
        "the body is no form",
    ),
    "broken form of delete": (
        ("POST", "/v2/rpc/artifact.delete", {"data": b"xyz", "headers": FORM}),
        400,
        "the body is no form",
    ),
    "no form": (
        ("POST", "/v2/rpc/artifact.upload", {"data": b"x"}),
        422,
        "needs the fields file and name",
    ),
    "unknown download": (("GET", "/data/none.da", {}), 404, "no stored data `none.da`"),
    "path of download": (
        ("GET", "/data/..%2F..%2Fetc%2Fpasswd", {}),
        422,
        "the data name .* is not allowed",
    ),
    "unknown address": (
        ("GET", "/v2/rpc/artifact.getDownloadUrl?name=none.da", {}),
        404,
        "no stored data `none.da`",
    ),
    "address of nothing": (
        ("GET", "/v2/rpc/artifact.getDownloadUrl", {}),
        422,
        "query.name: field required",
    ),
}

GRPC = {
    "unknown endpoint": ("/encdoe", None, {}, "unknown endpoint `/encdoe`; did you mean `/encode`"),
    "unknown parameter": ("/encode", ["a"], {"x": 1}, "unknown field `x` in parameters"),
    "batch_size a word": (
        "/encode",
        ["a"],
        {"artifact": "finished", "batch_size": "x"},
        "ConfigError: parameters.batch_size must be a whole number, got a string",
    ),
    "batch_size huge": (
        "/encode",
        ["a"],
        {"artifact": "finished", "batch_size": 1e300},
        "ConfigError: parameters.batch_size must be a whole number of 64 bits",
    ),
    "run name with NUL": ("/status", None, {"run_name": "a\0b"}, "ConfigError: the run name"),
    "run name absolute": (
        "/status",
        None,
        {"run_name": "/etc/passwd"},
        "ConfigError: the run name",
    ),
    "run name a number": ("/status", None, {"run_name": 5}, "run_name must be a string"),
    "epochs a word": (
        "/fit",
        ["a"],
        {"model": "tiny", "epochs": "three"},
        "ConfigError: fit.epochs must be a whole number, got a string",
    ),
    "documents and train_data": (
        "/fit",
        ["a"],
        {"model": "tiny", "train_data": ["x"]},
        "as documents or as train_data, not both",
    ),
    "no text": ("/encode", [None], {"artifact": "finished"}, "document 1 .* has no text"),
    "unknown artifact": ("/encode", ["a"], {"artifact": "none"}, "ArtifactNotFound"),
    "artifact a number": ("/encode", ["a"], {"artifact": 5}, "artifact must be a string"),
    "no run name": ("/status", None, {}, "parameters needs the field `run_name`"),
    "path in run name": ("/status", None, {"run_name": "../x"}, "is not allowed"),
    "unknown run": ("/runs/none/logs", None, {}, "no run `none`"),
    "fit without model": ("/fit", ["a"], {}, "fit needs the field `model`"),
    "fit without labels": (
        "/fit",
        ["a", "b"],
        {"model": "tiny"},
        "2 of 2 training texts have no label",
    ),
    "negative epochs": ("/fit", ["a"], {"model": "tiny", "epochs": -3}, "epochs must be from 0"),
    "half an epoch": (
        "/fit",
        ["a"],
        {"model": "tiny", "epochs": 0.5},
        "epochs must be a whole number",
    ),
    "rate is NaN": (
        "/fit",
        ["a"],
        {"model": "tiny", "learning_rate": float("nan")},
        "MalformedRequestError",
    ),
    "parameters nested 50 deep": (
        "/status",
        None,
        {"run_name": "finished", "x": nested(50)},
        "MalformedRequestError: .* deeper than 30 levels",
    ),
}


def assert_tells_nothing(text, server):
    assert "Traceback" not in text
    assert 'File "' not in text
    assert "site-packages" not in text
    assert str(REPOSITORY) not in text
    assert str(server.workspace) not in text


@pytest.mark.parametrize("name", HTTP)
def test_http_refusal(server, finished_run, name):
    import requests

    (method, path, kwargs), status, message = HTTP[name]
    answer = requests.request(method, server.url + path, timeout=60, **kwargs)

    assert answer.status_code == status, answer.text
    assert set(answer.json()) >= {"error", "detail"}
    assert re.search(message, answer.json()["detail"])
    assert_tells_nothing(answer.text, server)


@pytest.mark.parametrize("name", GRPC)
def test_grpc_refusal(server, finished_run, name):
    endpoint, texts, parameters, message = GRPC[name]
    documents = [Document(text=t) if t else Document(tags={"a": 1}) for t in texts or ()]
    with pytest.raises(BadServer, match=message) as caught:
        Client(port=server.grpc_port).post(
            endpoint, DocumentArray(documents) or None, parameters=parameters
        )
    assert_tells_nothing(str(caught.value), server)


@pytest.mark.parametrize(
    ("endpoint", "document", "message"),
    [
        pytest.param(
            "/encode",
            {"blob": b"junk", "mime_type": PACKED_TEXTS},
            "the packed texts are no JSON",
            id="packed junk",
        ),
        pytest.param(
            "/encode",
            {"blob": b'{"a": 1}', "mime_type": PACKED_TEXTS},
            "packed texts must be a list `texts` and an object `parameters`",
            id="packed object",
        ),
        pytest.param(
            "/fit", {"text": "junk", "mime_type": JSON}, "text is no JSON", id="fit of junk"
        ),
        pytest.param(
            "/fit", {"text": "[]", "mime_type": JSON}, "must be a JSON object", id="fit of a list"
        ),
    ],
)
def test_grpc_refuses_documents_of_the_gateways_own_kind(
    server, finished_run, endpoint, document, message
):
    with pytest.raises(BadServer, match=f"MalformedRequestError: .*{message}") as caught:
        Client(port=server.grpc_port).post(
            endpoint,
            DocumentArray([Document(**document)]),
            parameters={"artifact": "finished"} if endpoint == "/encode" else {},
        )
    assert_tells_nothing(str(caught.value), server)


@pytest.mark.parametrize("endpoint", ["/encode", "/fit"])
def test_grpc_refuses_tags_that_are_no_json(server, finished_run, endpoint):
    documents = DocumentArray([Document(text="a", tags={"finetuner_label": float("nan")})])
    parameters = {"artifact": "finished"} if endpoint == "/encode" else {"model": "tiny"}
    with pytest.raises(BadServer, match="MalformedRequestError: .* may not hold NaN") as caught:
        Client(port=server.grpc_port).post(endpoint, documents, parameters=parameters)
    assert_tells_nothing(str(caught.value), server)


def test_grpc_bytes_that_are_no_request(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.stream_stream("/jina.JinaRPC/Call")
        (answer,) = call(iter([b"\xff\xfenonsense"]), timeout=20)
    status = DataRequest(answer).header.status
    assert status.description.startswith("MalformedRequestError: the request cannot be read")
    assert_tells_nothing(str(status), server)


def test_server_serves_after_all_that(server, finished_run):
    _, _, kwargs = encode()
    over_http = server.post("/encode", **kwargs).json()["data"][0]["embedding"]
    documents = Client(port=server.grpc_port).post(
        "/encode", DocumentArray([Document(text="a")]), parameters={"artifact": "finished"}
    )
    np.testing.assert_allclose(documents.embeddings[0], over_http, atol=1e-6)
    assert server.get("/readyz").json() == {"ready": True}
    names = [run["name"] for run in server.get("/runs").json()["items"]]
    assert ("finished" in names, "never" in names) == (True, False)

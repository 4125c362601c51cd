"""The routes that embed, over the service that the EncoderExecutor calls, without a Flow."""

import asyncio
import base64
import math
import re

import numpy as np
import openai
import orjson
import pytest
from docarray import Document, DocumentArray
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetuner.encode_api import EncodeAPI
from finetuner.encode_parameters import EncodeParameters, TextParameters
from finetuner.encoder import load_encoder
from finetuner.errors import OverloadedError
from finetuner.http_api import build_app
from finetuner.openapi import (
    EMBEDDINGS_BODY,
    ENCODE_BODY,
    RANK_BODY,
    SIMILARITY_BODY,
    TOKENIZE_BODY,
)
from finetuner.schema import read
from finetuner.wire import json_document, pack_vectors, read_request

TEXTS = ["the apple", "a much longer text about the river and the bank", "x"]
NAME = "first-run"


@pytest.fixture(scope="module")
def volume(publish_run, tmp_path_factory):
    """A volume with a finished run, which has the prompt `query`."""
    root = tmp_path_factory.mktemp("volume")
    publish_run(root, NAME, prompts={"query": "find the "})
    return root


@pytest.fixture(scope="module")
def encoder(volume):
    return load_encoder(volume / "runs" / "default" / NAME / f"{NAME}.zip")


@pytest.fixture(scope="module")
def service(volume):
    api = EncodeAPI(volume)

    async def call(endpoint, docs, parameters):
        if endpoint == "/models":
            return json_document(await api.models())
        if endpoint == "/tokenize":
            texts, given = read_request(docs, parameters)
            asked = read(TextParameters, given, "parameters")
            return json_document(await api.tokenize(texts, asked))
        texts, given = read_request(docs, parameters)
        encoded = await api.encode(texts, read(EncodeParameters, given, "parameters"))
        return DocumentArray([Document(blob=pack_vectors(encoded.vectors, encoded.tags))])

    yield call
    api.close()


@pytest.fixture(scope="module")
def client(service, volume):
    with TestClient(build_app(service, volume), raise_server_exceptions=False) as client:
        yield client


def ask(client, path, body, status=200):
    answer = client.post(path, content=orjson.dumps(body))
    assert answer.status_code == status, answer.text
    return answer.json()


def embeddings(client, status=200, **body):
    return ask(client, "/v1/embeddings", {"model": NAME, **body}, status)


def test_encode(client, encoder):
    data = [{"text": TEXTS[0], "id": 7}, TEXTS[1], {"text": TEXTS[2]}]
    answer = client.post("/encode", json={"data": data, "parameters": {"artifact": NAME}})
    found = answer.json()
    rows = found.pop("data")
    assert [(row["id"], row["text"]) for row in rows] == list(zip("712", TEXTS, strict=True))
    np.testing.assert_allclose([r["embedding"] for r in rows], encoder.encode(TEXTS), atol=1e-6)
    assert (found["artifact"], found["digest"], found["precision"]) == (
        *(NAME, encoder.digest),
        "fp32",
    )
    assert (found["dim"], found["dtype"], found["backend"]) == (32, "float32", "torch")
    assert found["n_tokens"] == sum(map(len, encoder.tokenizer.tokenize(TEXTS)))
    parts = [part.split(";dur=") for part in answer.headers["Server-Timing"].split(", ")]
    assert [name for name, _ in parts] == ["tokenize", "queue", "inference"]
    assert all(float(duration) >= 0 for _, duration in parts)


@pytest.mark.parametrize(
    ("dtype", "scale", "width"), [("float16", 1, 32), ("int8", None, 32), ("binary", None, 4)]
)
def test_encode_in_fewer_bits(client, encoder, dtype, scale, width):
    body = {"data": ["x"], "parameters": {"artifact": NAME, "dtype": dtype}}
    found = ask(client, "/encode", body)
    vector = found["data"][0]["embedding"]
    assert (len(vector), found["dim"], found["dtype"]) == (width, 32, dtype)
    if scale:
        np.testing.assert_allclose(vector, encoder.encode(["x"])[0], atol=1e-3)
    else:
        assert all(isinstance(x, int) and -128 <= x <= 255 for x in vector)


def test_openai_in_its_four_forms(client, encoder):
    ids = encoder.tokenizer.tokenize(TEXTS)
    expected = encoder.encode(TEXTS)
    found = embeddings(client, input=TEXTS)
    assert (found["object"], found["model"]) == ("list", NAME)
    assert [(row["object"], row["index"]) for row in found["data"]] == [
        ("embedding", i) for i in range(3)
    ]
    n_tokens = sum(map(len, ids))
    assert found["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    assert (found["digest"], found["dim"]) == (encoder.digest, 32)
    for input_, rows in (
        (TEXTS, expected),
        (TEXTS[0], expected[:1]),
        (ids, expected),
        (ids[1], expected[1:2]),
    ):
        vectors = [row["embedding"] for row in embeddings(client, input=input_)["data"]]
        np.testing.assert_allclose(vectors, rows, atol=1e-6)


def test_openai_base64(client, encoder):
    found = embeddings(client, input=TEXTS, encoding_format="base64")
    for row, vector in zip(found["data"], encoder.encode(TEXTS), strict=True):
        decoded = np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4")
        np.testing.assert_allclose(decoded, vector, atol=1e-6)
    binary = embeddings(client, input="x", encoding_format="base64", dtype="binary")
    assert len(base64.b64decode(binary["data"][0]["embedding"])) == 4


def test_openai_dimensions_are_scaled_again(client, encoder):
    (row,) = embeddings(client, input="x", dimensions=8)["data"]
    cut = encoder.encode(["x"])[0, :8]
    length = math.sqrt(sum(float(x) ** 2 for x in cut))
    np.testing.assert_allclose(row["embedding"], [x / length for x in cut], atol=1e-6)


def test_openai_own_extensions(client, encoder):
    (row,) = embeddings(client, input="apple", prompt_name="query", user="me")["data"]
    np.testing.assert_allclose(row["embedding"], encoder.encode(["find the apple"])[0], atol=1e-6)
    assert embeddings(client, 409, input="x", digest="0")["error"]["code"] == "DigestMismatchError"


@pytest.mark.parametrize(
    ("body", "status", "kind", "code", "message"),
    [
        ({"input": "x", "model": "nope"}, 404, "not_found_error", "ArtifactNotFound", "`nope`"),
        ({"input": "x", "model": None}, 422, "invalid_request_error", "ConfigError", "model must"),
        ({"input": []}, 422, "invalid_request_error", "DataError", "input must be a string"),
        ({"input": ""}, 422, "invalid_request_error", "DataError", "not empty"),
        ({"input": ["a", ""]}, 422, "invalid_request_error", "DataError", r"input\[1\]"),
        ({"input": [1.5]}, 422, "invalid_request_error", "DataError", r"input\[0\]"),
        ({"input": [True]}, 422, "invalid_request_error", "DataError", r"input\[0\]"),
        ({"input": ["a", [1]]}, 422, "invalid_request_error", "DataError", "text 2"),
        ({"input": [[10**9]]}, 422, "invalid_request_error", "DataError", "token id"),
        (
            {"input": "x", "encoding_format": "x"},
            422,
            "invalid_request_error",
            "ConfigError",
            "base",
        ),
        ({"input": "x", "dimensions": 33}, 422, "invalid_request_error", "ConfigError", "1 to 32"),
        ({"input": "x", "dimension": 3}, 422, "invalid_request_error", "ConfigError", "dimensions"),
        ({"input": "x", "user": 3}, 422, "invalid_request_error", "ConfigError", "user must be"),
    ],
)
def test_openai_errors(client, body, status, kind, code, message):
    error = embeddings(client, status, **body)["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, None)
    assert re.search(message, error["message"])


def test_openai_own_client(client, encoder):
    ours = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)
    # It asks for base64 by itself.
    found = ours.embeddings.create(model=NAME, input=TEXTS)
    np.testing.assert_allclose(
        [row.embedding for row in found.data], encoder.encode(TEXTS), atol=1e-6
    )
    assert found.usage.total_tokens == sum(map(len, encoder.tokenizer.tokenize(TEXTS)))
    assert len(ours.embeddings.create(model=NAME, input="x", dimensions=8).data[0].embedding) == 8
    assert [model.id for model in ours.models.list()] == [NAME]
    with pytest.raises(openai.NotFoundError, match="no run and no artifact `nope`") as caught:
        ours.embeddings.create(model="nope", input="x")
    assert caught.value.code == "ArtifactNotFound"
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions must be from 1 to 32"):
        ours.embeddings.create(model=NAME, input="x", dimensions=99)


def test_openai_shape_of_routing_errors(client):
    answer = client.get("/v1/embedding")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"
    assert "detail" in client.get("/v2").json()


def test_openai_models(client, volume):
    (row,) = client.get("/v1/models").json()["data"]
    assert (row["id"], row["object"], row["owned_by"]) == (NAME, "model", "finetuner")
    for name in (NAME, row["artifact_id"]):
        assert client.get(f"/v1/models/{name}").json()["id"] == NAME
    assert client.get("/v1/models/nope").json()["error"]["code"] == "ArtifactNotFound"
    assert client.get("/models").json()["models"][0]["id"] == NAME


def test_similarity_by_a_loop(client, encoder):
    body = {"queries": TEXTS[:2], "texts": TEXTS, "parameters": {"artifact": NAME}}
    found = ask(client, "/similarity", body)
    vectors = encoder.encode(TEXTS).astype(float)
    for row, query in zip(found["similarity"], vectors, strict=False):
        expected = [sum(a * b for a, b in zip(query, text, strict=True)) for text in vectors]
        assert row == pytest.approx(expected, abs=1e-5)
    assert (len(found["similarity"]), found["digest"]) == (2, encoder.digest)
    none = {"queries": [], "texts": [], "parameters": {"artifact": NAME}}
    assert ask(client, "/similarity", none)["similarity"] == []


def test_rank(client, encoder):
    texts = [*TEXTS, TEXTS[0]]
    parameters = {"artifact": NAME}
    body = {"query": TEXTS[0], "texts": texts, "parameters": parameters}
    found = ask(client, "/rank", body)["results"]
    assert [row["index"] for row in found][:2] == [0, 3]
    assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert [row["score"] for row in found] == sorted((r["score"] for r in found), reverse=True)
    assert [row["text"] for row in found] == [texts[row["index"]] for row in found]
    assert ask(client, "/rank", {**body, "top_k": 1})["results"] == found[:1]
    assert ask(client, "/rank", {**body, "texts": []})["results"] == []


def test_tokenize(client, encoder):
    found = ask(client, "/tokenize", {"texts": TEXTS, "parameters": {"artifact": NAME}})
    ids = [[token["id"] for token in tokens] for tokens in found["tokens"]]
    assert ids == encoder.tokenizer.tokenize(TEXTS)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/similarity", {"queries": "x", "texts": []}, "queries must be a list of texts"),
        ("/similarity", {"queries": [1], "texts": []}, r"queries\[0\]"),
        ("/similarity", {"queries": [], "texts": [], "parameters": {"dtype": "int8"}}, "no cosine"),
        ("/rank", {"query": None, "texts": []}, "query"),
        ("/rank", {"query": "x", "texts": ["y"], "top_k": 0}, "top_k must be"),
        ("/rank", {"query": "x", "texts": ["y"], "top_k": True}, "top_k must be"),
        ("/tokenize", {"texts": ["x"], "parameters": []}, "parameters must be an object"),
        ("/tokenize", {"texts": ["x"], "parameters": {"dtype": "int8"}}, "unknown field `dtype`"),
        ("/encode", {"data": "x"}, "data must be a list"),
    ],
)
def test_what_is_refused(client, path, body, message):
    assert re.search(message, ask(client, path, body, 422)["detail"])


def test_a_client_that_hangs_up_is_not_worked_for(volume):
    cancelled = []

    async def call(_endpoint, _docs, _parameters):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    messages = [
        {"type": "http.request", "body": b'{"input": "x", "model": "m"}', "more_body": False},
        {"type": "http.disconnect"},
    ]
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
    scope |= {"query_string": b"", "client": ("a", 1), "server": ("b", 2), "scheme": "http"}

    async def receive():
        return messages.pop(0)

    async def send(_message):
        pass

    asyncio.run(asyncio.wait_for(build_app(call, volume)(scope, receive, send), 5))
    assert cancelled == [True]


def test_overload_says_when_to_come_back(volume):
    async def call(_endpoint, _docs, _parameters):
        raise OverloadedError("9 tokens wait already, of at most 5; retry in 7 s")

    client = TestClient(build_app(call, volume))
    for path, body in (
        ("/v1/embeddings", {"input": "x", "model": "m"}),
        ("/encode", {"data": ["x"]}),
    ):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert "Retry-After" not in client.post("/encode", json={}).headers


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/encode", ENCODE_BODY),
        ("/v1/embeddings", EMBEDDINGS_BODY),
        ("/similarity", SIMILARITY_BODY),
        ("/rank", RANK_BODY),
        ("/tokenize", TOKENIZE_BODY),
    ],
)
def test_documented_examples_work(client, path, schema):
    ask(client, path, schema["example"])


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = {
    "/encode": ("data", "parameters"),
    "/v1/embeddings": tuple(EMBEDDINGS_BODY["properties"]),
    "/similarity": ("queries", "texts", "parameters"),
    "/rank": ("query", "texts", "top_k", "parameters"),
    "/tokenize": ("texts", "parameters"),
}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), path=st.sampled_from(sorted(_FIELDS)))
def test_no_json_is_an_internal_error(client, data, path):
    value = _JSON | st.just(NAME) | st.lists(st.text(), max_size=3)
    body = data.draw(st.dictionaries(st.sampled_from(_FIELDS[path]), value))
    if data.draw(st.booleans()):
        body = {**body, **({"model": NAME} if path.startswith("/v1") else {})}
        body.setdefault("parameters", {"artifact": NAME}) if "parameters" in _FIELDS[path] else None
    try:
        content = orjson.dumps(body)
    except orjson.JSONEncodeError:  # half a surrogate pair
        return
    assert client.post(path, content=content).status_code < 500

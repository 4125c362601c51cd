"""The routes that embed, through the whole Flow."""

import numpy as np
import openai
import pytest
from docarray import Document, DocumentArray
from jina import Client
from jina.excepts import BadServer

import finetuner
from finetuner.vectors import VectorOptions, shape_vectors

pytestmark = pytest.mark.slow

TEXTS = ["one a", "a much longer text of many words about rivers and banks", "x"]
NAME = "finished"


@pytest.fixture
def expected(server, finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNER_HOST", server.url)
    model = finetuner.get_model(finetuner.get_run(NAME).save_artifact(str(tmp_path)))
    return model.encode(TEXTS)


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openais_client(client, expected):
    found = client.embeddings.create(model=NAME, input=TEXTS)
    vectors = [row.embedding for row in found.data]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert found.digest
    pinned = {"digest": found.digest, "timeout_s": 30, "truncate": "left"}
    again = client.embeddings.create(model=NAME, input="x", extra_body=pinned)
    np.testing.assert_allclose(again.data[0].embedding, expected[2], atol=1e-6)
    assert NAME in [model.id for model in client.models.list()]
    assert client.models.retrieve(NAME).is_loaded is True


def test_openais_client_gets_true_errors(client, finished_run):
    with pytest.raises(openai.NotFoundError, match="no run and no artifact `nope`"):
        client.embeddings.create(model="nope", input="x")
    with pytest.raises(openai.ConflictError, match="served with the digest"):
        client.embeddings.create(model=NAME, input="x", extra_body={"digest": "0" * 64})
    with pytest.raises(
        openai.APIStatusError, match="not answered within timeout_s=1e-06"
    ) as caught:
        client.embeddings.create(model=NAME, input="x", extra_body={"timeout_s": 1e-6})
    assert caught.value.status_code == 504


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_fewer_bits_travel_whole(server, expected, dtype):
    body = {"data": TEXTS, "parameters": {"artifact": NAME, "dtype": dtype, "dimensions": 16}}
    found = server.post("/encode", json=body).json()
    wanted = shape_vectors(expected, VectorOptions(None, 16, dtype), is_normalized=True)
    vectors = np.array([row["embedding"] for row in found["data"]])
    np.testing.assert_allclose(vectors, wanted.astype(float), atol=1 if dtype == "int8" else 1e-3)
    assert (found["dtype"], found["dim"]) == (dtype, 16)


def test_tokens_there_and_back(server, client, expected):
    body = {"texts": TEXTS, "parameters": {"artifact": NAME}}
    tokens = server.post("/tokenize", json=body).json()["tokens"]
    ids = [[token["id"] for token in row] for row in tokens]
    found = client.embeddings.create(model=NAME, input=ids)
    np.testing.assert_allclose([row.embedding for row in found.data], expected, atol=1e-6)


def test_rank_and_similarity(server, expected):
    body = {"query": TEXTS[0], "texts": TEXTS, "parameters": {"artifact": NAME}}
    results = server.post("/rank", json=body).json()["results"]
    assert results[0]["index"] == 0
    scores = sorted((expected @ expected[0]).tolist(), reverse=True)
    assert [row["score"] for row in results] == pytest.approx(scores, abs=1e-5)
    body = {"queries": TEXTS, "texts": TEXTS, "parameters": {"artifact": NAME}}
    found = server.post("/similarity", json=body).json()["similarity"]
    np.testing.assert_allclose(found, expected @ expected.T, atol=1e-5)


def test_grpc_takes_the_same_parameters(server, expected):
    client = Client(port=server.grpc_port)
    documents = DocumentArray([Document(text=text) for text in TEXTS])
    found = client.post("/encode", documents, parameters={"artifact": NAME, "dimensions": 16})
    cut = expected[:, :16] / np.linalg.norm(expected[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(found.embeddings, cut, atol=1e-6)
    with pytest.raises(
        BadServer, match="DigestMismatchError: `finished` is served with the digest"
    ):
        client.post("/encode", documents, parameters={"artifact": NAME, "digest": "0"})

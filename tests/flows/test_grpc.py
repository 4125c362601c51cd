"""What gRPC clients get, beside the same over HTTP."""

import numpy as np
import orjson
import pytest
from docarray import Document, DocumentArray
from jina import Client
from jina.excepts import BadServer

pytestmark = pytest.mark.slow

LABELLED = [(f"{form} {topic}", topic) for topic in "abcdef" for form in ("one", "two", "three")]


@pytest.fixture(scope="module")
def client(server):
    return Client(port=server.grpc_port)


def answer_of(documents):
    (document,) = documents
    return orjson.loads(document.text)


def test_encode_keeps_documents_and_gives_the_vectors_of_http(server, client, finished_run):
    sent = DocumentArray(
        [
            Document(id=f"id{i}", text="word " * (i % 9 + 1) + str(i), tags={"n": i})
            for i in range(9)
        ]
    )
    parameters = {"artifact": "finished", "batch_size": 2}
    documents = client.post("/encode", sent, parameters=parameters)

    body = {"data": [{"id": d.id, "text": d.text} for d in sent], "parameters": parameters}
    data = server.post("/encode", json=body).json()["data"]
    assert [(d.id, d.text, d.tags) for d in documents] == [(d.id, d.text, d.tags) for d in sent]
    assert [(row["id"], row["text"]) for row in data] == [(d.id, d.text) for d in sent]
    assert documents.embeddings.dtype == np.float32
    np.testing.assert_allclose(documents.embeddings, [row["embedding"] for row in data], atol=1e-6)


def test_encode_of_no_documents_gives_none(client, finished_run):
    assert len(client.post("/encode", parameters={"artifact": "finished"})) == 0


def test_runs_and_their_views_are_those_of_http(server, client, finished_run):
    parameters = {"page": 1, "size": 1}  # arrive as 1.0
    page = answer_of(client.post("/runs", parameters=parameters))
    assert page == server.get("/runs", params=parameters).json()
    status = {"status": "FINISHED", "details": "Run finished"}
    assert answer_of(client.post("/runs/finished/status")) == status
    assert answer_of(client.post("/status", parameters={"run_name": "finished"})) == status
    log = answer_of(client.post("/runs/finished/logs"))
    assert (log["text"], log["ended"]) == (server.get("/runs/finished/logs").text, True)
    rest = answer_of(client.post("/runs/finished/logs", parameters={"offset": log["offset"]}))
    assert rest == {"text": "", "offset": log["offset"], "ended": True}
    experiments = answer_of(client.post("/experiments"))
    assert experiments == server.get("/experiments").json()


def test_check_finds_what_it_finds_over_http(server, client):
    documents = DocumentArray(
        [Document(text=text, tags={"finetuner_label": label}) for text, label in LABELLED]
    )
    parameters = {"model": "tiny", "run_name": "over-grpc", "epochs": -1, "optimizer": "Adm"}
    parameters |= {"device": "cpu", "callbacks": [{"name": "None"}]}
    found = answer_of(client.post("/check", documents, parameters=parameters))
    rows = [{"text": d.text, "label": d.tags["finetuner_label"]} for d in documents]
    over_http = server.post("/check", json={**parameters, "train_data": rows}).json()
    for answer in (found, over_http):
        del answer["free_bytes"], answer["size_bytes"]  # ids are longer, the disk is others' too
    assert found == over_http
    fields = [problem["field"] for problem in found["problems"]]
    assert fields == ["callbacks[0]", "epochs", "optimizer"]
    del parameters["callbacks"]
    parameters |= {"epochs": 1, "optimizer": "Adam"}
    found = answer_of(client.post("/check", documents, parameters=parameters))
    assert (found["problems"], found["config"]["epochs"]) == ([], 1)
    assert server.get("/runs/over-grpc").status_code == 404


def test_life_of_a_run(server, client):
    documents = DocumentArray(
        [Document(text=text, tags={"finetuner_label": label}) for text, label in LABELLED]
    )
    parameters = {"model": "tiny", "run_name": "over-grpc", "epochs": 1, "device": "cpu"}
    record = answer_of(client.post("/fit", documents, parameters=parameters))
    assert (record["name"], record["status"]) == ("over-grpc", "CREATED")
    assert {key: record["config"][key] for key in parameters} == parameters
    assert isinstance(record["config"]["epochs"], int)
    assert server.wait_until_ended("over-grpc")["status"] == "FINISHED"
    vectors = client.post(
        "/encode", DocumentArray([Document(text="a")]), parameters={"artifact": "over-grpc"}
    ).embeddings
    assert vectors.shape == (1, 32)

    deleted = answer_of(client.post("/delete", parameters={"run_name": "over-grpc"}))
    assert [run["artifact_id"] for run in deleted["items"]] == [record["artifact_id"]]
    with pytest.raises(BadServer, match="RunNotFoundError: no run `over-grpc`"):
        client.post("/runs/over-grpc/status")

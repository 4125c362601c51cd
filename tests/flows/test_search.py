"""Searching by hand in a running service, over HTTP and gRPC."""

import time

import orjson
import pytest
from docarray import Document, DocumentArray
from jina import Client

pytestmark = pytest.mark.slow

QUERY = "a first text"


def search(server, **parameters):
    """Ask until the index is there; the answers on the way say how far it is."""
    end = time.monotonic() + 120  # the first search loads torch
    body = {"data": [{"text": QUERY}], "parameters": {"artifact": "finished", **parameters}}
    while (answer := server.post("/search", json=body)).status_code == 202:
        assert answer.json().keys() == {"ready", "n_done", "n_texts"}
        assert time.monotonic() < end
        time.sleep(0.05)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("untuned", [False, True])
def test_a_run_is_searched_before_and_after(server, finished_run, untuned):
    found = search(server, untuned=untuned, limit=3)
    assert (found["ready"], found["artifact"], found["untuned"]) == (True, "finished", untuned)
    scores = [row["score"] for row in found["results"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(row["label"] is not None for row in found["results"])


def test_scores_are_the_cosines_of_http(server, finished_run):
    found = search(server, limit=5)
    body = {
        "queries": [QUERY],
        "texts": [row["text"] for row in found["results"]],
        "parameters": {"artifact": "finished"},
    }
    (cosines,) = server.post("/similarity", json=body).json()["similarity"]
    assert [row["score"] for row in found["results"]] == pytest.approx(cosines, abs=1e-5)


def test_grpc_finds_the_same(server, finished_run):
    expected = search(server, limit=2)
    docs = DocumentArray([Document(text=QUERY)])
    parameters = {"artifact": "finished", "limit": 2}  # arrives as 2.0
    (document,) = Client(port=server.grpc_port).post("/search", docs, parameters=parameters)
    found = orjson.loads(document.text)
    for row, other in zip(found["results"], expected["results"], strict=True):
        assert row == {**other, "score": pytest.approx(other["score"], abs=1e-6)}


@pytest.mark.parametrize(
    ("parameters", "status", "error"),
    [
        ({"artifact": "none"}, 404, "ArtifactNotFound"),
        ({"index_run": "none"}, 404, "RunNotFoundError"),
        ({"index_data": "none"}, 404, "DataNotFoundError"),
        ({"limit": 0}, 422, "ConfigError"),
        ({"untuned": "yes"}, 422, "ConfigError"),
    ],
)
def test_what_is_refused(server, finished_run, parameters, status, error):
    body = {"data": ["a"], "parameters": {"artifact": "finished", **parameters}}
    answer = server.post("/search", json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)


def test_the_page_is_served(server):
    page = server.get("/", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "Content-Security-Policy" in page.headers
    assert server.get("/").json()["name"] == "finetuner-flow"
    assert server.get("/assets/none.js").status_code == 404

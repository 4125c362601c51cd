"""The HTTP side over executors of a few lines."""

import re

import pytest
from fastapi.testclient import TestClient

from finetuner.http_api import build_app
from finetuner.wire import json_document, read_json_document


class Executors:
    """Answers each endpoint with the next of its answers; an error among them is raised."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.documents = []

    async def __call__(self, endpoint, docs, parameters):
        self.asked.append((endpoint, parameters))
        if docs is not None:
            self.documents.append(read_json_document(docs))
        answer = self.answers[endpoint].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return json_document(answer)


RECORD = {"name": "r", "experiment_name": "default"}


@pytest.fixture
def executors():
    return Executors()


@pytest.fixture
def client(executors, tmp_path):
    return TestClient(build_app(executors, tmp_path))


@pytest.mark.parametrize(("is_new", "status"), [(True, 201), (False, 200)])
def test_fit_says_by_its_status_whether_it_has_made_the_run(client, executors, is_new, status):
    executors.answers = {"/fit": [{**RECORD, "is_new": is_new}]}
    answer = client.post("/fit", json={"model": "m"})
    assert (answer.status_code, answer.json()) == (status, RECORD)


@pytest.mark.parametrize(
    ("field", "header", "sent"),
    [({}, "k", "k"), ({"idempotency_key": "k"}, "k", "k"), ({"idempotency_key": "k"}, None, "k")],
)
def test_a_key_comes_as_header_or_as_field(client, executors, field, header, sent):
    executors.answers = {"/fit": [{**RECORD, "is_new": True}]}
    headers = {} if header is None else {"Idempotency-Key": header}
    client.post("/fit", json={"model": "m", **field}, headers=headers)
    assert executors.documents == [{"model": "m", "idempotency_key": sent}]


@pytest.mark.parametrize("path", ["/fit", "/check"])
def test_two_keys_are_refused(client, path):
    body = {"model": "m", "idempotency_key": "a"}
    answer = client.post(path, json=body, headers={"Idempotency-Key": "b"})
    assert (answer.status_code, answer.json()["error"]) == (422, "ConfigError")
    assert "Idempotency-Key and the field idempotency_key differ" in answer.json()["detail"]


def test_check_sends_what_fit_would(client, executors):
    answer = {"problems": [{"field": "model", "message": "no model `m`"}]}
    executors.answers = {"/check": [answer]}
    found = client.post("/check", json={"model": "m"}, headers={"Idempotency-Key": "k"})
    assert (found.status_code, found.json()) == (200, answer)
    assert executors.documents == [{"model": "m", "idempotency_key": "k"}]


@pytest.mark.parametrize("value", ["false", "0", "FALSE"])
def test_log_that_is_not_followed(client, executors, value):
    executors.answers = {"/logs": [{"text": "a\n", "offset": 2, "ended": False}]}
    answer = client.get(f"/runs/r/logs?follow={value}")
    assert answer.text == "a\n"
    assert (answer.headers["Next-Offset"], answer.headers["Run-Ended"]) == ("2", "false")


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        (
            "GET",
            "/runs/r/logs?follow=maybe",
            "follow must be one of true, 1, false, 0; got `maybe`",
        ),
        ("GET", "/runs/r/logs?follow=", "follow must be one of .*; got ``"),
        ("GET", "/runs/r/logs?offset=-1", "offset must be a whole number of at most 15 digits"),
        ("GET", "/runs/r/steps?offset=", "offset must be a whole number .*, got ``"),
        ("GET", "/runs/r/epochs?limit=1e3", "limit must be a whole number .*, got `1e3`"),
        ("GET", "/runs/r/steps?follow=1&offset=²", "offset must be a whole number .*, got `²`"),
        ("GET", "/runs/r/steps?ofset=1", "unknown query field `ofset`; did you mean `offset`"),
        ("GET", "/experiments?x=1", "unknown query field `x`; known: none"),
        ("GET", "/experiments/e?x=1", "unknown query field `x`"),
        ("PUT", "/experiments/e?x=1", "unknown query field `x`"),
        ("DELETE", "/experiments/e?x=1", "unknown query field `x`"),
        ("POST", "/fit?epochs=1", "unknown query field `epochs`"),
        ("POST", "/check?epochs=1", "unknown query field `epochs`"),
        ("PUT", "/data/d?x=1", "unknown query field `x`"),
        ("DELETE", "/data/d?x=1", "unknown query field `x`"),
        ("POST", "/encode?artifact=a", "unknown query field `artifact`"),
        ("GET", "/data?x=1", "unknown query field `x`"),
        ("GET", "/data/d?x=1", "unknown query field `x`"),
    ],
)
def test_query_that_is_refused(client, executors, method, path, message):
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["error"]) == (422, "ConfigError")
    assert re.match(message, answer.json()["detail"])
    assert executors.asked == []


@pytest.mark.parametrize("id_", [{}, [], True, 1.5])
def test_id_of_another_type_is_refused(client, executors, id_):
    answer = client.post("/encode", json={"data": ["a", {"text": "b", "id": id_}]})
    assert (answer.status_code, answer.json()) == (
        422,
        {"error": "DataError", "detail": "data[1]: the id must be a string or a whole number"},
    )
    assert executors.asked == []


def test_the_map_of_a_run_passes_as_it_is(client, executors):
    drawn = {"evaluations": {"model": {"texts": ["é"], "methods": {"pca": {"before": [[0.5, 1]]}}}}}
    executors.answers = {"/map": [drawn]}
    answer = client.get("/runs/one/map", params={"experiment_name": "other"})
    assert (answer.json(), answer.headers["Content-Type"]) == (drawn, "application/json")
    assert executors.asked == [("/map", {"run_name": "one", "experiment_name": "other"})]


def test_runs_are_listed_in_an_order(client, executors):
    executors.answers = {"/runs": [{"items": []}]}
    assert client.get("/runs", params={"order": "newest", "size": 2}).json() == {"items": []}
    assert executors.asked == [("/runs", {"order": "newest", "size": "2"})]

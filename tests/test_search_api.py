"""Searching by hand, without a Flow: against a plain loop over cosines."""

import asyncio
import math
import os
import time
from io import BytesIO

import pytest
from fastapi.testclient import TestClient

from finetuner.config import RunConfig
from finetuner.data import LabelledTexts, write_jsonl
from finetuner.encode_api import EncodeAPI
from finetuner.encoder import load_encoder, torch_encoder
from finetuner.errors import ArtifactNotFound, ConfigError, DataError, RunNotFoundError
from finetuner.http_api import build_app
from finetuner.models import load_model
from finetuner.run_store import RunStore
from finetuner.schema import read
from finetuner.search_api import SearchParameters
from finetuner.text_index import read_index_texts
from finetuner.wire import json_document, unpack_request

QUERY = "the river"


@pytest.fixture(scope="module")
def volume(publish_run, tmp_path_factory, tiny_model_folder, tiny_labelled):
    """The runs `one`, with training texts, and `two`, which was evaluated."""
    root = tmp_path_factory.mktemp("volume")
    (root / "models").mkdir()
    (root / "models" / "tiny").symlink_to(tiny_model_folder)
    one, two = publish_run(root, "one", seed=1), publish_run(root, "two", seed=2)
    write_jsonl(tiny_labelled, one.folder / "data" / "train.jsonl")
    write_jsonl(tiny_labelled.subset(range(9)), two.folder / "data" / "evaluation-0-query.jsonl")
    write_jsonl(tiny_labelled, two.folder / "data" / "train.jsonl")
    return root


@pytest.fixture
def api(volume):
    api = EncodeAPI(volume, artifact="one")
    yield api
    api.close()


def search_once(api, query=QUERY, **parameters):
    return asyncio.run(api.search.search([query], read(SearchParameters, parameters, "parameters")))


def search(api, query=QUERY, **parameters):
    """Ask until the index is there."""
    end = time.monotonic() + 20
    while not (answer := search_once(api, query, **parameters))["ready"]:
        assert time.monotonic() < end
        assert 0 <= answer["n_done"] <= answer["n_texts"]
        time.sleep(0.01)
    return answer


def nearest(encoder, data, limit, query=QUERY):
    """Texts, labels and cosines by a loop; equal texts are one."""
    target = encoder.encode([query])[0].tolist()
    found = []
    for text, label in zip(data.texts, data.labels, strict=True):
        vector = encoder.encode([text])[0].tolist()
        product = (
            math.sumprod(target, vector)
            if hasattr(math, "sumprod")
            else sum(x * y for x, y in zip(target, vector, strict=True))
        )
        lengths = math.hypot(*target) * math.hypot(*vector)
        found.append({"text": text, "label": label, "score": product / lengths})
    return sorted(found, key=lambda row: -row["score"])[:limit]


def check(answer, expected):
    assert [row["text"] for row in answer["results"]] == [row["text"] for row in expected]
    for row, other in zip(answer["results"], expected, strict=True):
        assert row == {**other, "score": pytest.approx(other["score"], abs=1e-5)}


def test_the_texts_nearest_by_the_tuned_model_and_by_the_one_before(
    api, volume, tiny_labelled, tiny_model_folder
):
    answer = search(api, limit=5)
    tuned = load_encoder(volume / "runs" / "default" / "one" / "one.zip")
    check(answer, nearest(tuned, tiny_labelled, 5))
    assert {name: answer[name] for name in ("artifact", "untuned", "n_texts")} == {
        "artifact": "one",
        "untuned": False,
        "n_texts": 48,
    }
    assert 0 < answer["encode_s"] < 60
    assert 0 < answer["search_s"] < 60
    before = search(api, limit=5, untuned=True)
    check(before, nearest(torch_encoder(load_model(tiny_model_folder)), tiny_labelled, 5))
    assert (before["artifact"], before["untuned"]) == ("one", True)
    assert [row["score"] for row in before["results"]] != [r["score"] for r in answer["results"]]
    paths = {path.rpartition("/")[2] for path in api._cache.sizes()}
    assert paths == {"one.zip", "one.zip (untuned)"}


def test_what_is_searched(api, volume, tiny_labelled):
    assert (
        search(api, artifact="two")["n_texts"] == 9
    )  # its evaluation's queries, that search themselves
    assert search(api, artifact="one", index_run="default/two")["n_texts"] == 9
    assert search(api, artifact="two", index_run="one")["n_texts"] == 48
    write_jsonl(
        tiny_labelled.subset(range(4)),
        volume / "runs" / "default" / "two" / "data" / "evaluation-0-index.jsonl",
    )
    try:
        assert search(api, artifact="two")["n_texts"] == 4
    finally:
        os.unlink(volume / "runs" / "default" / "two" / "data" / "evaluation-0-index.jsonl")


def test_stored_data_are_searched_as_they_are_now(api, volume):
    from docarray import Document, DocumentArray

    from finetuner.datastore import DataStore

    for texts in (["a river", "a stone"], ["a cloud", "the apple", "bread"]):
        docs = DocumentArray([Document(text=text) for text in texts])
        DataStore(volume).put("d", BytesIO(docs.to_bytes(protocol="protobuf", compress="gzip")))
        answer = search(api, index_data="d")
        assert {row["text"] for row in answer["results"]} == set(texts)
        assert {row["label"] for row in answer["results"]} == {None}


def test_an_alias_names_a_model(api):
    api.aliases.set({"name": "prod", "run": "two"})
    assert search(api, artifact="prod")["artifact"] == "two"
    api.aliases.delete({"name": "prod"})


def test_the_first_answer_says_that_it_is_not_there_yet(api):
    answer = search_once(api)
    assert answer == {"ready": False, "n_done": 0, "n_texts": answer["n_texts"]}


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"artifact": "x"}, ArtifactNotFound, "no run and no artifact `x`"),
        ({"index_run": "x"}, RunNotFoundError, "no run `x` in experiment `default`"),
        ({"index_run": "../x"}, ConfigError, "experiment name"),
        ({"index_data": "x"}, LookupError, "no stored data `x`"),
        ({"limit": 0}, ConfigError, "parameters.limit must be from 1 to 1000, got 0"),
        ({"limit": 1001}, ConfigError, "from 1 to 1000, got 1001"),
        ({"index_run": "a", "index_data": "b"}, ConfigError, "give index_run or index_data"),
        ({"top": 1}, ConfigError, "unknown"),
    ],
)
def test_what_is_refused(api, parameters, error, message):
    with pytest.raises(error, match=message):
        search_once(api, **parameters)


@pytest.mark.parametrize("texts", [[], ["a", "b"]])
def test_a_search_has_one_query(api, texts):
    with pytest.raises(DataError, match=f"a search takes one query, got {len(texts)} texts"):
        asyncio.run(api.search.search(texts, SearchParameters()))
    with pytest.raises(DataError, match="the query: the text must be a string, got `1`"):
        asyncio.run(api.search.search([1], SearchParameters()))


def test_a_run_without_texts(api, volume):
    RunStore(volume).create(RunConfig(model="tiny", run_name="empty"), {})
    with pytest.raises(DataError, match="run `empty` has no texts on this server to search"):
        search_once(api, index_run="empty")


def test_a_model_before_that_is_gone_is_told_and_looked_for_again(api, volume, monkeypatch):
    link, away = volume / "models" / "tiny", volume / "models" / "away"
    link.rename(away)
    try:
        with pytest.raises(LookupError, match="no model `tiny`"):
            search(api, untuned=True)
    finally:
        away.rename(link)
    monkeypatch.setattr("finetuner.text_index._FAILURE_S", 0.0)
    assert search(api, untuned=True)["n_texts"] == 48


def test_what_is_deleted_between_two_looks_is_named(api, volume, monkeypatch):
    monkeypatch.setattr(api.search, "_source", lambda *_: volume / "gone.jsonl")
    with pytest.raises(ArtifactNotFound, match="the run or the data .* were deleted meanwhile"):
        search_once(api)


def test_texts_that_are_deleted_before_their_turn_are_named(api, monkeypatch):
    def read(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr("finetuner.search_api.read_index_texts", read)
    with pytest.raises(ArtifactNotFound, match="the run or the data .* were deleted meanwhile"):
        search(api)


def test_over_http(tmp_path):
    answers = [
        {"ready": False, "n_done": 1, "n_texts": 2},
        {"ready": True, "results": [{"text": "a", "label": None, "score": 0.5}]},
    ]
    asked = []

    async def call(endpoint, docs, _parameters):
        asked.append((endpoint, *unpack_request(docs[0].blob)))
        return json_document(answers[len(asked) - 1])

    client = TestClient(build_app(call, tmp_path))
    body = {"data": [{"text": "a"}], "parameters": {"artifact": "r", "untuned": True}}
    found = [client.post("/search", json=body) for _ in range(2)]
    assert [(one.status_code, one.json()) for one in found] == list(
        zip((202, 200), answers, strict=True)
    )
    expected = {"client": "testclient", "artifact": "r", "untuned": True}
    assert asked == [("/search", ["a"], expected)] * 2
    assert client.post("/search", json={"data": "a"}).status_code == 422
    assert client.post("/search", json={"query": "a"}).status_code == 422


def test_texts_are_read_as_they_were_written(tmp_path):
    data = LabelledTexts(["a", "b"], ["1", None], ["x", None])
    write_jsonl(data, tmp_path / "t.jsonl")
    found = read_index_texts(tmp_path / "t.jsonl")
    assert (list(found.texts), list(found.labels)) == (["a", "b"], ["1", None])

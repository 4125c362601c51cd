"""Pairs on their way to a finished run: as documents over gRPC, pushed and named, and as a CSV."""

import io

import orjson
import pytest
from docarray import Document, DocumentArray
from jina import Client

import finetuner
from finetuner.pairs import read_data

pytestmark = pytest.mark.slow

_PAIRS = [(f"one {topic}", f"two {topic}") for topic in "abcdefgh"]
_SETTINGS = {"model": "tiny", "epochs": 1, "batch_size": 8, "device": "cpu"}


def _documents():
    return DocumentArray(
        [Document(chunks=[Document(text=text) for text in pair]) for pair in _PAIRS]
    )


@pytest.fixture
def trained(server):
    """Wait for a run, and return the rows it trained on."""
    names = []

    def rows(name):
        names.append(name)
        assert server.wait_until_ended(name)["status"] == "FINISHED", server.log.read_text()
        folder = server.workspace / "runs" / "default" / name
        return [*read_data(folder / "data" / "train.jsonl").rows()]

    yield rows
    for name in names:
        server.delete(f"/runs/{name}")


def test_documents_with_chunks_over_grpc(server, trained):
    parameters = {**_SETTINGS, "run_name": "pairs", "loss": "MultipleNegativesRankingLoss"}
    answer = Client(port=server.grpc_port).post("/fit", _documents(), parameters=parameters)
    assert orjson.loads(answer[0].text)["status"] == "CREATED"
    assert trained("pairs") == [{"anchor": a, "positive": p} for a, p in _PAIRS]


def test_scored_documents_pushed_and_named(server, trained, monkeypatch):
    monkeypatch.setenv("FINETUNER_HOST", server.url)
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", server.url)
    monkeypatch.setenv("JINA_AUTH_TOKEN", "none")
    documents = _documents()
    for number, document in enumerate(documents):
        document.tags["finetuner_score"] = number / 4
    documents.push("pairs.da")
    finetuner.fit(train_data="pairs.da", run_name="scored", loss="CoSENTLoss", **_SETTINGS)
    assert trained("scored") == [
        {"sentence1": left, "sentence2": right, "score": number / 4}
        for number, (left, right) in enumerate(_PAIRS)
    ]


def test_csv_of_two_columns_for_either_kind_of_loss(server, trained, monkeypatch):
    monkeypatch.setenv("FINETUNER_HOST", server.url)
    content = "".join(f"{anchor},{positive}\n" for anchor, positive in _PAIRS)
    for loss in ("MultipleNegativesRankingLoss", "SupConLoss"):
        finetuner.fit(train_data=io.StringIO(content), run_name=loss, loss=loss, **_SETTINGS)
        assert trained(loss) == [{"anchor": a, "positive": p} for a, p in _PAIRS]

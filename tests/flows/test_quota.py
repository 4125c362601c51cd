"""One variable bounds the workspace for all parts of a service."""

import shutil

import pytest
from docarray import Document, DocumentArray
from jina import Client
from jina.excepts import BadServer

import finetuner
from finetuner.errors import InsufficientSpaceError

pytestmark = pytest.mark.slow

ROWS = [["a", 1], ["b", 1], ["c", 2], ["d", 2]]


def test_runs_and_uploads_beyond_the_quota_are_refused(
    start_server, tmp_path, tiny_model_folder, monkeypatch
):
    workspace = tmp_path / "workspace"
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    monkeypatch.setenv("FINETUNER_QUOTA_BYTES", "1000")
    server = start_server(workspace)
    monkeypatch.setenv("FINETUNER_HOST", server.url)
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", server.url)
    monkeypatch.setenv("JINA_AUTH_TOKEN", "none")

    body = {"model": "tiny", "train_data": ROWS, "run_name": "one", "device": "cpu"}
    answer = server.post("/fit", json=body)
    assert (answer.status_code, answer.json()["error"]) == (507, "InsufficientSpaceError")
    assert "are left of the workspace's quota of 1.0 kB: `finetuner gc`" in answer.json()["detail"]
    with pytest.raises(InsufficientSpaceError, match="^run `one` needs about"):
        finetuner.fit("tiny", ROWS, run_name="one", device="cpu")
    documents = DocumentArray(
        [Document(text=text, tags={"finetuner_label": label}) for text, label in ROWS]
    )
    parameters = {"model": "tiny", "run_name": "one", "device": "cpu"}
    with pytest.raises(BadServer, match="InsufficientSpaceError: run `one` needs about"):
        Client(port=server.grpc_port).post("/fit", documents, parameters=parameters)
    with pytest.raises(Exception, match="the upload `x.da` needs about"):
        documents.push("x.da")
    with pytest.raises(InsufficientSpaceError, match="^the upload `x` needs about"):
        finetuner.push_data("x", ROWS)
    assert server.get("/runs").json()["items"] == []
    assert server.get("/data").json()["items"] == []

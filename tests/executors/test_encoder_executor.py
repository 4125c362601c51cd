"""The EncoderExecutor in other people's Flows, through its manifests."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from docarray import Document, DocumentArray
from jina import Executor
from jina.excepts import BadServer

from finetuner.encoder import load_encoder
from finetuner.errors import ArtifactNotFound, ConfigError

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
MANIFEST = str(REPOSITORY / "executors" / "encoder" / "config.yml")
TEXTS = ["some text to encode", "a longer text than the first of them", "x"]


@pytest.fixture(scope="module")
def artifact(publish_run, tmp_path_factory):
    return publish_run(tmp_path_factory.mktemp("volume"), "r").artifact_path


def test_top_manifest_in_anyones_flow(artifact):
    code = (
        "from jina import Flow, Document, DocumentArray\n"
        f"flow = Flow().add(uses='config.yml', uses_with={{'artifact': {str(artifact)!r}}})\n"
        "with flow:\n"
        f"    docs = DocumentArray([Document(text=t) for t in {TEXTS!r}])\n"
        "    docs = flow.post('/encode', docs)\n"
        "print('SHAPE', docs.embeddings.shape, docs.embeddings.dtype)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "SHAPE (3, 32) float32" in result.stdout, result.stderr[-2000:]


def test_vectors_are_those_of_the_encoder(open_flow, artifact):
    with open_flow(MANIFEST, {"artifact": str(artifact)}) as flow:
        sent = DocumentArray([Document(id=f"id{i}", text=t) for i, t in enumerate(TEXTS)])
        documents = flow.post("/encode", sent, parameters={"batch_size": 1})
        with pytest.raises(BadServer, match="DataError: document 2 .* has no text"):
            flow.post("/encode", DocumentArray([Document(text="x"), Document()]))
    assert [(d.id, d.text) for d in documents] == [(d.id, d.text) for d in sent]
    np.testing.assert_allclose(
        documents.embeddings, load_encoder(artifact).encode(TEXTS), atol=1e-6
    )


def test_without_an_artifact_a_request_must_name_one(open_flow, tmp_path):
    documents = DocumentArray([Document(text="x")])
    with open_flow(MANIFEST, {"workspace_dir": str(tmp_path)}) as flow:
        with pytest.raises(BadServer, match="name the artifact: parameters="):
            flow.post("/encode", documents)
        with pytest.raises(BadServer, match="no run and no artifact `none`"):
            flow.post("/encode", documents, parameters={"artifact": "none"})


def test_manifest_loads_without_a_flow(artifact):
    executor = Executor.load_config(MANIFEST, uses_with={"artifact": str(artifact)})
    try:
        assert (executor.metas.name, type(executor).__name__) == ("EncoderExecutor",) * 2
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("uses_with", "error", "message"),
    [
        (
            {"artefact": "x.zip"},
            ConfigError,
            "EncoderExecutor does not know the argument `artefact`",
        ),
        ({"artifact": "/nonexistent.zip"}, ArtifactNotFound, "no artifact `/nonexistent.zip`"),
        ({"backend": "tensorflow"}, ConfigError, "backend must be one of auto, torch, onnx"),
    ],
)
def test_wrong_argument_is_named(uses_with, error, message):
    with pytest.raises(error, match=message):
        Executor.load_config(MANIFEST, uses_with=uses_with)

"""Training on one volume, serving on another: only an object store is between them."""

import time
from pathlib import Path

import numpy as np
import orjson
import pytest
from docarray import Document, DocumentArray
from jina.excepts import BadServer

from finetuner.encoder import load_encoder

pytestmark = pytest.mark.slow

EXECUTORS = Path(__file__).parents[2] / "executors"
STORE = "s3://bucket/models"
TEXTS = ["some text to encode", "a longer text than the first of them", "x"]


def _ask(flow, endpoint, **parameters):
    answer = flow.post(endpoint, DocumentArray([Document()]), parameters=parameters)
    return orjson.loads(answer[0].text)


def test_what_one_volume_has_trained_an_empty_one_serves(
    s3, open_flow, tmp_path, tiny_model_folder, monkeypatch
):
    monkeypatch.setenv("FINETUNER_ARTIFACT_STORE", STORE)
    training, serving = tmp_path / "training", tmp_path / "serving"
    documents = DocumentArray(
        [
            Document(text=f"{form} {i}", tags={"finetuner_label": i})
            for i in range(4)
            for form in "abc"
        ]
    )
    parameters = {"model": str(tiny_model_folder), "run_name": "r", "epochs": 1, "device": "cpu"}
    s3.refuses = (
        "AccessDenied"  # the store is away while the run trains, which loses nothing by that
    )
    with open_flow(
        EXECUTORS / "finetuner" / "config.yml", {"workspace_dir": str(training)}
    ) as flow:
        flow.post("/fit", documents, parameters=parameters)
        deadline = time.monotonic() + 120
        while (record := _ask(flow, "/run", run_name="r"))["status"] != "FINISHED":
            assert record["status"] != "FAILED", record
            assert time.monotonic() < deadline, record
            time.sleep(0.2)
        assert "artifact_url" not in record
        s3.refuses = ""
        while not (url := _ask(flow, "/run", run_name="r").get("artifact_url")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert url.startswith(f"{STORE}/artifacts/")
    expected = load_encoder(training / "runs" / "default" / "r" / "r.zip").encode(TEXTS)
    s3.requests.clear()
    uses_with = {"workspace_dir": str(serving), "artifact_store": STORE}
    with open_flow(EXECUTORS / "encoder" / "config.yml", uses_with) as flow:
        for name in ("r", record["artifact_id"]):
            sent = DocumentArray([Document(text=text) for text in TEXTS])
            found = flow.post("/encode", sent, parameters={"artifact": name})
            np.testing.assert_allclose(found.embeddings, expected, atol=1e-6)
        with pytest.raises(BadServer, match="ArtifactNotFound: .*`none`, neither here nor in"):
            flow.post("/encode", sent, parameters={"artifact": "none"})
        (model,) = _ask(flow, "/models")["models"]
    assert (model["id"], model["is_loaded"]) == ("r", True)
    weights = [key for key in s3.requests.elements() if key.endswith("/model.safetensors")]
    assert sum(key.startswith("GET") for key in weights) == 1

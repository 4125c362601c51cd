"""A whole Flow whose runs are trained on a Ray cluster of three nodes, by the client's own verbs."""

import shutil
import time

import numpy as np
import psutil
import pytest
import yaml

import finetuner
from finetuner.callback import EvaluationCallback
from finetuner.serve import flow_path

pytestmark = pytest.mark.slow

ROWS = [[f"{form} {topic}", topic] for topic in "abcdef" for form in ("one", "two", "three")]
TEXTS = ["one a", "two b", "x " * 50]


@pytest.fixture(scope="module")
def flow(ray_cluster, tmp_path_factory):
    """`flows/all.yml` with what a user adds to it, and with paths that hold from anywhere."""
    path = flow_path("flows/all.yml")
    rows = yaml.safe_load(path.read_text())
    for part in (rows["gateway"], *rows["executors"]):
        part["uses"] = str((path.parent / part["uses"]).resolve())
    rows["executors"][0]["uses_with"] = {
        "launcher": "ray",
        "ray_address": ray_cluster.client_address,
        "max_parallel_runs": 2,
    }
    made = tmp_path_factory.mktemp("flow") / "flow.yml"
    made.write_text(yaml.safe_dump(rows, sort_keys=False))
    return made


@pytest.fixture
def server(flow, start_server, tiny_model_folder, tmp_path, monkeypatch):
    workspace = tmp_path / "workspace"
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    made = start_server(workspace, options=("--flow", str(flow)))
    monkeypatch.setenv("FINETUNER_HOST", made.url)
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", made.url)
    monkeypatch.setenv("JINA_AUTH_TOKEN", "none")
    yield made
    made.stop()


def wait_until(condition, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def workers_of(run_folder):
    return [p for p in psutil.process_iter(["cmdline"]) if is_worker(p, run_folder)]


def is_worker(process, run_folder):
    words = process.info["cmdline"] or []
    return "finetuner.worker" in words and words[-1] == str(run_folder)


def test_from_fit_to_the_vectors_of_the_same_flow(server, tmp_path):
    run = finetuner.fit(
        "tiny",
        ROWS,
        run_name="far",
        epochs=2,
        device="cpu",
        n_processes=2,
        callbacks=[EvaluationCallback(ROWS)],
    )
    assert run.status()["status"] in ("CREATED", "STARTED")
    lines = list(run.stream_logs())
    assert "Finished" in lines[-1]
    assert run.status() == {"status": "FINISHED", "details": "Run finished"}
    assert sorted(run.metrics()) == ["after", "before"]
    assert 0 < run.metrics()["after"]["reciprocal_rank"] <= 1
    artifact = run.save_artifact(str(tmp_path))
    expected = finetuner.encode(finetuner.get_model(artifact), TEXTS)
    body = {"data": [{"text": text} for text in TEXTS], "parameters": {"artifact": "far"}}
    answer = server.post("/encode", json=body)
    assert answer.status_code == 200, answer.text
    vectors = [row["embedding"] for row in answer.json()["data"]]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    (only,) = finetuner.list_runs()
    assert (only.name, only.config["n_processes"]) == ("far", 2)


def test_a_run_is_cancelled_and_one_waits_for_room(server):
    folder = server.workspace / "runs" / "default"
    many = [[f"{text} {n}", label] for n in range(20) for text, label in ROWS]
    settings = {"device": "cpu", "epochs": 1000, "batch_size": 8}
    long = finetuner.fit("tiny", many, run_name="long", n_processes=2, **settings)
    wait_until(lambda: long.status()["status"] == "STARTED" and workers_of(folder / "long"))
    second = finetuner.fit("tiny", ROWS, run_name="second", device="cpu", epochs=1)
    wait_until(lambda: "on the Ray cluster" in second.status()["details"])
    long.cancel()
    wait_until(lambda: not workers_of(folder / "long"))
    assert long.status() == {"status": "CANCELLED", "details": "Cancelled"}
    assert "Finished" in list(second.stream_logs())[-1]
    assert second.status()["status"] == "FINISHED"

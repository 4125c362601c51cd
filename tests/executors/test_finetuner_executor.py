"""The FinetunerExecutor in a Flow with Jina's own gateway."""

import time
from pathlib import Path

import orjson
import pytest
from docarray import Document, DocumentArray
from jina import Executor
from jina.excepts import BadServer

from finetuner.errors import ConfigError

pytestmark = pytest.mark.slow

MANIFEST = str(Path(__file__).parents[2] / "executors" / "finetuner" / "config.yml")


def test_fit_through_jinas_own_gateway(open_flow, tmp_path, tiny_model_folder):
    documents = DocumentArray(
        [
            Document(text=f"{form} {i}", tags={"finetuner_label": i})
            for i in range(4)
            for form in "abc"
        ]
    )
    parameters = {"model": str(tiny_model_folder), "run_name": "r", "epochs": 1, "device": "cpu"}
    with open_flow(MANIFEST, {"workspace_dir": str(tmp_path)}) as flow:
        run = orjson.loads(flow.post("/fit", documents, parameters=parameters)[0].text)
        assert run["status"] == "CREATED"
        deadline = time.monotonic() + 60
        while True:
            answer = flow.post("/status", DocumentArray([Document()]), parameters={"run_name": "r"})
            state = orjson.loads(answer[0].text)
            if state["status"] in ("FINISHED", "FAILED"):
                break
            assert time.monotonic() < deadline
            time.sleep(0.2)
        again = orjson.loads(flow.post("/fit", documents, parameters=parameters)[0].text)
        assert (again["artifact_id"], again["is_new"]) == (run["artifact_id"], False)
        with pytest.raises(BadServer, match="(?s)already has a run `r`.*epochs: 1 → 2"):
            flow.post("/fit", documents, parameters={**parameters, "epochs": 2})
    assert state == {"status": "FINISHED", "details": "Run finished"}
    assert (tmp_path / "runs" / "default" / "r" / "r.zip").is_file()


def test_unknown_argument_is_named():
    with pytest.raises(ConfigError, match="FinetunerExecutor does not know the argument `workers`"):
        Executor.load_config(MANIFEST, uses_with={"workers": 2})


def test_a_quota_that_is_no_number_of_bytes_is_refused(tmp_path):
    settings = {"workspace_dir": str(tmp_path), "quota_bytes": "10GB"}
    with pytest.raises(ConfigError, match="quota_bytes .* at least 1, got `10GB`"):
        Executor.load_config(MANIFEST, uses_with=settings)


def test_a_launcher_that_there_is_none_of_is_refused(tmp_path):
    settings = {"workspace_dir": str(tmp_path), "launcher": "slurm"}
    with pytest.raises(ConfigError, match="FinetunerExecutor.launcher must be one of local, ray"):
        Executor.load_config(MANIFEST, uses_with=settings)


def test_endpoints_are_the_methods_of_their_names(tmp_path):
    executor = Executor.load_config(MANIFEST, uses_with={"workspace_dir": str(tmp_path)})
    try:
        endpoints = {
            path: (call.fn.__name__, call.fn.__doc__.partition(".")[0])
            for path, call in executor.requests.items()
            if path.startswith("/")
        }
        assert len(endpoints) == 17
        assert endpoints["/fit"] == ("fit", "Start a run")
        assert endpoints["/status"] == ("status", "Give a run's state")
        assert endpoints["/experiment/delete"][0] == "delete_experiment"
        for path, (name, _) in endpoints.items():
            assert set(name.split("_")) == set(path.strip("/").split("/"))
        assert callable(executor.status)
    finally:
        executor.close()

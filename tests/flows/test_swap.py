"""Models change places under load: nothing is lost, and every vector is of the model that it names."""

import base64
import threading
import time

import numpy as np
import pytest
import requests

from finetuner.encoder import load_encoder

pytestmark = pytest.mark.slow

TEXTS = [f"text {i} " * (i % 9 + 1) for i in range(40)]
N_CLIENTS = 8
N_SWITCHES = 10


class Clients:
    """Ask the alias again and again until they are told to end; each answer is kept."""

    def __init__(self, url):
        self.answers, self.failures = [], []
        self._url, self._ended = url, threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(N_CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, number):
        generator = np.random.default_rng(number)
        with requests.Session() as session:
            while not self._ended.is_set():
                texts = generator.choice(len(TEXTS), size=generator.integers(1, 9)).tolist()
                body = {"model": "prod", "input": [TEXTS[i] for i in texts]}
                body |= {"encoding_format": "base64"}
                answer = session.post(f"{self._url}/v1/embeddings", json=body, timeout=30)
                if answer.status_code == 200:
                    self.answers.append((texts, answer.json()))
                else:
                    self.failures.append((answer.status_code, answer.text))

    def end(self):
        self._ended.set()
        for thread in self._threads:
            thread.join(60)


def vectors_of(answer):
    return np.stack(
        [np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in answer["data"]]
    )


def test_switches_under_load(start_server, publish_run, tmp_path):
    runs = [publish_run(tmp_path, name, seed=seed) for seed, name in enumerate("ab", start=1)]
    encoders = [load_encoder(run.artifact_path) for run in runs]
    expected = {encoder.digest: encoder.encode(TEXTS) for encoder in encoders}
    server = start_server(tmp_path, options=("--flow", "flows/serve.yml"))
    assert server.put("/aliases/prod", json={"run": "a"}).json()["revision"] == 1
    clients = Clients(server.url)
    for number in range(N_SWITCHES):
        time.sleep(0.5)
        answer = server.put("/aliases/prod", json={"run": "ba"[number % 2]})
        assert answer.status_code == 200, answer.text
        # What is asked after the switch was answered is answered by the new one.
        body = {"model": "prod", "input": "x"}
        assert server.post("/v1/embeddings", json=body).json()["artifact"] == "ba"[number % 2]
    clients.end()
    assert clients.failures == []
    assert {answer["digest"] for _, answer in clients.answers} == set(expected)
    assert len(clients.answers) > 10 * N_SWITCHES
    for texts, answer in clients.answers:
        np.testing.assert_allclose(vectors_of(answer), expected[answer["digest"]][texts], atol=1e-6)
    server.stop()


def test_aliases_outlive_a_restart(start_server, publish_run, tmp_path):
    publish_run(tmp_path, "a")
    first = start_server(tmp_path, options=("--flow", "flows/serve.yml"))
    record = first.put("/aliases/prod", json={"run": "a"}).json()
    first.stop()
    second = start_server(tmp_path, options=("--flow", "flows/serve.yml"))
    assert second.get("/aliases/prod").json() == record
    body = {"model": "prod", "input": "x"}
    assert second.post("/v1/embeddings", json=body).json()["artifact"] == "a"
    assert second.get("/v1/models").json()["data"][-1]["id"] == "prod"
    second.stop()

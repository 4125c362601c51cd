"""Models change places under load and their executor dies: nothing is lost, and every vector is of the model
that it names."""

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
SECONDS = 60


class Clients:
    """Ask the alias again and again until they are told to end; each answer is kept.

    A 503 is asked again, as it says, and noted with its time.
    """

    def __init__(self, url):
        self.answers, self.failures, self.unavailable_at = [], [], []
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
                elif answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0:
                    self.unavailable_at.append(time.monotonic())
                    time.sleep(0.1)
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


def switch(server, run):
    """Let the alias point to a run, asking again while the executor starts."""
    while (answer := server.put("/aliases/prod", json={"run": run})).status_code == 503:
        time.sleep(0.2)
    assert answer.status_code == 200, answer.text
    # What is asked after the switch was answered is answered by the new one.
    asked = server.post("/v1/embeddings", json={"model": "prod", "input": "x"})
    assert asked.status_code == 503 or asked.json()["artifact"] == run


def kill_executor(server):
    """Kill it; return when that was and when it answers again."""
    killed_at = time.monotonic()
    server.executor().kill()
    time.sleep(0.5)
    server.wait_until_ready()
    return killed_at, time.monotonic()


def test_switches_and_a_kill_under_load(start_server, publish_run, tmp_path):
    runs = [publish_run(tmp_path, name, seed=seed) for seed, name in enumerate("ab", start=1)]
    encoders = [load_encoder(run.artifact_path) for run in runs]
    expected = {encoder.digest: encoder.encode(TEXTS) for encoder in encoders}
    server = start_server(tmp_path, options=("--flow", "flows/serve.yml"))
    assert server.put("/aliases/prod", json={"run": "a"}).json()["revision"] == 1
    clients = Clients(server.url)
    started_at = time.monotonic()
    for number in range(1, N_SWITCHES + 1):
        time.sleep(max(0, started_at + number * SECONDS / (N_SWITCHES + 1) - time.monotonic()))
        if number == N_SWITCHES // 2:
            killed_at, back_at = kill_executor(server)
        switch(server, "ab"[number % 2])
    time.sleep(max(0, started_at + SECONDS - time.monotonic()))
    clients.end()
    assert clients.failures == []
    assert clients.unavailable_at
    assert all(killed_at <= at <= back_at + 1 for at in clients.unavailable_at)
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

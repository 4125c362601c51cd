"""Several encoders over one volume: each serves every artifact, and one that dies is covered by the other."""

import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
N_REPLICAS = 2


@pytest.fixture
def flow(tmp_path):
    """The Flow of flows/serve.yml with two replicas of the encoder."""
    flow = yaml.safe_load((REPOSITORY / "flows" / "serve.yml").read_text())
    for part in (flow["gateway"], *flow["executors"]):
        part["uses"] = str(REPOSITORY / "flows" / part["uses"])
    flow["executors"][0]["replicas"] = N_REPLICAS
    path = tmp_path / "replicas.yml"
    path.write_text(yaml.safe_dump(flow, sort_keys=False))
    return path


def test_replicas_share_nothing_but_the_volume(start_server, publish_run, tmp_path, flow):
    volume = tmp_path / "volume"
    for seed, name in enumerate("ab", start=1):
        publish_run(volume, name, seed=seed)
    server = start_server(volume, options=("--flow", str(flow)))
    assert server.put("/aliases/prod", json={"run": "a"}).status_code == 200

    def embed(model):
        answer = server.post("/v1/embeddings", json={"model": model, "input": ["one", "two"]})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return found["artifact"], np.array([row["embedding"] for row in found["data"]])

    expected = {name: embed(name)[1] for name in "ab"}
    for switch_to in "bab":
        assert server.put("/aliases/prod", json={"run": switch_to}).status_code == 200
        for _ in range(2 * N_REPLICAS):
            name, vectors = embed("prod")
            assert name == switch_to
            np.testing.assert_allclose(vectors, expected[name], atol=1e-6)

    server.executor().kill()
    for _ in range(20):
        np.testing.assert_allclose(embed("a")[1], expected["a"], atol=1e-6)
        time.sleep(0.05)
    server.wait_until_ready()
    server.stop()

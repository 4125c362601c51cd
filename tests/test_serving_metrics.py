"""What is counted, read back by Prometheus's own parser."""

import asyncio

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetuner.batcher import BatchCounts
from finetuner.errors import EndpointNotFoundError, RunNotFoundError, UnavailableError
from finetuner.http_api import build_app
from finetuner.serving_metrics import EncodeMetrics
from finetuner.wire import json_document


class _Batcher:
    n_queued_tokens = 17
    counts = BatchCounts().plus([3, 5], 0.5).plus([4], 0.25)


class _Cache:
    def sizes(self):
        return {"a.zip": 100, "b.zip": 23}


def samples(text):
    """Every sample by its name and labels; one that stands twice is refused."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.values()))
            assert key not in found
            found[key] = sample.value
    return found


def test_figures_of_an_encoder():
    metrics = EncodeMetrics(_Batcher(), _Cache())
    tags = {
        "artifact": "a",
        "n_tokens": 9,
        "tokenize_s": 0.002,
        "queue_s": 0.02,
        "inference_s": 0.2,
    }
    metrics.ended(tags, 3)
    metrics.ended({**tags, "n_tokens": 1}, 1)
    metrics.failed(asyncio.CancelledError())
    metrics.failed(RunNotFoundError("x"), role="shadow")
    found = samples(metrics.text())
    assert found["finetuner_encode_requests_total", "a", "answer", "ok"] == 2
    assert found["finetuner_encode_requests_total", "", "CancelledError", "answer"] == 1
    assert found["finetuner_encode_requests_total", "", "RunNotFoundError", "shadow"] == 1
    assert found["finetuner_encode_texts_total", "a"] == 4
    assert found["finetuner_encode_tokens_total", "a"] == 10
    for stage, total in (("tokenize", 0.004), ("queue", 0.04), ("inference", 0.4)):
        assert found["finetuner_encode_seconds_sum", "a", stage] == pytest.approx(total)
        assert found["finetuner_encode_seconds_count", "a", stage] == 2
    assert found["finetuner_encode_seconds_bucket", *sorted(("a", "queue", "0.025"))] == 2
    assert found["finetuner_encode_seconds_bucket", *sorted(("a", "queue", "0.01"))] == 0
    assert found["finetuner_queue_tokens",] == 17
    assert (found["finetuner_loaded_models",], found["finetuner_loaded_bytes",]) == (2, 123)
    assert found["finetuner_batches_total",] == 2
    assert found["finetuner_batch_texts_total",] == 3
    assert found["finetuner_batch_tokens_total",] == 12
    assert found["finetuner_padding_tokens_total",] == 2  # of two texts of five, the three
    assert found["finetuner_inference_seconds_total",] == 0.75


def test_another_registry_tells_the_figures_beside_its_own():
    metrics, registry = EncodeMetrics(_Batcher(), _Cache()), CollectorRegistry()
    Counter("jina_requests", "Of another", registry=registry).inc(2)
    metrics.show_in(registry)
    metrics.failed(RunNotFoundError("x"))  # after it was shown
    found = samples(generate_latest(registry).decode())
    assert found["finetuner_queue_tokens",] == 17
    assert found["finetuner_encode_requests_total", "", "RunNotFoundError", "answer"] == 1
    assert found["jina_requests_total",] == 2


def client_over(volume, encoder):
    async def call(endpoint, _docs, _parameters):
        if endpoint == "/metrics/encoder":
            if isinstance(encoder, Exception):
                raise encoder
            return json_document({"text": encoder})
        raise RunNotFoundError("no run")

    return TestClient(build_app(call, volume))


def test_the_gateway_counts_by_route_and_adds_the_encoders(tmp_path):
    client = client_over(tmp_path, "finetuner_queue_tokens 3.0\n")
    for name in ("one", "two"):
        assert client.get(f"/runs/{name}").status_code == 404
    assert client.get("/nowhere").status_code == 404
    client.post("/encode", json={})
    found = samples(client.get("/metrics").text)
    assert found["finetuner_http_requests_total", *sorted(("/runs/{run_name}", "404"))] == 2
    assert found["finetuner_http_requests_total", *sorted(("unknown", "404"))] == 1
    assert found["finetuner_http_requests_total", *sorted(("/encode", "422"))] == 1
    assert found["finetuner_http_seconds_count", "/runs/{run_name}"] == 2
    assert found["finetuner_queue_tokens",] == 3


@pytest.mark.parametrize("error", [EndpointNotFoundError("none"), UnavailableError("down")])
def test_without_an_encoder_the_gateways_own_are_told(tmp_path, error):
    client = client_over(tmp_path, error)
    assert client.get("/metrics").status_code == 200
    found = samples(client.get("/metrics").text)
    assert found["finetuner_http_requests_total", *sorted(("/metrics", "200"))] == 1

"""Traces through Jina's own options: one trace goes through gateway and encoder."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import yaml
from docarray import Document, DocumentArray
from jina import Client
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

from .conftest import free_port

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


class Collector(services.TraceServiceServicer):
    """Keeps the spans that it gets, as (service, name, trace id)."""

    def __init__(self):
        self.spans, self._lock = [], threading.Lock()

    def Export(self, request, _context):  # the name in the protocol
        for resource in request.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                with self._lock:
                    self.spans += [
                        (attributes["service.name"], span.name, span.trace_id)
                        for span in scope.spans
                    ]
        return messages.ExportTraceServiceResponse()


@pytest.fixture
def collector():
    """A collector of traces; gives it and its port."""
    port, collector = free_port(), Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    services.add_TraceServiceServicer_to_server(collector, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    yield collector, port
    server.stop(None)


def test_a_trace_goes_through_gateway_and_encoder(start_server, publish_run, tmp_path, collector):
    collected, port = collector
    flow = yaml.safe_load((REPOSITORY / "flows" / "serve.yml").read_text())
    for part in (flow["gateway"], *flow["executors"]):
        part["uses"] = str(REPOSITORY / "flows" / part["uses"])
    flow["with"] |= {"tracing": True, "traces_exporter_host": "http://127.0.0.1"}
    flow["with"] |= {"traces_exporter_port": port}
    path = tmp_path / "traced.yml"
    path.write_text(yaml.safe_dump(flow, sort_keys=False))
    publish_run(tmp_path / "volume", "served")
    server = start_server(tmp_path / "volume", options=("--flow", str(path)))

    body = {"model": "served", "input": "a text"}
    assert server.post("/v1/embeddings", json=body).status_code == 200
    Client(port=server.grpc_port).post(
        "/encode", DocumentArray([Document(text="a")]), parameters={"artifact": "served"}
    )
    deadline = time.monotonic() + 30
    while not (traces := _shared_traces(collected.spans)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert traces, collected.spans
    server.stop()


def _shared_traces(spans):
    """Return the traces that have spans of the gateway and spans of the encoder's endpoint."""
    of_gateway = {trace for service, _, trace in spans if "gateway" in service}
    return of_gateway & {trace for _, name, trace in spans if name == "/encode"}

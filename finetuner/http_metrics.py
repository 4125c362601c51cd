"""What the gateway counts and measures, and ``/metrics``, which has the encoder's figures too."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)

from finetuner.encode_routes import Call
from finetuner.errors import NotFoundError, UnavailableError
from finetuner.serving_metrics import SECONDS
from finetuner.wire import read_json_document


class HTTPMetrics:
    """Figures of the HTTP side."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "finetuner_http_requests",
            "Requests answered",
            ("route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "finetuner_http_seconds",
            "From a request's head to its answer's",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )

    def answered(self, route: str, status: int, took_s: float) -> None:
        """Count a request.

        :param route: The path as it is declared, so that names of runs do not become labels.
        :param status: Of the answer.
        :param took_s: Until the answer's head was sent, in seconds.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(took_s)

    def text(self) -> str:
        """Return all figures."""
        return generate_latest(self._registry).decode()


class RequestMeter:
    """Measures each request of an application.

    :param app: The application.
    :param metrics: Gets the figures.
    """

    def __init__(self, app: Any, metrics: HTTPMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()

        async def measured_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unknown")
                took_s = time.perf_counter() - started_at
                self._metrics.answered(route, message["status"], took_s)
            await send(message)

        await self._app(scope, receive, measured_send)


def add_metrics(app: FastAPI, call: Call) -> None:
    """Serve ``/metrics`` and measure every request.

    :param app: Gets route and middleware.
    :param call: Asks the encoder.
    """
    metrics = HTTPMetrics()
    app.add_middleware(RequestMeter, metrics=metrics)

    @app.get("/metrics", tags=["service"], summary="Counts and times, as Prometheus reads them")
    async def scrape() -> Response:
        try:
            answer = await call("/metrics/encoder", None, {})
            encoder = read_json_document(answer)["text"]
        except (NotFoundError, UnavailableError):  # a Flow without one, or one that is down
            encoder = ""
        return Response(metrics.text() + encoder, media_type=CONTENT_TYPE_LATEST)

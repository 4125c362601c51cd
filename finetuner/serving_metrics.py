"""What a server counts and measures, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from finetuner.batcher import Batcher
    from finetuner.encoder_cache import EncoderCache

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class EncodeMetrics:
    """Figures of an EncoderExecutor.

    :param batcher: Whose queue and batches are told.
    :param cache: Whose models are told.
    """

    def __init__(self, batcher: Batcher, cache: EncoderCache) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ServerState(batcher, cache))
        self._requests = self._counter(
            "encode_requests", "Requests ended", "artifact", "outcome", "role"
        )
        self._texts = self._counter("encode_texts", "Texts embedded", "artifact")
        self._tokens = self._counter("encode_tokens", "Tokens embedded", "artifact")
        self._seconds = Histogram(
            "finetuner_encode_seconds",
            "Where a request's time went",
            ("artifact", "stage"),
            buckets=SECONDS,
            registry=self._registry,
        )

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"finetuner_{name}", description, labels, registry=self._registry)

    def ended(self, tags: Mapping[str, Any], n_texts: int, *, role: str = "answer") -> None:
        """Count a request that was answered.

        :param tags: What was said of its vectors.
        :param n_texts: Its texts.
        :param role: ``answer``, or ``shadow`` where nobody got the vectors.
        """
        artifact = tags["artifact"]
        self._requests.labels(artifact, "ok", role).inc()
        self._texts.labels(artifact).inc(n_texts)
        self._tokens.labels(artifact).inc(tags["n_tokens"])
        for stage in ("tokenize", "queue", "inference"):
            self._seconds.labels(artifact, stage).observe(tags[f"{stage}_s"])

    def failed(self, error: BaseException, *, artifact: str = "", role: str = "answer") -> None:
        """Count a request that was not answered.

        :param error: Why.
        :param artifact: Once it was found; empty before, for the name that was asked for may be anything.
        :param role: As in :meth:`ended`.
        """
        self._requests.labels(artifact, type(error).__name__, role).inc()

    def text(self) -> str:
        """Return all figures."""
        return generate_latest(self._registry).decode()

    def show_in(self, registry: CollectorRegistry) -> None:
        """Let another registry tell all figures too.

        :param registry: Of a server of its own, such as Jina's monitoring.
        """
        registry.register(self._registry)


class _ServerState(Collector):
    """What is known when it is asked for, and needs no counting."""

    def __init__(self, batcher: Batcher, cache: EncoderCache) -> None:
        self._batcher, self._cache = batcher, cache

    def collect(self) -> Iterable[Metric]:
        counts, loaded = self._batcher.counts, self._cache.sizes()
        yield _gauge("queue_tokens", "Tokens that wait for a batch", self._batcher.n_queued_tokens)
        yield _gauge("loaded_models", "Artifacts in memory", len(loaded))
        yield _gauge("loaded_bytes", "Sizes of their files", sum(loaded.values()))
        yield _total("batches", "Batches embedded", counts.n_batches)
        yield _total("batch_texts", "Texts in them", counts.n_texts)
        yield _total("batch_tokens", "Tokens in them, without padding", counts.n_tokens)
        yield _total("padding_tokens", "Padding in them", counts.n_padding_tokens)
        yield _total("inference_seconds", "Time spent in them", counts.inference_s)


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(f"finetuner_{name}", description, value=value)


def _total(name: str, description: str, value: float) -> Metric:
    return CounterMetricFamily(f"finetuner_{name}", description, value=value)

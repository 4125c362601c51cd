"""Callbacks of a run: what should happen beside training, as frozen dataclasses and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetuner.errors import ConfigError
from finetuner.schema import convert, documented


class Distance(StrEnum):
    """How near two vectors are; smaller is nearer."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    SQEUCLIDEAN = "sqeuclidean"


@dataclass(frozen=True)
class EvaluationCallback:
    """Search the index with every query, before training and after each epoch, and report metrics.

    :raises ConfigError: When a number is out of its range.
    """

    query_data: Any = documented(
        "the queries: a stored name, rows, a CSV file or a DocumentArray, every text labelled"
    )
    index_data: Any = documented(
        "what is searched, in the same forms; the queries themselves when left out", default=None
    )
    batch_size: int = documented("texts encoded at once, at least 1", default=32)
    exclude_self: bool = documented(
        "leave a query's own document (the same id) out of its matches", default=True
    )
    limit: int = documented("matches per query: the k of `_at_k`, at least 1", default=20)
    distance: Distance = documented("what orders the matches", default=Distance.COSINE)
    gather_examples: bool = documented(
        "keep the matches of some queries before and after training", default=False
    )
    num_example_queries: int = documented("queries whose matches are kept", default=5)
    query_sample_size: int | None = documented(
        "evaluate a random sample of this many queries", default=None
    )
    caption: str | None = documented(
        "prefix of the metrics' names; needed when a run has several of these", default=None
    )

    def __post_init__(self) -> None:
        distance = convert(Distance, self.distance, "EvaluationCallback.distance")
        object.__setattr__(self, "distance", distance)
        for name in ("batch_size", "limit", "num_example_queries", "query_sample_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"EvaluationCallback.{name} must be at least 1, got {value}")


CALLBACKS: dict[str, type] = {"EvaluationCallback": EvaluationCallback}

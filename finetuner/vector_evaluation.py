"""Retrieval with vectors that are there already, in an index that need not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetuner.callback import Distance
from finetuner.config import Device
from finetuner.errors import ConfigError, DataError
from finetuner.evaluation import count_relevant, match_labels, score
from finetuner.inner_products import Distances, Positions
from finetuner.search import search
from finetuner.vector_index import VectorIndex, open_vectors

Source = NDArray[Any] | str | Path
Labels = Sequence[Hashable] | NDArray[Any]

_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class VectorEvaluation:
    """What an evaluation with vectors gave.

    :param metrics: The nine metrics, each a mean over the queries that have something to find.
    :param n_skipped: Queries whose label no vector of the index has; they count in no metric.
    :param places: Of the nearest vectors, nearest first, *Shape:* ``(n_queries, limit)`` int64, skipped
        queries too; -1 where there are no more.
    :param distances: Theirs, *Shape:* ``(n_queries, limit)`` float64.
    """

    metrics: dict[str, float]
    n_skipped: int
    places: Positions
    distances: Distances


@dataclass(frozen=True)
class SearchOptions:
    """How vectors are searched.

    :param limit: Matches a query, at least 1.
    :param distance: What orders them.
    :param n_threads: At least 1; the cores of this process when None.
    :param device: Where vectors are multiplied.
    """

    limit: int = 20
    distance: Distance = Distance.COSINE
    n_threads: int | None = None
    device: Device = Device.CPU

    def __post_init__(self) -> None:
        for name in ("limit", "n_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")


def evaluate_vectors(
    query: Source,
    index: Source | None,
    *,
    query_labels: Labels,
    index_labels: Labels | None,
    options: SearchOptions,
) -> VectorEvaluation:
    """Search an index with queries, exactly, and score what is found.

    :param query: Its vectors are held in memory.
    :param index: As :func:`finetuner.vector_index.open_vectors` takes it; a block of it is in memory for
        each thread. The queries when None, each without itself.
    :param query_labels: One for each query.
    :param index_labels: One for each vector of the index; None where ``index`` is.
    :param options: How to search.
    :raises DataError: When the numbers of vectors and labels, or the widths, do not agree, or no query has
        anything to find.
    """
    queries = _whole(open_vectors(query))
    searched = open_vectors(queries if index is None else index)
    labels = query_labels if index_labels is None else index_labels
    _check(queries, searched, query_labels, labels)
    query_classes, index_classes = match_labels(query_labels, labels)
    own = np.full(len(queries), -1) if index is not None else np.arange(len(queries))
    n_relevant = count_relevant(query_classes, index_classes, own)
    findable = np.flatnonzero(n_relevant)
    if not len(findable):
        raise DataError(
            f"none of the {len(queries)} queries has a vector with its label in the index"
        )
    places, distances = search(
        queries,
        searched,
        limit=options.limit,
        distance=options.distance,
        own=own,
        n_threads=options.n_threads or len(os.sched_getaffinity(0)),
        device=options.device,
    )
    per_query = score(
        places[findable], query_classes[findable], index_classes, n_relevant=n_relevant[findable]
    )
    metrics = {name: float(values.mean()) for name, values in per_query.items()}
    return VectorEvaluation(metrics, len(queries) - len(findable), places, distances)


def _whole(vectors: VectorIndex) -> NDArray[Any]:
    blocks = [block for _, block in vectors.blocks(0, vectors.n_vectors, _ROWS_AT_ONCE)]
    return np.concatenate(blocks) if blocks else np.empty((0, vectors.dim), np.float32)


def _check(
    queries: NDArray[Any], index: VectorIndex, query_labels: Labels, index_labels: Labels
) -> None:
    if not len(queries):
        raise DataError("there are no queries")
    if queries.shape[1] != index.dim:
        raise DataError(
            f"the queries are {queries.shape[1]} wide and the index {index.dim}; both must come from one "
            "model, cut to one length"
        )
    sides = (("query", len(queries), query_labels), ("index", index.n_vectors, index_labels))
    for side, n_vectors, labels in sides:
        if n_vectors != len(labels):
            raise DataError(f"{n_vectors} {side} vectors have {len(labels)} labels; each needs one")

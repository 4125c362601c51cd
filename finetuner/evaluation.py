"""Retrieval on labelled texts: search an index with queries, and score what is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetuner.callback import Distance, EvaluationCallback
from finetuner.data import LabelledTexts
from finetuner.errors import DataError
from finetuner.metrics import metrics_per_query

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
Positions = NDArray[np.int64]
_BLOCK_QUERIES = 512


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation gave.

    :param metrics: The nine metrics, each a mean over the queries.
    :param examples: For some queries, the nearest index texts; empty unless asked for.
    :param per_query: The metrics of each query, *Shape:* ``(n_queries,)``.
    """

    metrics: dict[str, float]
    examples: list[dict[str, Any]]
    per_query: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class EvaluationSet:
    """Queries, what is searched, and what is relevant to what.

    :param queries: Queries with at least one relevant index text.
    :param index: What is searched.
    :param query_classes: *Shape:* ``(n_queries,)`` int64.
    :param index_classes: *Shape:* ``(n_index,)`` int64; -1 where no query has the label.
    :param own: *Shape:* ``(n_queries,)`` int64; the index place of the query itself, -1 for none.
    :param n_skipped: Queries left out because nothing in the index has their label.
    """

    queries: LabelledTexts
    index: LabelledTexts
    query_classes: Positions
    index_classes: Positions
    own: Positions
    n_skipped: int

    @classmethod
    def create(
        cls, queries: LabelledTexts, index: LabelledTexts | None, *, callback: EvaluationCallback
    ) -> EvaluationSet:
        """Match queries with an index.

        :param queries: Every text labelled.
        :param index: What is searched; the queries themselves when None.
        :param callback: Says whether a query's own document is left out, and how many queries to take.
        :raises DataError: When a query has no label, or no query has anything to find.
        """
        if not len(queries):
            raise DataError("the query data of the evaluation are empty")
        if any(label is None for label in queries.labels):
            missing = sum(label is None for label in queries.labels)
            raise DataError(f"{missing} of {len(queries)} evaluation queries have no label")
        searched = queries if index is None else index
        numbers: dict[str | None, int] = {}
        query_classes = np.array([numbers.setdefault(v, len(numbers)) for v in queries.labels])
        index_classes = np.array([numbers.get(v, -1) for v in searched.labels], dtype=np.int64)
        own = _own_places(queries, searched, is_same=index is None)
        if not callback.exclude_self:
            own = np.full(len(queries), -1)
        findable = np.flatnonzero(_n_relevant(query_classes, index_classes, own))
        if not len(findable):
            raise DataError(
                f"none of the {len(queries)} evaluation queries has a text with its label among the "
                f"{len(searched)} index texts; labels of queries and index must agree"
            )
        chosen = _sample(findable, callback.query_sample_size)
        return cls(
            queries.subset(chosen.tolist()),
            searched,
            query_classes[chosen],
            index_classes,
            own[chosen],
            len(queries) - len(findable),
        )

    @property
    def n_relevant(self) -> Positions:
        """Index texts with the query's label, the query itself left out; *Shape:* ``(n_queries,)``."""
        return _n_relevant(self.query_classes, self.index_classes, self.own)


def _n_relevant(query_classes: Positions, index_classes: Positions, own: Positions) -> Positions:
    known = index_classes[index_classes >= 0]
    counts = np.bincount(known, minlength=int(query_classes.max()) + 1)[query_classes]
    # The document that is left out counts only where it has the label that the query has.
    rows = np.flatnonzero(own >= 0)
    counts[rows] -= index_classes[own[rows]] == query_classes[rows]
    return np.asarray(counts)


def _own_places(queries: LabelledTexts, index: LabelledTexts, *, is_same: bool) -> Positions:
    if is_same:
        return np.arange(len(queries))
    places = {id_: place for place, id_ in enumerate(index.ids) if id_ is not None}
    return np.array([-1 if id_ is None else places.get(id_, -1) for id_ in queries.ids])


def _sample(places: Positions, size: int | None) -> Positions:
    if size is None or size >= len(places):
        return places
    return np.sort(np.random.default_rng(0).choice(places, size, replace=False))


def search(
    query_embeddings: NDArray[np.float32],
    index_embeddings: NDArray[np.float32],
    *,
    limit: int,
    distance: Distance = Distance.COSINE,
    own: Positions | None = None,
) -> tuple[Positions, NDArray[np.float64]]:
    """Return the nearest index texts of each query, nearest first, exactly.

    Queries go in blocks, so memory grows with the index and not with queries times index. Equal
    distances are ordered by place in the index.

    :param query_embeddings: *Shape:* ``(n_queries, dim)`` float32.
    :param index_embeddings: *Shape:* ``(n_index, dim)`` float32.
    :param limit: Matches a query, at least 1; fewer when the index is smaller.
    :param distance: What orders the matches.
    :param own: *Shape:* ``(n_queries,)``; an index place to leave out for each query, -1 for none.
    :returns: Places and distances, *Shape:* ``(n_queries, min(limit, n_index))``. A query whose own
        text leaves too few others has the place -1 and an infinite distance at the end.
    """
    n_matches = min(limit, len(index_embeddings))
    places = np.empty((len(query_embeddings), n_matches), dtype=np.int64)
    distances = np.empty((len(query_embeddings), n_matches))
    index, index_norms = _prepare(index_embeddings, distance)
    for start in range(0, len(query_embeddings), _BLOCK_QUERIES):
        block = slice(start, start + _BLOCK_QUERIES)
        queries, query_norms = _prepare(query_embeddings[block], distance)
        found = queries @ index.T
        if distance is not Distance.COSINE:
            found = 2 * found - query_norms[:, None] - index_norms[None, :]
        if own is not None:
            rows = np.flatnonzero(own[block] >= 0)
            found[rows, own[block][rows]] = -np.inf
        places[block], nearness = _largest(found, n_matches)
        distances[block] = _to_distance(nearness.astype(np.float64), distance)
    return np.where(np.isinf(distances), -1, places), distances


def _prepare(embeddings: NDArray[np.float32], distance: Distance) -> tuple[Any, Any]:
    squares = np.einsum("ij,ij->i", embeddings, embeddings)
    if distance is not Distance.COSINE:
        return embeddings, squares
    return embeddings / np.maximum(np.sqrt(squares), 1e-12)[:, None], squares


def _to_distance(nearness: NDArray[np.float64], distance: Distance) -> NDArray[np.float64]:
    if distance is Distance.COSINE:
        return 1 - nearness
    squared = np.maximum(-nearness, 0)
    return np.sqrt(squared) if distance is Distance.EUCLIDEAN else squared


def _largest(values: NDArray[np.float32], k: int) -> tuple[Positions, NDArray[np.float32]]:
    """Return the k largest of each row in falling order, equal ones by place, and their values."""
    n = values.shape[1]
    if k < n:
        chosen = np.sort(np.argpartition(values, n - k, axis=1)[:, n - k :], axis=1)
        border = np.take_along_axis(values, chosen, axis=1).min(axis=1)
        # argpartition picks any of several values equal to the k-th; the rule is by place.
        tied = np.flatnonzero((values >= border[:, None]).sum(axis=1) > k)
        for row in tied:
            chosen[row] = np.sort(np.argsort(-values[row], kind="stable")[:k])
    else:
        chosen = np.broadcast_to(np.arange(n), values.shape)
    picked = np.take_along_axis(values, chosen, axis=1)
    order = np.argsort(-picked, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1), np.take_along_axis(picked, order, axis=1)


def evaluate(embed: Embed, data: EvaluationSet, *, callback: EvaluationCallback) -> Evaluation:
    """Embed queries and index, search, and score.

    :param embed: From texts to vectors, *Shape:* ``(n_texts, dim)`` float32.
    :param data: What to search with and in.
    :param callback: Limit, distance and examples.
    """
    index_embeddings = embed(data.index.texts)
    query_embeddings = embed(data.queries.texts)
    places, distances = search(
        query_embeddings,
        index_embeddings,
        limit=callback.limit,
        distance=callback.distance,
        own=data.own,
    )
    relevance = (data.index_classes[places] == data.query_classes[:, None]) & (places >= 0)
    n_matches = (places >= 0).sum(axis=1)
    per_query = metrics_per_query(relevance, n_matches, data.n_relevant)
    metrics = {name: float(values.mean()) for name, values in per_query.items()}
    n_examples = callback.num_example_queries if callback.gather_examples else 0
    examples = [
        _example(data, query, places[query], distances[query])
        for query in range(min(n_examples, len(data.queries)))
    ]
    return Evaluation(metrics, examples, per_query)


def _example(
    data: EvaluationSet, query: int, places: Positions, distances: NDArray[np.float64]
) -> dict[str, Any]:
    return {
        "query": data.queries.texts[query],
        "label": data.queries.labels[query],
        "results": [
            {
                "text": data.index.texts[place],
                "label": data.index.labels[place],
                "distance": round(float(distance), 6),
            }
            for place, distance in zip(places, distances, strict=True)
            if place >= 0
        ],
    }

"""Retrieval on labelled texts: search an index with queries, and score what is found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetuner.callback import EvaluationCallback
from finetuner.data import LabelledTexts
from finetuner.errors import DataError
from finetuner.inner_products import Positions
from finetuner.metrics import Values, metrics_per_query
from finetuner.search import search

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation gave.

    :param metrics: The nine metrics, each a mean over the queries.
    :param examples: For some queries, the nearest index texts; empty unless asked for.
    :param per_query: The metrics of each query, *Shape:* ``(n_queries,)``.
    :param query_embeddings: *Shape:* ``(n_queries, dim)`` float32.
    :param index_embeddings: *Shape:* ``(n_index, dim)`` float32.
    """

    metrics: dict[str, float]
    examples: list[dict[str, Any]]
    per_query: dict[str, NDArray[np.float64]]
    query_embeddings: NDArray[np.float32]
    index_embeddings: NDArray[np.float32]


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
        query_classes, index_classes = match_labels(queries.labels, searched.labels)
        own = _own_places(queries, searched, is_same=index is None)
        if not callback.exclude_self:
            own = np.full(len(queries), -1)
        findable = np.flatnonzero(count_relevant(query_classes, index_classes, own))
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
        return count_relevant(self.query_classes, self.index_classes, self.own)


def skipped_line(n_skipped: int) -> str:
    """Return what a user is told of queries that were left out."""
    return f"{n_skipped} evaluation queries are left out: nothing in the index has their label"


def match_labels(
    query_labels: Collection[Hashable], index_labels: Collection[Hashable]
) -> tuple[Positions, Positions]:
    """Return labels as numbers, the same for the same label; -1 for one that no query has.

    :param query_labels: One for each query.
    :param index_labels: One for each vector of the index.
    """
    numbers: dict[Hashable, int] = {}
    of_queries = (numbers.setdefault(label, len(numbers)) for label in query_labels)
    query_classes = np.fromiter(of_queries, np.int64, len(query_labels))
    of_index = (numbers.get(label, -1) for label in index_labels)
    return query_classes, np.fromiter(of_index, np.int64, len(index_labels))


def count_relevant(query_classes: Positions, index_classes: Positions, own: Positions) -> Positions:
    """Return how many vectors of the index have each query's label, the query itself left out.

    :param query_classes: *Shape:* ``(n_queries,)``, as :func:`match_labels` gives them.
    :param index_classes: *Shape:* ``(n_index,)``.
    :param own: *Shape:* ``(n_queries,)``; the index place of the query itself, -1 for none.
    """
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
    per_query = score(places, data.query_classes, data.index_classes, n_relevant=data.n_relevant)
    metrics = {name: float(values.mean()) for name, values in per_query.items()}
    n_examples = callback.num_example_queries if callback.gather_examples else 0
    examples = [
        _example(data, query, places[query], distances[query])
        for query in range(min(n_examples, len(data.queries)))
    ]
    return Evaluation(metrics, examples, per_query, query_embeddings, index_embeddings)


def score(
    places: Positions,
    query_classes: Positions,
    index_classes: Positions,
    *,
    n_relevant: Positions,
) -> dict[str, Values]:
    """Return the nine metrics of each query.

    :param places: *Shape:* ``(n_queries, limit)``, as :func:`search` gives them.
    :param query_classes: *Shape:* ``(n_queries,)``, as :func:`match_labels` gives them.
    :param index_classes: *Shape:* ``(n_index,)``.
    :param n_relevant: *Shape:* ``(n_queries,)``, as :func:`count_relevant` gives it.
    """
    relevance = (index_classes[places] == query_classes[:, None]) & (places >= 0)
    return metrics_per_query(relevance, (places >= 0).sum(axis=1), n_relevant)


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

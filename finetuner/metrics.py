"""Retrieval metrics by docarray's formulas, over all queries at once.

Every function takes ``relevance``, *Shape:* ``(n_queries, limit)`` bool, where entry ``[q, i]`` says
whether match ``i`` of query ``q`` (nearest first) has the query's label, and gives one value a query,
*Shape:* ``(n_queries,)`` float64. Places behind a query's last match hold False. Each must equal the
function of the same name in ``docarray.math.evaluation`` (0.21) on the row cut to its matches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Relevance = NDArray[np.bool_]
Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Values:
    """Divide, giving 0 where the denominator is 0."""
    result = np.zeros(len(numerator))
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _ranks(limit: int) -> Counts:
    return np.arange(1, limit + 1)


def average_precision(relevance: Relevance) -> Values:
    """Mean of precision@rank over the ranks of the relevant matches *found*; 0 when none is.

    Divided by what was found and not by all that is relevant, hence above the usual MAP.
    """
    precision_at_rank = np.cumsum(relevance, axis=1) / _ranks(relevance.shape[1])
    return _ratio((precision_at_rank * relevance).sum(axis=1), relevance.sum(axis=1))


def dcg_at_k(relevance: Relevance) -> Values:
    """Discounted cumulative gain with weights 1, 1, 1/log2(3), 1/log2(4), …

    The weights of docarray's ``method=0``; the usual ones are 1/log2(rank + 1).
    """
    weights = 1 / np.log2(np.maximum(_ranks(relevance.shape[1]), 2))
    return np.asarray(relevance @ weights, dtype=np.float64)


def ndcg_at_k(relevance: Relevance) -> Values:
    """:func:`dcg_at_k` over that of the same matches in the best order; 0 when none is relevant."""
    ideal = np.sort(relevance, axis=1)[:, ::-1]
    return _ratio(dcg_at_k(relevance), dcg_at_k(ideal))


def precision_at_k(relevance: Relevance, n_matches: Counts) -> Values:
    """Share of the matches that are relevant.

    :param n_matches: *Shape:* ``(n_queries,)``; matches got, fewer than the limit in a small index.
    """
    return _ratio(relevance.sum(axis=1), n_matches)


def recall_at_k(relevance: Relevance, n_relevant: Counts) -> Values:
    """Share of all that is relevant in the index that was found.

    :param n_relevant: *Shape:* ``(n_queries,)``; index texts with the query's label.
    """
    return _ratio(relevance.sum(axis=1), n_relevant)


def f1_score_at_k(relevance: Relevance, n_matches: Counts, n_relevant: Counts) -> Values:
    """Harmonic mean of precision and recall; 0 when both are."""
    precision = precision_at_k(relevance, n_matches)
    recall = recall_at_k(relevance, n_relevant)
    return _ratio(2 * precision * recall, precision + recall)


def hit_at_k(relevance: Relevance) -> Values:
    """1 when any match is relevant, else 0."""
    return np.asarray(relevance.any(axis=1).astype(np.float64))


def r_precision(relevance: Relevance) -> Values:
    """Share of relevant among the first z matches, z being the number of relevant *found*."""
    n_found = relevance.sum(axis=1)
    within = _ranks(relevance.shape[1]) <= n_found[:, None]
    return _ratio((relevance & within).sum(axis=1), n_found)


def reciprocal_rank(relevance: Relevance) -> Values:
    """1 over the rank of the first relevant match; 0 when there is none."""
    first = relevance.argmax(axis=1)
    return np.where(relevance.any(axis=1), 1 / (first + 1), 0.0)


def metrics_per_query(
    relevance: Relevance, n_matches: Counts, n_relevant: Counts
) -> dict[str, Values]:
    """Return the nine metrics of each query, in alphabetical order.

    :param relevance: *Shape:* ``(n_queries, limit)`` bool, as the module says.
    :param n_matches: *Shape:* ``(n_queries,)``; matches got.
    :param n_relevant: *Shape:* ``(n_queries,)``; index texts with the query's label.
    :returns: *Shape:* ``(n_queries,)`` each.
    """
    return {
        "average_precision": average_precision(relevance),
        "dcg_at_k": dcg_at_k(relevance),
        "f1_score_at_k": f1_score_at_k(relevance, n_matches, n_relevant),
        "hit_at_k": hit_at_k(relevance),
        "ndcg_at_k": ndcg_at_k(relevance),
        "precision_at_k": precision_at_k(relevance, n_matches),
        "r_precision": r_precision(relevance),
        "recall_at_k": recall_at_k(relevance, n_relevant),
        "reciprocal_rank": reciprocal_rank(relevance),
    }


_ONE = np.ones(1, dtype=np.int64)
METRIC_NAMES = tuple(metrics_per_query(np.ones((1, 1), dtype=np.bool_), _ONE, _ONE))


def retrieval_metrics(
    relevance: Relevance, n_matches: Counts, n_relevant: Counts
) -> dict[str, float]:
    """Return the means of :func:`metrics_per_query` over the queries; zeros for no queries."""
    per_query = metrics_per_query(relevance, n_matches, n_relevant)
    return {name: float(v.mean()) if len(v) else 0.0 for name, v in per_query.items()}

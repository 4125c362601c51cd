import math

import numpy as np
import pytest
from docarray.math import evaluation as docarray_metrics

from finetuner import metrics

RNG = np.random.default_rng(0)


def dcg(row):
    return sum(rel if i == 0 else rel / math.log2(i + 1) for i, rel in enumerate(row))


def ndcg(row):
    best = dcg(sorted(row, reverse=True))
    return dcg(row) / best if best else 0.0


def reference(row, n_relevant):
    """The nine metrics of one query's matches; docarray's own dcg and ndcg fail on numpy 2."""
    row = [int(rel) for rel in row]
    return {
        "average_precision": docarray_metrics.average_precision(row),
        "dcg_at_k": dcg(row),
        "f1_score_at_k": docarray_metrics.f1_score_at_k(row, max_rel=n_relevant),
        "hit_at_k": float(docarray_metrics.hit_at_k(row)),
        "ndcg_at_k": ndcg(row),
        "precision_at_k": docarray_metrics.precision_at_k(row),
        "r_precision": docarray_metrics.r_precision(row),
        "recall_at_k": docarray_metrics.recall_at_k(row, max_rel=n_relevant),
        "reciprocal_rank": docarray_metrics.reciprocal_rank(row),
    }


def test_reference_vector():
    relevance = np.zeros((1, 20), dtype=bool)
    relevance[0, [0, 2]] = True
    found = metrics.retrieval_metrics(relevance, np.array([20]), np.array([3]))

    assert {name: round(value, 5) for name, value in found.items()} == {
        "average_precision": 0.83333,
        "dcg_at_k": 1.63093,
        "f1_score_at_k": 0.17391,
        "hit_at_k": 1.0,
        "ndcg_at_k": 0.81546,
        "precision_at_k": 0.1,
        "r_precision": 0.5,
        "recall_at_k": 0.66667,
        "reciprocal_rank": 1.0,
    }


@pytest.mark.parametrize("share", [0.02, 0.2, 0.7, 1.0])
def test_every_metric_equals_docarrays(share):
    limit = 12
    n_matches = RNG.integers(1, limit + 1, 80)
    relevance = RNG.random((80, limit)) < share
    relevance &= np.arange(limit) < n_matches[:, None]
    n_relevant = relevance.sum(axis=1) + RNG.integers(1, 4, 80)
    rows = [
        reference(row[:n], relevant)
        for row, n, relevant in zip(relevance, n_matches, n_relevant, strict=True)
    ]
    expected = {name: np.mean([row[name] for row in rows]) for name in rows[0]}

    found = metrics.retrieval_metrics(relevance, n_matches, n_relevant)

    assert list(found) == sorted(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-12)


def test_nothing_relevant_and_no_queries():
    zeros = dict.fromkeys(
        metrics.retrieval_metrics(np.zeros((0, 5), bool), np.zeros(0), np.zeros(0)), 0.0
    )
    assert len(zeros) == 9
    found = metrics.retrieval_metrics(np.zeros((3, 5), bool), np.full(3, 5), np.ones(3))
    assert found == zeros

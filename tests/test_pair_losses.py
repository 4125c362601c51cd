import math

import pytest
import torch
from torch.nn import functional

from finetuner.errors import ConfigError
from finetuner.pair_losses import (
    CoSENTLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
    Targets,
)

_N = 5


@pytest.fixture
def vectors():
    """Five anchors, five positives near them, two negatives; not of length one."""
    anchors = torch.randn(_N, 6)
    return torch.cat([anchors, anchors + 0.5 * torch.randn(_N, 6), torch.randn(2, 6)])


def _cosine(left, right):
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.hypot(*left) / math.hypot(*right)


def _ranking_by_loops(rows, classes, temperature, *, n_negatives=2, symmetric=True):
    anchors, positives = range(_N), range(_N, 2 * _N)
    index = range(_N, 2 * _N + n_negatives)
    ways = [(anchors, index, _N)] + ([(positives, anchors, -_N)] if symmetric else [])
    means = []
    for queries, searched, step in ways:
        terms = []
        for q in queries:
            kept = [j for j in searched if j == q + step or classes[j] != classes[q]]
            logits = {j: _cosine(rows[q], rows[j]) / temperature for j in kept}
            terms.append(math.log(sum(map(math.exp, logits.values()))) - logits[q + step])
        means.append(sum(terms) / _N)
    return sum(means) / len(means)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("alike", [{}, {3: 0, 8: 0}, {10: 2, 1: 4, 6: 4}])
def test_ranking_by_loops(vectors, symmetric, temperature, alike):
    """With texts of other pairs, and a negative, that are known to be alike: they are left out."""
    classes = [*range(_N), *range(_N), 50, 51]
    for place, class_ in alike.items():
        classes[place] = class_
    loss = MultipleNegativesRankingLoss(temperature, symmetric)
    found = loss(vectors, Targets(torch.tensor(classes), n_pairs=_N))
    rows = vectors.double().tolist()
    expected = _ranking_by_loops(rows, classes, temperature, symmetric=symmetric)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_ranking_is_the_cross_entropy_of_the_products(vectors):
    targets = Targets(torch.arange(_N).repeat(2), n_pairs=_N)
    a, b = functional.normalize(vectors[: 2 * _N], dim=1).split(_N)
    expected = functional.cross_entropy(a @ b.T / 0.05, torch.arange(_N))
    found = MultipleNegativesRankingLoss(symmetric=False)(vectors[: 2 * _N], targets)
    torch.testing.assert_close(found, expected)


def test_all_alike_teaches_nothing_and_is_finite(vectors):
    targets = Targets(torch.zeros(2 * _N, dtype=torch.int64), n_pairs=_N)
    assert MultipleNegativesRankingLoss()(vectors[: 2 * _N], targets).item() == 0.0


@pytest.mark.parametrize("scale", [20.0, 3.0])
def test_cosent_by_loops(vectors, scale):
    scores = [0.1, 0.9, 0.5, 0.9, 0.0]
    cosines = [_cosine(*pair) for pair in zip(*vectors[: 2 * _N].double().split(_N), strict=True)]
    total = 1.0
    for i in range(_N):
        for j in range(_N):
            if scores[i] > scores[j]:
                total += math.exp(scale * (float(cosines[j]) - float(cosines[i])))
    targets = Targets(torch.arange(2 * _N), n_pairs=_N, scores=torch.tensor(scores))
    found = CoSENTLoss(scale)(vectors[: 2 * _N], targets)
    assert found.item() == pytest.approx(math.log(total), rel=1e-4)
    equal = Targets(torch.arange(2 * _N), n_pairs=_N, scores=torch.ones(_N))
    assert CoSENTLoss(scale)(vectors[: 2 * _N], equal).item() == 0.0


def test_cosine_similarity_by_loops(vectors):
    scores = [0.1, 0.9, -0.5, 1.0, 0.0]
    cosines = [_cosine(*pair) for pair in zip(*vectors[: 2 * _N].double().split(_N), strict=True)]
    expected = sum((float(c) - s) ** 2 for c, s in zip(cosines, scores, strict=True)) / _N
    targets = Targets(torch.arange(2 * _N), n_pairs=_N, scores=torch.tensor(scores))
    assert CosineSimilarityLoss()(vectors, targets).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultipleNegativesRankingLoss(0), "temperature must be above 0, got 0"),
        (lambda: CoSENTLoss(-1), "scale must be above 0, got -1"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()

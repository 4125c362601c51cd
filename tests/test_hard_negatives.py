import numpy as np
import pytest

from finetuner.config import HardNegatives
from finetuner.errors import ConfigError
from finetuner.hard_negatives import mine


def _by_loops(unit, classes, settings):
    cosines = unit.astype(np.float64) @ unit.T.astype(np.float64)
    rows = []
    for i in range(len(unit)):
        own = [cosines[i, j] for j in range(len(unit)) if j != i and classes[j] == classes[i]]
        bound = (1 - settings.relative_margin) * (sum(own) / len(own) if own else 1)
        fitting = [
            j for j in range(len(unit)) if classes[j] != classes[i] and cosines[i, j] <= bound
        ]
        nearest = sorted(fitting, key=lambda j: -cosines[i, j])[: settings.n_candidates]
        rows.append(nearest + [-1] * (settings.n_candidates - len(nearest)))
    return rows


@pytest.mark.parametrize("block", [7, 512])
@pytest.mark.parametrize("settings", [HardNegatives(), HardNegatives(1.0, 0.4, 100)])
def test_by_loops(monkeypatch, block, settings):
    """With classes of one text, blocks that do not divide, and more candidates than there are."""
    monkeypatch.setattr("finetuner.hard_negatives._BLOCK_TEXTS", block)
    generator = np.random.default_rng(0)
    classes = np.concatenate([np.arange(12), generator.integers(0, 12, 48)])
    centres = generator.standard_normal((12, 6))
    embeddings = (centres[classes] + generator.standard_normal((60, 6))).astype(np.float32)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = mine(embeddings * 3, classes, settings=settings)
    assert found.tolist() == _by_loops(unit, classes, settings)
    assert (found == -1).any() == (settings.n_candidates == 100)


def test_ties_go_by_place():
    embeddings = np.array([[1, 0], [1, 0.1], [0, 1], [0, 1], [0, 1], [1, 1]], dtype=np.float32)
    classes = np.array([0, 0, 1, 1, 2, 2])
    found = mine(embeddings, classes, settings=HardNegatives(n_candidates=3))
    assert found[0].tolist() == [5, 2, 3]


def test_likely_duplicates_are_left_out():
    """A text of another label that is nearer than its own label's texts is no safe negative."""
    embeddings = np.array([[1, 0], [1, 1], [1, 0.01], [0.2, 1]], dtype=np.float32)
    found = mine(embeddings, np.array([0, 0, 1, 1]), settings=HardNegatives(n_candidates=2))
    assert found[0].tolist() == [3, -1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, "hard_negatives.share must be from 0 to 1, got 1.5"),
        ({"relative_margin": -1}, "hard_negatives.relative_margin must be from 0 to 1, got -1"),
        ({"n_candidates": 0}, "hard_negatives.n_candidates must be at least 1, got 0"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HardNegatives(**settings)

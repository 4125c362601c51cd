"""Which texts a validation loss gets."""

from collections import Counter

import numpy as np
import pytest

from finetuner.data import TrainingData
from finetuner.validation_split import split_data


def _data(*sizes):
    """Labels with so many texts each."""
    classes = np.repeat(np.arange(len(sizes)), sizes)
    order = np.random.default_rng(1).permutation(len(classes))
    return TrainingData([f"text {i}" for i in range(len(classes))], classes[order], 0, 0)


def _label_of(data):
    return dict(zip(data.texts, data.classes.tolist(), strict=True))


@pytest.mark.parametrize("by_label", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_every_text_goes_to_one_side_with_its_label(by_label, share):
    data = _data(4, 4, 4, 4, 4, 4, 4, 4)
    kept, held = split_data(data, share, by_label=by_label, seed=3)
    assert sorted(kept.texts + held.texts) == sorted(data.texts)
    assert _label_of(kept) | _label_of(held) == _label_of(data)


@pytest.mark.parametrize(("share", "n_held"), [(0.01, 2), (0.25, 2), (0.5, 4), (0.9, 7)])
def test_whole_labels_are_held_out(share, n_held):
    data = _data(2, 3, 4, 5, 6, 7, 8, 9)
    kept, held = split_data(data, share, by_label=True, seed=0)
    assert len(set(held.classes.tolist())) == n_held
    assert set(held.classes.tolist()) & set(kept.classes.tolist()) == set()


def test_a_share_of_every_labels_texts_is_held_out():
    """Of 10 texts 3; of 4 texts 1.2, which is one or two; of one alone none."""
    data = _data(10, *[4] * 50, 1)
    held = Counter(split_data(data, 0.3, by_label=False, seed=0)[1].classes.tolist())
    assert held[0] == 3
    assert {held[label] for label in range(1, 51)} == {1, 2}
    assert held[51] == 0
    assert sum(held[label] for label in range(1, 51)) == pytest.approx(60, abs=10)


def test_small_labels_give_up_their_share_on_average():
    held = split_data(_data(*[4] * 200), 0.1, by_label=False, seed=0)[1]
    assert len(held.texts) == pytest.approx(80, abs=25)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_every_label_keeps_a_text_to_train_on(share):
    kept, _ = split_data(_data(1, 2, 3, 4, 20), share, by_label=False, seed=0)
    assert set(kept.classes.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("by_label", [True, False])
def test_the_seed_decides(by_label):
    data = _data(*[4] * 20)
    held = [split_data(data, 0.5, by_label=by_label, seed=s)[1].texts for s in (0, 0, 1)]
    assert held[0] == held[1]
    assert held[0] != held[2]

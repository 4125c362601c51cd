import numpy as np
import pytest

from finetuner.batching import BatchPlan
from finetuner.config import Sampler

RNG = np.random.default_rng(1)
SIZES = {
    "pairs": [2] * 1000,
    "large classes": [130] * 52,
    "one huge class": [900, 100],
    "fewer classes than a batch": [30, 30, 30],
    "fewer texts than a batch": [3, 3],
    "mostly singletons": [2] + [1] * 49,
    "mixed": RNG.integers(1, 7, 300).tolist(),
    "empty": [],
}


def plan(sizes, batch_size=64, items=4, **options):
    classes = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    lengths = RNG.integers(5, 40, len(classes))
    return BatchPlan.create(
        classes, lengths, batch_size=batch_size, num_items_per_class=items, **options
    )


@pytest.mark.parametrize("sampler", Sampler)
@pytest.mark.parametrize(("batch_size", "items"), [(4, 2), (20, 4), (64, 2), (128, 64), (6, 100)])
@pytest.mark.parametrize("name", SIZES)
def test_every_text_once_an_epoch_in_batches_that_fit(name, batch_size, items, sampler):
    made = plan(SIZES[name], batch_size, items, sampler=sampler)
    for epoch in (0, 1):
        batches = made.epoch(epoch)
        positions = [position for batch in batches for position in batch.tolist()]
        assert sorted(positions) == list(range(sum(SIZES[name])))
        assert all(0 < len(batch) <= batch_size for batch in batches)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "n_batches"),
    [([2] * 1000, 128, 16), ([130] * 52, 64, 106), ([4] * 50, 20, 10), ([2] * 52299, 128, 818)],
)
def test_as_few_batches_as_can_be(sizes, batch_size, n_batches):
    assert len(plan(sizes, batch_size).epoch(0)) == n_batches


@pytest.mark.parametrize("name", ["pairs", "large classes", "fewer classes than a batch", "mixed"])
def test_batches_hold_positives_and_negatives(name):
    made = plan(SIZES[name], 20, 2)
    for batch in made.epoch(0):
        counts = np.bincount(made.classes[batch])
        assert counts.max() >= 2
        assert (counts > 0).sum() >= 2


def test_no_text_is_parted_from_all_of_its_class():
    made = plan(SIZES["mixed"], 64, 4)
    sizes = np.bincount(made.classes)
    for batch in made.epoch(3):
        counts = np.bincount(made.classes[batch], minlength=len(sizes))
        assert not np.any((counts == 1) & (sizes > 1))


def test_same_for_a_seed_and_different_each_epoch():
    sizes = SIZES["mixed"]
    lengths = np.arange(sum(sizes))
    classes = np.repeat(np.arange(len(sizes)), sizes)

    def epoch(seed, number):
        made = BatchPlan(classes, lengths, 32, 2, seed)
        return [batch.tolist() for batch in made.epoch(number)]

    assert epoch(5, 1) == epoch(5, 1)
    assert epoch(5, 1) != epoch(5, 2)
    assert epoch(5, 1) != epoch(6, 1)


def test_texts_of_like_length_go_together():
    made = plan([2] * 1000, 64, 2)

    def padded(batches):
        return sum(len(batch) * made.lengths[batch].max() for batch in batches)

    shuffled = np.array_split(RNG.permutation(2000), 32)
    assert padded(made.epoch(0)) < 0.85 * padded(shuffled)


def test_items_per_class_leave_room_for_a_second_class():
    made = plan([50, 50], batch_size=20, items=20)
    assert made.items_per_class == 10
    for batch in made.epoch(0):
        assert len(set(made.classes[batch].tolist())) == 2


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.03), (0.5, 0.2), (1.0, 0.4)])
def test_rivals_share_a_batch(share, expected):
    """Each text's one rival is of the class four places further on."""
    classes = np.repeat(np.arange(200), 2)
    made = BatchPlan(classes, np.full(400, 9), 16, 2, 3, share)
    rivals = ((np.arange(400) + 8) % 400)[:, None]
    batches = made.epoch(1, rivals)
    assert sorted(np.concatenate(batches).tolist()) == list(range(400))
    assert max(map(len, batches)) <= 16
    batch_of = {text: number for number, batch in enumerate(batches) for text in batch.tolist()}
    together = [batch_of[text] == batch_of[int(rivals[text, 0])] for text in range(400)]
    # Of two groups that are joined, one has its rival beside it, and some find theirs taken already.
    assert abs(sum(together) / 400 - expected) < 0.08


def test_no_rivals_change_nothing():
    made = BatchPlan(np.repeat(np.arange(20), 2), np.arange(40), 8, 2, 0, 1.0)
    with_none = made.epoch(0, np.full((40, 3), -1))
    assert sorted(map(len, with_none)) == sorted(map(len, made.epoch(0)))
    assert sorted(np.concatenate(with_none).tolist()) == list(range(40))


def test_classes_may_have_gaps():
    made = BatchPlan(np.array([0, 0, 7, 7]), np.arange(4), 4, 2)
    assert sorted(np.concatenate(made.epoch(0)).tolist()) == [0, 1, 2, 3]

import random
from itertools import pairwise

import numpy as np
import pytest
from pair_rows import pairs, scored

from finetuner.clean_pairs import prepare_pairs
from finetuner.errors import DataError


def test_pairs_are_cleaned():
    data = prepare_pairs(
        pairs(
            ("a", "b"),
            ("B", "A "),  # again, the other way round
            ("c", "d", "a"),
            ("c", "d", "b"),  # another negative is another row
            ("e", "E"),  # itself
            ("b", "x", "a"),  # its negative is alike
        )
    )
    assert data.texts == ["a", "b", "c", "d", "e", "x"]
    assert data.pairs.tolist() == [[0, 1], [2, 3], [2, 3], [1, 5]]
    assert data.negatives.tolist() == [-1, 0, 1, -1]
    assert data.classes.tolist() == [0, 0, 1, 1, 2, 0]
    assert (data.scores, data.n_repeated, data.n_ambiguous) == (None, 1, 2)


def test_scored_pairs_are_cleaned():
    data = prepare_pairs(
        scored(("a", "b", 1), ("b", "a", 1), ("a", "c", 0), ("c", "d", 0.5), ("d", "c", 0.75))
    )
    assert data.pairs.tolist() == [[0, 1], [0, 2]]
    np.testing.assert_array_equal(data.scores, np.float32([1, 0]))
    assert data.classes.tolist() == [0, 1, 2, 3]
    assert (data.n_repeated, data.n_ambiguous) == (1, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pairs(("a", "b")), "at least two pairs; found 1 different pairs of 2 texts in 1 rows"),
        (pairs(("a", "a"), ("b", "b")), r"found 0 different .* \(0 repeated, 2 contradictory\)"),
        (pairs(*pairwise("abcd")), "all texts mean the same: there are no negatives; found 3"),
        (pairs("xx", "ab", "bc"), "all texts mean the same: there are no negatives; found 2"),
        (
            pairs(*[("a", "b", "c"), ("b", "c")]),
            r"all texts mean .* \(0 repeated, 1 contradictory",
        ),
        (scored(("a", "b", 0.5), ("c", "d", 0.5)), "all scores are 0.5: nothing can be learnt"),
    ],
)
def test_pairs_that_teach_nothing(data, message):
    with pytest.raises(DataError, match=message):
        prepare_pairs(data)


def test_negatives_make_up_for_a_second_group():
    data = prepare_pairs(pairs(("a", "b", "n"), ("b", "c")))
    assert (data.pairs.tolist(), data.negatives.tolist()) == ([[0, 1], [1, 3]], [2, -1])


def _cleaned_by_a_loop(rows):
    """Clean rows of one-letter texts as the rules say, one after another."""
    groups = {}
    for left, right, _ in rows:
        merged = groups.get(left, {left}) | groups.get(right, {right})
        groups |= dict.fromkeys(merged, merged)
    kept, n_repeated, n_ambiguous = [], 0, 0
    for anchor, positive, negative in rows:
        if anchor == positive:
            n_ambiguous += 1
            continue
        if negative in groups[anchor]:
            n_ambiguous += 1
            negative = None
        if any({anchor, positive} == {a, p} and negative == n for a, p, n in kept):
            n_repeated += 1
        else:
            kept.append((anchor, positive, negative))
    return kept, n_repeated, n_ambiguous


@pytest.mark.parametrize("seed", range(5))
def test_cleaning_against_a_plain_loop(seed):
    draw = random.Random(seed)
    islands = [draw.choice(["abc", "defg", "hi", "jkl"]) for _ in range(120)]
    rows = [
        (draw.choice(island), draw.choice(island), draw.choice([None, *"abcdefghijklm"]))
        for island in islands
    ]
    data = prepare_pairs(pairs(*rows))
    kept, n_repeated, n_ambiguous = _cleaned_by_a_loop(rows)
    names = [*data.texts, None]  # a negative of -1 is none
    found = [
        (names[anchor], names[positive], names[negative])
        for (anchor, positive), negative in zip(data.pairs, data.negatives, strict=True)
    ]
    assert found == kept
    assert (data.n_repeated, data.n_ambiguous) == (n_repeated, n_ambiguous)
    assert min(n_repeated, n_ambiguous, sum(n is not None for _, _, n in kept)) > 0

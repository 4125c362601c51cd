"""A share of the training data kept for the evaluation, so that a run can be judged without data beside.

- A share that comes to five labels or more, with two texts each: whole labels are held out, as retrieval
  meets what it was not trained on; each of their texts is a query, searched among the others.
- Fewer: among the texts of so few labels any model finds the right ones. Texts of every label are held out
  and are queries; what is trained on is searched.
- Pairs: whole groups of linked texts are held out; their anchors are queries, their positives are searched.

What is held out is not trained on, nor is any text that compares as equal (:func:`finetuner.data.fold`).
Texts under several labels are in neither part of the evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finetuner.data import LabelledTexts, fold
from finetuner.errors import DataError
from finetuner.linked_texts import linked_pairs
from finetuner.pairs import TextPairs, Texts

# Whole labels are held out when there are so many to be searched among.
MIN_HELD_LABELS = 5
# More would take long to search in every epoch, and tell no more.
MAX_QUERIES = 10_000
MAX_INDEX = 50_000
_MIN_GROUPS = 2
_MIN_QUERIES = 2


@dataclass(frozen=True)
class HeldOut:
    """Training data and the evaluation's, apart.

    :param training: What is left to train on, in the form and order that it came in.
    :param queries: Texts with labels; each has a text with its label to find.
    :param index: What is searched; the queries themselves when None.
    """

    training: Texts
    queries: LabelledTexts
    index: LabelledTexts | None


def hold_out(data: Texts, share: float, *, seed: int) -> HeldOut:
    """Take a share of training data out of it.

    :param data: Labelled texts, or pairs without scores.
    :param share: Above 0, below 1; of the different texts, or of the pairs, at most 10,000 of them.
    :param seed: Of the choice.
    :raises DataError: When the pairs are scored, or there are too few data to hold any out.
    """
    generator = np.random.default_rng(seed)
    if isinstance(data, TextPairs):
        return _of_pairs(data, share, generator)
    members = _members(data)
    groups = [places for places in members.values() if len(places) > 1]
    n_wanted = _n_wanted(share, sum(map(len, members.values())))
    chosen = _chosen_groups([len(places) for places in groups], n_wanted, generator)
    if len(chosen) >= MIN_HELD_LABELS:
        return _of_labels(data, sorted(place for number in chosen for place in groups[number]))
    return _of_texts(data, members, share, generator)


def _members(data: LabelledTexts) -> dict[str, list[int]]:
    """Return by label where its texts first stand; without those of no label or of several."""
    labels_of: dict[str, dict[str | None, int]] = {}
    for place, (text, label) in enumerate(zip(data.texts, data.labels, strict=True)):
        labels_of.setdefault(fold(text), {}).setdefault(label, place)
    members: dict[str, list[int]] = {}
    for found in labels_of.values():
        ((label, place), *others) = found.items()
        if label is not None and not others:
            members.setdefault(label, []).append(place)
    return members


def _of_labels(data: LabelledTexts, held: list[int]) -> HeldOut:
    labels = {data.labels[place] for place in held}
    return HeldOut(
        _without(
            data, {fold(t) for t, v in zip(data.texts, data.labels, strict=True) if v in labels}
        ),
        _evaluated(data, held),
        None,
    )


def _of_texts(
    data: LabelledTexts,
    members: dict[str, list[int]],
    share: float,
    generator: np.random.Generator,
) -> HeldOut:
    ranked: list[tuple[float, int]] = []
    for places in members.values():
        # The first of each label stays, to be found. The offset lets labels of a few texts too give up
        # their share on average.
        order, offset = generator.permutation(places).tolist(), generator.random()
        ranked += [((i + offset) / len(order), place) for i, place in enumerate(order) if i]
    n_texts = sum(map(len, members.values()))
    n_held = max(_MIN_QUERIES, _n_wanted(share, n_texts))
    if len(ranked) < _MIN_QUERIES:
        raise DataError(
            f"hold_out={share:g} needs at least {_MIN_QUERIES} texts that can be held out, and found "
            f"{len(ranked)} among {n_texts} different ones with {len(members)} labels, each of which keeps "
            "one: give more data, or an EvaluationCallback with query_data"
        )
    held = sorted(place for _, place in sorted(ranked)[-n_held:])
    training = _without(data, {fold(data.texts[place]) for place in held})
    left = sorted({place for places in members.values() for place in places} - set(held))
    return HeldOut(
        training, _evaluated(data, held), _evaluated(data, _index(data, left, generator))
    )


def _index(data: LabelledTexts, left: list[int], generator: np.random.Generator) -> list[int]:
    """Return what is searched of the training texts: all, or so many, with one of each label at least."""
    if len(left) <= MAX_INDEX:
        return left
    first = {data.labels[place]: place for place in reversed(left)}
    drawn = generator.choice(left, max(0, MAX_INDEX - len(first)), replace=False).tolist()
    return sorted({*first.values(), *drawn})


def _of_pairs(data: TextPairs, share: float, generator: np.random.Generator) -> HeldOut:
    if data.has_scores:
        raise DataError(
            "hold_out needs texts with labels or pairs of texts that mean the same; these are scored pairs: "
            "give query_data and index_data"
        )
    anchors, positives = ([fold(t) for t in column] for column in (data.anchors, data.positives))
    groups = linked_pairs(data)
    is_usable = np.array([a != p for a, p in zip(anchors, positives, strict=True)], dtype=bool)
    different, sizes = np.unique(groups[is_usable], return_counts=True)
    n_wanted = _n_wanted(share, int(is_usable.sum()))
    if len(different) < 2 * _MIN_GROUPS:
        raise DataError(
            f"hold_out={share:g} holds out whole groups of linked texts, and these {len(data)} pairs make "
            f"{len(different)} of them; at least {2 * _MIN_GROUPS} are needed: give more data, or an "
            "EvaluationCallback with query_data"
        )
    chosen = different[_chosen_groups(sizes.tolist(), n_wanted, generator)]
    is_held = np.isin(groups, chosen)
    rows = np.flatnonzero(is_held & is_usable).tolist()
    numbers: dict[str, int] = {}
    queries = _column(data.anchors, groups, rows, numbers=numbers)
    index = _column(data.positives, groups, rows, numbers=numbers)
    return HeldOut(
        _pairs_without(data, np.flatnonzero(~is_held).tolist(), set(numbers)), queries, index
    )


def _pairs_without(data: TextPairs, kept: list[int], held: set[str]) -> TextPairs:
    """Return some pairs; a negative that is held out is none of theirs any more."""
    negatives = [data.negatives[i] for i in kept]
    return TextPairs(
        [data.anchors[i] for i in kept],
        [data.positives[i] for i in kept],
        [None if n is None or fold(n) in held else n for n in negatives],
        [data.scores[i] for i in kept],
    )


def _column(
    texts: Sequence[str], groups: NDArray[np.int64], rows: list[int], *, numbers: dict[str, int]
) -> LabelledTexts:
    """Return the different texts of a column, labelled by group.

    One that is a query and is searched too has one id as both, so that it does not find itself.
    """
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(fold(texts[row]), row)
    ids = [str(numbers.setdefault(folded, len(numbers))) for folded in first]
    return LabelledTexts(
        [texts[row] for row in first.values()], [str(groups[row]) for row in first.values()], ids
    )


def _n_wanted(share: float, n_texts: int) -> int:
    return min(MAX_QUERIES, round(share * n_texts))


def _chosen_groups(
    sizes: Sequence[int], n_wanted: int, generator: np.random.Generator
) -> list[int]:
    """Return random groups that have so many texts together, or a few less, and are two at least."""
    order = generator.permutation(len(sizes)).tolist()
    chosen: list[int] = []
    n_left = n_wanted
    for number in order:
        if sizes[number] <= n_left:
            chosen.append(number)
            n_left -= sizes[number]
    if len(chosen) < _MIN_GROUPS:
        chosen = sorted(order, key=sizes.__getitem__)[:_MIN_GROUPS]
    return chosen


def _without(data: LabelledTexts, folded: set[str]) -> LabelledTexts:
    return data.subset(i for i, text in enumerate(data.texts) if fold(text) not in folded)


def _evaluated(data: LabelledTexts, places: list[int]) -> LabelledTexts:
    """Return texts without the ids that they came with, which may say that two different ones are one."""
    return replace(data.subset(places), ids=[None] * len(places))

"""Pairs cleaned for training.

- texts that positives link are alike (:mod:`finetuner.linked_texts`): none is taken for another's negative;
- a row that says what another has said, in either order, counts once;
- left out are a text paired with itself, a negative that is alike, and a pair with two scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetuner.errors import DataError
from finetuner.linked_texts import Positions, group_texts, number_texts
from finetuner.pairs import TextPairs


@dataclass(frozen=True)
class PairData:
    """Pairs to train on, cleaned by the rules of this module.

    :param texts: The different texts.
    :param classes: *Shape:* ``(n_texts,)`` int64; texts that are alike have one class. With scores, every
        text has its own.
    :param pairs: *Shape:* ``(n_pairs, 2)`` int64; places of anchor and positive.
    :param negatives: *Shape:* ``(n_pairs,)`` int64; place of a hard negative, -1 for none.
    :param scores: *Shape:* ``(n_pairs,)`` float32, or None.
    :param n_repeated: Rows left out as repetitions.
    :param n_ambiguous: Rows, or their negatives, left out because they contradict themselves or others.
    """

    texts: list[str]
    classes: Positions
    pairs: Positions
    negatives: Positions
    scores: NDArray[np.float32] | None
    n_repeated: int
    n_ambiguous: int


def prepare_pairs(data: TextPairs) -> PairData:
    """Clean pairs, or say why nothing can be learnt from them.

    :param data: Pairs, with scores or without.
    :raises DataError: When fewer than two pairs are left, all are of one group of linked texts and have
        no negatives, or all scores are equal; the message gives the numbers found.
    """
    prepared = clean_pairs(data)
    found = (
        f"found {len(prepared.pairs)} different pairs of {len(prepared.texts)} texts in {len(data)} rows "
        f"({prepared.n_repeated} repeated, {prepared.n_ambiguous} contradictory)"
    )
    if len(prepared.pairs) < 2:
        raise DataError(f"training needs at least two pairs; {found}")
    if prepared.scores is not None and np.ptp(prepared.scores) == 0:
        raise DataError(f"all scores are {prepared.scores[0]:g}: nothing can be learnt; {found}")
    groups = prepared.classes[prepared.pairs[:, 0]]
    if prepared.scores is None and np.ptp(groups) == 0 and prepared.negatives.max() < 0:
        raise DataError(f"all texts mean the same: there are no negatives; {found}")
    return prepared


def clean_pairs(data: TextPairs) -> PairData:
    """Clean pairs by the rules of this module, however little is left."""
    (anchors, positives, negatives), texts = number_texts(
        [data.anchors, data.positives, data.negatives]
    )
    pairs = np.stack([anchors, positives], axis=1)
    if data.has_scores:
        return _scored(data, texts, pairs)
    return _unscored(texts, pairs, negatives)


def _unscored(texts: list[str], pairs: Positions, negatives: Positions) -> PairData:
    classes = group_texts(len(texts), pairs[:, 0], pairs[:, 1])
    is_self = pairs[:, 0] == pairs[:, 1]
    is_alike = (negatives >= 0) & (classes[negatives] == classes[pairs[:, 0]])
    negatives = np.where(is_alike, -1, negatives)
    usable = np.flatnonzero(~is_self)
    first, _ = _different(*np.sort(pairs[usable], axis=1).T, negatives[usable])
    kept = usable[np.sort(first)]
    return PairData(
        texts,
        classes,
        pairs[kept],
        negatives[kept],
        None,
        n_repeated=len(usable) - len(kept),
        n_ambiguous=int(is_self.sum() + (is_alike & ~is_self).sum()),
    )


def _scored(data: TextPairs, texts: list[str], pairs: Positions) -> PairData:
    scores = np.array(data.scores, dtype=np.float32)
    first, numbers = _different(*np.sort(pairs, axis=1).T)
    is_disputed = np.zeros(len(first), dtype=bool)
    is_disputed[numbers[scores != scores[first][numbers]]] = True
    kept = np.sort(first[~is_disputed])
    n_disputed_rows = int(is_disputed[numbers].sum())
    return PairData(
        texts,
        np.arange(len(texts)),
        pairs[kept],
        np.full(len(kept), -1, dtype=np.int64),
        scores[kept],
        n_repeated=len(pairs) - n_disputed_rows - len(kept),
        n_ambiguous=n_disputed_rows,
    )


def _different(*columns: Positions) -> tuple[Positions, Positions]:
    """Return where each different row stands first, and for each row which of them it is.

    One number a row sorts eight times faster than ``np.unique(axis=0)``, which compares rows as bytes.
    """
    rows = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        _, numbers = np.unique(rows, return_inverse=True)
        # Below n_rows * (n_texts + 1), so 64 bits hold it; a missing text is -1.
        rows = numbers * (column.max(initial=-1) + 2) + column + 1
    _, first, numbers = np.unique(rows, return_index=True, return_inverse=True)
    return first, numbers

"""Which texts of pairs are alike: those that positives link, directly or over others.

Texts compare as labelled texts do (:func:`finetuner.data.fold`); each is counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from finetuner.data import LabelledTexts, fold
from finetuner.errors import DataError
from finetuner.pairs import TextPairs, Texts

Positions = NDArray[np.int64]


def as_labelled(data: Texts) -> LabelledTexts:
    """Label texts so that all that pairs link, directly or not, share one label.

    :param data: Labelled texts are given back as they are.
    :returns: Each different text once, in the order of appearance; labels and ids are numbers from 0.
    :raises DataError: When the pairs are scored, or have negatives: labels cannot say that.
    """
    return labelled_together([data])[0]


def labelled_together(parts: Sequence[Texts]) -> list[LabelledTexts]:
    """Label several data by what all their pairs link, so that a label means the same in each.

    :param parts: Such as queries and what they search; labelled texts are given back as they are.
    :returns: For each what :func:`as_labelled` says; a text has the same id wherever it occurs.
    :raises DataError: As there, and when some parts have labels and others are pairs.
    """
    pairs = [part for part in parts if isinstance(part, TextPairs)]
    labelled = [part for part in parts if isinstance(part, LabelledTexts)]
    if not pairs:
        return labelled
    if labelled:
        raise DataError("queries and index must both have labels, or both be pairs")
    for part in pairs:
        if part.has_scores or part.has_negatives:
            kind = "scores" if part.has_scores else "negatives"
            raise DataError(f"texts with labels are needed here; these are pairs with {kind}")
    columns = ([part.anchors for part in pairs], [part.positives for part in pairs])
    places, texts = number_texts([list(chain.from_iterable(column)) for column in columns])
    labels = group_texts(len(texts), places[0], places[1])
    borders = np.cumsum([len(part) for part in pairs])[:-1]
    found = []
    for rows in np.split(np.column_stack(places), borders):
        _, first = np.unique(rows, return_index=True)
        chosen = rows.ravel()[np.sort(first)].tolist()
        found.append(
            LabelledTexts(
                [texts[i] for i in chosen], [str(labels[i]) for i in chosen], [*map(str, chosen)]
            )
        )
    return found


def linked_pairs(data: TextPairs) -> Positions:
    """Return the group of each pair, *Shape:* ``(n_pairs,)``: those that texts link, directly or not."""
    (anchors, positives), texts = number_texts([data.anchors, data.positives])
    linked: Positions = group_texts(len(texts), anchors, positives)[anchors]
    return linked


def number_texts(columns: Sequence[Sequence[str | None]]) -> tuple[list[Positions], list[str]]:
    """Number the different texts of some columns by first appearance, row by row.

    :param columns: Of one length; None stands for no text.
    :returns: For each column its texts' numbers, *Shape:* ``(n_rows,)``, -1 for none; and the texts.
    """
    numbers: dict[str, int] = {}
    texts: list[str] = []

    def place(text: str | None) -> int:
        if text is None:
            return -1
        number = numbers.setdefault(fold(text), len(texts))
        if number == len(texts):
            texts.append(text)
        return number

    cells = chain.from_iterable(zip(*columns, strict=True))
    places = np.fromiter(map(place, cells), dtype=np.int64)
    return list(places.reshape(-1, len(columns)).T), texts


def group_texts(n_texts: int, left: Positions, right: Positions) -> Positions:
    """Return the group of each text that links join, *Shape:* ``(n_texts,)``, numbered by first appearance.

    :param n_texts: How many there are.
    :param left: *Shape:* ``(n_links,)``; places of texts.
    :param right: Of the same shape; what each is linked with.
    """
    # Every command loads this module, and few need scipy, which takes long to load.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n_texts, n_texts))
    _, found = connected_components(links, directed=False)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    groups: Positions = numbers[inverse]
    return groups

"""Texts that the model itself takes for like others though their labels say that they are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finetuner.config import HardNegatives

Positions = NDArray[np.int64]
_BLOCK_TEXTS = 512


def mine(
    embeddings: NDArray[np.float32], classes: Positions, *, settings: HardNegatives
) -> Positions:
    """Return the nearest texts of other classes, without those that are likely unmarked duplicates.

    A candidate more similar than ``1 - relative_margin`` times the text's mean cosine to its own class is
    left out (arXiv 2407.15831, section 3, TopK-PercPos). A text alone in its class has no such bound: its
    own vector stands for the class.

    :param embeddings: *Shape:* ``(n_texts, dim)`` float32.
    :param classes: *Shape:* ``(n_texts,)`` int64, numbered from 0.
    :param settings: Margin and number of candidates.
    :returns: *Shape:* ``(n_texts, n_candidates)`` int64, nearest first, equal ones by place; -1 where
        there are no more.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(norms, 1e-12)
    bounds = (1 - settings.relative_margin) * _positive_cosines(unit, classes)
    mined = np.full((len(unit), settings.n_candidates), -1, dtype=np.int64)
    for start in range(0, len(unit), _BLOCK_TEXTS):
        block = slice(start, start + _BLOCK_TEXTS)
        cosines = unit[block] @ unit.T
        is_out = (classes[block, None] == classes[None, :]) | (cosines > bounds[block, None])
        cosines[is_out] = -np.inf
        rows, columns = _largest(cosines, min(settings.n_candidates, len(unit)))
        starts = np.searchsorted(rows, np.arange(len(cosines)))
        mined[start + rows, np.arange(len(rows)) - starts[rows]] = columns
    return mined


def _largest(values: NDArray[np.float32], k: int) -> tuple[Positions, Positions]:
    """Return rows and columns of each row's k largest finite values, largest first, then by column."""
    kth = np.partition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k]
    rows, columns = np.nonzero((values >= kth[:, None]) & np.isfinite(values))
    order = np.lexsort((columns, -values[rows, columns], rows))
    rows, columns = rows[order], columns[order]
    ranks = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(values)))[rows]
    return rows[ranks < k], columns[ranks < k]


def _positive_cosines(unit: NDArray[np.float32], classes: Positions) -> NDArray[np.float32]:
    """Return each text's mean cosine to the others of its class; 1 where there are none."""
    sizes = np.bincount(classes)
    sums = np.zeros((len(sizes), unit.shape[1]), dtype=np.float32)
    np.add.at(sums, classes, unit)
    n_others = sizes[classes] - 1
    to_others = np.einsum("ij,ij->i", unit, sums[classes]) - np.einsum("ij,ij->i", unit, unit)
    return np.where(n_others > 0, to_others / np.maximum(n_others, 1), 1).astype(np.float32)

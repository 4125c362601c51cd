"""Pairs of texts, cleaned for training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PairData:
    """Pairs to train on; each different text once.

    :param texts: The texts.
    :param classes: *Shape:* ``(n_texts,)`` int64; texts that pairs link, directly or not, have one class.
    :param pairs: *Shape:* ``(n_pairs, 2)`` int64; places of anchor and positive.
    :param negatives: *Shape:* ``(n_pairs,)`` int64; place of a hard negative, -1 for none.
    :param scores: *Shape:* ``(n_pairs,)`` float32, or None.
    :param n_repeated: Rows left out as repetitions.
    :param n_ambiguous: Rows left out because they contradict themselves or others.
    """

    texts: list[str]
    classes: NDArray[np.int64]
    pairs: NDArray[np.int64]
    negatives: NDArray[np.int64]
    scores: NDArray[np.float32] | None
    n_repeated: int = 0
    n_ambiguous: int = 0

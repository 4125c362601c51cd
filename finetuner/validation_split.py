"""A share of the training data kept for a validation loss: whole labels or linked texts where that can be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finetuner.clean_pairs import PairData
from finetuner.config import RunConfig
from finetuner.data import TrainingData
from finetuner.errors import DataError
from finetuner.losses import CENTRE_LOSSES

_MIN_PAIRS = 2


def split(
    data: TrainingData | PairData, *, config: RunConfig
) -> tuple[TrainingData | PairData, TrainingData | PairData]:
    """Keep ``val_split`` of the data for a validation loss; training and validation data.

    :raises DataError: When one of the two would have nothing to compare.
    """
    kept: TrainingData | PairData
    held: TrainingData | PairData
    by_label = config.loss not in CENTRE_LOSSES
    if isinstance(data, PairData):
        kept, held = split_pairs(data, config.val_split, seed=config.seed)
        is_enough = min(len(kept.pairs), len(held.pairs)) >= _MIN_PAIRS
    else:
        kept, held = split_data(data, config.val_split, by_label=by_label, seed=config.seed)
        # A centre is there for every label; only texts that lie between themselves need company.
        is_enough = all(map(_is_comparable, (kept, held))) if by_label else len(held.texts) > 0
    if not is_enough:
        raise DataError(
            f"val_split={config.val_split} leaves {_extent(kept)} to train on and {_extent(held)} to "
            f"validate with, too few for {config.loss}: give more data, another val_split, or eval_data"
        )
    return kept, held


def _is_comparable(data: TrainingData) -> bool:
    """Whether there are two labels, one of them with two texts."""
    sizes = np.unique(data.classes, return_counts=True)[1]
    return len(sizes) > 1 and bool(sizes.max() > 1)


def _extent(data: TrainingData | PairData) -> str:
    if isinstance(data, PairData):
        return f"{len(data.pairs)} pairs"
    return f"{len(data.texts)} texts with {len(np.unique(data.classes))} labels"


def split_data(
    data: TrainingData, share: float, *, by_label: bool, seed: int
) -> tuple[TrainingData, TrainingData]:
    """Keep a share of labelled texts for a validation loss.

    :param data: The texts; whether both parts are of use is seen by :func:`split`.
    :param share: Above 0, below 1.
    :param by_label: Hold out whole labels, as retrieval on new data meets them; else a share of every
        label's texts, on average, for losses with a centre for each label; never all of them.
    :param seed: Of the choice.
    :returns: Training and validation data.
    """
    generator = np.random.default_rng(seed)
    if by_label:
        n_held = max(2, round(share * data.n_classes))
        held = np.isin(data.classes, generator.permutation(data.n_classes)[:n_held])
    else:
        place = np.empty(len(data.texts))
        order = generator.permutation(len(data.texts))
        for members in np.split(
            order[np.argsort(data.classes[order], kind="stable")],
            np.cumsum(np.bincount(data.classes))[:-1],
        ):
            # A random offset, so that labels of a few texts too give up their share on average.
            place[members] = (np.arange(len(members)) + generator.random()) / max(1, len(members))
            place[members[:1]] = 0  # never all of a label's texts
        held = place >= 1 - share
    return _subset(data, ~held), _subset(data, held)


def split_pairs(data: PairData, share: float, *, seed: int) -> tuple[PairData, PairData]:
    """Keep a share of pairs for a validation loss, whole groups of linked texts where they are not scored.

    :param data: The pairs.
    :param share: Above 0, below 1.
    :param seed: Of the choice.
    :returns: Training and validation data; both hold all texts, and pairs of their own.
    """
    generator = np.random.default_rng(seed)
    groups = data.classes[data.pairs[:, 0]] if data.scores is None else np.arange(len(data.pairs))
    different = np.unique(groups)
    n_held = max(2, round(share * len(different)))
    held = np.isin(groups, generator.permutation(different)[:n_held])
    return _of_pairs(data, ~held), _of_pairs(data, held)


def _of_pairs(data: PairData, chosen: NDArray[np.bool_]) -> PairData:
    scores = None if data.scores is None else data.scores[chosen]
    return replace(data, pairs=data.pairs[chosen], negatives=data.negatives[chosen], scores=scores)


def _subset(data: TrainingData, chosen: NDArray[np.bool_]) -> TrainingData:
    places = np.flatnonzero(chosen)
    return replace(data, texts=[data.texts[i] for i in places], classes=data.classes[places])

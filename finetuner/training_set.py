"""Training data as batches: tokenised once, planned anew each epoch, with what the loss should see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from finetuner.batching import BatchPlan
from finetuner.config import RunConfig
from finetuner.data import TrainingData
from finetuner.pair_losses import Targets
from finetuner.pairs import PairData
from finetuner.tokens import TextTokenizer, TokenTable

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One step's texts.

    :param positions: *Shape:* ``(n_texts,)``; places in the set's texts, in the order the loss wants.
    :param targets: What their vectors should come to.
    """

    positions: Positions
    targets: Targets


class TrainingSet(Protocol):
    """What a training loop needs of its data."""

    @property
    def tokens(self) -> TokenTable:
        """The texts, each once, tokenised."""
        ...

    @property
    def classes(self) -> Positions:
        """*Shape:* ``(n_texts,)`` int64, numbered from 0; texts of one class are alike."""
        ...

    def epoch(self, number: int, rivals: Positions | None = None) -> list[Batch]:
        """Return the batches of one epoch.

        :param number: From 0; decides the order, with the seed.
        :param rivals: *Shape:* ``(n_texts, n_candidates)``; mined hard negatives, -1 for none.
        """
        ...


@dataclass(frozen=True)
class LabelSet:
    """Texts with labels.

    :param tokens: The texts, each once, tokenised.
    :param classes: *Shape:* ``(n_texts,)`` int64.
    :param plan: How they are put into batches.
    """

    tokens: TokenTable
    classes: Positions
    plan: BatchPlan

    @classmethod
    def create(cls, data: TrainingData, tokenizer: TextTokenizer, *, config: RunConfig) -> LabelSet:
        """Tokenise labelled texts and plan their batches."""
        tokens = TokenTable.create(tokenizer, data.texts)
        plan = BatchPlan.create(
            data.classes,
            tokens.lengths,
            batch_size=config.batch_size,
            num_items_per_class=config.num_items_per_class,
            sampler=config.sampler,
            seed=config.seed,
            rival_share=config.hard_negatives.share if config.hard_negatives else 0.0,
        )
        return cls(tokens, data.classes, plan)

    def epoch(self, number: int, rivals: Positions | None = None) -> list[Batch]:
        """Return the batches of one epoch; as :meth:`TrainingSet.epoch`."""
        return [
            Batch(positions, Targets(torch.from_numpy(self.classes[positions])))
            for positions in self.plan.epoch(number, rivals)
        ]


@dataclass(frozen=True)
class PairSet:
    """Pairs of texts, with negatives or scores where the data have them.

    :param data: The pairs; its texts are each once.
    :param tokens: The texts, tokenised.
    :param plan: How pairs, not texts, are put into batches.
    """

    data: PairData
    tokens: TokenTable
    plan: BatchPlan

    @classmethod
    def create(cls, data: PairData, tokenizer: TextTokenizer, *, config: RunConfig) -> PairSet:
        """Tokenise pairs and plan their batches: ``batch_size`` counts texts, as it does for labels."""
        tokens = TokenTable.create(tokenizer, data.texts)
        has_thirds = bool(np.any(data.negatives >= 0)) or config.hard_negatives is not None
        # Pairs of one class are put into different batches where that can be: they are no negatives.
        plan = BatchPlan(
            data.classes[data.pairs[:, 0]],
            tokens.lengths[data.pairs].max(axis=1),
            max(2, config.batch_size // (3 if has_thirds else 2)),
            1,
            config.seed,
        )
        return cls(data, tokens, plan)

    @property
    def classes(self) -> Positions:
        """*Shape:* ``(n_texts,)`` int64; texts that pairs link have one class."""
        return self.data.classes

    def epoch(self, number: int, rivals: Positions | None = None) -> list[Batch]:
        """Return the batches of one epoch; as :meth:`TrainingSet.epoch`."""
        return [self._batch(rows, rivals) for rows in self.plan.epoch(number)]

    def _batch(self, rows: Positions, rivals: Positions | None) -> Batch:
        anchors, positives = self.data.pairs[rows].T
        negatives = self.data.negatives[rows]
        if rivals is not None:
            negatives = np.where(negatives >= 0, negatives, rivals[anchors, 0])
        # A negative that is in the batch anyway is one already.
        negatives = np.setdiff1d(negatives[negatives >= 0], self.data.pairs[rows])
        positions = np.concatenate([anchors, positives, negatives])
        scores = self.data.scores
        targets = Targets(
            torch.from_numpy(self.data.classes[positions]),
            n_pairs=len(rows),
            scores=None if scores is None else torch.from_numpy(scores[rows]),
        )
        return Batch(positions, targets)


def create_set(
    data: TrainingData | PairData, tokenizer: TextTokenizer, *, config: RunConfig
) -> TrainingSet:
    """Make the set that fits the data."""
    if isinstance(data, PairData):
        return PairSet.create(data, tokenizer, config=config)
    return LabelSet.create(data, tokenizer, config=config)


def split_data(
    data: TrainingData, share: float, *, by_label: bool, seed: int
) -> tuple[TrainingData, TrainingData]:
    """Keep a share of labelled texts for a validation loss.

    :param data: At least four labels, or four texts of one label where not split by label.
    :param share: Above 0, below 1.
    :param by_label: Hold out whole labels, as retrieval on new data meets them; else a share of every
        label's texts, for losses with a centre for each label.
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
            place[members] = np.arange(len(members)) / max(1, len(members))
        held = place >= 1 - share
    return _subset(data, ~held), _subset(data, held)


def _subset(data: TrainingData, chosen: NDArray[np.bool_]) -> TrainingData:
    places = np.flatnonzero(chosen)
    return replace(data, texts=[data.texts[i] for i in places], classes=data.classes[places])

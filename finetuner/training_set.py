"""Training data as batches: tokenised once, planned anew each epoch, with what the loss should see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from finetuner.batching import BatchPlan
from finetuner.clean_pairs import PairData, prepare_pairs
from finetuner.config import RunConfig, Sampler
from finetuner.data import LabelledTexts, TrainingData, prepare_training
from finetuner.errors import ConfigError, DataError
from finetuner.linked_texts import as_labelled
from finetuner.losses import CENTRE_LOSSES
from finetuner.objective import Need, needed_data
from finetuner.pair_losses import Targets
from finetuner.pairs import TextPairs, Texts
from finetuner.tokens import TextTokenizer, TokenTable

Positions = NDArray[np.int64]
_MIN_USEFUL_SHARE = 0.5


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

    def notes(self) -> list[str]:
        """Return what a user should know of the batches, for the log."""
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
    :param num_items_per_class: What was asked for.
    """

    tokens: TokenTable
    classes: Positions
    plan: BatchPlan
    num_items_per_class: int

    @classmethod
    def create(cls, data: TrainingData, tokenizer: TextTokenizer, *, config: RunConfig) -> LabelSet:
        """Tokenise labelled texts and plan their batches."""
        tokens = TokenTable.create(tokenizer, data.texts)
        plan = BatchPlan.create(
            data.classes,
            tokens.lengths,
            batch_size=config.batch_size,
            num_items_per_class=config.num_items_per_class,
            sampler=_sampler(config),
            seed=config.seed,
            rival_share=config.hard_negatives.share if config.hard_negatives else 0.0,
        )
        made = cls(tokens, data.classes, plan, config.num_items_per_class)
        if plan.items_per_class == 1 and config.loss not in CENTRE_LOSSES:
            made.check_positives()
        return made

    def check_positives(self) -> None:
        """Refuse batches that were filled without regard to labels, where most have nothing to learn.

        :raises DataError: When fewer than half of them hold two texts of one label: the loss of the rest
            is 0, and their steps move the weights by momentum alone.
        """
        batches = self.plan.epoch(0)
        classes = [self.classes[batch] for batch in batches]
        n_useful = sum(len(np.unique(one)) < len(one) for one in classes)
        if n_useful < _MIN_USEFUL_SHARE * len(batches):
            raise DataError(
                f"sampler='random': only {n_useful} of {len(batches)} batches hold two texts of one "
                "label, and the others would teach nothing; use sampler='class' or larger batches"
            )

    def notes(self) -> list[str]:
        """Return where ``num_items_per_class`` could not be kept, and why."""
        items, sizes = self.plan.items_per_class, np.bincount(self.classes)
        if items == 1:
            return ["Batches are filled without regard to labels"]
        notes = []
        if items < self.num_items_per_class:
            notes.append(
                f"num_items_per_class is {items}, not {self.num_items_per_class}: a batch of "
                f"{self.plan.batch_size} must have room for two labels"
            )
        n_smaller = int(np.count_nonzero((sizes > 0) & (sizes < items)))
        if n_smaller:
            notes.append(
                f"{n_smaller} of {np.count_nonzero(sizes)} labels have fewer than {items} texts "
                "(num_items_per_class); their groups are as small as they are"
            )
        return notes

    def epoch(self, number: int, rivals: Positions | None = None) -> list[Batch]:
        """Return the batches of one epoch; as :meth:`TrainingSet.epoch`."""
        return [
            Batch(positions, Targets(torch.from_numpy(self.classes[positions])))
            for positions in self.plan.epoch(number, rivals)
        ]


def _sampler(config: RunConfig) -> Sampler:
    """Return how batches are filled; a loss with class centres needs no two texts of one label."""
    if config.sampler is Sampler.AUTO and config.loss in CENTRE_LOSSES:
        return Sampler.RANDOM
    return config.sampler


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

    def notes(self) -> list[str]:
        """Return nothing: pairs are always kept whole."""
        return []

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


def prepare(loss: str, data: Texts) -> TrainingData | PairData:
    """Clean data in the form that a loss works on.

    :param loss: Its name.
    :param data: As they were read. Pairs without scores and negatives become labels where a loss needs
        these: texts that pairs link share one.
    :raises ConfigError: When the loss works on another form.
    :raises DataError: When nothing can be learnt from the data.
    """
    need = needed_data(loss)
    if need is Need.LABELS and _form(data) in (Need.LABELS, Need.PAIRS):
        if isinstance(data, LabelledTexts) or not data.has_negatives:
            return prepare_training(as_labelled(data))
    elif isinstance(data, TextPairs) and need is _form(data):
        return prepare_pairs(data)
    raise ConfigError(
        f"{loss} trains on {need.value}, and these data are {_form(data).value}: "
        f"{_LOSSES_FOR[_form(data)]}"
    )


_LOSSES_FOR = {
    Need.LABELS: "take SupConLoss, or give rows `anchor, positive`",
    Need.PAIRS: "take MultipleNegativesRankingLoss, or, without negatives, a loss of labels",
    Need.SCORES: "take CoSENTLoss or CosineSimilarityLoss",
}


def _form(data: Texts) -> Need:
    if isinstance(data, LabelledTexts):
        return Need.LABELS
    return Need.SCORES if data.has_scores else Need.PAIRS


def create_set(
    data: TrainingData | PairData, tokenizer: TextTokenizer, *, config: RunConfig
) -> TrainingSet:
    """Make the set that fits the data."""
    if isinstance(data, PairData):
        return PairSet.create(data, tokenizer, config=config)
    return LabelSet.create(data, tokenizer, config=config)


def describe(data: TrainingData | PairData) -> str:
    """Return what the data are and what was left out, for the log."""
    if isinstance(data, PairData):
        return (
            f"{len(data.pairs)} pairs of {len(data.texts)} texts; left out: {data.n_repeated} repeated, "
            f"{data.n_ambiguous} contradictory"
        )
    return (
        f"{len(data.texts)} texts with {data.n_classes} labels; left out: {data.n_repeated} repeated, "
        f"{data.n_ambiguous} under several labels"
    )

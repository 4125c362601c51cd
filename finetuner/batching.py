"""Batches of labelled texts: every text once an epoch, classes together, texts of like length together.

An epoch is made in four steps. Each class is shuffled and cut into groups of ``num_items_per_class``
texts. The groups of a class are spread evenly over the epoch, so that no stretch of it is left with
one class. Within windows of 50 batches, groups are sorted by length, so that a batch holds little
padding. Batches are filled from there, with groups of different classes first, and shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetuner.config import Sampler

_WINDOW_BATCHES = 50
_MIN_CLASSES = 2

Group = NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlan:
    """How the batches of every epoch are made.

    :param classes: *Shape:* ``(n_texts,)`` int64; class numbers from 0.
    :param lengths: *Shape:* ``(n_texts,)`` int64; tokens of each text.
    :param batch_size: Texts in a batch at most, at least 2.
    :param items_per_class: Texts of one class that are put together, at least 1.
    :param seed: Epoch ``e`` of seed ``s`` is always the same, and differs from every other.
    """

    classes: NDArray[np.int64]
    lengths: NDArray[np.int64]
    batch_size: int
    items_per_class: int
    seed: int = 0

    @classmethod
    def create(
        cls,
        classes: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        batch_size: int,
        num_items_per_class: int,
        sampler: Sampler = Sampler.AUTO,
        seed: int = 0,
    ) -> BatchPlan:
        """Make a plan in which a batch has room for at least two classes.

        :param sampler: ``random`` takes no notice of classes; ``auto`` and ``class`` keep them whole.
        :param num_items_per_class: Lowered to half the batch size where it is larger.
        """
        if sampler is Sampler.RANDOM:
            return cls(np.arange(len(classes)), lengths, batch_size, 1, seed)
        items = min(num_items_per_class, batch_size // _MIN_CLASSES)
        return cls(classes, lengths, batch_size, items, seed)

    def epoch(self, number: int) -> list[NDArray[np.int64]]:
        """Return the batches of one epoch, each an array of text positions.

        :param number: The epoch, from 0.
        :returns: Every position exactly once; an empty list for no texts.
        """
        generator = np.random.default_rng([self.seed, number])
        groups = self._spread_groups(generator)
        window = max(1, _WINDOW_BATCHES * self.batch_size // self.items_per_class)
        batches: list[list[Group]] = []
        waiting: list[Group] = []
        for start in range(0, len(groups), window):
            waiting = self._by_length(waiting + groups[start : start + window])
            while sum(map(len, waiting)) >= self.batch_size:
                batch, waiting = self._take(waiting)
                batches.append(batch)
        if waiting:
            batches = _with_rest(batches, waiting, batch_size=self.batch_size)
        return [np.concatenate(batches[i]) for i in generator.permutation(len(batches))]

    def _spread_groups(self, generator: np.random.Generator) -> list[Group]:
        """Cut each class into groups and spread the groups of every class over the epoch."""
        if not len(self.classes):
            return []
        shuffled = generator.permutation(len(self.classes))
        by_class = shuffled[np.argsort(self.classes[shuffled], kind="stable")]
        borders = np.cumsum(np.bincount(self.classes))[:-1]
        groups: list[Group] = []
        places: list[NDArray[np.float64]] = []
        for members in np.split(by_class, borders):
            cut = np.array_split(members, self._n_groups(len(members)))
            groups += cut
            places.append((np.arange(len(cut)) + generator.random(len(cut))) / len(cut))
        return [groups[i] for i in np.argsort(np.concatenate(places))]

    def _n_groups(self, n_members: int) -> int:
        """Return how many groups a class gives: none larger than asked, unless a text were left alone."""
        if self.items_per_class == 1:
            return n_members
        return max(1, min(-(-n_members // self.items_per_class), n_members // 2))

    def _by_length(self, groups: Sequence[Group]) -> list[Group]:
        longest = [int(self.lengths[group].max()) for group in groups]
        return [groups[i] for i in np.argsort(longest, kind="stable")]

    def _take(self, waiting: list[Group]) -> tuple[list[Group], list[Group]]:
        """Take one batch from the front: groups of classes not yet in it first, then any that fit."""
        batch: list[Group] = []
        held: set[int] = set()
        room = self.batch_size
        for only_new_classes in (True, False):
            passed: list[Group] = []
            for position, group in enumerate(waiting):
                if room == 0:
                    passed += waiting[position:]
                    break
                class_ = int(self.classes[group[0]])
                if len(group) > room or (only_new_classes and class_ in held):
                    passed.append(group)
                    continue
                held.add(class_)
                room -= len(group)
                batch.append(group)
            waiting = passed
        return batch, waiting


def _with_rest(
    batches: list[list[Group]], rest: list[Group], *, batch_size: int
) -> list[list[Group]]:
    """Append what is left, levelled with the last batch, since a tiny batch teaches little."""
    if not batches:
        return [rest]
    joined = batches[-1] + rest
    sizes = np.cumsum([len(group) for group in joined])
    middle = int(np.searchsorted(sizes, sizes[-1] / 2)) + 1
    halves = [half for half in (joined[:middle], joined[middle:]) if half]
    if any(sum(map(len, half)) > batch_size for half in halves):
        return [*batches, rest]  # groups are not cut, so not every sum can be halved
    return [*batches[:-1], *halves]

"""Batches of labelled texts: every text once an epoch, classes together, texts of like length together.

An epoch is made in five steps. Each class is ordered by length, with chance in it, and cut into groups of
``num_items_per_class`` texts. The groups of a class are spread evenly over the epoch, so that no stretch
of it is left with one class. Where rivals were mined, some groups are joined with a group of a class that
the model takes for theirs. Within windows of 50 batches, groups are sorted by length, so that a batch
holds little padding. Batches are filled from there, groups of different classes first, and shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetuner.config import Sampler

_WINDOW_BATCHES = 50
_MIN_CLASSES = 2
# Lengths are multiplied by up to e**±this before a class is cut, so that partners differ each epoch.
_LENGTH_JITTER = 0.3

Group = NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlan:
    """How the batches of every epoch are made.

    :param classes: *Shape:* ``(n_texts,)`` int64; class numbers from 0, perhaps with gaps.
    :param lengths: *Shape:* ``(n_texts,)`` int64; tokens of each text.
    :param batch_size: Texts in a batch at most, at least 2.
    :param items_per_class: Texts of one class that are put together, at least 1.
    :param seed: Epoch ``e`` of seed ``s`` is always the same, and differs from every other.
    :param rival_share: Part of the groups that is joined with a rival's, 0 to 1.
    """

    classes: NDArray[np.int64]
    lengths: NDArray[np.int64]
    batch_size: int
    items_per_class: int
    seed: int = 0
    rival_share: float = 0.0

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
        rival_share: float = 0.0,
    ) -> BatchPlan:
        """Make a plan in which a batch has room for at least two classes.

        :param sampler: ``random`` takes no notice of classes; ``auto`` and ``class`` keep them whole.
        :param num_items_per_class: Lowered to half the batch size where it is larger.
        """
        if sampler is Sampler.RANDOM:
            return cls(np.arange(len(classes)), lengths, batch_size, 1, seed, rival_share)
        items = min(num_items_per_class, batch_size // _MIN_CLASSES)
        return cls(classes, lengths, batch_size, items, seed, rival_share)

    def epoch(
        self, number: int, rivals: NDArray[np.int64] | None = None
    ) -> list[NDArray[np.int64]]:
        """Return the batches of one epoch, each an array of text positions.

        :param number: The epoch, from 0.
        :param rivals: *Shape:* ``(n_texts, n_candidates)``; for each text, places of texts of other
            classes that the model takes for like it, nearest first, -1 for none.
        :returns: Every position exactly once; an empty list for no texts.
        """
        generator = np.random.default_rng([self.seed, number])
        groups = self._spread_groups(generator)
        if rivals is not None:
            groups = self._join_rivals(groups, rivals, generator)
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
        jitter = generator.uniform(-_LENGTH_JITTER, _LENGTH_JITTER, len(self.classes))
        by_class = np.lexsort((np.log(np.maximum(self.lengths, 1)) + jitter, self.classes))
        borders = np.cumsum(np.bincount(self.classes))[:-1]
        groups: list[Group] = []
        places: list[NDArray[np.float64]] = []
        for members in filter(len, np.split(by_class, borders)):
            cut = np.array_split(members, self._n_groups(len(members)))
            groups += cut
            places.append((np.arange(len(cut)) + generator.random(len(cut))) / len(cut))
        return [groups[i] for i in np.argsort(np.concatenate(places))]

    def _join_rivals(
        self, groups: list[Group], rivals: NDArray[np.int64], generator: np.random.Generator
    ) -> list[Group]:
        """Put groups and a group of one of their rivals together, so that they share a batch."""
        group_of = np.empty(len(self.classes), dtype=np.int64)
        for number, group in enumerate(groups):
            group_of[group] = number
        is_free = np.ones(len(groups), dtype=bool)
        joined: list[Group] = []
        for number, wants in enumerate(generator.random(len(groups)) < self.rival_share):
            if not is_free[number]:
                continue
            is_free[number] = False
            parts = [groups[number]]
            candidates = rivals[groups[number]].ravel() if wants else rivals[:0].ravel()
            known = group_of[candidates[candidates >= 0]]
            fitting = known[is_free[known]]
            if len(fitting) and sum(map(len, parts)) + len(groups[fitting[0]]) <= self.batch_size:
                is_free[fitting[0]] = False
                parts.append(groups[fitting[0]])
            joined.append(np.concatenate(parts))
        return joined

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
                classes = set(self.classes[group].tolist())
                if len(group) > room or (only_new_classes and not held.isdisjoint(classes)):
                    passed.append(group)
                    continue
                held |= classes
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

"""Losses of pairs: texts that mean the same, and pairs with a score.

Vectors of a batch come in one array: first the n anchors, then their n positives, then any negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuner.errors import ConfigError


@dataclass(frozen=True)
class Targets:
    """What a batch's vectors should come to.

    :param classes: *Shape:* ``(n_texts,)`` int64; texts of one class are alike.
    :param n_pairs: Pairs in the batch; 0 for texts with labels.
    :param scores: *Shape:* ``(n_pairs,)`` float32, or None for pairs without scores.
    """

    classes: Tensor
    n_pairs: int = 0
    scores: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """Return the same targets on a device."""
        scores = None if self.scores is None else self.scores.to(device)
        return Targets(self.classes.to(device), self.n_pairs, scores)


class MultipleNegativesRankingLoss(nn.Module):
    """Cross-entropy of finding each anchor's positive among all others of the batch, and back.

    Henderson et al. 2017 (arXiv 1705.00652, section 4.4), with cosine similarity over a temperature. A text
    that is known to be alike (the same class) is no negative: it is left out of the sum.

    :param temperature: Above 0.
    :param symmetric: Also find the anchor of each positive; the loss is the mean of both ways.
    """

    def __init__(self, temperature: float = 0.05, symmetric: bool = True) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.symmetric = symmetric

    def forward(self, embeddings: Tensor, targets: Targets) -> Tensor:
        """Return the mean over the batch's pairs.

        :param embeddings: *Shape:* ``(2 * n_pairs + n_negatives, dim)`` float.
        :param targets: Classes of all texts, and how many pairs there are.
        """
        n, classes = targets.n_pairs, targets.classes
        embeddings = functional.normalize(embeddings.float(), dim=1)
        loss = self._one_way(embeddings[:n], embeddings[n:], classes[:n], classes[n:])
        if self.symmetric:
            back = self._one_way(
                embeddings[n : 2 * n], embeddings[:n], classes[n : 2 * n], classes[:n]
            )
            loss = (loss + back) / 2
        return loss

    def _one_way(
        self, queries: Tensor, index: Tensor, query_classes: Tensor, index_classes: Tensor
    ) -> Tensor:
        logits = queries @ index.T / self.temperature
        places = torch.arange(len(queries), device=logits.device)
        is_alike = query_classes[:, None] == index_classes[None, :]
        is_alike[places, places] = False
        return functional.cross_entropy(logits.masked_fill(is_alike, -torch.inf), places)


class CosineSimilarityLoss(nn.Module):
    """Mean squared difference between the cosine of a pair and its score (Reimers and Gurevych 2019)."""

    def forward(self, embeddings: Tensor, targets: Targets) -> Tensor:
        """Return the mean over the batch's pairs.

        :param embeddings: *Shape:* ``(2 * n_pairs, dim)`` float.
        :param targets: Scores, from -1 to 1.
        """
        return functional.mse_loss(_pair_cosines(embeddings, targets), _scores(targets))


class CoSENTLoss(nn.Module):
    """log(1 + sum of exp(scale * (cos_j - cos_i))) over all pairs i, j with score_i > score_j.

    Su 2022 (kexue.fm/archives/8847, equation 6): only the order of the scores counts, not their range.

    :param scale: Above 0; the inverse of a temperature.
    """

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ConfigError(f"scale must be above 0, got {scale}")
        self.scale = scale

    def forward(self, embeddings: Tensor, targets: Targets) -> Tensor:
        """Return the loss of one batch; 0 when all scores are equal.

        :param embeddings: *Shape:* ``(2 * n_pairs, dim)`` float.
        :param targets: Scores in any range.
        """
        cosines, scores = _pair_cosines(embeddings, targets) * self.scale, _scores(targets)
        gaps = cosines[None, :] - cosines[:, None]  # row i, column j: cos_j - cos_i
        is_ordered = scores[:, None] > scores[None, :]
        terms = gaps.masked_fill(~is_ordered, -torch.inf).flatten()
        return torch.logsumexp(torch.cat([terms.new_zeros(1), terms]), dim=0)


def _pair_cosines(embeddings: Tensor, targets: Targets) -> Tensor:
    n = targets.n_pairs
    embeddings = embeddings.float()
    return functional.cosine_similarity(embeddings[:n], embeddings[n : 2 * n], dim=1)


def _scores(targets: Targets) -> Tensor:
    assert targets.scores is not None  # the objective refuses data without scores
    return targets.scores

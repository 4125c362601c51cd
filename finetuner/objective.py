"""What a run minimises: any loss, which data it needs, and the same loss at several vector lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuner.config import RunConfig
from finetuner.errors import ConfigError
from finetuner.losses import (
    ALIASES,
    CENTRE_LOSSES,
    LOSSES,
    MetricLoss,
    build,
    build_loss,
    check_batch_size,
    check_loss_name,
)
from finetuner.pair_losses import (
    CoSENTLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
    Targets,
)


class Need(StrEnum):
    """The form of training data that a loss works on."""

    LABELS = "labels"
    PAIRS = "pairs"
    SCORES = "scored pairs"


PAIR_LOSSES: dict[str, tuple[type[nn.Module], Need]] = {
    "MultipleNegativesRankingLoss": (MultipleNegativesRankingLoss, Need.PAIRS),
    "CosineSimilarityLoss": (CosineSimilarityLoss, Need.SCORES),
    "CoSENTLoss": (CoSENTLoss, Need.SCORES),
}
ALL_LOSSES: Mapping[str, Any] = {**LOSSES, **CENTRE_LOSSES, **PAIR_LOSSES}


def needed_data(loss: str) -> Need:
    """Return the form of data that a loss works on.

    :param loss: A key of ``ALL_LOSSES``.
    :raises ConfigError: When there is no such loss, or none that can be trained with.
    """
    loss = ALIASES.get(loss, loss)
    check_loss_name(loss, ALL_LOSSES)
    return PAIR_LOSSES[loss][1] if loss in PAIR_LOSSES else Need.LABELS


class _LabelLoss(nn.Module):
    """A loss of labels, called as the losses of pairs are."""

    def __init__(self, loss: MetricLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, embeddings: Tensor, targets: Targets) -> Tensor:
        return self.loss(embeddings, targets.classes)  # type: ignore[no-any-return]  # nn.Module


class Objective(nn.Module):
    """The mean of one loss over several lengths of the same vectors.

    Kusupati et al. 2022 (arXiv 2205.13147, equation 1, with equal weights): vectors so trained may be cut
    to any of the lengths. The mean, not the sum, so that a learning rate means the same with and without.

    :param losses: By length; one loss each, since some have parameters of that length.
    """

    def __init__(self, losses: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.dimensions = tuple(losses)
        self.losses = nn.ModuleList(losses.values())

    def forward(self, embeddings: Tensor, targets: Targets) -> Tensor:
        """Return the loss of one batch.

        :param embeddings: *Shape:* ``(n_texts, dim)`` float32.
        :param targets: What they should come to.
        """
        parts = [
            loss(self._cut(embeddings, dim), targets)
            for dim, loss in zip(self.dimensions, self.losses, strict=True)
        ]
        return torch.stack(parts).mean()

    @staticmethod
    def _cut(embeddings: Tensor, dim: int) -> Tensor:
        if dim == embeddings.shape[1]:
            return embeddings
        return functional.normalize(embeddings[:, :dim], dim=1)


def build_objective(config: RunConfig, *, n_classes: int, dim: int) -> Objective:
    """Build what a run minimises.

    :param config: Loss, miner, dimensions and their options.
    :param n_classes: Labels in the data.
    :param dim: Length of a vector.
    :raises ConfigError: When a name, an option or a dimension is wrong, or the batch is too large for the
        loss.
    """
    if needed_data(config.loss) is Need.SCORES and config.hard_negatives is not None:
        raise ConfigError(
            f"{config.loss} compares pairs by their scores and takes no hard_negatives; leave them out"
        )
    check_batch_size(ALIASES.get(config.loss, config.loss), config.batch_size)
    dimensions = _dimensions(config.dimensions, dim)
    return Objective({d: _build(config, n_classes=n_classes, dim=d) for d in dimensions})


def _dimensions(asked: Sequence[int], dim: int) -> Sequence[int]:
    if not asked:
        return [dim]
    if max(asked) > dim:
        raise ConfigError(
            f"dimensions must be at most the model's {dim}, got {max(asked)}; leave larger ones out"
        )
    return asked


def _build(config: RunConfig, *, n_classes: int, dim: int) -> nn.Module:
    if config.loss not in PAIR_LOSSES:
        return _LabelLoss(
            build_loss(
                config.loss,
                config.loss_options,
                miner=config.miner,
                miner_options=config.miner_options,
                n_classes=n_classes,
                dim=dim,
            )
        )
    if config.miner:
        raise ConfigError(
            f"{config.loss} takes no miner, got {config.miner}; hard_negatives finds them among all texts"
        )
    loss: nn.Module = build("loss", config.loss, PAIR_LOSSES[config.loss][0], config.loss_options)
    return loss

"""Losses, miners and optimizers by name, with options that are checked against their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor, nn

from finetuner.errors import ConfigError
from finetuner.schema import nearest

# Losses of vectors and labels alone, each trained with in the tests. The rest of the library's
# classes are abstract, wrap another loss, or hold class centres that want an optimizer of their own.
LOSSES: dict[str, type[nn.Module]] = {
    name: getattr(pml_losses, name)
    for name in (
        "AngularLoss",
        "CircleLoss",
        "ContrastiveLoss",
        "FastAPLoss",
        "GeneralizedLiftedStructureLoss",
        "IntraPairVarianceLoss",
        "LiftedStructureLoss",
        "MarginLoss",
        "MultiSimilarityLoss",
        "NCALoss",
        "NPairsLoss",
        "NTXentLoss",
        "SignalToNoiseRatioContrastiveLoss",
        "SupConLoss",
        "TripletMarginLoss",
        "TupletMarginLoss",
    )
}
# The old documentation's spelling.
_ALIASES = {"NTXLoss": "NTXentLoss"}

MINERS: dict[str, type[nn.Module]] = {
    name: getattr(pml_miners, name)
    for name in (
        "AngularMiner",
        "BatchEasyHardMiner",
        "BatchHardMiner",
        "DistanceWeightedMiner",
        "HDCMiner",
        "MultiSimilarityMiner",
        "PairMarginMiner",
        "TripletMarginMiner",
        "UniformHistogramMiner",
    )
}

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: getattr(torch.optim, name)
    for name in (
        "ASGD",
        "Adadelta",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    )
}


class MetricLoss(nn.Module):
    """A loss, and the miner that picks what it is computed from.

    :param loss: A loss of pytorch-metric-learning.
    :param miner: A miner, or None for all pairs or triplets of the batch.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of one batch.

        :param embeddings: *Shape:* ``(batch, dim)`` float32.
        :param classes: *Shape:* ``(batch,)`` int64.
        """
        mined = self.miner(embeddings, classes) if self.miner is not None else None
        return self.loss(embeddings, classes, mined)  # type: ignore[no-any-return]


def build_loss(
    loss: str,
    loss_options: Mapping[str, Any],
    *,
    miner: str | None = None,
    miner_options: Mapping[str, Any] | None = None,
) -> MetricLoss:
    """Build a loss with its miner.

    :param loss: A key of ``LOSSES``.
    :param loss_options: Its arguments; what is left out has the library's default.
    :param miner: A key of ``MINERS``, or None.
    :param miner_options: The miner's arguments.
    :raises ConfigError: When a name or an option is unknown, or a value is refused.
    """
    built = _build("loss", LOSSES, _ALIASES.get(loss, loss), loss_options)
    if miner is None:
        return MetricLoss(built, None)
    return MetricLoss(built, _build("miner", MINERS, miner, miner_options or {}))


def build_optimizer(
    name: str, parameters: Any, *, learning_rate: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Build an optimizer, fused where torch has that: ten times less CPU time for AdamW.

    :param name: A key of ``OPTIMIZERS``.
    :param parameters: What to optimize.
    :param learning_rate: Above 0; takes the place of ``options['lr']``.
    :param options: The optimizer's other arguments.
    :raises ConfigError: As :func:`build_loss`.
    """
    arguments = {**options, "params": parameters, "lr": learning_rate}
    cls = OPTIMIZERS.get(name)
    is_other = options.get("foreach") or options.get("differentiable")
    if cls is not None and "fused" in inspect.signature(cls).parameters and not is_other:
        arguments.setdefault("fused", True)
    return _build("optimizer", OPTIMIZERS, name, arguments)  # type: ignore[no-any-return]


def _build(kind: str, table: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> Any:
    if name not in table:
        raise ConfigError(
            f"unknown {kind} `{name}`{nearest(name, table)} known: {', '.join(table)}"
        )
    taken = [
        p.name
        for p in inspect.signature(table[name]).parameters.values()
        if p.kind != p.VAR_KEYWORD
    ]
    for option in options:
        if option not in taken:
            known = ", ".join(n for n in taken if n != "params")
            raise ConfigError(
                f"unknown option `{option}` of {name}{nearest(option, taken)} known: {known}"
            )
    try:
        return table[name](**options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as exc:
        raise ConfigError(f"{kind} {name} refuses its options: {exc}") from exc

"""Losses and miners of pytorch-metric-learning by name, for texts with labels.

Their options are checked against their signatures; ``distance`` and ``reducer`` are named too, alone or
with options: ``{'distance': {'name': 'LpDistance', 'p': 1}}``. What the library gets wrong with texts is
caught here: a miner measures with its loss's distance, class centres get the sizes that the data have, and
a batch is refused that the loss would need more memory for than a machine has.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from finetuner.errors import ConfigError
from finetuner.put_off import put_off
from finetuner.schema import nearest

# For a function that no loss calls: seven tenths of a second.
with put_off("scipy.stats"):
    from pytorch_metric_learning import distances as pml_distances
    from pytorch_metric_learning import losses as pml_losses
    from pytorch_metric_learning import miners as pml_miners
    from pytorch_metric_learning import reducers as pml_reducers
    from pytorch_metric_learning import regularizers as pml_regularizers


def _named(module: Any, names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names.split()}


# Losses of vectors and labels alone, each trained with in the tests.
LOSSES: dict[str, type[nn.Module]] = _named(
    pml_losses,
    "AngularLoss CircleLoss ContrastiveLoss FastAPLoss GeneralizedLiftedStructureLoss HistogramLoss "
    "InstanceLoss IntraPairVarianceLoss LiftedStructureLoss MarginLoss MultiSimilarityLoss NCALoss "
    "NPairsLoss NTXentLoss PNPLoss RankedListLoss SignalToNoiseRatioContrastiveLoss SupConLoss "
    "ThresholdConsistentMarginLoss TripletMarginLoss TupletMarginLoss",
)
# Losses that learn a centre for every label, with an optimizer of their own.
CENTRE_LOSSES: dict[str, type[nn.Module]] = _named(
    pml_losses,
    "ArcFaceLoss CosFaceLoss LargeMarginSoftmaxLoss NormalizedSoftmaxLoss P2SGradLoss ProxyAnchorLoss "
    "ProxyNCALoss SoftTripleLoss SphereFaceLoss SubCenterArcFaceLoss",
)
# The old documentation's spelling.
ALIASES = {"NTXLoss": "NTXentLoss"}

_ABSTRACT = "is a base class of others, and no loss by itself"
REFUSED = {
    "BaseMetricLossFunction": _ABSTRACT,
    "BaseLossWrapper": _ABSTRACT,
    "EmbeddingRegularizerMixin": _ABSTRACT,
    "GenericPairLoss": _ABSTRACT,
    "WeightRegularizerMixin": _ABSTRACT,
    "MultipleLosses": "wraps other losses; choose one of them",
    "SelfSupervisedLoss": "is for two views of one picture; for pairs of texts take "
    "MultipleNegativesRankingLoss",
    "VICRegLoss": "is for two views of one picture; for pairs of texts take "
    "MultipleNegativesRankingLoss",
    "ManifoldLoss": "takes no labels; SupConLoss does",
    "CrossBatchMemory": "compares with stale vectors, which made models worse "
    "(pytorch-metric-learning#609); a large batch_size with gradient_cache_size does it exactly",
    "SmoothAPLoss": "needs equally many texts of every label in each batch; FastAPLoss does not",
    "DynamicSoftMarginLoss": "keeps the graph of the step before and fails in the second one; "
    "TripletMarginLoss with smooth_loss=True is near to it",
    "CLIPLoss": "is for texts and pictures; for pairs of texts take MultipleNegativesRankingLoss",
}
# Every triplet, or every positive against every negative, of a batch: 16 GB beyond these sizes.
_MAX_BATCH_SIZES = {
    "NTXentLoss": 512,
    "TripletMarginLoss": 1024,
    "MarginLoss": 1024,
    "PNPLoss": 512,
}
_MAX_BATCH_SIZES |= {"AngularLoss": 512, "TupletMarginLoss": 512}

MINERS: dict[str, type[nn.Module]] = _named(
    pml_miners,
    "AngularMiner BatchEasyHardMiner BatchHardMiner DistanceWeightedMiner HDCMiner "
    "MultiSimilarityMiner PairMarginMiner TripletMarginMiner UniformHistogramMiner",
)
# Their formulas hold on the unit sphere with the Euclidean distance only.
_EUCLIDEAN_MINERS = ("AngularMiner", "DistanceWeightedMiner")

_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "distance": (
        "distance",
        _named(pml_distances, "CosineSimilarity DotProductSimilarity LpDistance SNRDistance"),
    ),
    "reducer": (
        "reducer",
        _named(
            pml_reducers,
            "AvgNonZeroReducer MeanReducer PerAnchorReducer SumReducer ThresholdReducer",
        ),
    ),
    "embedding_regularizer": ("regularizer", _named(pml_regularizers, "LpRegularizer")),
    "weight_regularizer": (
        "regularizer",
        _named(pml_regularizers, "LpRegularizer RegularFaceRegularizer"),
    ),
}
_WEIGHTS_OF_PARTS = {"embedding_regularizer": "embedding_reg_weight"}
_WEIGHTS_OF_PARTS |= {"weight_regularizer": "weight_reg_weight"}
# What the data decide.
_SIZES = {"num_classes": "n_classes", "embedding_size": "dim", "descriptors_dim": "dim"}


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

        :param embeddings: *Shape:* ``(batch, dim)``; computed in float32 whatever they come in, since
            some distances have no 16-bit form and others are off by a tenth in it.
        :param classes: *Shape:* ``(batch,)`` int64.
        """
        embeddings = embeddings.float()
        mined = self.miner(embeddings, classes) if self.miner is not None else None
        return self.loss(embeddings, classes, mined)  # type: ignore[no-any-return]  # PML is untyped


def check_loss_name(name: str, known: Mapping[str, Any]) -> None:
    """Refuse what is no loss, or none that can be trained with, saying why.

    :param name: As the user gave it.
    :param known: All losses there are.
    :raises ConfigError: With near names, or the reason.
    """
    if name in REFUSED:
        raise ConfigError(f"loss {name} {REFUSED[name]}")
    check_name("loss", name, known)


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known.

    :raises ConfigError: With near names and all that are known.
    """
    if name not in known:
        raise ConfigError(
            f"unknown {kind} `{name}`{nearest(name, known)} known: {', '.join(known)}"
        )


def check_batch_size(loss: str, batch_size: int) -> None:
    """Refuse a batch for which a loss would need more memory than machines have.

    :raises ConfigError: With the largest size that it takes.
    """
    largest = _MAX_BATCH_SIZES.get(loss)
    if largest is not None and batch_size > largest:
        raise ConfigError(
            f"{loss} compares all triplets of a batch: it takes batch_size up to {largest}, got "
            f"{batch_size}; SupConLoss takes any"
        )


def build_loss(
    loss: str,
    loss_options: Mapping[str, Any],
    *,
    miner: str | None = None,
    miner_options: Mapping[str, Any] | None = None,
    n_classes: int = 0,
    dim: int = 0,
) -> MetricLoss:
    """Build a loss of labels with its miner.

    :param loss: A key of ``LOSSES`` or ``CENTRE_LOSSES``.
    :param loss_options: Its arguments; what is left out has the library's default.
    :param miner: A key of ``MINERS``, or None. Unless it names a distance itself, it measures with the
        loss's, so that a margin means the same to both.
    :param miner_options: The miner's arguments.
    :param n_classes: Labels in the data, for losses with centres.
    :param dim: Length of a vector, for the same.
    :raises ConfigError: When a name or an option is unknown, or a value is refused.
    """
    loss = ALIASES.get(loss, loss)
    table = {**LOSSES, **CENTRE_LOSSES}
    check_loss_name(loss, table)
    options = dict(loss_options)
    if loss in CENTRE_LOSSES:
        options = _with_sizes(loss, options, {"n_classes": n_classes, "dim": dim})
    built = _build_with_parts("loss", loss, table[loss], options)
    if miner is None:
        return MetricLoss(built, None)
    check_name("miner", miner, MINERS)
    options = dict(miner_options or {})
    if "distance" not in options and miner not in _EUCLIDEAN_MINERS:
        options["distance"] = built.distance
    return MetricLoss(built, _build_with_parts("miner", miner, MINERS[miner], options))


def _with_sizes(loss: str, options: dict[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    for name in _SIZES:
        if name in options:
            raise ConfigError(f"loss_options.{name} of {loss} follows from the data; leave it out")
    # CosFaceLoss and its kin pass them on by **kwargs, so their own signature does not show them.
    taken = inspect.signature(CENTRE_LOSSES[loss]).parameters
    wanted = [n for n in _SIZES if n in taken] or ["num_classes", "embedding_size"]
    return {**options, **{name: sizes[_SIZES[name]] for name in wanted}}


def _build_with_parts(kind: str, name: str, cls: Any, options: dict[str, Any]) -> Any:
    for part, (part_kind, table) in _PARTS.items():
        if isinstance(options.get(part), str | Mapping):
            options[part] = _build_part(part_kind, table, options[part])
    extra = [*_PARTS, *_WEIGHTS_OF_PARTS.values(), *_SIZES]
    return build(kind, name, cls, options, extra=extra)


def _build_part(kind: str, table: Mapping[str, Any], value: str | Mapping[str, Any]) -> Any:
    options = {"name": value} if isinstance(value, str) else dict(value)
    name = str(options.pop("name", ""))
    check_name(kind, name, table)
    own = ("normalize_embeddings", "p", "power") if kind == "distance" else ("p", "power")
    return build(kind, name, table[name], options, extra=() if kind == "reducer" else own)


def build(kind: str, name: str, cls: Any, options: Mapping[str, Any], *, extra: Any = ()) -> Any:
    """Call a foreign class with options that are checked by name first.

    :param kind: What it is, for the message.
    :param name: Its name, for the message.
    :param cls: The class.
    :param options: Its arguments.
    :param extra: Names that it takes by ``**kwargs``.
    :raises ConfigError: When an option is unknown, or the class refuses a value.
    """
    parameters = inspect.signature(cls).parameters.values()
    taken = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        taken += extra
    for option in options:
        if option not in taken:
            known = ", ".join(n for n in taken if n not in ("params", *_SIZES))
            raise ConfigError(
                f"unknown option `{option}` of {name}{nearest(option, taken)} known: {known}"
            )
    try:
        return cls(**options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as exc:
        raise ConfigError(f"{kind} {name} refuses its options: {exc}") from exc

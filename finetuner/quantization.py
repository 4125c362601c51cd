"""8-bit variants of an ONNX graph: made, measured against it, and kept only when near enough to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetuner.artifact import ONNX_GRAPH, VARIANT_GRAPHS, VariantFigures
from finetuner.backends import EncoderPrecision, Vectors
from finetuner.callback import EvaluationCallback
from finetuner.config import OnnxVariant
from finetuner.encoder import Encoder, onnx_encoder
from finetuner.evaluation import EvaluationSet, evaluate
from finetuner.onnx_export import PROBES
from finetuner.tokens import TextTokenizer

# all-MiniLM-L6-v2 has, over the probes alone, a mean of 0.986 and a minimum of 0.971 in int8, and 0.9993
# and 0.998 in weight_int8. With one scale for a whole matrix, which spoils it, they are 0.92 and 0.86.
# Its average precision on 1000 queries of banking77 falls by 0.002 in int8, by 0.005 in the spoilt one.
MIN_COSINE = 0.95
MIN_MEAN_COSINE = 0.98
MAX_PRECISION_LOSS = 0.01
_BLOCK_SIZE = 32  # of weights that share a scale; with 128, vectors depend on the batch
_INT8_PRODUCTS = 4  # MatMulNBits' accuracy_level: 8-bit products, five times as fast as level 0

Evaluations = Sequence[tuple[EvaluationCallback, EvaluationSet]]


def add_variants(
    folder: Path,
    variants: Sequence[OnnxVariant],
    *,
    tokenizer: TextTokenizer,
    dim: int,
    evaluations: Evaluations = (),
) -> list[VariantFigures]:
    """Write variants beside a model's ONNX graph; those too far from it are removed again.

    :param folder: Holds ``onnx/model.onnx``.
    :param variants: Which; none for an empty list.
    :param tokenizer: The model's.
    :param dim: Length of a vector.
    :param evaluations: What retrieval is measured on, and whose texts are compared beside ``PROBES``.
    :returns: The figures of each variant, in the order given; ``file`` is empty where it was refused.
    """
    if not variants:
        return []
    reference = _measure(onnx_encoder(folder / ONNX_GRAPH, tokenizer, dim=dim), evaluations)
    found = []
    for variant in variants:
        graph = folder / VARIANT_GRAPHS[variant]
        quantize(folder / ONNX_GRAPH, graph, variant=variant)
        encoder = onnx_encoder(graph, tokenizer, dim=dim, precision=EncoderPrecision(variant.value))
        figures = _figures(variant, graph, _measure(encoder, evaluations), reference)
        if figures.refused_for:
            graph.unlink()
        found.append(figures)
    return found


def quantize(graph: Path, destination: Path, *, variant: OnnxVariant) -> None:
    """Write one variant of a graph, unmeasured.

    :param graph: The fp32 graph.
    :param destination: The file; its folder must exist.
    """
    with _logging_as_it_was():
        _QUANTIZERS[variant](graph, destination)


def _to_int8(graph: Path, destination: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Processors without VNNI add two products in 16 bits, which overflow with weights beyond +-64.
    # reduce_range keeps within: what is measured here then holds wherever the artifact is served.
    quantize_dynamic(
        graph, destination, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
    )


def _to_weight_int8(graph: Path, destination: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    settings = DefaultWeightOnlyQuantConfig(
        bits=8, block_size=_BLOCK_SIZE, accuracy_level=_INT8_PRODUCTS
    )
    quantizer = MatMulNBitsQuantizer(onnx.load(graph), algo_config=settings)
    quantizer.process()
    quantizer.model.save_model_to_file(str(destination), False)


_QUANTIZERS: dict[OnnxVariant, Callable[[Path, Path], None]] = {
    OnnxVariant.INT8: _to_int8,
    OnnxVariant.WEIGHT_INT8: _to_weight_int8,
}


@contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Undo what ONNX Runtime's quantisation does on import: it sends the root logger's INFO to stderr."""
    root = logging.getLogger()
    level, placeholder = root.level, logging.NullHandler()
    root.addHandler(placeholder)  # logging.basicConfig leaves a logger with a handler alone
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.removeHandler(placeholder)
        root.setLevel(level)


@dataclass(frozen=True)
class _Measured:
    """The vectors of the compared texts, *Shape:* ``(n_texts, dim)``, and what they retrieve."""

    vectors: Vectors
    metrics: dict[str, float]


def _measure(encoder: Encoder, evaluations: Evaluations) -> _Measured:
    sets = [data for _, data in evaluations]
    lists = [PROBES, *(part.texts for data in sets for part in (data.index, data.queries))]
    places: dict[str, int] = {}
    for texts in lists:
        for text in texts:
            places.setdefault(text, len(places))
    vectors = encoder.encode(list(places))
    metrics: dict[str, float] = {}
    for callback, data in evaluations:
        found = evaluate(lambda texts: vectors[[places[t] for t in texts]], data, callback=callback)
        prefix = f"{callback.caption}_" if callback.caption else ""
        metrics |= {prefix + name: value for name, value in found.metrics.items()}
    return _Measured(vectors, metrics)


def _figures(
    variant: OnnxVariant, graph: Path, measured: _Measured, reference: _Measured
) -> VariantFigures:
    found = cosines(measured.vectors, reference.vectors)
    smallest, mean = float(found.min()), float(found.mean())
    refused_for = _refusals(smallest, mean, measured.metrics, reference.metrics)
    return VariantFigures(
        name=variant,
        file="" if refused_for else VARIANT_GRAPHS[variant],
        size_bytes=graph.stat().st_size,
        n_texts=len(found),
        min_cosine=smallest,
        mean_cosine=mean,
        metrics=dict(measured.metrics),
        reference_metrics=dict(reference.metrics),
        refused_for=refused_for,
    )


def cosines(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """Return the cosine of each row with the same row of the other; 0 for a row without a direction.

    :param left: *Shape:* ``(n, dim)``.
    :param right: *Shape:* ``(n, dim)``.
    :returns: *Shape:* ``(n,)``, -1 to 1 but for rounding.
    """
    a, b = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.einsum("ij,ij->i", a, b) / lengths
    return np.where(np.isfinite(found), found, 0.0)


def _refusals(
    smallest: float, mean: float, metrics: dict[str, float], reference: dict[str, float]
) -> tuple[str, ...]:
    reasons = []
    if smallest < MIN_COSINE:
        reasons.append(f"minimum cosine {smallest:.4f}, at least {MIN_COSINE} is needed")
    if mean < MIN_MEAN_COSINE:
        reasons.append(f"mean cosine {mean:.4f}, at least {MIN_MEAN_COSINE} is needed")
    for name in reference:
        if not name.endswith("average_precision"):
            continue
        if reference[name] - metrics[name] > MAX_PRECISION_LOSS:
            reasons.append(
                f"{name} {metrics[name]:.4f} against {reference[name]:.4f}, a loss of at most "
                f"{MAX_PRECISION_LOSS} is allowed"
            )
    return tuple(reasons)


def describe(figures: VariantFigures) -> str:
    """Return the figures of a variant as one line for people, with what to do about a refusal."""
    retrieval = [
        f", {name} {value:.4f} (fp32 {figures.reference_metrics[name]:.4f})"
        for name, value in figures.metrics.items()
        if name.endswith("average_precision")
    ]
    line = (
        f"ONNX variant {figures.name}: {figures.size_bytes / 1e6:.1f} MB; cosine to fp32 at least "
        f"{figures.min_cosine:.4f}, mean {figures.mean_cosine:.4f}, over {figures.n_texts} texts"
        + "".join(retrieval)
    )
    if not figures.refused_for:
        return line
    return (
        f"{line}. It is left out: {'; '.join(figures.refused_for)}. Serve the fp32 graph, or try "
        "another variant or backbone"
    )

"""The encoder: texts in, vectors out. Evaluation, the EncoderExecutor and ``finetuner.encode`` share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetuner.artifact import ONNX_GRAPH, VARIANT_GRAPHS, Manifest, unpacked
from finetuner.config import Device, OnnxVariant
from finetuner.data import check_text
from finetuner.errors import ConfigError, CorruptedArtifact
from finetuner.schema import convert
from finetuner.tokens import Inputs, TextTokenizer

if TYPE_CHECKING:
    from finetuner.models import LoadedModel

Vectors = NDArray[np.float32]
_CUDA = "CUDAExecutionProvider"


class Backend(StrEnum):
    """What computes the vectors; ``auto`` is onnx where the artifact and the installation have it."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"


@dataclass(frozen=True)
class Encoder:
    """Turns texts into vectors; safe to share between threads.

    :param tokenizer: Cuts texts to what the model takes.
    :param embed: From padded inputs to vectors, *Shape:* ``(batch, dim)`` float32.
    :param dim: Length of a vector.
    :param name: The run or backbone, for people.
    :param backend: What ``embed`` runs on: ``torch`` or ``onnx``.
    :param device: ``cpu`` or ``cuda``.
    :param variant: The 8-bit graph that ``embed`` runs, None for fp32.
    """

    tokenizer: TextTokenizer
    embed: Callable[[Inputs], Vectors]
    dim: int
    name: str = "model"
    backend: Backend = Backend.TORCH
    device: str = "cpu"
    variant: OnnxVariant | None = None

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Vectors:
        """Embed texts; a vector does not depend on the texts beside it, but for rounding.

        :param texts: Any number; each is cut to the model's maximum length.
        :param batch_size: Texts embedded at once, at least 1; texts of like length go together.
        :returns: *Shape:* ``(n_texts, dim)`` float32, in the order of the texts; ``(0, dim)`` for none.
        :raises DataError: When an item is no string, or holds half a surrogate pair.
        :raises ConfigError: When the batch size is below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        for number, text in enumerate(texts, start=1):
            check_text(text, f"text {number}")
        token_ids = self.tokenizer.tokenize(texts)
        # Longest first: a batch that does not fit the memory then fails at once and not at the end.
        order = np.argsort([-len(ids) for ids in token_ids], kind="stable")
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            vectors[chosen] = self.embed(self.tokenizer.pad([token_ids[i] for i in chosen]))
        return vectors


def torch_encoder(loaded: LoadedModel, *, name: str = "model") -> Encoder:
    """Return the encoder of a model as it is now, on the device where it is.

    :param loaded: The model; it is put into evaluation mode for each batch.
    """
    import torch

    model = loaded.model
    device = next(model.parameters()).device

    def embed(inputs: Inputs) -> Vectors:
        model.eval()
        with torch.inference_mode():
            tensors = [torch.from_numpy(array).to(device) for array in inputs.values()]
            _, vectors = model(*tensors)
            return vectors.cpu().numpy()  # type: ignore[no-any-return]

    return Encoder(loaded.tokenizer, embed, model.dim, name, Backend.TORCH, device.type)


def onnx_encoder(
    graph: Path,
    tokenizer: TextTokenizer,
    *,
    dim: int,
    name: str = "model",
    device: Device = Device.CPU,
    variant: OnnxVariant | None = None,
) -> Encoder:
    """Return the encoder of an ONNX graph; its file may be removed afterwards.

    :param graph: As :func:`finetuner.onnx_export.export_onnx` writes it, or a variant of it.
    :param tokenizer: The model's.
    :param dim: Length of a vector.
    :param device: ``cuda`` falls back to the CPU where there is none, and for a variant: those are
        made for processors.
    :param variant: What the graph is, None for fp32.
    """
    session = _session(graph, device if variant is None else Device.CPU)

    def embed(inputs: Inputs) -> Vectors:
        (vectors,) = session.run(["sentence_embedding"], inputs)
        return vectors  # type: ignore[no-any-return]

    used = "cuda" if _CUDA in session.get_providers() else "cpu"
    chosen = _one_by_one(embed) if variant is OnnxVariant.INT8 else embed
    return Encoder(tokenizer, chosen, dim, name, Backend.ONNX, used, variant)


def _one_by_one(embed: Callable[[Inputs], Vectors]) -> Callable[[Inputs], Vectors]:
    """Embed each text by itself, without its padding.

    Dynamic int8 has one scale for all that flows through a layer: a text's vector would follow the
    texts beside it (a cosine of 0.96 between the two was seen), and never be the same again.
    """

    def embed_each(inputs: Inputs) -> Vectors:
        lengths = inputs["attention_mask"].sum(axis=1)
        rows = [
            embed({name: array[row : row + 1, :length] for name, array in inputs.items()})
            for row, length in enumerate(lengths)
        ]
        return np.concatenate(rows)

    return embed_each


def _session(graph: Path, device: Device) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # A container's core count is not the machine's; ONNX Runtime would start a thread for each of those.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    providers = ["CPUExecutionProvider"]
    if device is Device.CUDA and _CUDA in onnxruntime.get_available_providers():
        providers.insert(0, _CUDA)
    return onnxruntime.InferenceSession(graph.read_bytes(), options, providers=providers)


def load_encoder(
    artifact: Path,
    *,
    backend: Backend = Backend.AUTO,
    device: Device = Device.CPU,
    variant: OnnxVariant | None = None,
) -> Encoder:
    """Load the encoder of an artifact; its files may be removed afterwards.

    :param artifact: A zip, or the folder inside one.
    :param backend: ``auto`` takes ONNX Runtime when the artifact has a graph and it is installed.
    :param device: ``cuda`` falls back to the CPU where there is none.
    :param variant: An 8-bit graph of the artifact; it runs on the CPU, in ONNX Runtime.
    :raises ArtifactNotFound: When nothing is there.
    :raises CorruptedArtifact: When it is damaged, or has no ONNX graph though one was asked for.
    :raises ConfigError: When the artifact has no such variant, or torch is to run it.
    """
    with unpacked(artifact) as (folder, manifest):
        if variant is not None:
            variant = convert(OnnxVariant, variant, "variant")
            _check_variant(variant, backend, manifest)
            backend = Backend.ONNX
        if _choose_backend(backend, manifest) is Backend.TORCH:
            return _load_torch(folder, manifest, device)
        tokenizer = TextTokenizer.load(
            folder, max_length=manifest.max_length, input_names=manifest.input_names
        )
        return onnx_encoder(
            folder / (ONNX_GRAPH if variant is None else VARIANT_GRAPHS[variant]),
            tokenizer,
            dim=manifest.dim,
            name=manifest.run_name,
            device=device,
            variant=variant,
        )


def _check_variant(variant: OnnxVariant, backend: Backend, manifest: Manifest) -> None:
    if backend is Backend.TORCH:
        raise ConfigError(f"the variant `{variant}` is an ONNX graph; leave backend='torch' out")
    if variant in [figures.name for figures in manifest.variants]:
        return
    there = ", ".join(figures.name for figures in manifest.variants) or "none"
    refusals = [
        f"; {figures.name} was refused: {', '.join(figures.refused_for)}"
        for figures in manifest.refused_variants
    ]
    raise ConfigError(
        f"the artifact of run `{manifest.run_name}` has no ONNX variant `{variant}`; it has: {there}"
        + "".join(refusals)
        + ". Variants are made by fit(…, to_onnx=True, onnx_variants=['int8', 'weight_int8'])"
    )


def _choose_backend(backend: Backend, manifest: Manifest) -> Backend:
    if backend is Backend.ONNX and not manifest.has_onnx:
        raise CorruptedArtifact(
            f"the artifact of run `{manifest.run_name}` holds no ONNX graph: leave is_onnx (backend) "
            "out, or train with to_onnx=True"
        )
    if backend is Backend.AUTO:
        usable = manifest.has_onnx and find_spec("onnxruntime") is not None
        return Backend.ONNX if usable else Backend.TORCH
    return backend


def _load_torch(folder: Path, manifest: Manifest, device: Device) -> Encoder:
    from finetuner.device import resolve_device
    from finetuner.models import ModelOptions, load_model
    from finetuner.pooling import Pooler

    options = ModelOptions(
        pooler=Pooler(manifest.pooler), max_length=manifest.max_length, normalize=manifest.normalize
    )
    loaded = load_model(folder, options)
    loaded.model.to(resolve_device(device)[0])
    return torch_encoder(loaded, name=manifest.run_name)

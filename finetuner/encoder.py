"""The encoder: texts in, vectors out. Evaluation, the EncoderExecutor and ``finetuner.encode`` share it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuner.artifact import ONNX_GRAPH, VARIANT_GRAPHS, Manifest, digest_of, unpacked
from finetuner.backends import (
    Backend,
    Embed,
    EncoderPrecision,
    Vectors,
    choose,
    onnx_embed,
    prepare,
    torch_embed,
)
from finetuner.config import Device
from finetuner.data import check_text
from finetuner.errors import ConfigError
from finetuner.schema import convert
from finetuner.tokens import PAD_MULTIPLES, TextTokenizer

if TYPE_CHECKING:
    from finetuner.models import LoadedModel

# What flows through a layer for so many tokens stays in a core's cache: 6 % faster than without a bound.
_CACHED_TOKENS = 384
_SMALL_GRAPH_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Encoder:
    """Turns texts into vectors; safe to share between threads.

    :param tokenizer: Cuts texts to what the model takes.
    :param embed: From padded inputs to vectors, *Shape:* ``(batch, dim)`` float32.
    :param dim: Length of a vector.
    :param name: The run or backbone, for people.
    :param backend: What ``embed`` runs on: ``torch`` or ``onnx``.
    :param device: ``cpu`` or ``cuda``.
    :param precision: Its arithmetic.
    :param digest: Of the artifact, empty for a model that is none.
    :param is_normalized: Whether its vectors have length one.
    :param prompts: Texts to put before each text, by name.
    :param embed_alone: As ``embed``, with all cores; None where ``embed`` has them.
    """

    tokenizer: TextTokenizer
    embed: Embed
    dim: int
    name: str = "model"
    backend: Backend = Backend.TORCH
    device: str = "cpu"
    precision: EncoderPrecision = EncoderPrecision.FP32
    digest: str = ""
    is_normalized: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    embed_alone: Embed | None = None

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Vectors:
        """Embed texts; a vector does not depend on the texts beside it, but for rounding.

        :param texts: Any number; each is cut to the model's maximum length.
        :param batch_size: Texts embedded at once at most, at least 1; texts of like length go together, and
            on a CPU only as many as its caches hold.
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
        start = 0
        while start < len(order):
            n_texts = batch_size
            if self.device == "cpu":
                n_texts = max(1, min(n_texts, _CACHED_TOKENS // len(token_ids[order[start]])))
            chosen = order[start : start + n_texts]
            vectors[chosen] = self.embed_tokens([token_ids[i] for i in chosen])
            start += n_texts
        return vectors

    def embed_tokens(
        self, token_ids: Sequence[Sequence[int]], *, is_alone: bool = False
    ) -> Vectors:
        """Embed one batch of texts that are token ids already, padded to the longest.

        :param token_ids: One or more texts, each of 1 to the model's maximum of ids.
        :param is_alone: Take all cores, since nothing else is in work.
        :returns: *Shape:* ``(n_texts, dim)`` float32.
        """
        embed = self.embed_alone if is_alone and self.embed_alone else self.embed
        return embed(self.tokenizer.pad(token_ids, multiple=PAD_MULTIPLES[self.device]))


def torch_encoder(
    loaded: LoadedModel,
    *,
    name: str = "model",
    precision: EncoderPrecision = EncoderPrecision.FP32,
) -> Encoder:
    """Return the encoder of a model as it is now, on the device where it is.

    :param loaded: The model; it is put into evaluation mode for each batch.
    :param precision: As :func:`finetuner.backends.torch_embed` takes it.
    """
    model = loaded.model
    embed = torch_embed(model, precision)
    device = next(model.parameters()).device.type
    encoder = Encoder(loaded.tokenizer, embed, model.dim, name, Backend.TORCH, device, precision)
    return replace(encoder, is_normalized=model.normalize)


def onnx_encoder(
    graph: Path,
    tokenizer: TextTokenizer,
    *,
    dim: int,
    name: str = "model",
    device: Device = Device.CPU,
    precision: EncoderPrecision = EncoderPrecision.FP32,
    n_threads: int | None = None,
) -> Encoder:
    """Return the encoder of an ONNX graph; its file may be removed afterwards.

    :param graph: As :func:`finetuner.onnx_export.export_onnx` writes it, or a variant of it.
    :param tokenizer: The model's.
    :param dim: Length of a vector.
    :param device: ``cuda`` falls back to the CPU where there is none, and for a variant: those are
        made for processors.
    :param precision: What the graph is: ``fp32``, ``int8`` or ``weight_int8``.
    :param n_threads: Threads of one batch; all cores of this process when None.
    """
    load = partial(
        onnx_embed,
        graph,
        device if precision.variant is None else Device.CPU,
        is_one_by_one=precision is EncoderPrecision.INT8,
    )
    embed, used = load(n_threads=n_threads)
    encoder = Encoder(tokenizer, embed, dim, name, Backend.ONNX, used, precision)
    # A session keeps its threads and its own copy of the weights; a large model is not worth two.
    is_small = graph.stat().st_size <= _SMALL_GRAPH_BYTES
    if _leaves_cores(n_threads) and used == "cpu" and is_small:
        encoder = replace(encoder, embed_alone=load(n_threads=None)[0])
    return encoder


def _leaves_cores(n_threads: int | None) -> bool:
    return n_threads == 1 and len(os.sched_getaffinity(0)) > 1


def load_encoder(
    artifact: Path,
    *,
    backend: Backend = Backend.AUTO,
    device: Device = Device.CPU,
    precision: EncoderPrecision = EncoderPrecision.FP32,
    n_threads: int | None = None,
) -> Encoder:
    """Load the encoder of an artifact; its files may be removed afterwards.

    :param artifact: A zip, or the folder inside one.
    :param backend: ``auto`` takes what :func:`finetuner.backends.choose` finds fastest.
    :param device: ``cuda`` falls back to the CPU where there is none.
    :param precision: The arithmetic; the 8-bit ones run on the CPU, in ONNX Runtime.
    :param n_threads: Threads of one batch, all cores of this process when None; for torch this holds
        for the whole process.
    :raises ArtifactNotFound: When nothing is there.
    :raises CorruptedArtifact: When it is damaged, or has no ONNX graph though one was asked for.
    :raises ConfigError: When the artifact, the hardware or the backend has no such precision.
    """
    precision = convert(EncoderPrecision, precision, "precision")
    backend = convert(Backend, backend, "backend")
    with unpacked(artifact) as (folder, manifest):
        backend, precision = choose(backend, precision, device, manifest=manifest)
        load = _load_torch if backend is Backend.TORCH else _load_onnx
        encoder = load(folder, manifest, device, precision=precision, n_threads=n_threads)
        return replace(
            encoder,
            digest=digest_of(folder),
            is_normalized=manifest.normalize,
            prompts=manifest.prompts,
        )


def _load_onnx(
    folder: Path,
    manifest: Manifest,
    device: Device,
    *,
    precision: EncoderPrecision,
    n_threads: int | None,
) -> Encoder:
    tokenizer = TextTokenizer.load(
        folder, max_length=manifest.max_length, input_names=manifest.input_names
    )
    variant = precision.variant
    return onnx_encoder(
        folder / (ONNX_GRAPH if variant is None else VARIANT_GRAPHS[variant]),
        tokenizer,
        dim=manifest.dim,
        name=manifest.run_name,
        device=device,
        precision=precision,
        n_threads=n_threads,
    )


def _load_torch(
    folder: Path,
    manifest: Manifest,
    device: Device,
    *,
    precision: EncoderPrecision,
    n_threads: int | None,
) -> Encoder:
    import torch

    from finetuner.device import resolve_device
    from finetuner.models import ModelOptions, load_model
    from finetuner.pooling import Pooler

    if n_threads is not None:
        torch.set_num_threads(n_threads)
    options = ModelOptions(
        pooler=Pooler(manifest.pooler), max_length=manifest.max_length, normalize=manifest.normalize
    )
    loaded = load_model(folder, options)
    loaded.model.to(resolve_device(device)[0])
    prepare(loaded.model, precision)
    return torch_encoder(loaded, name=manifest.run_name, precision=precision)

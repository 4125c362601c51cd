"""The encoder: texts in, vectors out. Evaluation, the EncoderExecutor and ``finetuner.encode`` share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finetuner.artifact import ONNX_GRAPH, Manifest, unpacked
from finetuner.config import Device
from finetuner.data import check_text
from finetuner.errors import ConfigError, CorruptedArtifact
from finetuner.tokens import Inputs, TextTokenizer

if TYPE_CHECKING:
    from finetuner.models import LoadedModel

Vectors = NDArray[np.float32]


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
    """

    tokenizer: TextTokenizer
    embed: Callable[[Inputs], Vectors]
    dim: int
    name: str = "model"
    backend: Backend = Backend.TORCH
    device: str = "cpu"

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


def _onnx_embedder(graph: Path, device: Device) -> tuple[Callable[[Inputs], Vectors], str]:
    """Return what embeds, and the device that it runs on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # A container's core count is not the machine's; ONNX Runtime would start a thread for each of those.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    cuda = "CUDAExecutionProvider"
    providers = ["CPUExecutionProvider"]
    if device is Device.CUDA and cuda in onnxruntime.get_available_providers():
        providers.insert(0, cuda)
    session = onnxruntime.InferenceSession(graph.read_bytes(), options, providers=providers)

    def embed(inputs: Inputs) -> Vectors:
        (vectors,) = session.run(["sentence_embedding"], inputs)
        return vectors  # type: ignore[no-any-return]

    return embed, "cuda" if cuda in session.get_providers() else "cpu"


def load_encoder(
    artifact: Path, *, backend: Backend = Backend.AUTO, device: Device = Device.CPU
) -> Encoder:
    """Load the encoder of an artifact; its files may be removed afterwards.

    :param artifact: A zip, or the folder inside one.
    :param backend: ``auto`` takes ONNX Runtime when the artifact has a graph and it is installed.
    :param device: ``cuda`` falls back to the CPU where there is none.
    :raises ArtifactNotFound: When nothing is there.
    :raises CorruptedArtifact: When it is damaged, or has no ONNX graph though one was asked for.
    """
    with unpacked(artifact) as (folder, manifest):
        if _choose_backend(backend, manifest) is Backend.TORCH:
            return _load_torch(folder, manifest, device)
        tokenizer = TextTokenizer.load(
            folder, max_length=manifest.max_length, input_names=manifest.input_names
        )
        embed, used = _onnx_embedder(folder / ONNX_GRAPH, device)
        return Encoder(tokenizer, embed, manifest.dim, manifest.run_name, Backend.ONNX, used)


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

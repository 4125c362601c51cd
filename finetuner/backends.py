"""What computes vectors from token ids: torch, or ONNX Runtime; each in the precisions that it has."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetuner.artifact import Manifest
from finetuner.config import Device, OnnxVariant, Precision
from finetuner.errors import ConfigError, CorruptedArtifact
from finetuner.tokens import Inputs

if TYPE_CHECKING:
    from finetuner.models import EmbeddingModel

Vectors = NDArray[np.float32]
Embed = Callable[[Inputs], Vectors]
_CUDA = "CUDAExecutionProvider"
_OUTPUT = "sentence_embedding"
logger = logging.getLogger(__name__)


class Backend(StrEnum):
    """What computes the vectors; ``auto`` is the faster one of those that can."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"


class EncoderPrecision(StrEnum):
    """The arithmetic of the vectors.

    ``auto`` is bf16 where the hardware multiplies it fast (cosine to fp32 at least .9999), fp16 on other
    GPUs, else fp32. ``int8`` and ``weight_int8`` are the ONNX variants of an artifact, on the CPU.
    """

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    WEIGHT_INT8 = "weight_int8"

    @property
    def variant(self) -> OnnxVariant | None:
        """The ONNX variant that it names, None for the others."""
        return OnnxVariant(self.value) if self in _VARIANTS else None


_VARIANTS = (EncoderPrecision.INT8, EncoderPrecision.WEIGHT_INT8)
_HALF = (EncoderPrecision.BF16, EncoderPrecision.FP16)


def choose(
    backend: Backend, precision: EncoderPrecision, device: Device, *, manifest: Manifest
) -> tuple[Backend, EncoderPrecision]:
    """Return what runs an artifact, with nothing left to ``auto``.

    ONNX Runtime is twice as fast as torch in fp32 on a CPU, and has no bf16 there; torch in bf16 is
    faster than both.

    :param backend: What was asked for.
    :param precision: What was asked for.
    :param device: ``cuda`` falls back to the CPU where there is none.
    :param manifest: Of the artifact.
    :raises CorruptedArtifact: When ONNX is asked for and the artifact has no graph.
    :raises ConfigError: When the artifact, the hardware or the backend has no such precision.
    """
    has_onnx = manifest.has_onnx and find_spec("onnxruntime") is not None
    if precision.variant is not None:
        _check_variant(precision.variant, backend, manifest)
        return Backend.ONNX, precision
    if backend is Backend.ONNX and not manifest.has_onnx:
        raise CorruptedArtifact(
            f"the artifact of run `{manifest.run_name}` holds no ONNX graph: leave is_onnx (backend) "
            "out, or train with to_onnx=True"
        )
    if backend is Backend.ONNX and precision in _HALF:
        raise ConfigError(f"the ONNX graph has no {precision}; take backend='torch', or fp32")
    if precision is EncoderPrecision.AUTO and backend is not Backend.ONNX:
        precision = _fastest(device)
    elif precision is EncoderPrecision.AUTO:
        precision = EncoderPrecision.FP32
    if backend is Backend.AUTO:
        is_onnx = has_onnx and precision is EncoderPrecision.FP32
        backend = Backend.ONNX if is_onnx else Backend.TORCH
    return backend, precision


def _fastest(device: Device) -> EncoderPrecision:
    import torch

    from finetuner.device import has_fast_bf16, resolve_device

    found, _ = resolve_device(device)
    if has_fast_bf16(found):
        return EncoderPrecision.BF16
    return EncoderPrecision.FP16 if found == torch.device("cuda") else EncoderPrecision.FP32


def prepare(model: EmbeddingModel, precision: EncoderPrecision) -> None:
    """Change a model that will only embed into what embeds fastest.

    In 16 bit its matrices are kept so, which autocast would make of them anew for each batch. A GPU
    computes all of the transformer in bf16, which has the range of fp32, and no padding.

    :param model: Changed in place, on the device where it stays; pooling and head stay in fp32.
    :param precision: ``fp32``, which changes nothing, ``bf16`` or ``fp16``.
    """
    import torch

    from finetuner.unpadded import can_unpad, unpad_attention

    dtype = _dtype(precision)
    if dtype is None:
        return
    if dtype is torch.bfloat16 and next(model.parameters()).device.type == "cuda":
        model.backbone.to(dtype)
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
    if can_unpad(model):
        unpad_attention(model)


def _dtype(precision: EncoderPrecision) -> Any:
    import torch

    halves = {EncoderPrecision.BF16: torch.bfloat16, EncoderPrecision.FP16: torch.float16}
    return halves.get(precision)


def torch_embed(model: EmbeddingModel, precision: EncoderPrecision) -> Embed:
    """Return what embeds with a torch model as it is now, on the device where it is.

    :param model: Put into evaluation mode for each batch. One that
        :func:`finetuner.unpadded.unpad_attention` made ready is embedded without padding.
    :param precision: ``fp32``, ``bf16`` or ``fp16``; the last two by autocast, the sums in fp32.
    :raises ConfigError: When the hardware lacks it.
    """
    import torch

    from finetuner.device import resolve_precision
    from finetuner.unpadded import embed_unpadded, is_unpadded

    device = next(model.parameters()).device
    resolve_precision(Precision(precision.value), device)
    dtype = _dtype(precision)
    forward = partial(embed_unpadded if is_unpadded(model) else _embed_padded, model)
    # Where all weights are in 16 bit, there is nothing to cast.
    is_cast = dtype is not None and any(
        weights.dtype is not dtype for weights in model.backbone.parameters()
    )

    def embed(inputs: Inputs) -> Vectors:
        model.eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=is_cast):
            return forward(inputs).float().cpu().numpy()

    return embed


def _embed_padded(model: EmbeddingModel, inputs: Inputs) -> Any:
    import torch

    device = next(model.parameters()).device
    _, vectors = model(*(torch.from_numpy(array).to(device) for array in inputs.values()))
    return vectors


def onnx_embed(
    graph: Path, device: Device, *, is_one_by_one: bool, n_threads: int | None
) -> tuple[Embed, str]:
    """Return what embeds with an ONNX graph, and the device it is on; the file may be removed afterwards.

    :param graph: As :func:`finetuner.onnx_export.export_onnx` writes it, or a variant of it.
    :param device: ``cuda`` falls back to the CPU where there is none.
    :param is_one_by_one: Run each text by itself.
    :param n_threads: Threads of one batch; all cores of this process when None.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # A container's core count is not the machine's; ONNX Runtime would start a thread for each of those.
    options.intra_op_num_threads = n_threads or len(os.sched_getaffinity(0))
    # Its threads spin while a batch runs, a third faster than sleeping, and sleep after its end.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is Device.CUDA and _CUDA in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # those that came with torch, if the system has none
        # Else it multiplies fp32 in TF32, which has the ten bits of fp16.
        providers.insert(0, (_CUDA, {"use_tf32": "0"}))
    session = onnxruntime.InferenceSession(graph.read_bytes(), options, providers=providers)
    if _CUDA in session.get_providers():
        return _on_gpu(session), "cuda"
    if device is Device.CUDA:
        logger.warning(
            "device='cuda' was asked for, but ONNX Runtime has no GPU here: using the CPU; install "
            "finetuner-flow[gpu] in place of [cpu]"
        )

    def embed(inputs: Inputs) -> Vectors:
        (vectors,) = session.run([_OUTPUT], inputs)
        return vectors  # type: ignore[no-any-return]  # onnxruntime has no types

    return (_one_by_one(embed) if is_one_by_one else embed), "cpu"


def _on_gpu(session: Any) -> Embed:
    """Embed on a GPU: the inputs are put there, and the vectors alone come back."""
    import onnxruntime

    def embed(inputs: Inputs) -> Vectors:
        binding = session.io_binding()
        for name, array in inputs.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(_OUTPUT)
        session.run_with_iobinding(binding)
        (vectors,) = binding.copy_outputs_to_cpu()
        return vectors  # type: ignore[no-any-return]  # onnxruntime has no types

    return embed


def _one_by_one(embed: Embed) -> Embed:
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

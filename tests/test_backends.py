"""What runs an artifact, and how far its arithmetic is from fp32's."""

import numpy as np
import pytest
import torch

from finetuner.artifact import Manifest, VariantFigures
from finetuner.backends import Backend, EncoderPrecision, choose, prepare, torch_embed
from finetuner.config import Device, OnnxVariant
from finetuner.device import has_fast_bf16
from finetuner.encoder import torch_encoder
from finetuner.errors import ConfigError, CorruptedArtifact
from finetuner.models import ModelOptions, load_model

AUTO, TORCH, ONNX = Backend
FP32, BF16, FP16, INT8 = (EncoderPrecision(name) for name in ("fp32", "bf16", "fp16", "int8"))


def manifest(*, has_onnx):
    return Manifest(
        run_name="my-run",
        model="tiny",
        dim=32,
        pooler="mean",
        normalize=True,
        max_length=64,
        input_names=("input_ids", "attention_mask"),
        metrics={},
        has_onnx=has_onnx,
        created_at="",
        variants=(VariantFigures(OnnxVariant.INT8, "f", 1, 1, 1.0, 1.0),) if has_onnx else (),
    )


@pytest.fixture
def on_hardware(monkeypatch):
    """Make the machine one with or without fast bf16."""

    def on_hardware(*, bf16):
        monkeypatch.setattr("finetuner.device.has_fast_bf16", lambda device: bf16)

    return on_hardware


@pytest.mark.parametrize(
    ("backend", "precision", "has_onnx", "bf16", "expected"),
    [
        (AUTO, EncoderPrecision.AUTO, True, True, (TORCH, BF16)),
        (AUTO, EncoderPrecision.AUTO, True, False, (ONNX, FP32)),
        (AUTO, EncoderPrecision.AUTO, False, False, (TORCH, FP32)),
        (AUTO, FP32, True, True, (ONNX, FP32)),
        (AUTO, FP32, False, True, (TORCH, FP32)),
        (AUTO, BF16, True, True, (TORCH, BF16)),
        (TORCH, EncoderPrecision.AUTO, True, True, (TORCH, BF16)),
        (TORCH, FP32, True, True, (TORCH, FP32)),
        (ONNX, EncoderPrecision.AUTO, True, True, (ONNX, FP32)),
        (AUTO, INT8, True, True, (ONNX, INT8)),
    ],
)
def test_what_runs_an_artifact(backend, precision, has_onnx, bf16, expected, on_hardware):
    on_hardware(bf16=bf16)
    found = choose(backend, precision, Device.CPU, manifest=manifest(has_onnx=has_onnx))
    assert found == expected


def test_without_onnx_runtime_torch_runs_it(monkeypatch):
    monkeypatch.setattr("finetuner.backends.find_spec", lambda name: None)
    assert choose(AUTO, FP32, Device.CPU, manifest=manifest(has_onnx=True)) == (TORCH, FP32)


@pytest.mark.parametrize(
    ("backend", "precision", "error", "message"),
    [
        (ONNX, FP32, CorruptedArtifact, "holds no ONNX graph"),
        (AUTO, INT8, ConfigError, "has no ONNX variant `int8`; it has: none"),
        (TORCH, INT8, ConfigError, "`int8` is an ONNX graph; leave backend='torch' out"),
    ],
)
def test_what_an_artifact_has_not(backend, precision, error, message):
    with pytest.raises(error, match=message):
        choose(backend, precision, Device.CPU, manifest=manifest(has_onnx=False))


def test_an_onnx_graph_has_no_bf16():
    with pytest.raises(ConfigError, match="the ONNX graph has no bf16; take backend='torch', or"):
        choose(ONNX, BF16, Device.CPU, manifest=manifest(has_onnx=True))


def test_precision_that_the_hardware_lacks(tiny_model_folder, monkeypatch):
    model = load_model(tiny_model_folder).model
    monkeypatch.setattr("finetuner.device.has_fast_bf16", lambda device: False)
    with pytest.raises(ConfigError, match="precision='bf16' is not in this cpu's hardware"):
        torch_embed(model, BF16)
    with pytest.raises(ConfigError, match="precision='fp16' needs a GPU"):
        torch_embed(model, FP16)


@pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="this CPU has no bf16")
def test_bf16_is_near_to_fp32_and_float32_comes_out(tiny_model_folder):
    loaded = load_model(tiny_model_folder)
    texts = [f"text {i} " * (i % 7 + 1) for i in range(40)]
    expected = torch_encoder(loaded).encode(texts)
    encoder = torch_encoder(loaded, precision=BF16)
    vectors = encoder.encode(texts)
    assert (vectors.dtype, encoder.precision) == (np.float32, BF16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    assert not np.array_equal(vectors, expected)
    assert (vectors * expected).sum(axis=1).min() >= 0.9999
    prepare(loaded.model, BF16)
    dtypes = {name: weight.dtype for name, weight in loaded.model.named_parameters()}
    assert dtypes["backbone.encoder.layer.0.attention.self.query.weight"] is torch.bfloat16
    assert dtypes["backbone.embeddings.word_embeddings.weight"] is torch.float32
    np.testing.assert_array_equal(encoder.encode(texts), vectors)


def test_a_head_stays_in_fp32(tiny_model_folder, monkeypatch):
    """Torch computes bf16 on any CPU, if slowly."""
    monkeypatch.setattr("finetuner.device.has_fast_bf16", lambda device: True)
    loaded = load_model(tiny_model_folder, ModelOptions(output_dim=8))
    texts = [f"text {i} " * (i % 7 + 1) for i in range(20)]
    expected = torch_encoder(loaded).encode(texts)
    prepare(loaded.model, BF16)
    vectors = torch_encoder(loaded, precision=BF16).encode(texts)
    assert (vectors * expected).sum(axis=1).min() >= 0.999
    assert loaded.model.head.linear.weight.dtype is torch.float32


def test_nothing_changes_in_fp32(tiny_model_folder):
    loaded = load_model(tiny_model_folder)
    prepare(loaded.model, EncoderPrecision.FP32)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}

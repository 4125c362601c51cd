import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch

from finetuner.artifact import VARIANT_GRAPHS, Manifest, VariantFigures, pack
from finetuner.backends import Backend, EncoderPrecision
from finetuner.config import Device, OnnxVariant
from finetuner.encoder import Encoder, load_encoder, torch_encoder
from finetuner.errors import ArtifactNotFound, ConfigError, CorruptedArtifact, DataError
from finetuner.models import ModelOptions, load_model, save_model
from finetuner.pooling import Pooler

_TEXTS = [
    "the apple",
    "we like the river of today " * 3,
    "a",
    "",
    "図書館 🚀",
    "look at this tiger now",
    "word " * 300,
    "the apple",
]


@pytest.fixture
def loaded(tiny_model_folder):
    return load_model(tiny_model_folder)


@pytest.fixture
def encoder(loaded):
    return torch_encoder(loaded)


def _artifact(
    tiny_model_folder,
    tmp_path,
    *,
    has_onnx=False,
    pooler="mean",
    variants=(),
    refused=(),
    **options,
):
    """Save a model, with its graph and variants of it, and pack it."""
    folder = tmp_path / "model"
    folder.mkdir()
    model_options = ModelOptions(pooler=Pooler(pooler), **options)
    loaded = load_model(tiny_model_folder, model_options)
    save_model(loaded, folder)
    if has_onnx:
        from finetuner.onnx_export import export_onnx

        (folder / "onnx").mkdir()
        export_onnx(folder, folder / "onnx" / "model.onnx", options=model_options)
    for variant in variants:
        from finetuner.quantization import quantize

        graph = folder / "onnx" / "model.onnx"
        quantize(graph, folder / VARIANT_GRAPHS[variant], variant=variant)
    manifest = Manifest(
        run_name="my-run",
        model="tiny",
        dim=32,
        pooler=pooler,
        normalize=model_options.normalize,
        max_length=loaded.max_length,
        input_names=loaded.model.input_names,
        metrics={},
        has_onnx=has_onnx,
        created_at="2024-01-02T03:04:05+00:00",
        variants=tuple(VariantFigures(v, VARIANT_GRAPHS[v], 1, 1, 1.0, 1.0) for v in variants),
        refused_variants=tuple(
            VariantFigures(v, "", 1, 1, 0.5, 0.9, refused_for=("cosine 0.5",)) for v in refused
        ),
    )
    pack(folder, tmp_path / "my-run.zip", manifest=manifest)
    return tmp_path / "my-run.zip", torch_encoder(loaded)


def test_vectors_are_those_of_the_model(loaded, encoder):
    expected = []
    for text in _TEXTS:
        inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize([text]))
        with torch.no_grad():
            expected.append(loaded.model(*map(torch.from_numpy, inputs.values()))[1][0].numpy())
    vectors = encoder.encode(_TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (8, 32))
    np.testing.assert_allclose(vectors, np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_a_vector_does_not_depend_on_its_batch(encoder, batch_size):
    alone = np.concatenate([encoder.encode([text]) for text in _TEXTS])
    np.testing.assert_allclose(encoder.encode(_TEXTS, batch_size=batch_size), alone, atol=1e-6)


def test_order_is_kept(encoder):
    order = [6, 2, 0, 5, 1, 4, 3, 7]
    shuffled = encoder.encode([_TEXTS[i] for i in order], batch_size=3)
    np.testing.assert_allclose(shuffled, encoder.encode(_TEXTS)[order], atol=1e-6)
    assert not np.allclose(shuffled, encoder.encode(_TEXTS), atol=1e-3)


def test_texts_of_like_length_go_together(loaded):
    shapes = []

    def embed(inputs):
        shapes.append(inputs["input_ids"].shape)
        return np.zeros((len(inputs["input_ids"]), 32), dtype=np.float32)

    texts = ["a " * n for n in (1, 9, 2, 8, 3)]
    Encoder(loaded.tokenizer, embed, 32).encode(texts, batch_size=2)
    assert shapes == [(2, 11), (2, 5), (1, 3)]


def test_no_texts_give_no_vectors(encoder):
    vectors = encoder.encode([])
    assert (vectors.dtype, vectors.shape) == (np.float32, (0, 32))


def test_a_long_text_is_cut(encoder):
    long, longer = encoder.encode(["apple " * 500, "apple " * 900])
    np.testing.assert_allclose(long, longer, atol=1e-6)


def test_the_encoder_follows_the_model_and_leaves_it_in_evaluation_mode(loaded, encoder):
    before = encoder.encode(_TEXTS)
    loaded.model.train()
    np.testing.assert_allclose(encoder.encode(_TEXTS), before, atol=1e-6)
    assert loaded.model.training is False
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert not np.allclose(encoder.encode(_TEXTS), before, atol=1e-3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", 3], "text 2: the text must be a string, got `3`"),
        ([None], "text 1: the text must be a string, got `None`"),
        ([b"a"], "text 1: the text must be a string, got `b'a'`"),
        ([["a", "b"]], r"text 1: the text must be a string, got `\['a', 'b'\]`"),
        (["a", "b", "\ud83d"], "text 3: the text holds half a surrogate pair; it is no Unicode"),
    ],
)
def test_what_is_no_text_is_refused(encoder, texts, message):
    with pytest.raises(DataError, match=message):
        encoder.encode(texts)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused(encoder, batch_size):
    with pytest.raises(ConfigError, match=f"batch_size must be at least 1, got {batch_size}"):
        encoder.encode(["a"], batch_size=batch_size)


def test_what_an_encoder_says_of_itself(loaded):
    encoder = torch_encoder(loaded, name="n")
    assert (encoder.dim, encoder.name, encoder.backend, encoder.device) == (
        32,
        "n",
        Backend.TORCH,
        "cpu",
    )


def _encode_at_once(encoder, n_threads=4):
    barrier = Barrier(n_threads)

    def work(shift):
        texts = _TEXTS[shift:] + _TEXTS[:shift]
        barrier.wait(timeout=30)
        return [np.roll(encoder.encode(texts, batch_size=3), shift, axis=0) for _ in range(5)]

    with ThreadPoolExecutor(n_threads) as pool:
        return [vectors for found in pool.map(work, range(n_threads)) for vectors in found]


def test_threads_agree(encoder):
    expected = encoder.encode(_TEXTS)
    for vectors in _encode_at_once(encoder):
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


@pytest.mark.parametrize("backend", [Backend.AUTO, Backend.TORCH])
@pytest.mark.parametrize(
    "options",
    [{}, {"pooler": "cls", "max_length": 10}, {"pooler": "max", "normalize": False}],
)
def test_the_encoder_of_an_artifact(tiny_model_folder, tmp_path, backend, options):
    artifact, original = _artifact(tiny_model_folder, tmp_path, **options)
    encoder = load_encoder(artifact, backend=backend)
    artifact.unlink()  # its files are not needed any more
    assert (encoder.dim, encoder.name, encoder.backend, encoder.device) == (
        32,
        "my-run",
        Backend.TORCH,
        "cpu",
    )
    np.testing.assert_array_equal(encoder.encode(_TEXTS), original.encode(_TEXTS))


def test_the_encoder_of_a_folder(tiny_model_folder, tmp_path):
    artifact, original = _artifact(tiny_model_folder, tmp_path)
    shutil.unpack_archive(artifact, tmp_path / "by-hand")
    encoder = load_encoder(tmp_path / "by-hand" / "my-run")
    np.testing.assert_array_equal(encoder.encode(_TEXTS), original.encode(_TEXTS))


def test_cuda_falls_back_to_the_cpu(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    artifact, original = _artifact(tiny_model_folder, tmp_path)
    encoder = load_encoder(artifact, device=Device.CUDA)
    assert encoder.device == "cpu"
    np.testing.assert_array_equal(encoder.encode(_TEXTS), original.encode(_TEXTS))


def test_onnx_of_an_artifact_without_a_graph(tiny_model_folder, tmp_path):
    artifact, _ = _artifact(tiny_model_folder, tmp_path)
    with pytest.raises(CorruptedArtifact, match="the artifact of run `my-run` holds no ONNX graph"):
        load_encoder(artifact, backend=Backend.ONNX)


def test_no_artifact(tmp_path):
    with pytest.raises(ArtifactNotFound, match="there is no artifact `.*nothing.zip`"):
        load_encoder(tmp_path / "nothing.zip")


def test_a_damaged_artifact(tiny_model_folder, tmp_path):
    artifact, _ = _artifact(tiny_model_folder, tmp_path)
    artifact.write_bytes(artifact.read_bytes()[:-30])
    with pytest.raises(CorruptedArtifact, match="is not a zip file, or is damaged"):
        load_encoder(artifact)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"pooler": "cls", "max_length": 10}, {"pooler": "max", "normalize": False}],
)
def test_the_onnx_encoder_of_an_artifact(tiny_model_folder, tmp_path, options, monkeypatch):
    pytest.importorskip("onnxruntime")
    artifact, original = _artifact(tiny_model_folder, tmp_path, has_onnx=True, **options)
    expected = original.encode(_TEXTS)
    by_backend = {backend: load_encoder(artifact, backend=backend) for backend in Backend}
    by_device = load_encoder(artifact, device=Device.CUDA)
    with monkeypatch.context() as patch:
        patch.setattr("finetuner.backends.find_spec", lambda name: None)
        without_runtime = load_encoder(artifact)
    artifact.unlink()
    found = {backend: encoder.backend for backend, encoder in by_backend.items()}
    assert found == {
        Backend.AUTO: Backend.ONNX,
        Backend.TORCH: Backend.TORCH,
        Backend.ONNX: Backend.ONNX,
    }
    assert without_runtime.backend is Backend.TORCH
    assert {(e.dim, e.name, e.device) for e in by_backend.values()} == {(32, "my-run", "cpu")}
    assert (by_device.backend, by_device.device) == (
        Backend.ONNX,
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    for encoder in by_backend.values():
        np.testing.assert_allclose(encoder.encode(_TEXTS), expected, atol=1e-4)
    onnx = by_backend[Backend.ONNX]
    vectors = onnx.encode([])
    assert (vectors.dtype, vectors.shape) == (np.float32, (0, 32))
    alone = np.concatenate([onnx.encode([text]) for text in _TEXTS])
    np.testing.assert_allclose(onnx.encode(_TEXTS, batch_size=3), alone, atol=1e-6)
    for vectors in _encode_at_once(onnx):
        np.testing.assert_allclose(vectors, alone, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"pooler": "cls", "max_length": 10}, {"pooler": "max", "normalize": False}],
)
def test_the_variants_of_an_artifact(tiny_model_folder, tmp_path, options):
    pytest.importorskip("onnxruntime")
    variants = tuple(OnnxVariant)
    artifact, original = _artifact(
        tiny_model_folder, tmp_path, has_onnx=True, variants=variants, **options
    )
    expected = original.encode(_TEXTS)
    fp32 = load_encoder(artifact)
    # A name does as well as the enum's member; a variant runs on the CPU wherever it is loaded.
    loaded = [
        load_encoder(artifact, precision=v, device=Device.CUDA) for v in ("int8", "weight_int8")
    ]
    artifact.unlink()
    assert fp32.precision is EncoderPrecision.FP32
    assert [encoder.precision.variant for encoder in loaded] == list(variants)
    assert {(e.backend, e.device, e.name) for e in loaded} == {(Backend.ONNX, "cpu", "my-run")}
    for encoder in loaded:
        vectors = encoder.encode(_TEXTS, batch_size=3)
        assert (vectors.dtype, vectors.shape) == (np.float32, (8, 32))
        assert not np.array_equal(vectors, fp32.encode(_TEXTS, batch_size=3))  # it is another graph
        products = (vectors * expected).sum(axis=1)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        np.testing.assert_array_less(0.99, products / lengths)
        assert encoder.encode([]).shape == (0, 32)
    int8 = loaded[0]
    alone = np.concatenate([int8.encode([text]) for text in _TEXTS])
    for batch_size in (2, 3, 8):
        np.testing.assert_array_equal(int8.encode(_TEXTS, batch_size=batch_size), alone)
    for vectors in _encode_at_once(int8):
        np.testing.assert_array_equal(vectors, alone)


def test_a_variant_that_the_artifact_has_not(tiny_model_folder, tmp_path):
    plain, _ = _artifact(tiny_model_folder, tmp_path, refused=["weight_int8"])
    message = (
        "the artifact of run `my-run` has no ONNX variant `int8`; it has: none; "
        r"weight_int8 was refused: cosine 0.5. Variants are made by fit\(…, to_onnx=True"
    )
    with pytest.raises(ConfigError, match=message):
        load_encoder(plain, precision=EncoderPrecision.INT8)
    with pytest.raises(ConfigError, match="precision must be one of auto, fp32, .*; got `int4`"):
        load_encoder(plain, precision="int4")
    with pytest.raises(ConfigError, match="the variant `int8` is an ONNX graph; leave backend='to"):
        load_encoder(plain, precision=EncoderPrecision.INT8, backend=Backend.TORCH)


def test_a_lone_batch_on_all_cores_gives_the_same_vectors(tiny_model_folder, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1})
    artifact, _ = _artifact(tiny_model_folder, tmp_path, has_onnx=True)
    one_core = load_encoder(artifact, backend=Backend.ONNX, n_threads=1)
    token_ids = one_core.tokenizer.tokenize(_TEXTS)
    assert one_core.embed_alone not in (None, one_core.embed)
    np.testing.assert_allclose(
        one_core.embed_tokens(token_ids, is_alone=True), one_core.embed_tokens(token_ids), atol=1e-6
    )
    assert load_encoder(artifact, backend=Backend.ONNX).embed_alone is None
    assert load_encoder(artifact, backend=Backend.TORCH, n_threads=1).embed_alone is None


def test_batches_of_a_cpu_hold_as_many_tokens_as_its_cache(tiny_model_folder, tmp_path):
    artifact, _ = _artifact(tiny_model_folder, tmp_path)
    encoder, shapes = load_encoder(artifact), []

    def noted(inputs):
        shapes.append(inputs["input_ids"].shape)
        return encoder.embed(inputs)

    texts = ["a text " * (i % 20 + 1) for i in range(100)]
    found = replace(encoder, embed=noted).encode(texts, batch_size=50)
    assert sum(n_texts for n_texts, _ in shapes) == 100
    assert all(n_texts <= 50 and n_texts * length <= 384 for n_texts, length in shapes)
    one_by_one = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(found, one_by_one, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_onnx_runtime_without_a_gpu_says_that_it_takes_the_cpu(tiny_model_folder, tmp_path, caplog):
    pytest.importorskip("onnxruntime")
    artifact, _ = _artifact(tiny_model_folder, tmp_path, has_onnx=True)
    encoder = load_encoder(artifact, backend="onnx", device=Device.CUDA)
    assert (encoder.backend, encoder.device) == (Backend.ONNX, "cpu")
    assert "ONNX Runtime has no GPU here: using the CPU" in caplog.text


def test_a_backend_goes_by_name(tiny_model_folder, tmp_path):
    artifact, _ = _artifact(tiny_model_folder, tmp_path, has_onnx=True)
    assert load_encoder(artifact, backend="torch").backend is Backend.TORCH
    with pytest.raises(ConfigError, match="backend"):
        load_encoder(artifact, backend="tensorflow")

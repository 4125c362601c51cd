import logging
import math
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import finetuner
from finetuner import quantization
from finetuner.artifact import VARIANT_GRAPHS, VariantFigures, unpacked
from finetuner.backbones import locate
from finetuner.backends import EncoderPrecision
from finetuner.callback import EvaluationCallback
from finetuner.config import OnnxVariant, workspace_dir
from finetuner.data import LabelledTexts
from finetuner.encoder import onnx_encoder, torch_encoder
from finetuner.errors import ModelNotFoundError
from finetuner.evaluation import EvaluationSet, evaluate
from finetuner.models import load_model, save_model
from finetuner.onnx_export import PROBES, export_onnx
from finetuner.quantization import add_variants, cosines, describe, quantize
from finetuner.submission import submit

INT8, WEIGHT_INT8 = OnnxVariant
_RNG = np.random.default_rng(0)


# One layer, against the arithmetic written out.


def _layer(path, weights):
    """The graph of ``outputs = inputs @ weights``."""
    n_in, n_out = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["inputs", "weights"], ["outputs"], name="layer")],
        "layer",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", n_in])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["batch", n_out])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def _quantized_layer(tmp_path, weights, variant, inputs):
    onnxruntime = pytest.importorskip("onnxruntime")
    _layer(tmp_path / "fp32.onnx", weights)
    quantize(tmp_path / "fp32.onnx", tmp_path / "8bit.onnx", variant=variant)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8bit.onnx", "fp32.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "8bit.onnx"))
    graph = onnx.load(tmp_path / "8bit.onnx").graph
    initializers = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    return session.run(None, {"inputs": inputs})[0], initializers, graph


def _dynamically_rounded(inputs):
    """DynamicQuantizeLinear of the ONNX operators: one scale and zero point for the whole tensor."""
    low, high = min(0.0, float(inputs.min())), max(0.0, float(inputs.max()))
    scale = (high - low) / 255
    zero = round(-low / scale)
    levels = np.clip(np.rint(inputs / np.float32(scale)) + zero, 0, 255)
    return (levels - zero) * scale


def test_int8_has_a_scale_for_each_output_and_one_for_the_inputs(tmp_path):
    # Channels of very different size: with one scale for all, the small ones would be 0.
    weights = (_RNG.normal(size=(64, 8)) * 10.0 ** -np.arange(8)).astype(np.float32)
    inputs = _RNG.normal(size=(5, 64)).astype(np.float32)
    outputs, initializers, _ = _quantized_layer(tmp_path, weights, INT8, inputs)
    expected = np.empty((5, 8))
    for channel in range(8):
        scale = np.abs(weights[:, channel]).max() / 64
        rounded = np.rint(weights[:, channel] / scale) * scale
        expected[:, channel] = _dynamically_rounded(inputs) @ rounded
    lengths = np.linalg.norm(expected, axis=0)
    np.testing.assert_allclose(outputs / lengths, expected / lengths, atol=1e-4)
    np.testing.assert_array_less(0.999, cosines(outputs.T, (inputs @ weights).T))


def test_int8_cannot_overflow_16_bits(tmp_path):
    """Two products of an unsigned input with a weight must fit: older processors add them in 16 bits."""
    weights = _RNG.normal(size=(64, 8)).astype(np.float32)
    _, initializers, _ = _quantized_layer(tmp_path, weights, INT8, np.ones((1, 64), np.float32))
    (stored,) = [array for array in initializers.values() if array.shape == (64, 8)]
    assert stored.dtype == np.int8
    assert np.abs(stored.astype(int)).max() > 32
    assert 2 * 255 * np.abs(stored.astype(int)).max() < 2**15


def test_weight_int8_has_a_scale_for_each_32_weights(tmp_path):
    weights = _RNG.normal(size=(64, 8)).astype(np.float32)
    weights[:32] *= 1000  # the second block keeps its own scale
    inputs = np.eye(64, dtype=np.float32)  # a row of one 1 is exact in 8 bits, so weights come out
    outputs, _, graph = _quantized_layer(tmp_path, weights, WEIGHT_INT8, inputs)
    expected = np.empty_like(weights)
    for start in (0, 32):
        for channel in range(8):
            block = weights[start : start + 32, channel]
            low, high = min(0.0, block.min()), max(0.0, block.max())
            scale = (high - low) / 255
            zero = round(-low / scale)
            levels = np.clip(np.rint(block / scale) + zero, 0, 255)
            expected[start : start + 32, channel] = (levels - zero) * scale
    np.testing.assert_allclose(outputs[:32], expected[:32], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(outputs[32:], expected[32:], rtol=1e-3, atol=1e-5)
    assert [(node.op_type, node.domain) for node in graph.node] == [
        ("MatMulNBits", "com.microsoft")
    ]


def test_the_root_logger_is_as_it_was(tmp_path, caplog):
    _layer(tmp_path / "fp32.onnx", np.ones((64, 8), np.float32))
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    for variant in OnnxVariant:
        quantize(tmp_path / "fp32.onnx", tmp_path / "8bit.onnx", variant=variant)
    assert (root.level, root.handlers) == before
    assert caplog.records == []


# Figures.


def test_cosines_by_hand():
    left = np.array([[1, 0], [3, 4], [1, 1], [0, 0], [math.nan, 1], [math.inf, 1]], np.float32)
    right = np.array([[0, 2], [6, 8], [-1, -1], [1, 0], [1, 1], [1, 1]], np.float32)
    np.testing.assert_allclose(cosines(left, right), [0, 1, -1, 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("smallest", "mean", "found", "expected"),
    [
        (0.95, 0.98, 0.4901, []),
        (0.9499, 0.98, 0.5, ["minimum cosine 0.9499, at least 0.95 is needed"]),
        (0.95, 0.9799, 0.5, ["mean cosine 0.9799, at least 0.98 is needed"]),
        (
            0.99,
            0.99,
            0.489,
            ["mine_average_precision 0.4890 against 0.5000, a loss of at most 0.01 is allowed"],
        ),
        (1.0, 1.0, 0.6, []),
    ],
)
def test_what_is_refused(smallest, mean, found, expected):
    reference = {"mine_average_precision": 0.5, "mine_hit_at_k": 1.0}
    metrics = {"mine_average_precision": found, "mine_hit_at_k": 0.0}
    refusals = quantization._refusals(smallest, mean, metrics, reference)
    assert list(refusals) == expected


def test_figures_as_a_line():
    figures = VariantFigures(
        INT8, "onnx/model_int8.onnx", 23_270_000, 30, 0.97136, 0.98612,
        {"average_precision": 0.43, "hit_at_k": 1.0}, {"average_precision": 0.44, "hit_at_k": 1.0},
    )  # fmt: skip
    line = (
        "ONNX variant int8: 23.3 MB; cosine to fp32 at least 0.9714, mean 0.9861, over 30 texts, "
        "average_precision 0.4300 (fp32 0.4400)"
    )
    assert describe(figures) == line
    refused = VariantFigures(INT8, "", 10**6, 9, 0.1, 0.2, refused_for=("a is wrong", "b too"))
    assert describe(refused) == (
        "ONNX variant int8: 1.0 MB; cosine to fp32 at least 0.1000, mean 0.2000, over 9 texts. It is "
        "left out: a is wrong; b too. Serve the fp32 graph, or try another variant or backbone"
    )


# A whole model.


@pytest.fixture(scope="module")
def exported(tiny_model_folder, tmp_path_factory):
    """The tiny model, saved and exported."""
    folder = tmp_path_factory.mktemp("exported")
    loaded = load_model(tiny_model_folder)
    save_model(loaded, folder)
    (folder / "onnx").mkdir()
    export_onnx(folder, folder / "onnx" / "model.onnx")
    return folder, loaded


def _labelled(texts, labels):
    return LabelledTexts(list(texts), list(labels), [None] * len(texts))


def _evaluation(labelled, caption=None):
    callback = EvaluationCallback("q", "i", caption=caption, limit=5)
    half = len(labelled.texts) // 2
    queries = _labelled(labelled.texts[::2], labelled.labels[::2])
    index = _labelled(labelled.texts[1::2], labelled.labels[1::2])
    assert len(queries) == half
    return callback, EvaluationSet.create(queries, index, callback=callback)


def _references(loaded, folder, data, callback):
    """Vectors and metrics by torch and by a plain session, one text at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / VARIANT_GRAPHS[INT8]))

    def embed(texts):
        rows = []
        for text in texts:
            inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize([text]))
            rows.append(session.run(["sentence_embedding"], inputs)[0][0])
        return np.stack(rows)

    texts = [*PROBES, *data.queries.texts, *data.index.texts]
    pairs = zip(embed(texts), torch_encoder(loaded).encode(texts), strict=True)
    found = [float(a @ b) / math.sqrt((a @ a) * (b @ b)) for a, b in pairs]
    return found, evaluate(embed, data, callback=callback).metrics


@pytest.mark.slow
def test_figures_are_those_of_the_graphs(exported, tiny_labelled):
    folder, loaded = exported
    callback, data = _evaluation(tiny_labelled, "mine")
    (figures,) = add_variants(
        folder, [INT8], tokenizer=loaded.tokenizer, dim=32, evaluations=[(callback, data)]
    )
    cosine, metrics = _references(loaded, folder, data, callback)
    by_torch = evaluate(torch_encoder(loaded).encode, data, callback=callback).metrics

    assert (figures.name, figures.file, figures.refused_for) == (INT8, "onnx/model_int8.onnx", ())
    assert figures.size_bytes == (folder / figures.file).stat().st_size
    assert figures.n_texts == len(cosine) == len(PROBES) + 48
    assert figures.min_cosine == pytest.approx(min(cosine), abs=1e-6)
    assert figures.mean_cosine == pytest.approx(sum(cosine) / len(cosine), abs=1e-6)
    assert figures.mean_cosine < 0.99999  # something was quantised
    assert len(figures.metrics) == 9
    assert figures.metrics == pytest.approx({f"mine_{k}": v for k, v in metrics.items()})
    assert figures.reference_metrics == pytest.approx({f"mine_{k}": v for k, v in by_torch.items()})


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(OnnxVariant))
def test_a_vector_does_not_depend_on_its_batch(exported, variant):
    folder, loaded = exported
    quantize(folder / "onnx" / "model.onnx", folder / VARIANT_GRAPHS[variant], variant=variant)
    encoder = onnx_encoder(
        folder / VARIANT_GRAPHS[variant],
        loaded.tokenizer,
        dim=32,
        precision=EncoderPrecision(variant.value),
    )
    alone = np.concatenate([encoder.encode([text]) for text in PROBES])
    for batch_size in (2, 7, 100):
        together = encoder.encode(PROBES, batch_size=batch_size)
        if variant is INT8:
            np.testing.assert_array_equal(together, alone)
        np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.slow
def test_int8_in_a_batch_would_depend_on_it(exported):
    """The trap is real: without the encoder's care, the same graph gives other vectors in a batch."""
    folder, loaded = exported
    quantize(folder / "onnx" / "model.onnx", folder / VARIANT_GRAPHS[INT8], variant=INT8)
    encoder = onnx_encoder(folder / VARIANT_GRAPHS[INT8], loaded.tokenizer, dim=32)
    alone = np.concatenate([encoder.encode([text]) for text in PROBES])
    assert np.abs(encoder.encode(PROBES) - alone).max() > 1e-5  # rounding gives 1e-7


def _with_outliers(loaded, folder):
    """A model with a value of ten thousand, of no effect, beside ones that matter: 8 bits hold not both."""
    with torch.no_grad():
        for layer in loaded.model.backbone.encoder.layer:
            layer.output.dense.weight *= 100
            layer.output.dense.weight[:, 0] = 0
            layer.intermediate.dense.bias[0] = 10_000
    save_model(loaded, folder)
    (folder / "onnx").mkdir()
    export_onnx(folder, folder / "onnx" / "model.onnx")


@pytest.mark.slow
def test_a_variant_too_far_off_is_removed(tiny_model_folder, tmp_path, tiny_labelled):
    loaded = load_model(tiny_model_folder)
    _with_outliers(loaded, tmp_path)
    figures = add_variants(
        tmp_path,
        [INT8, WEIGHT_INT8],
        tokenizer=loaded.tokenizer,
        dim=32,
        evaluations=[_evaluation(tiny_labelled)],
    )
    kept = {found.name: found for found in figures}
    assert kept[INT8].file == ""
    assert kept[INT8].min_cosine < quantization.MIN_COSINE
    assert f"minimum cosine {kept[INT8].min_cosine:.4f}" in kept[INT8].refused_for[0]
    assert kept[INT8].size_bytes > 0
    present = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert present == {"model.onnx", *(f.file.rpartition("/")[2] for f in figures if f.file)}


@pytest.mark.slow
def test_a_run_publishes_its_variants(tiny_model_folder, tiny_labelled, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    rows = [list(row) for row in zip(tiny_labelled.texts, tiny_labelled.labels, strict=True)]
    queries = {"query_data": rows[::2], "index_data": rows[1::2]}
    request = {
        "model": "tiny",
        "train_data": rows,
        "run_name": "one",
        "epochs": 0,
        "device": "cpu",
        "model_options": {"pooler": "max", "normalize": False},
        "to_onnx": True,
        "onnx_variants": ["weight_int8", "int8"],
        "callbacks": [{"name": "EvaluationCallback", "options": queries}],
    }
    run = submit(request, tmp_path)
    command = [sys.executable, "-m", "finetuner.worker", str(run.folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    log = (run.folder / "log.txt").read_text(encoding="utf-8")
    assert result.returncode == 0, log
    assert result.stderr == ""
    with unpacked(run.artifact_path) as (folder, manifest):
        found = [*manifest.variants, *manifest.refused_variants]
        assert sorted(figures.name for figures in found) == ["int8", "weight_int8"]
        assert {path.relative_to(folder).as_posix() for path in (folder / "onnx").iterdir()} == {
            "onnx/model.onnx",
            *(figures.file for figures in manifest.variants),
        }
        assert {path for path in manifest.files if path.startswith("onnx/model_")} == {
            figures.file for figures in manifest.variants
        }
        by_torch = manifest.metrics["before"]  # without epochs there is no after
    assert len(by_torch) == 9
    for figures in found:
        assert figures.reference_metrics == pytest.approx(by_torch, abs=1e-3)
        assert set(figures.metrics) == set(by_torch)
        line = f"ONNX variant {figures.name}: {figures.size_bytes / 1e6:.1f} MB; cosine to fp32"
        assert line in " ".join(log.split())
        assert ("It is left out" in log) == bool(manifest.refused_variants)
    for figures in manifest.variants:
        encoder = finetuner.get_model(str(run.artifact_path), device="cpu", precision=figures.name)
        assert encoder.precision.variant is figures.name
        assert finetuner.encode(encoder, ["a text"]).shape == (1, 32)


def test_no_variants_asked_for(tmp_path):
    assert add_variants(tmp_path, [], tokenizer=None, dim=1) == []


@pytest.mark.slow
def test_real_weights_pass(tmp_path):
    """all-MiniLM-L6-v2, with the figures that README and limits speak of."""
    try:
        loaded = load_model(locate("all-minilm-l6-v2", workspace_dir()))
    except ModelNotFoundError:
        pytest.skip("the weights of all-MiniLM-L6-v2 are not installed")
    save_model(loaded, tmp_path)
    (tmp_path / "onnx").mkdir()
    parity = export_onnx(tmp_path, tmp_path / "onnx" / "model.onnx")
    assert parity.difference < 1e-5
    int8, weight_int8 = add_variants(
        tmp_path, list(OnnxVariant), tokenizer=loaded.tokenizer, dim=384
    )
    assert int8.min_cosine > 0.96
    assert int8.mean_cosine > 0.983
    assert int8.size_bytes < 24e6
    assert weight_int8.min_cosine > 0.995
    assert weight_int8.mean_cosine > 0.999
    assert weight_int8.size_bytes < 61e6
    assert (int8.refused_for, weight_int8.refused_for) == ((), ())
    texts = list(PROBES)
    encoder = onnx_encoder(
        tmp_path / int8.file, loaded.tokenizer, dim=384, precision=EncoderPrecision.INT8
    )
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_array_equal(encoder.encode(texts), alone)
    found = cosines(alone, torch_encoder(loaded).encode(texts))
    assert found.min() == pytest.approx(int8.min_cosine, abs=1e-4)

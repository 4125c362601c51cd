import math

import numpy as np
import pytest
import torch

from finetuner.errors import FinetunerServerError
from finetuner.models import ModelOptions, load_model, save_model
from finetuner.onnx_export import OUTPUT_NAMES, export_onnx
from finetuner.pooling import Pooler

pytestmark = pytest.mark.slow

_BATCHES = [
    ["a"],
    ["the apple", "we like the river of today " * 5, "", "図書館 🚀"],
    ["word " * 700],
    [f"look at this tiger {i}" for i in range(40)],
]


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    (tmp_path / "saved").mkdir()
    save_model(load_model(tiny_model_folder), tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(),
        ModelOptions(pooler=Pooler.MEAN, normalize=False),
        ModelOptions(pooler=Pooler.CLS),
        ModelOptions(pooler=Pooler.MAX, max_length=30),
    ],
)
def test_graph_gives_the_vectors_of_torch(folder, tmp_path, options):
    onnxruntime = pytest.importorskip("onnxruntime")
    destination = tmp_path / "model.onnx"
    difference = export_onnx(folder, destination, options=options)
    session = onnxruntime.InferenceSession(str(destination), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    assert [value.name for value in session.get_outputs()] == list(OUTPUT_NAMES)
    loaded = load_model(folder, options)
    for texts in _BATCHES:
        inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize(texts))
        with torch.no_grad():
            expected = loaded.model(*(torch.from_numpy(array) for array in inputs.values()))
        found = session.run(list(OUTPUT_NAMES), inputs)
        mask = inputs["attention_mask"].astype(bool)
        np.testing.assert_allclose(found[0][mask], expected[0].numpy()[mask], atol=1e-4)
        np.testing.assert_allclose(found[1], expected[1].numpy(), atol=1e-4)
        assert found[1].dtype == np.float32
    assert 0 <= difference <= 1e-4
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.onnx"]


@pytest.mark.parametrize("difference", [0.02, math.nan, math.inf])
def test_a_graph_that_differs_is_refused(folder, tmp_path, monkeypatch, difference):
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: None)
    monkeypatch.setattr("finetuner.onnx_export._largest_difference", lambda *args: difference)
    with pytest.raises(
        FinetunerServerError,
        match=rf"The ONNX graph differs from the model \(-1\): by {difference:.2g}, allowed 1e-04",
    ):
        export_onnx(folder, tmp_path / "model.onnx", options=ModelOptions())


def test_the_check_sees_another_model(folder, tmp_path):
    """The difference is measured on the graph, not assumed: another pooler's graph is far off."""
    pytest.importorskip("onnxruntime")
    from finetuner.onnx_export import _largest_difference

    destination = tmp_path / "model.onnx"
    export_onnx(folder, destination, options=ModelOptions(pooler=Pooler.CLS))
    wrong = _largest_difference(folder, destination, ModelOptions(pooler=Pooler.MEAN))
    right = _largest_difference(folder, destination, ModelOptions(pooler=Pooler.CLS))
    assert wrong > 1e-2
    assert right <= 1e-4

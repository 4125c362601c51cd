import math
import os
import socket
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from finetuner.errors import TrainingError
from finetuner.models import ModelOptions, load_model, save_model
from finetuner.onnx_export import OUTPUT_NAMES, PROBES, Parity, compare, export_onnx
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
    parity = export_onnx(folder, destination, options=options)
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
    assert 0 <= parity.difference <= 1e-4
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.onnx"]


@pytest.mark.parametrize("difference", [0.02, math.nan, math.inf])
def test_a_graph_that_differs_is_refused(folder, tmp_path, monkeypatch, difference):
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: None)
    monkeypatch.setattr("finetuner.onnx_export.compare", lambda *args: Parity(difference, 3, 8))
    with pytest.raises(
        TrainingError,
        match=rf"they differ by {difference:.2g} of their length, allowed 1e-04, for the text 'How can "
        r"I be a good geologist\?' \(30 characters\) in a batch of 8; train without to_onnx",
    ):
        export_onnx(folder, tmp_path / "model.onnx", options=ModelOptions())


def test_the_check_sees_another_model(folder, tmp_path):
    """The difference is measured on the graph, not assumed: another pooler's graph is far off."""
    pytest.importorskip("onnxruntime")
    destination = tmp_path / "model.onnx"
    export_onnx(folder, destination, options=ModelOptions(pooler=Pooler.CLS))
    wrong = compare(destination, load_model(folder, ModelOptions(pooler=Pooler.MEAN)))
    right = compare(destination, load_model(folder, ModelOptions(pooler=Pooler.CLS)))
    assert wrong.difference > 1e-2
    assert right.difference <= 1e-4


class _Session:
    """Answers with a model's own vectors, one of which is changed where the text lies in a batch."""

    def __init__(self, loaded, place, change):
        self.loaded, self.place, self.change, self.n_seen = loaded, place, change, 0

    def run(self, _, inputs):
        with torch.no_grad():
            vectors = self.loaded.model(*map(torch.from_numpy, inputs.values()))[1].numpy().copy()
        place = self.place + len(PROBES) - self.n_seen  # of the second pass, in batches
        if 0 <= place < len(vectors):
            vectors[place, 5] += self.change
        self.n_seen += len(vectors)
        return [vectors]


@pytest.mark.parametrize(
    ("place", "batch_size"), [(3, 8), (len(PROBES) - 1, len(PROBES) % 8 or 8), (8, 8)]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_worst_text_is_named(folder, monkeypatch, place, batch_size, normalize):
    onnxruntime = pytest.importorskip("onnxruntime")
    loaded = load_model(folder, ModelOptions(normalize=normalize))
    inputs = loaded.tokenizer.pad(loaded.tokenizer.tokenize([PROBES[place]]))
    with torch.no_grad():
        vector = loaded.model(*map(torch.from_numpy, inputs.values()))[1][0]
    length = math.sqrt(sum(float(value) ** 2 for value in vector))
    for change, expected in ((0.25, 0.25 / length), (math.nan, math.inf)):
        session = _Session(loaded, place, change)
        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, s=session, **k: s)
        parity = compare(folder / "model.onnx", loaded)
        assert (parity.probe, parity.batch_size) == (place, batch_size)
        assert parity.difference == pytest.approx(expected, rel=1e-5)


def test_probes_are_short_long_and_odd():
    n_characters = [len(text) for text in PROBES]
    assert min(n_characters) == 0
    assert max(len(text.split()) for text in PROBES) == 512
    assert len(set(PROBES)) == len(PROBES)
    assert any(not text.isascii() for text in PROBES)


@pytest.mark.slow
def test_onnx_runtime_reports_to_nobody(tmp_path):
    """It did: a session in a process that had not set the variable asked the proxy for its maker's host."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
    model = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1])],
        [onnx.helper.make_tensor_value_info("y", 1, [1])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(model, opset_imports=opset, ir_version=9), tmp_path / "g.onnx")
    code = (
        "import finetuner, onnxruntime, time, sys\n"
        "onnxruntime.InferenceSession(sys.argv[1])\n"
        "time.sleep(8)\n"
    )
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    environment = {**os.environ, **dict.fromkeys(names, proxy)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", code, str(tmp_path / "g.onnx")]
    subprocess.run(command, env=environment, check=True, timeout=60)
    with pytest.raises(TimeoutError, match="timed out"):
        listener.accept()

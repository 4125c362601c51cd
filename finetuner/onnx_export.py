"""An ONNX graph of a model, pooling and all inside, checked against torch before it is kept."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from finetuner.errors import FinetunerServerError
from finetuner.models import ModelOptions, load_model

OUTPUT_NAMES = ("last_hidden_state", "sentence_embedding")
_OPSET = 18
_TOLERANCE = 1e-4
_PROBES = (
    "hi",
    "How can I be a good geologist?",
    "¿Dónde está la biblioteca? 図書館はどこですか 🚀",
    "word " * 700,
)


def export_onnx(folder: Path, destination: Path, *, options: ModelOptions) -> float:
    """Write the graph of a saved model and return how far its vectors are from torch's.

    :param folder: What :func:`finetuner.models.save_model` wrote.
    :param destination: The file; its folder must exist.
    :param options: The options that the model has.
    :returns: The largest absolute difference over short, long and odd texts, alone and in one batch.
    :raises FinetunerServerError: When the difference is above 1e-4.
    """
    # ONNX Runtime runs attention that is written out faster than torch's fused operator.
    loaded = load_model(folder, options, attention="eager")
    names = list(loaded.model.input_names)
    sample = loaded.tokenizer.pad(loaded.tokenizer.tokenize(_PROBES[:2]))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            loaded.model,
            tuple(torch.from_numpy(sample[name]) for name in names),
            str(destination),
            input_names=names,
            output_names=list(OUTPUT_NAMES),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=(tuple({0: "batch", 1: "seq"} for _ in names),),
            optimize=True,
            verbose=False,
        )
    difference = _largest_difference(folder, destination, options)
    if not difference <= _TOLERANCE:
        raise FinetunerServerError(
            "The ONNX graph differs from the model",
            f"by {difference:.2g}, allowed {_TOLERANCE:.0e}",
        )
    return difference


def _largest_difference(folder: Path, graph: Path, options: ModelOptions) -> float:
    import onnxruntime

    loaded = load_model(folder, options)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    token_ids = loaded.tokenizer.tokenize(_PROBES)
    differences = []
    for batch in [[ids] for ids in token_ids] + [token_ids]:
        inputs = loaded.tokenizer.pad(batch)
        with torch.no_grad():
            _, expected = loaded.model(*(torch.from_numpy(array) for array in inputs.values()))
        (found,) = session.run(["sentence_embedding"], inputs)
        differences.append(float(np.abs(found - expected.numpy()).max()))
    return max(differences)

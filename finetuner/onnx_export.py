"""An ONNX graph of a model, pooling and all inside, checked against torch before it is kept."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetuner.errors import TrainingError
from finetuner.models import LoadedModel, ModelOptions, load_model
from finetuner.tokens import Inputs

OUTPUT_NAMES = ("last_hidden_state", "sentence_embedding")
# Short, long and odd, neighbours of very different length. What is long is cut to the model's maximum.
PROBES = (
    "hi",
    "word " * 512,
    "",
    "How can I be a good geologist?",
    " \t\n ",
    "How can I be a good geologist? " * 12,
    "I",
    "What is the best way to learn a language while I work full time?",
    "?",
    "!!! ... ???",
    "42",
    "3.14159 2.71828 1e-9 2024-02-29",
    "🚀",
    "🙂🙃 👨‍👩‍👧‍👦 🇩🇪",
    "図書館はどこですか",
    "도서관이 어디에 있습니까",
    "¿Dónde está la biblioteca?",
    "ПРИВЕТ, как дела?",
    "مرحبا بالعالم",
    "HOW DO I RESET MY PASSWORD",
    "hOw Do I rEsEt My PaSsWoRd",
    "https://example.com/a/b?c=d&e=f#g",
    '<b>bold</b> &amp; {"key": [1, 2]}',
    "def f(x): return x ** 2",
    "supercalifragilisticexpialidocious",
    "the a of and " * 30,
    "a" * 400,
)
# Rounding gives 2e-7 with all-MiniLM-L6-v2; a pooler exported wrongly gives more than 1e-2.
TOLERANCE = 1e-4
_BATCH_SIZES = (1, 8)
_OPSET = 18


@dataclass(frozen=True)
class Parity:
    """How far the vectors of a graph are from torch's, where they are furthest apart.

    :param difference: Largest difference of one component, as a part of the vector's length.
    :param probe: Place in ``PROBES`` of the text.
    :param batch_size: Texts that went together.
    """

    difference: float
    probe: int
    batch_size: int


def export_onnx(folder: Path, destination: Path, *, options: ModelOptions | None = None) -> Parity:
    """Write the graph of a saved model and return how far its vectors are from torch's.

    :param folder: What :func:`finetuner.models.save_model` wrote.
    :param destination: The file; its folder must exist.
    :param options: The options that the model has, where they are not those of the folder.
    :returns: The worst of ``PROBES``, each alone and in padded batches.
    :raises TrainingError: When its difference is above ``TOLERANCE``.
    """
    # ONNX Runtime runs attention that is written out faster than torch's fused operator.
    loaded = load_model(folder, options, attention="eager")
    names = list(loaded.model.input_names)
    sample = loaded.tokenizer.pad(loaded.tokenizer.tokenize(["hi", "a longer sample text"]))
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
    parity = compare(destination, load_model(folder, options))
    if not parity.difference <= TOLERANCE:
        text = PROBES[parity.probe]
        raise TrainingError(
            f"the ONNX graph gives other vectors than the model: they differ by "
            f"{parity.difference:.2g} of their length, allowed {TOLERANCE:.0e}, for the text "
            f"{text[:40]!r} ({len(text)} characters) in a batch of {parity.batch_size}; "
            "train without to_onnx, or with another backbone"
        )
    return parity


def compare(graph: Path, loaded: LoadedModel) -> Parity:
    """Run a graph and a model on ``PROBES``, alone and in padded batches.

    :param graph: With the outputs ``OUTPUT_NAMES``.
    :param loaded: The model, on the CPU.
    :returns: The worst; a component that is no number is the worst there is.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    token_ids = loaded.tokenizer.tokenize(PROBES)
    found: list[Parity] = []
    for batch_size in _BATCH_SIZES:
        for start in range(0, len(token_ids), batch_size):
            inputs = loaded.tokenizer.pad(token_ids[start : start + batch_size])
            expected = _torch_vectors(loaded, inputs)
            (vectors,) = session.run(["sentence_embedding"], inputs)
            lengths = np.linalg.norm(expected, axis=1)
            differences = np.abs(vectors - expected).max(axis=1) / np.maximum(lengths, 1e-12)
            found += [
                Parity(float(difference), start + row, len(differences))
                for row, difference in enumerate(np.nan_to_num(differences, nan=np.inf))
            ]
    return max(found, key=lambda parity: parity.difference)


def _torch_vectors(loaded: LoadedModel, inputs: Inputs) -> np.ndarray:
    with torch.no_grad():
        _, vectors = loaded.model(*(torch.from_numpy(array) for array in inputs.values()))
    return vectors.numpy()  # type: ignore[no-any-return]  # a module's call is Any

"""The verbs that need no server: models by name, and encoding on this machine."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetuner.backbones import BACKBONES
from finetuner.config import Device, workspace_dir
from finetuner.errors import ConfigError
from finetuner.pairs import are_documents

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from finetuner.encoder import Encoder
    from finetuner.vector_evaluation import VectorEvaluation


def list_models() -> list[str]:
    """Return the display names of the known backbones; any other encoder goes by its id."""
    return [backbone.display_name for backbone in BACKBONES]


def list_model_options() -> dict[str, list[dict[str, Any]]]:
    """Return, for each known backbone, what ``model_options`` takes."""
    options: list[dict[str, Any]] = [
        {"name": "pooler", "type": "mean | cls | max", "required": False, "default": "mean"},
        {"name": "max_length", "type": "int", "required": False, "default": None},
        {"name": "normalize", "type": "bool", "required": False, "default": True},
    ]
    return {name: [dict(option) for option in options] for name in list_models()}


def describe_models(task: str | None = None) -> None:
    """Print the known backbones as a table.

    :param task: Only ``text-to-text`` exists; any other prints an empty table.
    """
    from rich.console import Console
    from rich.table import Table

    columns = ("name", "task", "output_dim", "architecture", "description")
    table = Table(*columns, title="Finetuner backbones: text-to-text")
    for row in BACKBONES:
        if task in (None, row.task):
            table.add_row(
                row.display_name, row.task, str(row.output_dim), row.architecture, row.description
            )
    Console().print(table)


def get_model(
    artifact: str,
    token: str | None = None,
    batch_size: int = 32,
    select_model: str | None = None,
    device: str | None = None,
    logging_level: str = "WARNING",
    is_onnx: bool = False,
    *,
    precision: str = "fp32",
) -> Encoder:
    """Load a fine-tuned model.

    :param artifact: The zip of ``run.save_artifact()``, or the folder inside one; or in an artifact store,
        ``s3://bucket/prefix/NAME``, a run of the default experiment, an artifact id or an alias.
    :param token: Accepted and not used, as are ``batch_size``, ``select_model``, ``logging_level``.
    :param device: ``cpu`` or ``cuda``; cuda where there is one when None.
    :param is_onnx: Run the artifact's ONNX graph.
    :param precision: ``fp32``; by torch ``bf16`` (CPUs and GPUs that have it) or ``fp16`` (GPUs); ``auto``
        for the fastest of these; or an 8-bit graph of the artifact, ``int8`` or ``weight_int8``, on the CPU.
    :raises ArtifactNotFound: When nothing is there.
    :raises UnavailableError: When the store does not answer, or lets nobody in.
    :raises ConfigError: When the artifact or the hardware has no such precision.
    :raises CorruptedArtifact: When it is damaged, or has no ONNX graph though ``is_onnx`` was given.
    """
    from finetuner.backends import Backend, EncoderPrecision
    from finetuner.encoder import load_encoder
    from finetuner.fetched_artifacts import fetched
    from finetuner.schema import convert

    path = fetched(artifact, workspace_dir()) if "://" in artifact else Path(artifact)
    chosen = convert(EncoderPrecision, precision, "precision")
    backend = Backend.ONNX if is_onnx or chosen.variant is not None else Backend.TORCH
    return load_encoder(path, backend=backend, device=choose_device(device), precision=chosen)


def build_model(
    name: str,
    model_options: dict[str, Any] | None = None,
    batch_size: int = 32,
    select_model: str | None = None,
    device: str | None = None,
    is_onnx: bool = False,
) -> Encoder:
    """Load a backbone that was not fine-tuned, looked for on this machine and then on the hub.

    :param name: As ``model`` of :func:`fit`.
    :param model_options: As there.
    :param batch_size: Accepted and not used, as is ``select_model``.
    :param device: As in :func:`get_model`.
    :param is_onnx: Not available for backbones.
    :raises ModelNotFoundError: When it is found nowhere.
    :raises ConfigError: When an option is wrong, or ``is_onnx`` was given.
    """
    from finetuner.backbones import locate
    from finetuner.device import resolve_device
    from finetuner.encoder import torch_encoder
    from finetuner.models import load_model, read_options

    if is_onnx:
        raise ConfigError("a backbone has no ONNX graph; fit with to_onnx=True and use get_model")
    options = read_options(model_options or {})
    loaded = load_model(locate(name, workspace_dir()), options)
    loaded.model.to(resolve_device(choose_device(device))[0])
    return torch_encoder(loaded, name=name)


def choose_device(device: str | None) -> Device:
    """Return the device that was asked for, or what the machine has.

    :param device: ``cpu`` or ``cuda``; cuda where there is one when None.
    :raises ConfigError: When it is neither.
    """
    import torch

    from finetuner.device import resolve_device
    from finetuner.schema import convert

    if device is None:
        return Device.CUDA if torch.cuda.is_available() else Device.CPU
    chosen: Device = convert(Device, device, "device")
    _, warning = resolve_device(chosen)
    if warning:
        warnings.warn(warning, RuntimeWarning, stacklevel=3)
        return Device.CPU
    return chosen


def encode(model: Encoder, data: Any, batch_size: int = 32) -> Any:
    """Embed texts.

    :param model: What :func:`get_model` or :func:`build_model` gave.
    :param data: A DocumentArray, whose embeddings are filled in place, or a list of strings.
    :param batch_size: Texts embedded at once, at least 1.
    :returns: The DocumentArray, or *Shape:* ``(n_texts, dim)`` float32; ``(0, dim)`` for no texts.
    :raises DataError: When a document has no text, or an item is no string.
    """
    if not are_documents(data):
        return model.encode(data, batch_size=batch_size)
    if len(data):
        from finetuner.wire import read_texts

        data.embeddings = model.encode(read_texts(data), batch_size=batch_size)
    return data


def evaluate_vectors(
    query: NDArray[Any] | str | Path,
    index: NDArray[Any] | str | Path | None = None,
    *,
    query_labels: Sequence[Hashable] | NDArray[Any],
    index_labels: Sequence[Hashable] | NDArray[Any] | None = None,
    limit: int = 20,
    distance: str = "cosine",
    n_threads: int | None = None,
    device: str | None = None,
) -> VectorEvaluation:
    """Search an index with queries, exactly, and score what is found; the index may be larger than memory.

    :param query: An array, *Shape:* ``(n_queries, dim)``; a file of NumPy or Parquet; or the folder that
        ``finetuner encode-corpus`` wrote. float32, float16, float64 or int8.
    :param index: The same; read in blocks. The queries when None, each without itself.
    :param query_labels: One for each query; vectors of one label are relevant to each other.
    :param index_labels: One for each vector of the index; left out where ``index`` is.
    :param limit: Matches a query, at least 1.
    :param distance: ``cosine``, ``euclidean`` or ``sqeuclidean``.
    :param n_threads: Each searches a span of the index; as many as there are cores when None.
    :param device: As in :func:`get_model`; where vectors are multiplied.
    :returns: ``metrics``, the means over the queries that have something to find; ``n_skipped``, how many
        have not; ``places`` and ``distances`` of the nearest, *Shape:* ``(n_queries, limit)``.
    :raises DataNotFoundError: When nothing is at a path.
    :raises DataError: When vectors cannot be searched, or do not agree with each other or their labels.
    :raises ConfigError: When an option is out of range.
    """
    from finetuner.callback import Distance
    from finetuner.schema import convert
    from finetuner.vector_evaluation import SearchOptions
    from finetuner.vector_evaluation import evaluate_vectors as evaluate

    chosen: Distance = convert(Distance, distance, "distance")
    options = SearchOptions(limit, chosen, n_threads, choose_device(device))
    return evaluate(
        query, index, query_labels=query_labels, index_labels=index_labels, options=options
    )


def cos_sim(a: ArrayLike, b: ArrayLike) -> float:
    """Return the cosine of the angle between two vectors, -1 to 1; 0 when one has no length.

    :param a: *Shape:* ``(dim,)``.
    :param b: *Shape:* ``(dim,)``.
    """
    left: NDArray[np.float64] = np.asarray(a, dtype=np.float64).ravel()
    right: NDArray[np.float64] = np.asarray(b, dtype=np.float64).ravel()
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / lengths if lengths else 0.0

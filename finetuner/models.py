"""The model: a transformer, a pooler and, by default, vectors of length one; read from and written to
the folder layout that transformers, sentence-transformers 3 to 6 and text-embeddings-inference load.

The old API's vectors were not normalised; ``model_options={'normalize': False}`` gives such ones.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from finetuner.errors import ConfigError, ModelNotFoundError
from finetuner.files import read_json, write_json
from finetuner.pooling import POOLERS, Pooler
from finetuner.schema import documented
from finetuner.tokens import INPUT_NAMES, TextTokenizer

transformers_logging.disable_progress_bar()

_LONGEST_TOKENS = 8192
# What transformers lets through when a file is missing, cut short or of another form.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class ModelOptions:
    """``model_options`` of a run; what is left out comes from the model's own folder.

    :raises ConfigError: When ``max_length`` is below 4.
    """

    pooler: Pooler | None = documented(
        "mean, cls or max; mean when the folder says nothing", default=None
    )
    max_length: int | None = documented("tokens a text is cut to, at least 4", default=None)
    normalize: bool = documented("scale vectors to length one", default=True)

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 4:
            raise ConfigError(f"model_options.max_length must be at least 4, got {self.max_length}")


class EmbeddingModel(nn.Module):
    """A transformer and its pooler.

    :param backbone: A transformers encoder.
    :param pooler: From token vectors to text vectors.
    :param normalize: Scale text vectors to length one.
    """

    def __init__(self, backbone: nn.Module, *, pooler: Pooler, normalize: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooler = pooler
        self.normalize = normalize

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs that the transformer takes, in the order of ``INPUT_NAMES``."""
        taken = inspect.signature(self.backbone.forward).parameters
        return tuple(name for name in INPUT_NAMES if name in taken)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Embed one batch.

        :param inputs: In the order of :attr:`input_names`, each *Shape:* ``(batch, seq)`` int64.
        :returns: Token vectors, *Shape:* ``(batch, seq, dim)``, and text vectors, *Shape:*
            ``(batch, dim)`` float32 whatever the autocast: losses in 16 bit are off by a tenth.
        """
        named = dict(zip(self.input_names, inputs, strict=True))
        token_embeddings = self.backbone(**named).last_hidden_state
        with torch.autocast(token_embeddings.device.type, enabled=False):
            pooled = POOLERS[self.pooler](token_embeddings.float(), named["attention_mask"])
            if self.normalize:
                pooled = nn.functional.normalize(pooled, dim=1)
        return token_embeddings, pooled


@dataclass(frozen=True)
class LoadedModel:
    """A model with the tokenizer that belongs to it.

    :param model: In evaluation mode, on the CPU, float32.
    :param tokenizer: Cuts texts to ``max_length``.
    :param max_length: In tokens.
    :param hf_tokenizer: The same tokenizer as transformers has it, for writing.
    """

    model: EmbeddingModel
    tokenizer: TextTokenizer
    max_length: int
    hf_tokenizer: PreTrainedTokenizerFast


def load_model(
    folder: Path, options: ModelOptions | None = None, *, attention: str = "sdpa"
) -> LoadedModel:
    """Read a transformers or sentence-transformers folder; nothing of it is executed.

    :param folder: Holds ``config.json``, weights and a tokenizer.
    :param options: What to take otherwise than the folder says.
    :param attention: ``sdpa``, or ``eager`` for a graph that ONNX Runtime runs faster.
    :raises ModelNotFoundError: When a file is missing or cannot be read.
    :raises ConfigError: When the folder holds a stage that this package does not know, or
        ``max_length`` is more than the model has positions.
    """
    options = options or ModelOptions()
    _check_modules(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        backbone = AutoModel.from_pretrained(
            folder, config=config, attn_implementation=attention, dtype=torch.float32
        )
        hf_tokenizer = AutoTokenizer.from_pretrained(folder)
    except _UNREADABLE as exc:
        raise ModelNotFoundError(f"the model in `{folder.name}` cannot be loaded: {exc}") from exc
    model = EmbeddingModel(
        backbone, pooler=options.pooler or _read_pooler(folder), normalize=options.normalize
    )
    max_length = _checked_max_length(options, folder, config) or _read_max_length(
        folder, config, hf_tokenizer
    )
    tokenizer = TextTokenizer.create(
        hf_tokenizer.backend_tokenizer.to_str(),
        max_length=max_length,
        pad_id=hf_tokenizer.pad_token_id or 0,
        input_names=model.input_names,
    )
    return LoadedModel(model.eval(), tokenizer, max_length, hf_tokenizer)


def _check_modules(folder: Path) -> None:
    """Refuse a sentence-transformers folder with a stage that would be silently left out."""
    if not (folder / "modules.json").is_file():
        return
    known = {"Transformer", "Pooling", "Normalize"}
    for module in _read_settings(folder, "modules.json", list):
        kind = str(module.get("type", module) if isinstance(module, dict) else module)
        kind = kind.rpartition(".")[2]
        if kind not in known:
            raise ConfigError(
                f"the model in `{folder.name}` has a stage `{kind}`; known: {', '.join(sorted(known))}"
            )


def _read_settings(folder: Path, name: str, form: type) -> Any:
    try:
        value = read_json(folder / name)
    except (OSError, ValueError) as exc:
        raise ModelNotFoundError(f"`{name}` of `{folder.name}` cannot be read: {exc}") from exc
    if not isinstance(value, form):
        raise ModelNotFoundError(
            f"`{name}` of `{folder.name}` cannot be read: it is no {form.__name__}"
        )
    return value


def _read_pooler(folder: Path) -> Pooler:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return Pooler.MEAN
    config = _read_settings(folder, "1_Pooling/config.json", dict)
    chosen = [
        pooler
        for pooler, key in _POOLING_KEYS.items()
        if config.get(key) or config.get("pooling_mode") == pooler.value
    ]
    # Several at once give vectors put end to end; none of ours does.
    if len(chosen) == 1 and not any(config.get(key) for key in _OTHER_POOLING_KEYS):
        return chosen[0]
    raise ConfigError(f"the pooling of `{folder.name}` is none of {', '.join(Pooler)}: {config}")


def _checked_max_length(options: ModelOptions, folder: Path, config: object) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    if options.max_length and positions and options.max_length > positions:
        raise ConfigError(
            f"model_options.max_length is {options.max_length}, but `{folder.name}` has only "
            f"{positions} positions"
        )
    return options.max_length


def _read_max_length(folder: Path, config: object, hf_tokenizer: PreTrainedTokenizerFast) -> int:
    name = "sentence_bert_config.json"
    has_file = (folder / name).is_file()
    stated = _read_settings(folder, name, dict).get("max_seq_length") if has_file else None
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST_TOKENS
    # RoBERTa and its kin count positions from the padding id + 1; their tokenizers know the rest.
    return int(
        min(stated or _LONGEST_TOKENS, hf_tokenizer.model_max_length, positions, _LONGEST_TOKENS)
    )


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


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write the folder layout of sentence-transformers before 5.4, which every loader reads.

    :param loaded: The model; its weights are written in float32.
    :param folder: Must exist and be empty.
    """
    model = loaded.model
    model.backbone.save_pretrained(folder)  # type: ignore[operator]
    loaded.hf_tokenizer.backend_tokenizer.no_truncation()
    loaded.hf_tokenizer.backend_tokenizer.no_padding()
    loaded.hf_tokenizer.save_pretrained(folder)
    stages = ["Transformer", "Pooling"] + (["Normalize"] if model.normalize else [])
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": paths[i],
            "type": f"sentence_transformers.models.{stage}",
        }
        for i, stage in enumerate(stages)
    ]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    pooling = {key: pooler == model.pooler for pooler, key in _POOLING_KEYS.items()}
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": model.dim,
            **pooling,
            **dict.fromkeys(_OTHER_POOLING_KEYS, False),
            "include_prompt": True,
        },
    )
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": loaded.max_length, "do_lower_case": False},
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )

"""The model: a transformer, a pooler, perhaps a projection head and, by default, vectors of length one;
read from and written to the folder layout that transformers, sentence-transformers 3 to 6 and
text-embeddings-inference load.

The old API's vectors were not normalised; ``model_options={'normalize': False}`` gives such ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from finetuner.errors import ConfigError, FinetunerServerError, ModelNotFoundError
from finetuner.head import Head, new_head, read_head, read_head_settings, write_head
from finetuner.model_folder import (
    check_max_length,
    read_config,
    read_max_length,
    read_pooler,
    write_lengths_and_prompts,
    write_pooler,
    write_stages,
)
from finetuner.pooling import POOLERS, Pooler
from finetuner.put_off import put_off
from finetuner.schema import documented, read
from finetuner.tokens import INPUT_NAMES, TextTokenizer

# For the losses of detectors in pictures, which come with every model: half a second.
with suppress(ImportError), put_off("scipy.optimize", "linear_sum_assignment"):
    import transformers.loss.loss_utils  # noqa: F401

transformers_logging.disable_progress_bar()

_WIDEST_HEAD = 8192
# What transformers lets through when a file is missing, cut short or of another form.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError),
    SafetensorError,
)


@dataclass(frozen=True)
class ModelOptions:
    """``model_options`` of a run; what is left out comes from the model's own folder.

    :raises ConfigError: When ``max_length`` is below 4, or ``output_dim`` not from 1 to 8192.
    """

    pooler: Pooler | None = documented(
        "mean, cls or max; mean when the folder says nothing", default=None
    )
    max_length: int | None = documented("tokens a text is cut to, at least 4", default=None)
    normalize: bool = documented("scale vectors to length one", default=True)
    output_dim: int | None = documented(
        "length of a vector, 1 to 8192, by a projection head after pooling; the model's own when left out",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 4:
            raise ConfigError(f"model_options.max_length must be at least 4, got {self.max_length}")
        if self.output_dim is not None and not 1 <= self.output_dim <= _WIDEST_HEAD:
            raise ConfigError(
                f"model_options.output_dim must be from 1 to {_WIDEST_HEAD}, got {self.output_dim}"
            )


def read_options(given: Mapping[str, Any]) -> ModelOptions:
    """Return ``model_options`` as they came.

    :param given: By name.
    :raises ConfigError: When one is unknown, of another type or out of range, or asks to run a model's code.
    """
    if "trust_remote_code" in given:
        raise ConfigError(
            "model_options.trust_remote_code is refused: code that comes with a model is never run here. "
            "Leave it out, and take a model of a type that transformers itself knows"
        )
    return read(ModelOptions, given, "model_options")


class EmbeddingModel(nn.Module):
    """A transformer, its pooler and perhaps a projection head.

    :param backbone: A transformers encoder.
    :param pooler: From token vectors to text vectors.
    :param normalize: Scale text vectors to length one.
    :param head: From pooled vectors to those of another length, before they are scaled.
    """

    def __init__(
        self, backbone: nn.Module, *, pooler: Pooler, normalize: bool, head: Head | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooler = pooler
        self.head = head
        self.normalize = normalize
        # Parts that stay in evaluation mode; a tuple, so that they are not registered twice.
        self.frozen: tuple[nn.Module, ...] = ()

    @property
    def width(self) -> int:
        """Length of a token vector."""
        # transformers types a config's fields as whatever a module may hold
        return int(self.backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def dim(self) -> int:
        """Length of a text vector."""
        return self.width if self.head is None else self.head.settings.out_features

    def add_head(self, output_dim: int, *, seed: int) -> None:
        """Put an untrained projection head after pooling, as :func:`finetuner.head.new_head` makes it.

        :param output_dim: Length of a text vector from now on.
        :param seed: Of its weights.
        :raises ConfigError: When there is a head already.
        """
        if self.head is not None:
            raise ConfigError(f"the model has a projection head already, to {self.dim} components")
        device = next(self.backbone.parameters()).device
        self.head = new_head(self.width, output_dim, seed=seed).to(device)

    def train(self, mode: bool = True) -> EmbeddingModel:
        """Switch dropout on or off, except in what is frozen: there it stays off.

        :param mode: On.
        """
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Compute the layers' values anew in the backward pass, for less memory and the same gradients.

        :raises ConfigError: When the backbone cannot do that.
        """
        options = {"use_reentrant": False}  # the other kind needs inputs with a gradient
        try:
            # torch types each attribute of a module as tensor or module
            self.backbone.activation_checkpointing_enable(  # type: ignore[operator]
                activation_checkpointing_kwargs=options
            )
        except ValueError as exc:
            raise ConfigError(f"this model has no gradient checkpointing: {exc}") from exc

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs that the transformer takes, in the order of ``INPUT_NAMES``."""
        taken = inspect.signature(self.backbone.forward).parameters
        return tuple(name for name in INPUT_NAMES if name in taken)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Embed one batch.

        :param inputs: In the order of :attr:`input_names`, each *Shape:* ``(batch, seq)`` int64.
        :returns: Token vectors, *Shape:* ``(batch, seq, width)``, and text vectors as of :meth:`pool`.
        """
        named = dict(zip(self.input_names, inputs, strict=True))
        token_embeddings = self.backbone(**named).last_hidden_state
        return token_embeddings, self.pool(token_embeddings, named["attention_mask"])

    def pool(self, token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Make text vectors of token vectors.

        :param token_embeddings: *Shape:* ``(batch, seq, width)``.
        :param attention_mask: *Shape:* ``(batch, seq)``; 1 for a token, 0 for padding.
        :returns: *Shape:* ``(batch, dim)`` float32 whatever the autocast: losses in 16 bit are off by a
            tenth.
        """
        with torch.autocast(token_embeddings.device.type, enabled=False):
            pooled = POOLERS[self.pooler](token_embeddings.float(), attention_mask)
            if self.head is not None:
                pooled = self.head(pooled)
            if self.normalize:
                pooled = nn.functional.normalize(pooled, dim=1)
        return pooled


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


def check_options(folder: Path, options: ModelOptions) -> None:
    """Refuse now what :func:`load_model` would refuse later, as far as small files tell; no weights.

    :param folder: Holds ``config.json``.
    :param options: What to take otherwise than the folder says.
    :raises ModelNotFoundError, ConfigError: As :func:`load_model`.
    """
    head = read_head_settings(folder)
    if head and options.output_dim not in (None, head.out_features):
        raise ConfigError(
            f"model_options.output_dim is {options.output_dim}, but `{folder.name}` has a trained "
            f"projection head to {head.out_features}: leave output_dim out, or begin with the "
            "model that had none"
        )
    if options.pooler is None:
        read_pooler(folder)
    check_max_length(folder, options.max_length)


def read_dim(folder: Path, options: ModelOptions) -> int:
    """Return the length of the vectors that :func:`load_model` would give; no weights are read.

    :param folder: Holds ``config.json``.
    :param options: As :func:`check_options` passes them.
    :raises ModelNotFoundError, ConfigError: As :func:`load_model`.
    """
    head = read_head_settings(folder)
    if head is not None:
        return head.out_features
    return options.output_dim or int(read_config(folder).hidden_size)


def read_n_layers(folder: Path) -> int:
    """Return the number of a transformer's layers; no weights are read.

    :param folder: Holds ``config.json``.
    :raises ModelNotFoundError: As :func:`load_model`.
    """
    return int(read_config(folder).num_hidden_layers)


def load_model(
    folder: Path,
    options: ModelOptions | None = None,
    *,
    attention: str = "sdpa",
    seed: int = 0,
) -> LoadedModel:
    """Read a transformers or sentence-transformers folder; nothing of it is executed.

    :param folder: Holds ``config.json``, weights and a tokenizer.
    :param options: What to take otherwise than the folder says. Where the folder has no projection
        head, an ``output_dim`` other than the model's own length adds an untrained one.
    :param attention: ``sdpa``, or ``eager`` for a graph that ONNX Runtime runs faster.
    :param seed: Of the weights of an added head.
    :raises ModelNotFoundError: When a file is missing or cannot be read.
    :raises ConfigError: When the folder holds a stage that this package does not know, ``max_length``
        is more than the model has positions, or ``output_dim`` is not that of the folder's head: a
        second one after it would not fit the folder layout, and replacing it would lose what it learnt.
    """
    options = options or ModelOptions()
    check_options(folder, options)
    config = read_config(folder)
    head = read_head(folder)
    _check_weights(folder)
    try:
        backbone = AutoModel.from_pretrained(
            folder,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
        hf_tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except _UNREADABLE as exc:
        raise ModelNotFoundError(f"the model in `{folder.name}` cannot be loaded: {exc}") from exc
    model = EmbeddingModel(
        backbone,
        pooler=options.pooler or read_pooler(folder),
        normalize=options.normalize,
        head=head,
    )
    if head is not None and head.settings.in_features != model.width:
        raise ModelNotFoundError(
            f"the head of `{folder.name}` cannot be read: it takes {head.settings.in_features} "
            f"components, and the model gives {model.width}"
        )
    if options.output_dim not in (None, model.dim):
        model.add_head(options.output_dim, seed=seed)
    max_length = options.max_length or read_max_length(
        folder, config, hf_tokenizer.model_max_length
    )
    tokenizer = TextTokenizer.create(
        hf_tokenizer.backend_tokenizer.to_str(),
        max_length=max_length,
        pad_id=hf_tokenizer.pad_token_id or 0,
        input_names=model.input_names,
    )
    return LoadedModel(model.eval(), tokenizer, max_length, hf_tokenizer)


def _check_weights(folder: Path) -> None:
    """Refuse pickles, and adapters, for which transformers would read weights from elsewhere."""
    if not any(folder.glob("*.safetensors")):
        raise ModelNotFoundError(
            f"the model in `{folder.name}` cannot be loaded: it holds no model.safetensors, and "
            "pytorch_model.bin and other pickles are never read. Where you trust its source, "
            "`AutoModel.from_pretrained(…).save_pretrained(…)` writes the weights anew"
        )
    if (folder / "adapter_config.json").exists():
        raise ModelNotFoundError(
            f"the model in `{folder.name}` cannot be loaded: it holds an adapter "
            "(adapter_config.json); merge it into the model first, with peft's `merge_and_unload`"
        )


def save_model(
    loaded: LoadedModel, folder: Path, *, prompts: Mapping[str, str] | None = None
) -> None:
    """Write the folder layout of sentence-transformers before 5.4, which every loader reads.

    :param loaded: The model; its weights are written in float32.
    :param folder: Must exist and be empty.
    :param prompts: Texts to put before each text, by name; for sentence-transformers.
    :raises FinetunerServerError: When LoRA was not merged: nobody could read such weights again.
    """
    model = loaded.model
    if hasattr(model.backbone, "peft_config"):
        raise FinetunerServerError("The model cannot be saved", "its LoRA was not merged")
    # torch types each attribute of a module as tensor or module
    model.backbone.save_pretrained(folder)  # type: ignore[operator]
    loaded.hf_tokenizer.backend_tokenizer.no_truncation()
    loaded.hf_tokenizer.backend_tokenizer.no_padding()
    loaded.hf_tokenizer.save_pretrained(folder)
    present = {"Dense": model.head is not None, "Normalize": model.normalize}
    optional = [kind for kind, is_present in present.items() if is_present]
    stages = write_stages(folder, ["Transformer", "Pooling", *optional])
    write_pooler(stages["Pooling"], model.pooler, width=model.width)
    if model.head is not None:
        write_head(stages["Dense"], model.head)
    write_lengths_and_prompts(folder, max_length=loaded.max_length, prompts=prompts or {})

"""Embedding without padding: the tokens of all texts in one row, each seeing those of its own text alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from finetuner.tokens import Inputs

if TYPE_CHECKING:
    from finetuner.models import EmbeddingModel

try:
    # One kernel for texts of all lengths; only for 16 bit, and only on GPUs.
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

_NAME = "finetuner_unpadded"
# Model types whose only knowledge of places is `position_ids`, and whether these begin behind the
# padding's id. Others (MPNet, DeBERTa, T5) make distances between tokens out of their places in the row.
_COUNTS_FROM_PADDING = {
    "bert": False,
    "electra": False,
    "camembert": True,
    "roberta": True,
    "xlm-roberta": True,
}


@dataclass(frozen=True)
class Packed:
    """A batch without its padding.

    :param ids: *Shape:* ``(1, n_tokens)`` int64; text after text.
    :param position_ids: *Shape:* ``(1, n_tokens)`` int64; each text counted from its own beginning.
    :param places: *Shape:* ``(n_tokens,)`` int64; where each token was in the padded batch, row after row.
    :param offsets: *Shape:* ``(n_texts + 1,)`` int32; where each text begins, and the end.
    :param longest: Tokens of the longest text.
    """

    ids: Tensor
    position_ids: Tensor
    places: Tensor
    offsets: Tensor
    longest: int


def pack_batch(inputs: Inputs, *, first_position: int, device: torch.device) -> Packed:
    """Take the padding out of a batch.

    :param inputs: As :meth:`finetuner.tokens.TextTokenizer.pad` gives them.
    :param first_position: Of a text's first token.
    :param device: Where the result should be.
    """
    mask = inputs["attention_mask"]
    places = np.flatnonzero(mask)
    lengths = mask.sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    positions = places % mask.shape[1] + first_position  # the padding is behind each text
    rows = torch.from_numpy(np.stack([inputs["input_ids"].ravel()[places], positions, places]))
    ids, position_ids, padded_places = rows.to(device)
    cumulated = torch.from_numpy(offsets.astype(np.int32)).to(device)
    return Packed(ids[None], position_ids[None], padded_places, cumulated, int(lengths.max()))


def can_unpad(model: EmbeddingModel) -> bool:
    """Whether a model in 16 bit can do without padding: on a GPU, for some model types.

    :param model: On the device where it stays.
    """
    # transformers types a config's fields as whatever a module may hold
    is_known = model.backbone.config.model_type in _COUNTS_FROM_PADDING  # type: ignore[union-attr, operator]
    is_gpu = next(model.parameters()).device.type == "cuda"
    return bool(is_known and is_gpu and varlen_attn is not None)


def is_unpadded(model: EmbeddingModel) -> bool:
    """Whether :func:`unpad_attention` was called for a model."""
    return bool(model.backbone.config._attn_implementation == _NAME)  # type: ignore[union-attr]


def unpad_attention(model: EmbeddingModel) -> None:
    """Make a model ready for :func:`embed_unpadded`; with padding it then cannot be used any more.

    :param model: One of which :func:`can_unpad` is true.
    """
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _no_mask)
    # torch types each attribute of a module as tensor or module
    model.backbone.set_attn_implementation(_NAME)  # type: ignore[operator]


def embed_unpadded(model: EmbeddingModel, inputs: Inputs) -> Tensor:
    """Embed one batch; the vectors are those of ``model(*inputs)``, but for rounding.

    :param model: What :func:`unpad_attention` made ready, in evaluation mode.
    :param inputs: As :meth:`finetuner.tokens.TextTokenizer.pad` gives them.
    :returns: *Shape:* ``(n_texts, dim)`` float32.
    """
    backbone: Any = model.backbone
    counts_from_padding = _COUNTS_FROM_PADDING[backbone.config.model_type]
    first = backbone.config.pad_token_id + 1 if counts_from_padding else 0
    packed = pack_batch(inputs, first_position=first, device=backbone.device)
    tokens = backbone(
        input_ids=packed.ids,
        position_ids=packed.position_ids,
        token_type_ids=torch.zeros_like(packed.ids),
        offsets=packed.offsets,
        longest=packed.longest,
    ).last_hidden_state[0]
    n_texts, width = inputs["attention_mask"].shape
    padded = tokens.new_zeros(n_texts * width, tokens.shape[1])
    padded[packed.places] = tokens
    mask = torch.from_numpy(inputs["attention_mask"]).to(backbone.device)
    return model.pool(padded.view(n_texts, width, -1), mask)


def _no_mask(*_arguments: Any, **_options: Any) -> None:
    """Make no mask: which tokens see each other is in the offsets."""


def _attend(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    *,
    offsets: Tensor,
    longest: int,
    scaling: float,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attend within each text; shapes as transformers passes them, ``(1, heads, n_tokens, head_dim)``."""
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    if query.device.type == "cuda":
        # With return_aux it would return two.
        attended = cast(
            Tensor,
            varlen_attn(query, key, value, offsets, offsets, longest, longest, scale=scaling),
        )
    else:
        attended = _attend_one_by_one(query, key, value, offsets=offsets, scaling=scaling)
    return attended.unsqueeze(0), None


def _attend_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, *, offsets: Tensor, scaling: float
) -> Tensor:
    """Attend within each text, one after the other: the reference, for any device."""
    bounds = offsets.tolist()
    attended = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        queries, keys, values = (
            states[start:end].transpose(0, 1) for states in (query, key, value)
        )
        attended.append(
            nn.functional.scaled_dot_product_attention(queries, keys, values, scale=scaling)
        )
    return torch.cat(attended, dim=1).transpose(0, 1)

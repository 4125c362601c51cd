"""From one vector a token to one vector a text."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor


class Pooler(StrEnum):
    """How the vectors of a text's tokens become one."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"


def mean(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """Average over the tokens that are no padding.

    :param token_embeddings: *Shape:* ``(batch, seq, dim)`` float.
    :param attention_mask: *Shape:* ``(batch, seq)``; 1 for a token, 0 for padding.
    :returns: *Shape:* ``(batch, dim)``; zeros for a text without tokens.
    """
    weights = attention_mask.unsqueeze(-1).to(token_embeddings.dtype)
    return (token_embeddings * weights).sum(1) / weights.sum(1).clamp(min=1)


def cls(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """Take the first token's vector; arguments and shape as in :func:`mean`."""
    return token_embeddings[:, 0]


def maximum(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """Take each component's largest value over the tokens that are no padding; as in :func:`mean`."""
    padding = attention_mask.unsqueeze(-1) == 0
    # The smallest finite value, not -inf: a graph in 16 bit would turn inf * 0 into NaN.
    lowest = torch.finfo(token_embeddings.dtype).min
    return token_embeddings.masked_fill(padding, lowest).amax(1)


POOLERS: dict[Pooler, Callable[[Tensor, Tensor], Tensor]] = {
    Pooler.MEAN: mean,
    Pooler.CLS: cls,
    Pooler.MAX: maximum,
}

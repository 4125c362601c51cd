"""Dropout whose mask costs a tenth: torch draws one random number an element, on one core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_LEVELS = 256  # of a byte
_ATTENTION = "byte_dropout"


class ByteDropout(nn.Dropout):
    """Dropout with a probability in steps of 1/256, eight elements from each random number.

    Drawing torch's own mask takes a sixth of the CPU time of fine-tuning a small transformer.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Dropout has
        """Return the input with elements set to 0 and the rest scaled, in training; else as it is.

        :param input: Any shape, floating.
        """
        return _dropped(input, self.p) if self.training else input


def _dropped(values: Tensor, p: float) -> Tensor:
    threshold = round(p * _LEVELS)
    if threshold == 0:
        return values
    if threshold == _LEVELS:
        return values * 0
    n_words = -(-values.numel() // 8)
    words = torch.empty(n_words, dtype=torch.int64, device=values.device).random_(-(2**63), None)
    drawn = words.view(torch.uint8)[: values.numel()].view(values.shape)
    return values * (drawn >= threshold).to(values.dtype).mul_(_LEVELS / (_LEVELS - threshold))


def byte_dropout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' ``sdpa`` does, with bytes for the dropout of the weights in training.

    :param module: The attention layer.
    :param query: *Shape:* ``(batch, heads, seq, head_dim)``, as are ``key`` and ``value``.
    :param attention_mask: *Shape:* ``(batch, 1, seq, seq)`` bool, true where it is attended to; or None.
    :param options: Those of transformers; anything beyond ``dropout`` and ``scaling`` is left to ``sdpa``.
    :returns: *Shape:* ``(batch, seq, heads, head_dim)``, and no weights.
    """
    p, scaling = options.get("dropout", 0.0), options.get("scaling")
    is_other = {
        "is_causal",
        "position_bias",
        "softcap",
    } & options.keys() or query.shape != key.shape
    if is_other or not p or scaling is None or getattr(module, "is_causal", True):
        forwarded: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return forwarded
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    weights = _dropped(weights.softmax(dim=-1), p)
    return torch.matmul(weights.to(value.dtype), value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, byte_dropout_attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def use_byte_dropout(model: nn.Module) -> None:
    """Put :class:`ByteDropout` in the place of every ``nn.Dropout``, and such attention where the model can.

    Weights stay as they are.

    :param model: Changed in place.
    """
    for module in model.modules():
        if not isinstance(module, PreTrainedModel) or not module._supports_attention_backend:
            continue
        if module.config._attn_implementation == "sdpa":
            module.set_attn_implementation(_ATTENTION)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, ByteDropout(child.p).train(child.training))

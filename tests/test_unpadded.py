"""Vectors without padding are those with it."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from finetuner.models import EmbeddingModel
from finetuner.pooling import Pooler
from finetuner.tokens import INPUT_NAMES
from finetuner.unpadded import (
    can_unpad,
    embed_unpadded,
    is_unpadded,
    pack_batch,
    unpad_attention,
)

_TYPES = ["bert", "camembert", "electra", "roberta", "xlm-roberta"]
_SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 60,
}


def _model(model_type, pooler=Pooler.MEAN):
    backbone = AutoModel.from_config(AutoConfig.for_model(model_type, **_SIZES))
    return EmbeddingModel(backbone, pooler=pooler, normalize=True).eval()


def _inputs(lengths, pad_id):
    """Return texts of random ids, padded."""
    generator = np.random.default_rng(0)
    ids = np.full((len(lengths), max(lengths)), pad_id)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = generator.integers(5, 100, length)
        mask[row, :length] = 1
    return dict(zip(INPUT_NAMES, (ids, mask, np.zeros_like(ids)), strict=True))


def test_a_batch_is_packed_text_after_text():
    inputs = {
        "input_ids": np.array([[7, 8, 9], [5, 0, 0]]),
        "attention_mask": np.array([[1, 1, 1], [1, 0, 0]]),
    }
    packed = pack_batch(inputs, first_position=2, device=torch.device("cpu"))
    assert packed.ids.tolist() == [[7, 8, 9, 5]]
    assert packed.position_ids.tolist() == [[2, 3, 4, 2]]
    assert packed.places.tolist() == [0, 1, 2, 3]
    assert (packed.offsets.tolist(), packed.longest) == ([0, 3, 4], 3)
    assert packed.offsets.dtype is torch.int32


@pytest.mark.parametrize("pooler", list(Pooler))
@pytest.mark.parametrize("model_type", _TYPES)
def test_vectors_without_padding_are_those_with_it(model_type, pooler):
    model = _model(model_type, pooler)
    inputs = _inputs((20, 1, 7, 20), model.backbone.config.pad_token_id)
    with torch.no_grad():
        _, padded = model(*(torch.from_numpy(inputs[name]) for name in model.input_names))
        unpad_attention(model)
        assert is_unpadded(model)
        unpadded = embed_unpadded(model, inputs)
    torch.testing.assert_close(unpadded, padded, atol=1e-6, rtol=0)


def test_where_padding_is_kept():
    model = _model("bert")
    assert not is_unpadded(model)
    assert not can_unpad(model)  # on a CPU

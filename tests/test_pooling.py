import pytest
import torch

from finetuner.pooling import POOLERS, Pooler

# Two texts of three tokens in two dimensions; the first has one token of padding, the second two.
_PADDING = [1e6, 1e6]
_TOKENS = torch.tensor(
    [
        [[1.0, -4.0], [3.0, 2.0], _PADDING],
        [[-5.0, -6.0], _PADDING, _PADDING],
    ]
)
_MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
_WHOLE = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("pooler", "mask", "expected"),
    [
        (Pooler.MEAN, _MASK, [[2.0, -1.0], [-5.0, -6.0]]),
        (Pooler.CLS, _MASK, [[1.0, -4.0], [-5.0, -6.0]]),
        (Pooler.MAX, _MASK, [[3.0, 2.0], [-5.0, -6.0]]),
        (Pooler.MEAN, _WHOLE, [[1000004 / 3, 999998 / 3], [1999995 / 3, 1999994 / 3]]),
        (Pooler.CLS, _WHOLE, [[1.0, -4.0], [-5.0, -6.0]]),
        (Pooler.MAX, _WHOLE, [_PADDING, _PADDING]),
    ],
)
def test_pooler_by_hand(pooler, mask, expected):
    torch.testing.assert_close(POOLERS[pooler](_TOKENS, mask), torch.tensor(expected))


@pytest.mark.parametrize("padding", [1e6, -1e6, 0.0])
@pytest.mark.parametrize("pooler", list(Pooler))
def test_padding_has_no_influence(pooler, padding):
    tokens = torch.randn(1, 4, 3)
    alone = POOLERS[pooler](tokens, torch.ones(1, 4))
    padded = torch.cat([tokens, torch.full((1, 5, 3), padding)], dim=1)
    mask = torch.tensor([[1] * 4 + [0] * 5])
    torch.testing.assert_close(POOLERS[pooler](padded, mask), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooler", list(Pooler))
def test_type_is_kept_and_values_are_finite(pooler, dtype):
    pooled = POOLERS[pooler]((_TOKENS / 1e3).to(dtype), _MASK)
    assert (pooled.dtype, pooled.shape, bool(pooled.isfinite().all())) == (dtype, (2, 2), True)


def test_mean_of_no_tokens_is_zero():
    pooled = POOLERS[Pooler.MEAN](_TOKENS, torch.zeros(2, 3, dtype=torch.int64))
    assert pooled.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_every_pooler_has_a_function():
    assert list(POOLERS) == [Pooler.MEAN, Pooler.CLS, Pooler.MAX] == list(Pooler)

import pytest
import torch
from torch import nn

from finetuner.dropout import ByteDropout, use_byte_dropout


@pytest.mark.parametrize(("p", "level"), [(0.1, 26), (0.5, 128), (0.003, 1), (0.9, 230)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_and_scale(p, level, dtype):
    x = torch.ones(401, 997, dtype=dtype)  # no multiple of eight elements
    dropped = ByteDropout(p)(x)
    kept = dropped != 0
    n = x.numel()
    share = 1 - level / 256
    assert abs(kept.double().mean().item() - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert dropped.dtype == dtype
    scale = torch.tensor(256 / (256 - level), dtype=dtype)
    assert bool((dropped[kept] == scale).all())


def test_elements_are_dropped_independently():
    """Eight neighbours come from one random number: no byte of it tells of another."""
    kept = (ByteDropout(0.5)(torch.ones(200_000)) != 0).double().view(-1, 8)
    correlations = torch.corrcoef(kept.T) - torch.eye(8, dtype=torch.float64)
    assert correlations.abs().max().item() < 0.04


def test_gradient_falls_where_the_values_fall():
    x = torch.ones(1000, requires_grad=True)
    dropped = ByteDropout(0.25)(x)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (0.001, 1.0), (1.0, 0.0)])
def test_none_and_all(p, expected):
    assert torch.equal(ByteDropout(p)(torch.ones(9)), torch.full((9,), expected))


def test_a_seed_repeats_it_and_evaluation_is_without():
    x, dropout = torch.ones(100), ByteDropout(0.5)
    torch.manual_seed(3)
    first = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x))
    assert not torch.equal(first, dropout(x))
    assert dropout.eval()(x) is x
    assert ByteDropout(0.5)(torch.ones(0)).shape == (0,)


def test_every_dropout_of_a_model_is_replaced():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.25)), nn.Dropout(0.5)).eval()
    before = list(model.state_dict())
    use_byte_dropout(model)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [(type(m), m.p, m.training) for m in found] == [
        (ByteDropout, 0.25, False),
        (ByteDropout, 0.5, False),
    ]
    assert list(model.state_dict()) == before

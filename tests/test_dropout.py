import pytest
import torch
from torch import nn

from finetuner import dropout
from finetuner.dropout import ByteDropout, byte_dropout_attention, use_byte_dropout
from finetuner.models import load_model


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
    x, half = torch.ones(100), ByteDropout(0.5)
    torch.manual_seed(3)
    first = half(x)
    torch.manual_seed(3)
    assert torch.equal(first, half(x))
    assert not torch.equal(first, half(x))
    assert half.eval()(x) is x
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


def _attention_inputs(*, is_padded=True):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, :, :, 3:] = not is_padded
    return query, key, value, mask


class _Layer(nn.Module):
    is_causal = False


@pytest.mark.parametrize("is_padded", [True, False])
def test_attention_is_sdpas_where_nothing_falls(monkeypatch, is_padded):
    monkeypatch.setattr(dropout, "_dropped", lambda values, p: values)
    query, key, value, mask = _attention_inputs(is_padded=is_padded)
    mask = mask if is_padded else None
    found, _ = byte_dropout_attention(_Layer(), query, key, value, mask, dropout=0.1, scaling=0.25)
    expected = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.25
    )
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_attention_drops_weights_and_keeps_their_mean():
    query, key, value, mask = _attention_inputs()
    # Ones as values: each output is the sum of a row's weights that stayed, scaled up.
    sums = torch.cat(
        [
            byte_dropout_attention(
                _Layer(), query, key, torch.ones_like(value), mask, dropout=0.25, scaling=0.25
            )[0][..., 0].flatten()
            for _ in range(500)
        ]
    )
    assert abs(sums.mean().item() - 1) < 5 * sums.std().item() / len(sums) ** 0.5
    assert sums.std() > 0.1


def test_a_token_that_is_masked_is_not_attended_to():
    query, key, value, mask = _attention_inputs()
    other = value.clone()
    other[1, :, 3:] += 100
    results = []
    for values in (value, other):
        torch.manual_seed(5)
        results.append(
            byte_dropout_attention(_Layer(), query, key, values, mask, dropout=0.1, scaling=0.25)[0]
        )
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "options", [{"dropout": 0.0}, {"is_causal": False}, {"position_bias": None}]
)
def test_what_is_not_plain_is_sdpas(monkeypatch, options):
    monkeypatch.setattr(dropout, "sdpa_attention_forward", lambda *_, **options: options)
    query, key, value, mask = _attention_inputs()
    options = {"dropout": 0.1, "scaling": 0.25, **options}
    assert byte_dropout_attention(_Layer(), query, key, value, mask, **options) == options


def test_a_model_attends_by_bytes_in_training_alone(tiny_model_folder, monkeypatch):
    model, plain = (load_model(tiny_model_folder).model for _ in range(2))
    inputs = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    use_byte_dropout(model)
    masks = []
    monkeypatch.setattr(dropout, "_dropped", lambda values, p: masks.append(values.shape) or values)
    attention_mask, types = (inputs > 0).long(), torch.zeros_like(inputs)
    expected = plain.eval()(inputs, attention_mask, types)[1]
    assert torch.equal(model.eval()(inputs, attention_mask, types)[1], expected)
    assert masks == []
    found = model.train()(inputs, attention_mask, types)[1]
    assert [shape for shape in masks if len(shape) == 4] == [(2, 2, 4, 4)] * 2
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)

import pytest
import torch

from finetuner.errors import ConfigError
from finetuner.optimization import OPTIMIZERS, build_optimizer


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_makes_a_step(name, options):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(name, [parameter], learning_rate=0.1, options=options)
    (parameter**2).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert bool(parameter.isfinite().all())
    assert parameter.max().item() < 1


def test_adam_by_hand():
    """The first step of Adam is the learning rate against the gradient's sign."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer("Adam", [parameter], learning_rate=0.1, options={"lr": 0.9})
    (parameter**2).sum().backward()
    optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor([0.9, -1.9]))


@pytest.mark.parametrize(
    ("options", "fused"), [({}, True), ({"fused": False}, False), ({"foreach": True}, None)]
)
def test_fused_unless_asked_otherwise(options, fused):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer("AdamW", [parameter], learning_rate=0.1, options=options)
    assert optimizer.defaults["fused"] is fused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adam", {}, "unknown optimizer `adam`; did you mean `Adam`"),
        ("LBFGS", {}, "unknown optimizer `LBFGS`;? known: ASGD, Adadelta, "),
        ("Adam", {"beta": 1}, "unknown option `beta` of Adam; did you mean `betas`.*known: lr, "),
        ("SGD", {"momentum": -1}, "optimizer SGD refuses its options: Invalid momentum value"),
        ("Adam", {"weight_decay": "x"}, "optimizer Adam refuses its options: "),
        ("Adam", {"fused": True, "foreach": True}, "optimizer Adam refuses its options: .*fused"),
    ],
)
def test_optimizers_that_are_refused(name, options, message):
    parameter = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ConfigError, match=message):
        build_optimizer(name, [parameter], learning_rate=0.1, options=options)

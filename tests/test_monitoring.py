import math

import pytest
import torch

from finetuner.callback import BestModelCheckpoint, EarlyStopping, Mode
from finetuner.errors import ConfigError
from finetuner.models import load_model
from finetuner.monitoring import BestWeights, StopWatch


def _stops_at(callback, values):
    watch = StopWatch(callback)
    name = callback.monitor
    return next((n for n, value in enumerate(values, 1) if watch.see({name: value})), None)


@pytest.mark.parametrize(
    ("options", "values", "epoch"),
    [
        ({"monitor": "val_loss", "patience": 2}, [3, 2, 2.5, 1.9, 2, 2.1], 6),
        ({"monitor": "val_loss", "patience": 1}, [3, 2, 2, 1], 3),
        ({"monitor": "val_loss", "patience": 9}, [3, 4, 5, 6], None),
        ({"monitor": "hit_at_k", "patience": 2}, [0.1, 0.2, 0.2, 0.15], 4),
        ({"monitor": "hit_at_k", "patience": 2, "mode": "min"}, [0.3, 0.2, 0.1, 0.2, 0.2], 5),
        ({"monitor": "val_loss", "patience": 1, "min_delta": 0.5}, [3, 2.4, 2], 3),
        ({"monitor": "val_loss", "patience": 2, "baseline": 1.0}, [2, 0.9, 0.95, 1.1, 1.2], 5),
        ({"monitor": "val_loss", "patience": 2}, [math.nan, math.nan], 2),
    ],
)
def test_early_stopping(options, values, epoch):
    assert _stops_at(EarlyStopping(**options), values) == epoch


def test_a_missing_value_names_those_there_are():
    with pytest.raises(
        ConfigError,
        match="EarlyStopping watches `val_loss`, .* it has: train_loss, hit_at_k. A val",
    ):
        StopWatch(EarlyStopping()).see({"train_loss": 1.0, "hit_at_k": 0.5})


def test_best_weights_hold_every_tensor(tiny_model_folder):
    """With a projection head: loaders that restore the transformer alone lose it."""
    model = load_model(tiny_model_folder).model
    model.add_head(8, seed=0)
    best = BestWeights(BestModelCheckpoint("hit_at_k"))
    copies = {}
    for epoch, value in enumerate([0.2, 0.6, 0.5], start=1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        copies[epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        best.see({"hit_at_k": value}, epoch, model)
    assert (best.best, best.epoch) == (0.6, 2)
    best.restore_into(model)
    restored = model.state_dict()
    assert any("head" in name for name in restored)
    assert all(torch.equal(restored[name], copies[2][name]) for name in restored)


def test_modes():
    assert EarlyStopping(mode="max").mode is Mode.MAX
    with pytest.raises(ConfigError, match="EarlyStopping.mode must be one of auto, min, max"):
        EarlyStopping(mode="up")
    with pytest.raises(ConfigError, match="EarlyStopping.patience must be at least 1, got 0"):
        EarlyStopping(patience=0)

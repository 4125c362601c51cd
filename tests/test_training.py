import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from finetuner.callback import EvaluationCallback
from finetuner.config import Precision, RunConfig
from finetuner.data import LabelledTexts, prepare_training
from finetuner.encoder import torch_encoder
from finetuner.errors import ConfigError, TrainingError
from finetuner.evaluation import EvaluationSet, evaluate
from finetuner.models import load_model
from finetuner.trainer import Progress, TrainingHooks
from finetuner.training import check_training, train

_CPU = torch.device("cpu")


class AsLoss(torch.nn.Module):
    """A plain function in the place of a loss."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def _config(**options):
    defaults = {
        "model": "tiny",
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "device": "cpu",
    }
    settings = {**defaults, **options}
    return RunConfig(**{**settings, "precision": Precision(settings["precision"])})


class _Recorder:
    """Hooks that note what they are called with."""

    def __init__(self, loaded=None):
        self.calls = []
        self.modes = []
        self.loaded = loaded

    @property
    def steps(self):
        return [call for call in self.calls if isinstance(call, Progress)]

    def hooks(self):
        return TrainingHooks(on_step=self._on_step, on_epoch_end=self._on_epoch_end)

    def _on_step(self, progress):
        self.calls.append(progress)
        self.modes.append(self.loaded is not None and self.loaded.model.training)

    def _on_epoch_end(self, end):
        self.calls.append(end.epoch)
        self.modes.append(self.loaded is not None and self.loaded.model.training)


@pytest.fixture
def loaded(tiny_model_folder):
    return load_model(tiny_model_folder)


@pytest.fixture
def data(tiny_labelled):
    return prepare_training(tiny_labelled)


def _train(loaded, data, config):
    recorder = _Recorder(loaded)
    train(loaded, data, config=config, device=_CPU, hooks=recorder.hooks())
    return recorder


def _weights(loaded):
    return {name: value.clone() for name, value in loaded.model.state_dict().items()}


def _same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def _retrieval(loaded, texts):
    callback = EvaluationCallback(query_data=None, limit=3)
    data = EvaluationSet.create(texts, None, callback=callback)
    return evaluate(torch_encoder(loaded).encode, data, callback=callback).metrics


@pytest.mark.parametrize("loss", ["TripletMarginLoss", "SupConLoss"])
def test_loss_falls_and_retrieval_improves(loaded, tiny_labelled, data, loss):
    before = _retrieval(loaded, tiny_labelled)
    recorder = _train(loaded, data, _config(loss=loss, epochs=8))
    last_of_epoch = [step.loss for step in recorder.steps if step.step == step.n_steps]
    after = _retrieval(loaded, tiny_labelled)
    assert last_of_epoch[-1] < 0.8 * last_of_epoch[0]
    assert after["recall_at_k"] > before["recall_at_k"] + 0.3
    assert after["average_precision"] > before["average_precision"]


def test_hooks_get_every_step_and_epoch(loaded, data):
    recorder = _train(loaded, data, _config(epochs=3))
    shape = [
        (call.epoch, call.step, call.n_steps) if isinstance(call, Progress) else call
        for call in recorder.calls
    ]
    # 48 texts in batches of 16.
    assert shape == [
        place
        for epoch in (1, 2, 3)
        for place in ((epoch, 1, 3), (epoch, 2, 3), (epoch, 3, 3), epoch)
    ]
    assert recorder.modes == [True, True, True, False] * 3
    assert loaded.model.training is False


def test_progress_holds_the_mean_loss_of_the_epoch(loaded, data, monkeypatch):
    losses = iter([1.0, 0.5, 0.75, 8.0, 0.0, 1.0])

    def constant(embeddings, targets):
        return embeddings.sum() * 0 + next(losses)

    monkeypatch.setattr(
        "finetuner.trainer.build_objective", lambda *args, **options: AsLoss(constant)
    )
    recorder = _train(loaded, data, _config(epochs=2))
    assert [step.loss for step in recorder.steps] == [1.0, 0.75, 0.75, 8.0, 4.0, 3.0]


def test_a_batch_reaches_model_and_loss_together(loaded, data, monkeypatch):
    """The vectors that the loss gets are those of the texts whose classes it gets."""
    seen = []

    def note(embeddings, targets):
        seen.append((embeddings.detach().numpy(), targets.classes.numpy()))
        return embeddings.sum() * 0

    monkeypatch.setattr("finetuner.trainer.build_objective", lambda *args, **options: AsLoss(note))
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    _train(loaded, data, _config())
    expected = torch_encoder(loaded).encode(data.texts)
    found = np.concatenate([vectors for vectors, _ in seen])
    places = np.argmax(found @ expected.T, axis=1)
    assert sorted(places.tolist()) == list(range(48))
    # torch's attention has another kernel under gradients.
    np.testing.assert_allclose(found, expected[places], atol=1e-4)
    np.testing.assert_array_equal(
        np.concatenate([classes for _, classes in seen]), data.classes[places]
    )


def test_two_runs_with_one_seed_end_with_the_same_weights(tiny_model_folder, data):
    first, second, third = (load_model(tiny_model_folder) for _ in range(3))
    torch.manual_seed(1)
    recorders = [_train(first, data, _config(seed=5))]
    torch.manual_seed(2)
    recorders += [_train(second, data, _config(seed=5)), _train(third, data, _config(seed=6))]
    assert _same(_weights(first), _weights(second))
    assert recorders[0].calls == recorders[1].calls
    assert not _same(_weights(first), _weights(third))


def test_no_epochs_leave_the_weights(loaded, data):
    before = _weights(loaded)
    recorder = _train(loaded, data, _config(epochs=0, scheduler="linear"))
    assert _same(before, _weights(loaded))
    assert (recorder.calls, loaded.model.training) == ([], False)


def test_training_changes_every_layer(loaded, data):
    before = _weights(loaded)
    _train(loaded, data, _config())
    after = _weights(loaded)
    same = {name for name in before if torch.equal(before[name], after[name])}
    # BERT's own pooler is not in our vectors, and attention is blind to a constant key bias
    # but for rounding.
    assert {name for name in same if ".key.bias" not in name} == {
        "backbone.pooler.dense.weight",
        "backbone.pooler.dense.bias",
    }


def test_bf16_trains_on_the_cpu(loaded, data, monkeypatch):
    monkeypatch.setattr("finetuner.device.has_fast_bf16", lambda device: True)
    recorder = _train(loaded, data, _config(precision="bf16"))
    assert {value.dtype for value in _weights(loaded).values()} <= {torch.float32, torch.int64}
    assert all(math.isfinite(step.loss) for step in recorder.steps)


def test_a_loss_that_is_no_number_ends_the_training(loaded, data):
    with torch.no_grad():
        next(loaded.model.parameters())[:] = math.nan
    with pytest.raises(
        TrainingError, match="the loss became nan in step 1 of epoch 1; lower the learning rate"
    ):
        _train(loaded, data, _config())


def test_the_step_that_diverges_is_named(loaded, data, monkeypatch):
    losses = iter([1.0, 1.0, 1.0, 1.0, math.inf])

    def constant(embeddings, targets):
        return embeddings.sum() * 0 + next(losses)

    monkeypatch.setattr(
        "finetuner.trainer.build_objective", lambda *args, **options: AsLoss(constant)
    )
    with pytest.raises(TrainingError, match="the loss became inf in step 2 of epoch 2;"):
        _train(loaded, data, _config(epochs=2))


def _learning_rates(loaded, data, monkeypatch, config):
    rates = []
    step = torch.optim.SGD.step

    def note(self, *args, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    _train(loaded, data, config)
    return rates


@pytest.mark.parametrize(
    ("scheduler", "options", "expected"),
    [
        (None, {}, [1, 1, 1, 1, 1, 1]),
        ("constant", {}, [1, 1, 1, 1, 1, 1]),
        ("linear", {}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", {"num_warmup_steps": 2}, [0, 1 / 2, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("constant_with_warmup", {"num_warmup_steps": 4}, [0, 1 / 4, 2 / 4, 3 / 4, 1, 1]),
        ("cosine", {}, [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]),
        ("polynomial", {"power": 2.0, "lr_end": 0.0}, [(1 - i / 6) ** 2 for i in range(6)]),
    ],
)
def test_learning_rate_of_each_step(loaded, data, monkeypatch, scheduler, options, expected):
    config = _config(
        optimizer="SGD",
        epochs=2,
        learning_rate=0.01,
        scheduler=scheduler,
        scheduler_options=options,
    )
    rates = _learning_rates(loaded, data, monkeypatch, config)
    assert rates == pytest.approx([0.01 * factor for factor in expected], abs=1e-12)


def test_gradients_are_cut_to_length_one(loaded, data, monkeypatch):
    monkeypatch.setattr(
        "finetuner.trainer.build_objective",
        lambda *args, **options: AsLoss(lambda embeddings, targets: embeddings[:, 0].sum() * 1e4),
    )
    before = _weights(loaded)
    config = _config(optimizer="SGD", learning_rate=0.01, batch_size=64)
    _train(loaded, data, config)
    after = _weights(loaded)
    change = math.sqrt(sum(((after[n] - before[n]).double() ** 2).sum() for n in before))
    assert change == pytest.approx(0.01, rel=1e-3)  # one step: learning rate times length


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "TripletMarginLos"}, "did you mean `TripletMarginLoss`"),
        ({"loss_options": {"marign": 1}}, "unknown option `marign` of TripletMarginLoss"),
        ({"miner": "HardMiner"}, "unknown miner `HardMiner`"),
        (
            {"miner": "BatchHardMiner", "miner_options": {"x": 1}},
            "unknown option `x` of BatchHardMiner",
        ),
        ({"optimizer": "Adamm"}, "unknown optimizer `Adamm`; did you mean `Adam`"),
        ({"optimizer_options": {"x": 1}}, "unknown option `x` of Adam"),
        ({"scheduler": "liner"}, "unknown scheduler `liner`; did you mean `linear`.*known: linear"),
        ({"scheduler": "reduce_lr_on_plateau"}, "unknown scheduler `reduce_lr_on_plateau`"),
        ({"scheduler": "greedy"}, "unknown scheduler `greedy`"),
        (
            {"scheduler": "linear", "scheduler_options": {"x": 1}},
            "scheduler linear refuses its options: .*`?'?x",
        ),
        ({"scheduler_options": {"x": 1}}, "scheduler constant takes no option `x`"),
        (
            {"scheduler": "constant_with_warmup", "scheduler_options": {"num_cycles": 1}},
            "scheduler constant_with_warmup takes no option `num_cycles`",
        ),
        ({"scheduler": "warmup_stable_decay"}, "refuses its options: .*num_decay_steps"),
    ],
)
def test_what_is_refused_before_and_at_the_training(loaded, data, options, message):
    config = _config(**options)
    before = _weights(loaded)
    with pytest.raises(ConfigError, match=message):
        check_training(config)
    with pytest.raises(ConfigError, match=message):
        _train(loaded, data, config)
    assert _same(before, _weights(loaded))


_SCHEDULERS = (
    ("linear", {"num_warmup_steps": 1}),
    ("cosine", {"num_cycles": 0.5}),
    ("cosine_with_restarts", {"num_cycles": 2}),
    ("polynomial", {"power": 2.0}),
    ("constant", {}),
    ("constant_with_warmup", {"num_warmup_steps": 2.0}),
    ("inverse_sqrt", {"num_warmup_steps": 1}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "num_warmup_steps": 1}),
    ("warmup_stable_decay", {"num_decay_steps": 1}),
)


@pytest.mark.parametrize(("scheduler", "options"), _SCHEDULERS)
def test_what_the_check_accepts_trains(loaded, data, scheduler, options):
    config = _config(scheduler=scheduler, scheduler_options=options, batch_size=48)
    check_training(config)
    before = copy.deepcopy(_weights(loaded))
    _train(loaded, data, replace(config, epochs=2))
    assert not _same(before, _weights(loaded))


def test_a_text_longer_than_the_model_takes_is_cut(loaded):
    texts = ["apple " * 300, "apple river", "stone " * 300, "stone cloud"]
    data = prepare_training(LabelledTexts(texts, ["a", "a", "b", "b"], [None] * 4))
    recorder = _train(loaded, data, _config(batch_size=4))
    assert len(recorder.steps) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_options": {"margin": "wide"}},
        {"miner": "TripletMarginMiner", "miner_options": {"margin": "wide"}},
        {"optimizer": "AdamW", "optimizer_options": {"betas": "x"}},
    ],
)
def test_option_values_are_tried_before_a_run_exists(changes):
    check_training(RunConfig(model="tiny"))
    with pytest.raises(ConfigError, match="cannot make a step|refuses its options"):
        check_training(RunConfig(model="tiny", **changes))


def test_parameters_of_the_loss_are_trained():
    check_training(RunConfig(model="tiny", loss="MarginLoss", loss_options={"learn_beta": True}))

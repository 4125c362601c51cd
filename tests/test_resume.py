"""A training that is interrupted and goes on ends as one that never was, bit by bit."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

from finetuner.adaptation import LoRAOptions, add_lora, freeze_backbone
from finetuner.checkpoint import CheckpointStore
from finetuner.config import HardNegatives, Precision, RunConfig
from finetuner.data import prepare_training
from finetuner.models import load_model
from finetuner.pairs import read_rows
from finetuner.trainer import TrainingHooks
from finetuner.training import train
from finetuner.training_set import prepare

_CPU = torch.device("cpu")
_N_EPOCHS, _N_BATCHES = 3, 3  # 48 texts in batches of 16


class _Interrupted(Exception):
    pass


class _Host:
    """The hooks of a process: keeps what training told, as a run does in its files."""

    def __init__(self, told, interrupt=lambda _told: False):
        self.told = told
        self._interrupt = interrupt

    def hooks(self, **changes):
        hooks = TrainingHooks(
            on_step=self._tell,
            on_epoch_end=self._tell,
            state=lambda: {"n_told": len(self.told)},
            restore=self._restore,
        )
        return dataclasses.replace(hooks, **changes)

    def _tell(self, what):
        self.told.append(what)
        if self._interrupt(self.told):
            raise _Interrupted

    def _restore(self, state):
        del self.told[state["n_told"] :]


class _CountingStore(CheckpointStore):
    """Checkpoints of one run, counted over all processes."""

    n_saved = 0

    def save(self, state, *, step):
        super().save(state, step=step)
        type(self).n_saved += 1


@pytest.fixture
def store(tmp_path):
    class Store(_CountingStore):
        pass

    return Store(tmp_path / "checkpoints")


@pytest.fixture
def data(tiny_labelled):
    return prepare_training(tiny_labelled)


@pytest.fixture
def pairs(tiny_labelled):
    """Each label's first text with each of its others."""
    texts = list(tiny_labelled.texts)
    rows = [
        {"anchor": texts[i], "positive": texts[i + j]}
        for i in range(0, len(texts), 4)
        for j in (1, 2)
    ]
    return prepare("MultipleNegativesRankingLoss", read_rows(rows))


def _config(**options):
    defaults = {
        "model": "tiny",
        "epochs": _N_EPOCHS,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "precision": Precision.FP32,
        "checkpoint_interval_s": 0.0,
        "loss": "SupConLoss",
    }
    return RunConfig(**{**defaults, **options})


def _train(folder, data, config, host, store=None, *, validation=None, adapt=None, **changes):
    """Train as a new process would: all that it knows is in folder, data, config and store."""
    torch.manual_seed(torch.seed())
    loaded = load_model(folder)
    saved = store.newest() if store else None
    if saved is None:
        host.told.clear()
    if adapt:
        adapt(loaded.model)
    went_to_its_end = train(
        loaded,
        data,
        config=config,
        device=_CPU,
        hooks=host.hooks(**changes),
        validation_data=validation,
        checkpoints=store,
        resume_from=saved,
    )
    return loaded.model.state_dict(), went_to_its_end


def _same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def _linear_warmup(**options):
    return {"scheduler": "linear", "scheduler_options": {"num_warmup_steps": 2, **options}}


_CONFIGS = {
    "Adam": {"optimizer": "Adam", "loss": "TripletMarginLoss"},
    "AdamW, schedule": {"optimizer": "AdamW", **_linear_warmup()},
    "schedule by epoch": {"scheduler": "cosine", "scheduler_options": {"scheduler_step": "epoch"}},
    "accumulation": {"accumulation_steps": 2, "optimizer": "AdamW", **_linear_warmup()},
    "accumulation over epochs": {"accumulation_steps": 5},
    "hard negatives": {"hard_negatives": HardNegatives(share=1.0), **_linear_warmup()},
    "class centres": {
        "loss": "ArcFaceLoss",
        "loss_optimizer": "SGD",
        "loss_optimizer_options": {"lr": 0.1, "momentum": 0.9},
    },
    "class centres, hard negatives, accumulation": {
        "loss": "SoftTripleLoss",
        "optimizer": "AdamW",
        "hard_negatives": HardNegatives(),
        "accumulation_steps": 2,
    },
    "momentum": {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}},
    "rates by layer": {"optimizer_options": {"layer_wise_lr_decay": 0.5}, **_linear_warmup()},
    "a miner that draws": {"loss": "TripletMarginLoss", "miner": "DistanceWeightedMiner"},
    "gradient cache": {"gradient_cache_size": 5},
    "two lengths": {"dimensions": (32, 8), "loss": "ProxyAnchorLoss"},
}


_FAST = ("accumulation", "hard negatives", "class centres")


@pytest.mark.parametrize(
    "name", [n if n in _FAST else pytest.param(n, marks=pytest.mark.slow) for n in _CONFIGS]
)
def test_interrupted_after_every_checkpoint(name, tiny_model_folder, data, store):
    """Each process dies in the first step after it has saved one, until one comes to the end."""
    config = _config(**_CONFIGS[name])
    expected, told = _Host([]), _Host([])
    weights, _ = _train(tiny_model_folder, data, config, expected)
    for n_interruptions in itertools.count():
        n_before = store.n_saved
        told._interrupt = lambda _told, before=n_before: store.n_saved > before
        try:
            found, went_to_its_end = _train(tiny_model_folder, data, config, told, store)
            break
        except _Interrupted:
            assert n_interruptions < 20
    n_in_epoch = {1: 3, 2: 2, 5: 1}[config.accumulation_steps]  # the last one is the epoch's end
    assert n_interruptions == _N_EPOCHS * n_in_epoch - 1
    assert went_to_its_end
    assert _same(found, weights)
    assert told.told == expected.told


@pytest.mark.slow
@pytest.mark.parametrize("n_told", range(1, _N_EPOCHS * (_N_BATCHES + 1) + 1))
def test_interrupted_once_anywhere(n_told, tiny_model_folder, data, store, request):
    """In each of nine steps and three ends of an epoch."""
    config = _config(hard_negatives=HardNegatives(), accumulation_steps=2, **_linear_warmup())
    expected = request.session.stash.get(_KEY, None)
    if expected is None:
        host = _Host([])
        weights, _ = _train(tiny_model_folder, data, config, host, validation=data)
        expected = request.session.stash[_KEY] = (weights, host.told)
    told = []
    host = _Host(told, lambda told: len(told) == n_told)
    with pytest.raises(_Interrupted):
        _train(tiny_model_folder, data, config, host, store, validation=data)
    found, _ = _train(tiny_model_folder, data, config, _Host(told), store, validation=data)
    assert told == expected[1]
    assert _same(found, expected[0])


_KEY = pytest.StashKey()


@pytest.mark.slow
@pytest.mark.parametrize("adapt", ["lora", "freeze"])
def test_adapters_and_heads_go_on(adapt, tiny_model_folder, data, store):
    def change(model):
        if adapt == "lora":
            add_lora(model, LoRAOptions(rank=2, dropout=0.1), seed=0)
        else:
            freeze_backbone(model, seed=0)

    config = _config(epochs=2)
    expected, told = [], []
    weights, _ = _train(tiny_model_folder, data, config, _Host(expected), adapt=change)
    host = _Host(told, lambda told: len(told) == 3)
    with pytest.raises(_Interrupted):
        _train(tiny_model_folder, data, config, host, store, adapt=change)
    found, _ = _train(tiny_model_folder, data, config, _Host(told), store, adapt=change)
    assert told == expected
    assert _same(found, weights)


@pytest.mark.slow
def test_pairs_with_mined_negatives_go_on(tiny_model_folder, pairs, store):
    config = _config(
        loss="MultipleNegativesRankingLoss", hard_negatives=HardNegatives(relative_margin=0.0)
    )
    expected, told = [], []
    weights, _ = _train(tiny_model_folder, pairs, config, _Host(expected))
    n_told = len(expected) // 2 + 1
    host = _Host(told, lambda told: len(told) == n_told)
    with pytest.raises(_Interrupted):
        _train(tiny_model_folder, pairs, config, host, store)
    found, _ = _train(tiny_model_folder, pairs, config, _Host(told), store)
    assert told == expected
    assert _same(found, weights)


@pytest.mark.slow
def test_gradient_checkpointing_goes_on(tiny_model_folder, data, store):
    def change(model):
        model.enable_gradient_checkpointing()

    config = _config(epochs=1)
    expected, told = [], []
    weights, _ = _train(tiny_model_folder, data, config, _Host(expected), adapt=change)
    host = _Host(told, lambda told: len(told) == 2)
    with pytest.raises(_Interrupted):
        _train(tiny_model_folder, data, config, host, store, adapt=change)
    found, _ = _train(tiny_model_folder, data, config, _Host(told), store, adapt=change)
    assert told == expected
    assert _same(found, weights)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_a_step_and_nothing_else(tiny_model_folder, data, store):
    config = _config()
    expected, told = [], []
    weights, _ = _train(tiny_model_folder, data, config, _Host(expected))
    host = _Host(told, lambda told: len(told) == 7)
    with pytest.raises(_Interrupted):
        _train(tiny_model_folder, data, config, host, store)
    newest = max(store.folder.glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    found, _ = _train(tiny_model_folder, data, config, _Host(told), store)
    assert told == expected
    assert _same(found, weights)


@pytest.mark.parametrize(("n_told", "n_steps_done"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4)])
def test_asked_to_stop_it_saves_that_very_step(
    n_told, n_steps_done, tiny_model_folder, data, store
):
    """However long ago the last checkpoint was; at an epoch's end too, no batch is begun."""
    config = _config(checkpoint_interval_s=1e9)
    expected, told = [], []
    weights, _ = _train(tiny_model_folder, data, config, _Host(expected))
    stop = {"is_stopping": lambda: len(told) >= n_told}
    _, went_to_its_end = _train(tiny_model_folder, data, config, _Host(told), store, **stop)
    assert not went_to_its_end
    assert max(store.folder.glob("*.pt")).name == f"step-{n_steps_done:09}.pt"
    found, went_to_its_end = _train(tiny_model_folder, data, config, _Host(told), store)
    assert went_to_its_end
    assert told == expected
    assert _same(found, weights)


def test_a_training_that_is_over_stays_over(tiny_model_folder, data, store):
    """Ended early by a hook, and then interrupted: nothing is trained any more."""
    told = []

    def end(epoch_end):
        told.append(epoch_end)
        return epoch_end.epoch == 2

    config = _config()
    weights, went_to_its_end = _train(
        tiny_model_folder, data, config, _Host(told), store, on_epoch_end=end
    )
    assert went_to_its_end
    assert len(told) == 2 * (_N_BATCHES + 1)
    found, went_to_its_end = _train(
        tiny_model_folder, data, config, _Host(told), store, on_epoch_end=end
    )
    assert went_to_its_end
    assert len(told) == 2 * (_N_BATCHES + 1)
    assert _same(found, weights)


@pytest.mark.parametrize(("interval_s", "n_saved"), [(1e9, 0), (5.0, _N_EPOCHS), (0.3, 9)])
def test_an_epochs_end_needs_a_tenth_of_the_interval(
    interval_s, n_saved, tiny_model_folder, data, store, monkeypatch
):
    """A clock that goes on by a second each time it is read: once to ask, and once to save."""
    seconds = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr("finetuner.trainer.time", clock)
    config = _config(checkpoint_interval_s=interval_s)
    _train(tiny_model_folder, data, config, _Host([]), store)
    assert store.n_saved == n_saved

"""Thirteen ways in which metric learning goes wrong without a word; each test fails without its guard.

They were measured with pytorch-metric-learning 2.9.0.
"""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from finetuner.batching import BatchPlan
from finetuner.collapse import CollapseWatch
from finetuner.config import Precision, RunConfig, Sampler
from finetuner.data import LabelledTexts, prepare_training
from finetuner.device import build_accelerator
from finetuner.errors import ConfigError, DataError, TrainingError
from finetuner.gradients import GradientComputer
from finetuner.losses import build_loss
from finetuner.models import load_model
from finetuner.objective import build_objective
from finetuner.pair_losses import MultipleNegativesRankingLoss, Targets
from finetuner.tokens import TokenTable
from finetuner.trainer import TrainingHooks
from finetuner.training import check_training, train

_CPU = torch.device("cpu")
_TEXTS = [f"{word} {number}" for number in range(8) for word in ("apple", "river")]


class _Fixed(torch.nn.Module):
    """A model whose vectors are given, one for each text in order of its length."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = torch.nn.Parameter(vectors)

    def forward(self, *inputs):
        return None, self.vectors[: len(inputs[0])]


@pytest.fixture
def result_of(tiny_model_folder):
    """From vectors and classes to what a step reports of them."""
    tokenizer = load_model(tiny_model_folder).tokenizer
    tokens = TokenTable.create(tokenizer, ["apple"] * 64)

    def compute(vectors, classes, **settings):
        objective = build_objective(RunConfig(model="m", **settings), n_classes=64, dim=4)
        accelerator = build_accelerator(Precision.FP32, _CPU)
        computer = GradientComputer(_Fixed(vectors), objective, tokens, accelerator)
        return computer.add(np.arange(len(vectors)), Targets(torch.tensor(classes)))

    return compute


def _near(*centres, copies=2):
    """Unit vectors: some copies of each centre, nearly the same."""
    vectors = torch.tensor([centre for centre in centres for _ in range(copies)], dtype=torch.float)
    return torch.nn.functional.normalize(vectors + 0.001 * torch.randn(vectors.shape), dim=1)


def _see(watch, result, n_steps):
    for _ in range(n_steps):
        watch.see(result)


def test_trap_01_collapse_is_a_fixed_point(result_of):
    """All vectors equal: the loss is the margin, the gradient 0; for SupConLoss ln(n-1) and 2e-15."""
    same = torch.nn.functional.normalize(torch.ones(16, 4), dim=1)
    classes = [number // 2 for number in range(16)]
    triplet = result_of(same, classes)
    assert (triplet.loss, triplet.active) == (pytest.approx(0.05), 0.0)
    for result in (triplet, result_of(same, classes, loss="SupConLoss")):
        watch = CollapseWatch()
        with pytest.raises(
            TrainingError, match=r"collapsed: .* \(mean cosine 1.0000.*Lower the le"
        ):
            _see(watch, result, 20)


def test_trap_02_no_triplets_still_make_steps(result_of):
    """A miner that finds nothing gives a loss of 0 with a graph: the step would go on for ever."""
    apart = _near((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
    result = result_of(
        apart, [0, 0, 1, 1, 2, 2], miner="TripletMarginMiner", miner_options={"margin": 0.1}
    )
    assert (result.loss, result.active) == (0.0, 0.0)
    watch = CollapseWatch()
    with pytest.raises(TrainingError, match="nothing was learnt in 200 steps"):
        _see(watch, result, 200)


def test_trap_03_batches_without_positives_are_refused(tiny_model_folder):
    """Two hundred labels with two texts each in random batches of four: hardly one holds a pair."""
    texts = [f"{word} {number}" for number in range(200) for word in ("apple", "river")]
    labels = [str(number) for number in range(200) for _ in range(2)]
    data = prepare_training(LabelledTexts(texts, labels, [None] * len(texts)))
    config = RunConfig(model="m", sampler=Sampler.RANDOM, batch_size=4, epochs=1)
    hooks = TrainingHooks(lambda _: None, lambda _: None)
    with pytest.raises(
        DataError, match=r"sampler='random': only \d+ of 100 batches hold two texts"
    ):
        train(load_model(tiny_model_folder), data, config=config, device=_CPU, hooks=hooks)


def test_trap_04_the_loss_hides_how_many_are_violated(result_of):
    """The mean is over violating triplets alone: it is the same for eight classes in one place as for two."""
    axes = torch.eye(4)
    classes = [number // 2 for number in range(16)]
    early = result_of(_near(*[axes[0].tolist()] * 8), classes)
    centres = [axes[0], axes[0], *(sign * axis for axis in axes[1:] for sign in (1, -1))]
    late = result_of(_near(*(centre.tolist() for centre in centres)), classes)
    assert (early.loss, late.loss) == (pytest.approx(0.05, abs=0.002),) * 2
    assert (early.active, late.active) == (1.0, 0.25)


@pytest.mark.parametrize("loss", ["TripletMarginLoss", "SupConLoss", "ContrastiveLoss"])
def test_trap_05_loss_and_miner_measure_with_one_distance(loss):
    for options in (
        {},
        {"distance": "CosineSimilarity"},
        {"distance": {"name": "LpDistance", "p": 1}},
    ):
        built = build_loss(loss, options, miner="TripletMarginMiner")
        assert built.miner.distance is built.loss.distance


def test_trap_06_sixteen_bits_reach_no_loss():
    """cdist has no bfloat16, and SupConLoss is off by a tenth in it."""
    vectors = torch.nn.functional.normalize(torch.randn(16, 8), dim=1).bfloat16()
    classes = torch.arange(16) // 2
    for loss in ("TripletMarginLoss", "SupConLoss"):
        built = build_loss(loss, {}, miner="TripletMarginMiner" if loss[0] == "T" else None)
        found = built(vectors, classes)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(built(vectors.float(), classes).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "batch_size"), [("NTXentLoss", 1024), ("NTXLoss", 513), ("TripletMarginLoss", 1025)]
)
def test_trap_07_batches_that_no_memory_holds_are_refused(loss, batch_size):
    with pytest.raises(
        ConfigError, match=r"takes batch_size up to \d+, got .*; SupConLoss takes any"
    ):
        check_training(RunConfig(model="m", loss=loss, batch_size=batch_size))
    check_training(RunConfig(model="m", loss="SupConLoss", batch_size=4096))


def test_trap_08_no_text_is_repeated_to_fill_a_class():
    """The library's sampler draws with replacement: of 2000 texts in pairs, 746 came in an epoch."""
    classes = np.arange(2000) // 2
    plan = BatchPlan.create(classes, classes % 20 + 5, batch_size=128, num_items_per_class=4)
    batches = plan.epoch(0)
    assert all(len(set(batch.tolist())) == len(batch) for batch in batches)
    assert sorted(np.concatenate(batches).tolist()) == list(range(2000))
    assert len(batches) == 16


def test_trap_09_a_text_is_no_negative_of_itself():
    data = prepare_training(
        LabelledTexts(["a", "A ", "b", "c", "c", "d"], ["1", "1", "1", "1", "2", "2"], [None] * 6)
    )
    assert data.texts == ["a", "b", "d"]
    assert (data.n_repeated, data.n_ambiguous) == (1, 1)


def test_trap_10_pairs_are_compared_with_the_other_side():
    """With the same labels object on both sides the library drops the diagonal and gives 0."""
    left, right = torch.nn.functional.normalize(torch.randn(2, 6, 8), dim=2)
    targets = Targets(torch.arange(6).repeat(2), n_pairs=6)
    loss = MultipleNegativesRankingLoss(symmetric=False)(torch.cat([left, right]), targets)
    rows = []
    for i in range(6):
        logits = [float(left[i] @ right[j]) / 0.05 for j in range(6)]
        rows.append(math.log(sum(map(math.exp, logits))) - logits[i])
    assert loss.item() == pytest.approx(sum(rows) / 6, rel=1e-4)
    assert loss.item() > 0.1


def test_trap_11_labels_are_strings_to_users_and_integers_to_losses():
    data = prepare_training(LabelledTexts(["a", "b", "c"], ["x", "y", "x"], [None] * 3))
    assert (data.classes.dtype, data.classes.tolist()) == (np.int64, [0, 1, 0])


def test_trap_12_no_loss_against_stale_vectors():
    with pytest.raises(ConfigError, match="CrossBatchMemory compares with stale vectors"):
        check_training(RunConfig(model="m", loss="CrossBatchMemory"))


class _OneOfTwo:
    """What accelerate is to one of two processes, the other's vectors being known."""

    device, num_processes, is_main_process = _CPU, 2, True

    def __init__(self, index, blocks):
        self.process_index, self._blocks = index, blocks

    def autocast(self):
        return nullcontext()

    def pad_across_processes(self, tensor, dim):
        return tensor

    def gather(self, tensor):
        return torch.cat(self._blocks) if tensor.dim() == 2 else torch.ones(16)

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        return tensor

    def backward(self, loss):
        loss.backward()


def test_trap_13_two_processes_add_up_to_one(tiny_model_folder):
    """The library's wrapper gathers without gradient and multiplies by the number of processes.

    tests/test_gradients.py does the same with two real processes.
    """
    loaded = load_model(tiny_model_folder)
    tokens = TokenTable.create(loaded.tokenizer, _TEXTS)
    positions, targets = np.arange(16), Targets(torch.arange(16) // 2)
    config = RunConfig(model="m", loss="SupConLoss")
    objective = build_objective(config, n_classes=8, dim=32)

    def gradient(accelerator):
        loaded.model.zero_grad()
        computer = GradientComputer(loaded.model, objective, tokens, accelerator)
        result = computer.add(positions, targets)
        found = [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]
        return result, found, computer

    alone, expected, computer = gradient(build_accelerator(Precision.FP32, _CPU))
    with torch.no_grad():
        blocks = [computer.embed(part) for part in np.array_split(positions, 2)]
    parts = [gradient(_OneOfTwo(index, blocks))[:2] for index in (0, 1)]
    assert [result.loss for result, _ in parts] == pytest.approx([alone.loss] * 2, rel=1e-5)
    for left, right, whole in zip(parts[0][1], parts[1][1], expected, strict=True):
        torch.testing.assert_close(left + right, whole, atol=1e-6, rtol=1e-3)

"""One batch's gradient: in one piece, in parts that are computed again, and on two processes."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from finetuner.config import Precision, RunConfig
from finetuner.data import prepare_training
from finetuner.device import build_accelerator
from finetuner.gradients import GradientComputer, _best_cut, mean_pairwise_cosine
from finetuner.models import load_model
from finetuner.objective import build_objective
from finetuner.pair_losses import Targets
from finetuner.tokens import TokenTable

_CPU = torch.device("cpu")
_N_TEXTS = 21  # neither a multiple of a part's size nor of two processes
_LOSSES = [
    {"loss": "SupConLoss", "loss_options": {"temperature": 0.05}},
    {"loss": "TripletMarginLoss", "miner": "TripletMarginMiner"},
    {"loss": "ArcFaceLoss"},
    {"loss": "SupConLoss", "dimensions": (32, 8)},
    {"loss": "MultipleNegativesRankingLoss"},
    {"loss": "CoSENTLoss"},
]


def _targets(loss):
    if loss not in ("MultipleNegativesRankingLoss", "CoSENTLoss"):
        return Targets(torch.arange(_N_TEXTS) // 3)
    n_pairs = 10  # and one negative at the end
    classes = torch.cat([torch.arange(n_pairs), torch.arange(n_pairs), torch.tensor([99])])
    return Targets(classes, n_pairs=n_pairs, scores=torch.linspace(0, 1, n_pairs))


def _computer(folder, texts, options, *, cache_size=None, dropout=True):
    torch.manual_seed(0)
    model = load_model(folder)
    model.model.train(dropout)
    objective = build_objective(RunConfig(model="tiny", **options), n_classes=7, dim=32)
    tokens = TokenTable.create(model.tokenizer, texts)
    accelerator = build_accelerator(Precision.FP32, _CPU)
    return GradientComputer(model.model, objective, tokens, accelerator, cache_size)


def _gradients(computer, options, **settings):
    torch.manual_seed(1)
    result = computer.add(np.arange(_N_TEXTS), _targets(options["loss"]), **settings)
    modules = (computer.model, computer.objective)
    found = [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
    return result, found


@pytest.fixture
def texts(tiny_labelled):
    return prepare_training(tiny_labelled).texts[:_N_TEXTS]


@pytest.mark.parametrize("options", _LOSSES, ids=lambda o: f"{o['loss']}-{o.get('dimensions')}")
@pytest.mark.parametrize("cache_size", [1, 4, 20, 21, 100])
def test_cached_gradient_is_that_of_the_whole_batch(tiny_model_folder, texts, options, cache_size):
    """With dropout: the second pass must draw what the first drew."""
    whole = _computer(tiny_model_folder, texts, options, cache_size=100)
    parts = _computer(tiny_model_folder, texts, options, cache_size=cache_size, dropout=False)
    whole.model.eval()
    result, expected = _gradients(whole, options)
    cached_result, found = _gradients(parts, options)
    assert cached_result.loss == pytest.approx(result.loss, abs=1e-5)
    assert len(found) == len(expected) > 30
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_cached_parts_draw_the_same_dropout_twice(tiny_model_folder, texts):
    """Against a graph that is kept: both embed the same parts, so dropout falls the same way."""
    options = _LOSSES[0]
    cached = _computer(tiny_model_folder, texts, options, cache_size=4)
    _, found = _gradients(cached, options)
    state_after = torch.get_rng_state()
    kept = _computer(tiny_model_folder, texts, options)
    torch.manual_seed(1)
    positions = np.arange(_N_TEXTS)
    order = np.argsort(kept.tokens.lengths, kind="stable")
    parts = [kept.embed(part) for part in np.split(positions[order], range(4, _N_TEXTS, 4))]
    embeddings = torch.cat(parts)[torch.from_numpy(order).argsort()]
    kept.objective(embeddings, _targets("SupConLoss")).backward()
    for left, parameter in zip(
        found, [p for p in kept.model.parameters() if p.grad is not None], strict=True
    ):
        torch.testing.assert_close(left, parameter.grad, atol=1e-6, rtol=1e-4)
    assert torch.equal(state_after, torch.get_rng_state())


def test_gradient_without_cache_is_plain_autograd(tiny_model_folder, texts):
    options = _LOSSES[0]
    computer = _computer(tiny_model_folder, texts, options, dropout=False)
    result, found = _gradients(computer, options, share=0.25)
    plain = _computer(tiny_model_folder, texts, options, dropout=False)
    torch.manual_seed(1)
    loss = plain.objective(plain.embed(np.arange(_N_TEXTS)), _targets("SupConLoss"))
    (loss / 4).backward()
    assert result.loss == pytest.approx(loss.item())
    expected = [p.grad for p in plain.model.parameters() if p.grad is not None]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_gradients_of_several_batches_add_up(tiny_model_folder, texts):
    options = _LOSSES[0]
    twice = _computer(tiny_model_folder, texts, options, dropout=False)
    _gradients(twice, options, share=0.5)
    _, found = _gradients(twice, options, share=0.5)
    _, expected = _gradients(_computer(tiny_model_folder, texts, options, dropout=False), options)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5, 5, 5, 40], [3]),
        ([10, 10, 30, 30], [2]),
        ([10, 10, 10, 10], []),
        ([30, 31, 32, 33], []),
        ([7], []),
    ],
)
def test_batch_is_cut_where_that_saves_most_padding(lengths, expected):
    assert _best_cut(np.array(lengths)) == expected


def test_active_is_the_share_of_texts_that_the_loss_moves(tiny_model_folder, texts):
    computer = _computer(tiny_model_folder, texts, _LOSSES[0])
    classes = torch.tensor([0, 0, 1, 1, 2, 2, *range(3, 18)])

    class OneClassOnly(torch.nn.Module):
        def forward(self, embeddings, targets):
            return embeddings[targets.classes == 1].square().sum()

    object.__setattr__(computer, "objective", OneClassOnly())
    assert computer.add(np.arange(_N_TEXTS), Targets(classes)).active == pytest.approx(2 / 21)


def test_mean_pairwise_cosine_by_loops():
    embeddings = torch.randn(7, 5)
    rows = torch.nn.functional.normalize(embeddings, dim=1)
    cosines = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_pairwise_cosine(embeddings) == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    assert mean_pairwise_cosine(embeddings[:1]) == 0.0
    assert mean_pairwise_cosine(embeddings[:1].expand(4, 5)) == pytest.approx(1.0)


_CASES = [(number, cache_size) for number in range(len(_LOSSES)) for cache_size in (None, 4)]
_RANK = """
import pathlib, sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
import test_gradients as shared
texts = open(sys.argv[2], encoding="utf-8").read().splitlines()
joint = {{}}
for number, cache_size in shared._CASES:
    options = shared._LOSSES[number]
    computer = shared._computer(
        pathlib.Path(sys.argv[1]), texts, options, cache_size=cache_size, dropout=False
    )
    assert computer.accelerator.num_processes == 2
    result, found = shared._gradients(computer, options)
    joint[number, cache_size] = {{"loss": result.loss, "active": result.active, "found": found}}
if computer.accelerator.is_main_process:
    torch.save(joint, sys.argv[3])
torch.distributed.destroy_process_group()
"""


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def joint(tiny_model_folder, tiny_labelled, tmp_path_factory):
    """What two gloo processes find, each of which embeds half of the joint batch: by case.

    One launch for all cases: it takes 25 seconds, nearly all for two processes to import torch.
    """
    folder = tmp_path_factory.mktemp("ranks")
    texts = prepare_training(tiny_labelled).texts[:_N_TEXTS]
    (folder / "texts").write_text("\n".join(texts), encoding="utf-8")
    tests = os.path.dirname(__file__)
    (folder / "rank.py").write_text(
        _RANK.format(tests=tests, root=os.path.dirname(tests)), encoding="utf-8"
    )
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-port", str(_free_port()), str(folder / "rank.py")),
        *(str(tiny_model_folder), str(folder / "texts"), str(folder / "out.pt")),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "cache_size"), _CASES)
def test_two_processes_give_the_gradient_of_one(
    tiny_model_folder, texts, joint, number, cache_size
):
    options = _LOSSES[number]
    result, expected = _gradients(
        _computer(tiny_model_folder, texts, options, dropout=False), options
    )
    found = joint[number, cache_size]
    assert found["loss"] == pytest.approx(result.loss, rel=1e-5)
    assert found["active"] == pytest.approx(result.active)
    for left, right in zip(found["found"], expected, strict=True):
        # Sums of float32 in another order: 1.6e-6 was seen on a CPU without AVX-512.
        torch.testing.assert_close(left, right, atol=2e-6, rtol=1e-4)

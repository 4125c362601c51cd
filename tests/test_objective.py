import pytest
import torch
from torch.nn import functional

from finetuner.config import HardNegatives, RunConfig
from finetuner.errors import ConfigError
from finetuner.losses import CENTRE_LOSSES, LOSSES, REFUSED
from finetuner.objective import Need, build_objective, needed_data
from finetuner.pair_losses import Targets

_NEEDS_OPTIONS = {"RankedListLoss": {"margin": 0.5, "Tn": 5}}


def _objective(loss, *, dim=8, **settings):
    return build_objective(RunConfig(model="m", loss=loss, **settings), n_classes=4, dim=dim)


@pytest.mark.parametrize(
    ("loss", "need"),
    [
        ("SupConLoss", Need.LABELS),
        ("NTXLoss", Need.LABELS),
        ("ArcFaceLoss", Need.LABELS),
        ("MultipleNegativesRankingLoss", Need.PAIRS),
        ("CoSENTLoss", Need.SCORES),
        ("CosineSimilarityLoss", Need.SCORES),
    ],
)
def test_the_form_of_data_that_a_loss_needs(loss, need):
    assert needed_data(loss) is need


@pytest.mark.parametrize("name", REFUSED)
def test_refused_losses_say_why(name):
    with pytest.raises(ConfigError, match=f"loss {name} .{{20}}"):
        needed_data(name)
    assert name not in {**LOSSES, **CENTRE_LOSSES}


def test_unknown_loss_has_a_near_one():
    with pytest.raises(ConfigError, match=r"unknown loss `SupConLos`; did you mean `SupConLoss`\?"):
        needed_data("SupConLos")


@pytest.mark.parametrize("name", [*LOSSES, *CENTRE_LOSSES])
def test_every_loss_falls_when_it_is_trained_with(name):
    """Thirty-two vectors of four classes, moved by the loss itself; its centres move too."""
    torch.manual_seed(1)
    classes = torch.arange(32) % 4
    vectors = torch.nn.Parameter(torch.randn(4, 8)[classes] + 1.0 * torch.randn(32, 8))
    objective = _objective(name, loss_options=_NEEDS_OPTIONS.get(name, {}))
    assert bool(list(objective.parameters())) == (name in CENTRE_LOSSES)
    optimizer = torch.optim.Adam([vectors, *objective.parameters()], lr=0.03)
    losses = []
    for _ in range(60):
        loss = objective(functional.normalize(vectors, dim=1), Targets(classes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # IntraPairVarianceLoss wants pairs of one distance and no more: it starts near its end.
    assert losses[-1] < (0.95 if name == "IntraPairVarianceLoss" else 0.85) * losses[0]


@pytest.mark.parametrize("loss", ["SupConLoss", "TripletMarginLoss"])
def test_matryoshka_is_the_mean_over_cut_vectors(loss):
    vectors = functional.normalize(torch.randn(12, 8), dim=1)
    targets = Targets(torch.arange(12) // 3)
    plain = _objective(loss)
    parts = [
        plain(functional.normalize(vectors[:, :dim], dim=1), targets).item() for dim in (8, 4, 2)
    ]
    found = _objective(loss, dimensions=(8, 4, 2))(vectors, targets)
    assert found.item() == pytest.approx(sum(parts) / 3, rel=1e-5)


def test_matryoshka_has_centres_of_each_length():
    objective = _objective("ArcFaceLoss", dimensions=(8, 2))
    assert [tuple(p.shape) for p in objective.parameters()] == [(8, 4), (2, 4)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "SupConLoss", "dimensions": (16, 4)}, "at most the model's 8, got 16"),
        ({"loss": "CoSENTLoss", "miner": "BatchHardMiner"}, "CoSENTLoss takes no miner"),
        ({"loss": "CoSENTLoss", "hard_negatives": HardNegatives()}, "takes no hard_negatives"),
        ({"loss": "CoSENTLoss", "loss_options": {"scal": 1}}, "did you mean `scale`"),
        (
            {"loss": "SupConLoss", "loss_options": {"distance": "Cosine"}},
            "unknown distance `Cosine`",
        ),
        ({"loss": "SupConLoss", "loss_options": {"reducer": "MeanReduce"}}, "mean `MeanReducer`"),
        (
            {"loss": "SupConLoss", "loss_options": {"reducer": "DoNothingReducer"}},
            "unknown reducer",
        ),
        (
            {"loss": "SupConLoss", "loss_options": {"distance": {"name": "LpDistance", "q": 1}}},
            "unknown option `q` of LpDistance",
        ),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        _objective(**settings)


def test_parts_by_name_are_the_library_s():
    vectors = functional.normalize(torch.randn(12, 8), dim=1)
    targets = Targets(torch.arange(12) // 3)
    options = {"distance": {"name": "LpDistance", "p": 1}, "reducer": "MeanReducer"}
    found = _objective("TripletMarginLoss", loss_options={**options, "margin": 0.3})
    rows, terms = vectors.tolist(), []
    unit = [[x / sum(map(abs, row)) for x in row] for row in rows]  # normalised in the same norm
    for a in range(12):
        for p in range(12):
            for n in range(12):
                if a != p and a // 3 == p // 3 != n // 3:
                    near = sum(abs(x - y) for x, y in zip(unit[a], unit[p], strict=True))
                    far = sum(abs(x - y) for x, y in zip(unit[a], unit[n], strict=True))
                    terms.append(max(0.0, near - far + 0.3))
    assert found(vectors, targets).item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses

from finetuner.errors import ConfigError
from finetuner.losses import LOSSES, MINERS, build_loss

_CLASSES = [0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 2, 1]


@pytest.fixture
def batch():
    """Three classes in mixed order with four vectors each, near their class's centre."""
    classes = torch.tensor(_CLASSES)
    centres = torch.randn(3, 8)
    vectors = centres[classes] + torch.randn(len(classes), 8)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return vectors.requires_grad_(), classes


def _distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def _triplets():
    places = range(len(_CLASSES))
    for a in places:
        for p in places:
            for n in places:
                if a != p and _CLASSES[a] == _CLASSES[p] != _CLASSES[n]:
                    yield a, p, n


@pytest.mark.parametrize(
    ("options", "swap"),
    [({}, False), ({"margin": 0.3}, False), ({"margin": 0.3, "swap": True}, True)],
)
def test_triplet_margin_loss_by_loops(batch, options, swap):
    vectors, classes = batch
    rows = vectors.detach().double().tolist()
    margin = options.get("margin", 0.05)
    violations = []
    for a, p, n in _triplets():
        negative = _distance(rows[a], rows[n])
        if swap:
            negative = min(negative, _distance(rows[p], rows[n]))
        violation = _distance(rows[a], rows[p]) - negative + margin
        if violation > 0:  # the library's mean is over these only
            violations.append(violation)
    expected = sum(violations) / len(violations)
    loss = build_loss("TripletMarginLoss", options)(vectors, classes)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "takes"),
    [
        ("all", lambda gap: gap <= 0.25),
        ("hard", lambda gap: gap <= 0),
        ("semihard", lambda gap: 0 < gap <= 0.25),
        ("easy", lambda gap: gap > 0.25),
    ],
)
def test_triplet_margin_miner_by_loops(batch, kind, takes):
    vectors, classes = batch
    rows = vectors.detach().double().tolist()
    violations = []
    for a, p, n in _triplets():
        gap = _distance(rows[a], rows[n]) - _distance(rows[a], rows[p])
        if takes(gap) and 0.9 - gap > 0:
            violations.append(0.9 - gap)
    loss = build_loss(
        "TripletMarginLoss",
        {"margin": 0.9},
        miner="TripletMarginMiner",
        miner_options={"margin": 0.25, "type_of_triplets": kind},
    )(vectors, classes)
    assert len(violations) > 5
    assert loss.item() == pytest.approx(sum(violations) / len(violations), rel=1e-4)


@pytest.mark.parametrize(("options", "temperature"), [({}, 0.1), ({"temperature": 0.5}, 0.5)])
def test_sup_con_loss_by_loops(batch, options, temperature):
    vectors, classes = batch
    rows = vectors.detach().double().tolist()
    n = len(rows)
    terms = []
    for i in range(n):
        logits = {
            j: sum(x * y for x, y in zip(rows[i], rows[j], strict=True)) / temperature
            for j in range(n)
            if j != i
        }
        log_sum = math.log(sum(math.exp(value) for value in logits.values()))
        positives = [j for j in logits if _CLASSES[j] == _CLASSES[i]]
        terms.append(-sum(logits[j] - log_sum for j in positives) / len(positives))
    loss = build_loss("SupConLoss", options)(vectors, classes)
    assert loss.item() == pytest.approx(sum(terms) / n, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_and_has_a_gradient(batch, name):
    vectors, classes = batch
    options = {"margin": 0.5, "Tn": 5} if name == "RankedListLoss" else {}
    loss = build_loss(name, options)(vectors, classes)
    loss.backward()
    assert loss.dim() == 0
    assert math.isfinite(loss.item())
    assert bool(vectors.grad.isfinite().all())
    assert vectors.grad.abs().max().item() > 0


@pytest.mark.parametrize("loss_name", ["TripletMarginLoss", "ContrastiveLoss"])
@pytest.mark.parametrize("name", MINERS)
def test_every_miner_is_finite_and_has_a_gradient(batch, name, loss_name):
    vectors, classes = batch
    # The default margin is already kept by the easy triplets that some miners pick.
    options = {"margin": 1.0} if loss_name == "TripletMarginLoss" else {}
    # Nor are there negative pairs nearer than its default in so small a batch.
    miner_options = {"neg_margin": 1.5} if name == "PairMarginMiner" else {}
    loss = build_loss(loss_name, options, miner=name, miner_options=miner_options)(vectors, classes)
    loss.backward()
    assert math.isfinite(loss.item())
    assert loss.item() > 0
    assert bool(vectors.grad.isfinite().all())
    assert vectors.grad.abs().max().item() > 0


def test_the_old_name_of_ntxent():
    built = build_loss("NTXLoss", {"temperature": 0.3})
    assert type(built.loss) is pml_losses.NTXentLoss
    assert (built.loss.temperature, built.miner) == (0.3, None)


def test_options_reach_loss_and_miner():
    built = build_loss(
        "TripletMarginLoss",
        {"margin": 0.7},
        miner="TripletMarginMiner",
        miner_options={"margin": 0.6},
    )
    assert (built.loss.margin, built.miner.margin) == (0.7, 0.6)


@pytest.mark.parametrize(
    ("loss", "loss_options", "miner", "miner_options", "message"),
    [
        ("TripletLoss", {}, None, {}, "unknown loss `TripletLoss`; did you mean `[A-Za-z]*Loss`"),
        ("tripletmarginloss", {}, None, {}, r"unknown loss `t\w+`; did you mean `Triplet\w+`\?"),
        ("xyz", {}, None, {}, "unknown loss `xyz`;? known: AngularLoss, CircleLoss, "),
        ("GenericPairLoss", {}, None, {}, "loss GenericPairLoss is a base class of others"),
        ("BaseMetricLossFunction", {}, None, {}, "loss BaseMetricLossFunction is a base class"),
        ("CrossBatchMemory", {}, None, {}, "stale vectors.*gradient_cache_size"),
        ("ArcFaceLoss", {"num_classes": 3}, None, {}, "num_classes of ArcFaceLoss follows from"),
        ("__init__", {}, None, {}, "unknown loss `__init__`"),
        (
            "SupConLoss",
            {"temprature": 1},
            None,
            {},
            "option `temprature` of SupConLoss; did you mean `temperature`.*known: temperature, distance",
        ),
        ("NPairsLoss", {"x": 1}, None, {}, "unknown option `x` of NPairsLoss;? known: distance, "),
        ("FastAPLoss", {"num_bins": "x"}, None, {}, "loss FastAPLoss refuses its options: .*'x'"),
        ("AngularLoss", {"alpha": "x"}, None, {}, "loss AngularLoss refuses its options: "),
        ("SupConLoss", {}, "Miner", {}, "unknown miner `Miner`.* known: AngularMiner, "),
        ("SupConLoss", {}, "BaseMiner", {}, "unknown miner `BaseMiner`"),
        (
            "SupConLoss",
            {},
            "BatchHardMinr",
            {},
            "unknown miner `BatchHardMinr`; did you mean `BatchHardMiner`",
        ),
        (
            "SupConLoss",
            {},
            "PairMarginMiner",
            {"pos_margn": 1},
            "option `pos_margn` of PairMarginMiner; did you mean `pos_margin`",
        ),
        (
            "SupConLoss",
            {},
            "BatchEasyHardMiner",
            {"pos_strategy": "none"},
            "miner BatchEasyHardMiner refuses its options: ",
        ),
    ],
)
def test_unknown_names_and_options_are_refused(loss, loss_options, miner, miner_options, message):
    with pytest.raises(ConfigError, match=message):
        build_loss(loss, loss_options, miner=miner, miner_options=miner_options)

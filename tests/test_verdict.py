import math

import numpy as np
import pytest

from finetuner.verdict import Change, Outcome, judge


def test_standard_error_by_hand():
    """Gains .5, 0, .25, .25: mean .25, variance (.0625 + .0625) / 3."""
    before = {"hit_at_k": np.array([0.0, 0.5, 0.5, 0.75])}
    after = {"hit_at_k": np.array([0.5, 0.5, 0.75, 1.0])}
    verdict = judge(before, after)
    assert verdict.n_queries == 4
    change = verdict.changes["hit_at_k"]
    assert (change.before, change.after) == (0.4375, 0.6875)
    assert change.standard_error == pytest.approx(math.sqrt(0.125 / 3) / 2)
    assert change.outcome is Outcome.IMPROVED  # .25 against two errors of .102


@pytest.mark.parametrize(
    ("gain", "error", "outcome"),
    [
        (0.021, 0.01, Outcome.IMPROVED),
        (0.019, 0.01, Outcome.UNCHANGED),
        (-0.019, 0.01, Outcome.UNCHANGED),
        (-0.021, 0.01, Outcome.REGRESSED),
        (0.0, 0.0, Outcome.UNCHANGED),
        (0.5, 0.0, Outcome.IMPROVED),
    ],
)
def test_two_standard_errors_decide(gain, error, outcome):
    assert Change(0.5, 0.5 + gain, error).outcome is outcome


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [((1, 1), "improved"), ((1, 0), "improved"), ((0, 0), "unchanged"), ((1, -1), "REGRESSED")],
)
def test_one_metric_that_is_worse_outweighs_the_others(gains, outcome):
    noise = np.linspace(-0.01, 0.01, 50)
    before = {name: np.full(50, 0.5) for name in "ab"}
    after = {name: 0.5 + 0.1 * gain + noise for name, gain in zip("ab", gains, strict=True)}
    verdict = judge(before, after)
    assert verdict.outcome.value == outcome
    assert str(verdict).startswith(f"{outcome}: a 0.50000 -> 0.")
    assert str(verdict).endswith("; 50 queries")


def test_one_query_alone():
    assert judge({"a": np.array([0.5])}, {"a": np.array([0.5])}).outcome is Outcome.UNCHANGED

"""Whether fine-tuning made a model better, judged on the same queries before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

# What is first, what is found at all, and how well it is ranked; the other six follow from these.
JUDGED_METRICS = ("average_precision", "recall_at_k", "reciprocal_rank")
# Differences within two standard errors come about by chance once in twenty times.
_N_STANDARD_ERRORS = 2.0


class Outcome(StrEnum):
    """What a run did to its model."""

    IMPROVED = "improved"
    UNCHANGED = "unchanged"
    REGRESSED = "REGRESSED"


WORST_FIRST = (Outcome.REGRESSED, Outcome.UNCHANGED, Outcome.IMPROVED)


@dataclass(frozen=True)
class Change:
    """One metric before and after.

    :param before: Mean over the queries.
    :param after: The same, with the tuned model.
    :param standard_error: Of the mean difference over the queries, paired.
    """

    before: float
    after: float
    standard_error: float

    @property
    def outcome(self) -> Outcome:
        """Better or worse by more than two standard errors, or unchanged."""
        gain = self.after - self.before
        if abs(gain) <= _N_STANDARD_ERRORS * self.standard_error or gain == 0:
            return Outcome.UNCHANGED
        return Outcome.IMPROVED if gain > 0 else Outcome.REGRESSED


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run, and the figures that it rests on.

    :param outcome: REGRESSED when any metric is worse, improved when one is better and none worse.
    :param changes: By metric.
    :param n_queries: So many were asked, before and after.
    """

    outcome: Outcome
    changes: dict[str, Change]
    n_queries: int

    def __str__(self) -> str:
        figures = "; ".join(
            f"{name} {change.before:.5f} -> {change.after:.5f} (+-{change.standard_error:.5f})"
            for name, change in self.changes.items()
        )
        return f"{self.outcome.value}: {figures}; {self.n_queries} queries"


def judge(
    before: Mapping[str, NDArray[np.float64]], after: Mapping[str, NDArray[np.float64]]
) -> Verdict:
    """Compare two models on the same queries.

    :param before: By metric, its value for each query, *Shape:* ``(n_queries,)``; at least one query.
    :param after: The same queries with the tuned model.
    """
    changes = {name: _change(before[name], after[name]) for name in before}
    outcomes = {change.outcome for change in changes.values()}
    n_queries = len(next(iter(before.values())))
    # In the order of their weight: what got worse is what a user must know.
    for outcome in (Outcome.REGRESSED, Outcome.IMPROVED):
        if outcome in outcomes:
            return Verdict(outcome, changes, n_queries)
    return Verdict(Outcome.UNCHANGED, changes, n_queries)


def _change(before: NDArray[np.float64], after: NDArray[np.float64]) -> Change:
    gains = after - before
    spread = float(gains.std(ddof=1)) if len(gains) > 1 else 0.0
    return Change(float(before.mean()), float(after.mean()), spread / math.sqrt(len(gains)))

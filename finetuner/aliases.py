"""Served names, such as ``prod``: what each points to, and who answers a request."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from finetuner.errors import ConfigError

MAX_HISTORY = 20


@dataclass(frozen=True)
class Target:
    """What a name points to.

    :param run: ``experiment/run``.
    :param artifact_id: Of that run; another run that takes the name later has another.
    """

    run: str
    artifact_id: str


@dataclass(frozen=True)
class Split:
    """A second target that answers a share of the requests.

    :param target: It.
    :param weight: Its share, 0 to 1.
    :raises ConfigError: When the weight is out of range.
    """

    target: Target
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"the weight of a split must be 0 to 1, got {self.weight}")


@dataclass(frozen=True)
class Alias:
    """A served name.

    :param name: It.
    :param target: Answers the requests, or those that the split leaves.
    :param split: Answers a share of them.
    :param shadow: Is asked what the target is asked; nobody gets its answers.
    :param history: Earlier targets, the newest last, at most 20.
    :param revision: Changes so far, from 1.
    :param changed_at: ISO 8601, UTC.
    """

    name: str
    target: Target
    split: Split | None = None
    shadow: Target | None = None
    history: tuple[Target, ...] = ()
    revision: int = 1
    changed_at: str = ""

    @property
    def shares(self) -> tuple[tuple[Target, float], ...]:
        """Who answers, with the share of the requests; the shares make 1."""
        if self.split is None:
            return ((self.target, 1.0),)
        weight = self.split.weight
        # 1 - 0.9 is 0.09999999999999998; people read this.
        return ((self.target, round(1 - weight, 9)), (self.split.target, weight))

    @property
    def targets(self) -> tuple[Target, ...]:
        """All that it points to now: who answers, and the shadow."""
        answering = tuple(target for target, _ in self.shares)
        return answering if self.shadow is None else (*answering, self.shadow)

    @property
    def past(self) -> tuple[Target, ...]:
        """The history of an alias that follows on this one with another target."""
        return (*self.history, self.target)[-MAX_HISTORY:]


def choose(alias: Alias, key: str | None) -> Target:
    """Return the target that answers one request.

    :param alias: The alias.
    :param key: Who asks. One key always gets the same target, in every replica and after a restart;
        when a weight grows, those who had the second target keep it. None: drawn by chance.
    """
    if alias.split is None:
        return alias.target
    place = random.random() if key is None else _place(alias.name, key)
    return alias.split.target if place < alias.split.weight else alias.target


def _place(name: str, key: str) -> float:
    """Return where a key lies between 0 and 1, evenly and without a bond to another alias's place."""
    content = f"{name}\0{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48

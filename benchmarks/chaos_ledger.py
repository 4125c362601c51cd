"""What clients of chaos.py ask for and are promised, and which faults are at work meanwhile."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tiny_model import ROWS
from workers.chaos_worker import Kind, kind_of


@dataclass(frozen=True)
class Plan:
    """A run to come.

    :param name: Of the run.
    :param description: See the worker.
    :param n_steps: Of the chain.
    """

    name: str
    description: str
    n_steps: int

    @property
    def kind(self) -> Kind:
        """What it does."""
        return kind_of(self.description)[0]

    def body(self) -> dict[str, Any]:
        """Return the request for it."""
        return {
            "model": "tiny",
            "train_data": ROWS,
            "run_name": self.name,
            "description": self.description,
            "epochs": self.n_steps,
            "device": "cpu",
            "checkpoint_interval_s": 0,
        }


def plan(number: int, generator: random.Random, *, is_short: bool) -> Plan:
    """Return the run of a number; the first are of all kinds, later ones at random."""
    first = [Kind.PLAIN, Kind.REAL, Kind.FAIL, Kind.MEMORY, Kind.HANG, Kind.PLAIN, Kind.REAL]
    rare = [Kind.PLAIN] * 12 + [Kind.FAIL, Kind.MEMORY]
    kind = first[number] if number < len(first) else generator.choice(rare)
    if is_short and kind in (Kind.HANG, Kind.REAL):
        kind = Kind.PLAIN
    n_steps = 10 if kind is Kind.REAL else generator.randint(40, 120)
    at = "" if kind in (Kind.PLAIN, Kind.REAL) else f":{generator.randint(5, n_steps)}"
    return Plan(f"r-{number:03}", kind + at, n_steps)


@dataclass
class Weather:
    """The faults that are at work, for the time that they are."""

    faults: list[str] = field(default_factory=list)
    is_volume_away: bool = False
    n_power_cuts: int = 0

    def __str__(self) -> str:
        return ", ".join(self.faults) or "no fault is at work"


@dataclass
class Ledger:
    """What was promised to clients, and what they found broken."""

    accepted: dict[str, Plan] = field(default_factory=dict)
    asked_to_cancel: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    asked_to_delete: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    ended: dict[str, str] = field(default_factory=dict)
    followed: dict[str, str] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    n_artifacts_seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complain(self, what: str) -> None:
        """Note a broken promise."""
        with self.lock:
            self.broken.append(what)

    def unfinished(self) -> list[str]:
        """Return the runs that are not known to have ended."""
        with self.lock:
            return [
                name
                for name in self.accepted
                if name not in self.ended and name not in self.asked_to_delete
            ]

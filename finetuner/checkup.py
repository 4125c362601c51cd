"""What a check of this machine finds, and how checks are run: one that fails itself ends no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum


class CheckState(StrEnum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"
    """It works, and could work better."""
    PROBLEM = "problem"
    """Something will not work."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    :param name: What was looked at.
    :param state: How that is.
    :param found: What was found.
    :param advice: What to do; empty when there is nothing.
    """

    name: str
    state: CheckState
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """One check.

    :param name: What it looks at.
    :param look: Returns state, what was found, and advice.
    """

    name: str
    look: Callable[[], tuple[CheckState, str, str]]


def carry_out(checks: Iterable[Check]) -> list[Finding]:
    """Run checks, each by itself.

    :param checks: In the order of the findings.
    """
    return [_carry_out(check) for check in checks]


def _carry_out(check: Check) -> Finding:
    try:
        return Finding(check.name, *check.look())
    except Exception as error:  # whatever it is, the others are still worth having
        told = f"the check itself failed: {type(error).__name__}: {error}"
        return Finding(check.name, CheckState.WARNING, told, "look at it by hand")

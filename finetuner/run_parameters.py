"""What requests about runs say: which run or experiment, and from where on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from finetuner.config import DEFAULT_EXPERIMENT
from finetuner.errors import ConfigError
from finetuner.schema import documented

_MAX_PAGE = 100
MAX_LINES = 1000


@dataclass(frozen=True)
class RunName:
    """Names one run."""

    run_name: str = documented("the run")
    experiment_name: str = documented("its experiment", default=DEFAULT_EXPERIMENT)


@dataclass(frozen=True)
class LogRequest(RunName):
    """Asks for a run's log.

    :raises ConfigError: When the offset is negative.
    """

    offset: int = documented("bytes already seen, at least 0", default=0)

    def __post_init__(self) -> None:
        _check_offset(self.offset)


@dataclass(frozen=True)
class LinesRequest(RunName):
    """Asks for a run's steps or evaluations.

    :raises ConfigError: When offset or limit is out of range.
    """

    offset: int = documented("lines already seen, at least 0", default=0)
    limit: int = documented(f"lines in the answer, 1 to {MAX_LINES}", default=MAX_LINES)

    def __post_init__(self) -> None:
        _check_offset(self.offset)
        if not 1 <= self.limit <= MAX_LINES:
            raise ConfigError(f"limit must be 1 to {MAX_LINES}, got {self.limit}")


def _check_offset(offset: int) -> None:
    if offset < 0:
        raise ConfigError(f"offset must be at least 0, got {offset}")


class Order(StrEnum):
    """Which runs come first."""

    OLDEST = "oldest"
    NEWEST = "newest"


@dataclass(frozen=True)
class RunPage:
    """Asks for a page of runs.

    :raises ConfigError: When the page or its size is out of range.
    """

    experiment_name: str | None = documented("all experiments when left out", default=None)
    page: str = documented("from 1", default="1")
    size: str = documented(f"1 to {_MAX_PAGE}", default="50")
    order: Order = documented("which come first, the oldest or the newest", default=Order.OLDEST)

    @property
    def bounds(self) -> tuple[int, int]:
        """The page and its size as numbers."""
        try:
            page, size = int(self.page), int(self.size)
        except ValueError as exc:
            raise ConfigError(f"page and size must be whole numbers, got {exc}") from exc
        if not 1 <= page < 2**31 or not 1 <= size <= _MAX_PAGE:
            raise ConfigError(
                f"page must be at least 1 and size 1 to {_MAX_PAGE}, got {page}, {size}"
            )
        return page, size


@dataclass(frozen=True)
class ExperimentName:
    """Names one experiment."""

    experiment_name: str = documented("the experiment")

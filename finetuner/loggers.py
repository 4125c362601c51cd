"""The loggers of a run: which it may have, and what each is told.

Training does not depend on them: a logger that fails says so once in the log and is silent from then on.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from finetuner.callback import LoggerCallback, LoggingStep
from finetuner.errors import ConfigError
from finetuner.logger_backends import BACKENDS, LoggedRun, MetricLogger, open_backend

logger = logging.getLogger(__name__)


def check_loggers(callbacks: Iterable[LoggerCallback]) -> None:
    """Refuse loggers that a run could not use.

    :param callbacks: Those of one run.
    :raises ConfigError: When a logger's package is not installed, or there are two of one kind,
        which would write every number twice.
    """
    kinds = [type(callback) for callback in callbacks]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ConfigError(f"a run takes one {kind.__name__}, got {kinds.count(kind)}")
        package = BACKENDS[kind].package
        spec = importlib.util.find_spec(package)
        # A folder called `wandb`, which wandb itself makes, passes for a package without an origin.
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"{kind.__name__} needs a package that this server does not have: "
                f"pip install 'finetuner-flow[{package}]'"
            )


class _Guarded:
    """A logger whose failures are noted once and hurt nobody."""

    def __init__(self, callback: LoggerCallback, run: LoggedRun) -> None:
        self.callback = callback
        self._is_broken = False
        self._inner: MetricLogger | None = None
        self._try(lambda: self._open(run))

    def _open(self, run: LoggedRun) -> None:
        self._inner = open_backend(self.callback, run)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        inner = self._inner
        if inner is not None and not self._is_broken:
            self._try(lambda: inner.log(metrics, step=step))

    def close(self, *, succeeded: bool) -> None:
        # A broken one too: it may have threads or a process to end.
        inner, self._inner = self._inner, None
        if inner is not None:
            self._try(lambda: inner.close(succeeded=succeeded))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as exc:  # whatever a foreign package raises, training goes on
            if not self._is_broken:
                cause = f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"
                logger.warning(
                    "%s failed and writes no more: %s", type(self.callback).__name__, cause
                )
            self._is_broken = True


def open_logger(callback: LoggerCallback, run: LoggedRun) -> MetricLogger:
    """Return what writes for a callback; it never raises, neither here nor later.

    :param callback: The callback.
    :param run: The run.
    """
    return _Guarded(callback, run)


class RunLoggers:
    """All loggers of a run.

    :param loggers: Each with the callback that says what it takes.
    """

    def __init__(self, loggers: Sequence[tuple[LoggerCallback, MetricLogger]]) -> None:
        self._loggers = loggers

    def log_batch(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write one batch's numbers, where a callback asks for batches.

        :param metrics: By name.
        :param step: Batches trained so far, of all epochs.
        """
        for callback, each in self._loggers:
            if callback.metrics_logger_step is LoggingStep.BATCH:
                each.log(metrics, step=step)

    def log_epoch(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write the numbers of an epoch's end, or those before training.

        :param metrics: By name; empty writes nothing.
        :param step: Batches trained so far; 0 before training, which a callback may leave out.
        """
        for callback, each in self._loggers:
            if metrics and (step or callback.log_zero_shot):
                each.log(metrics, step=step)


@contextmanager
def open_loggers(callbacks: Iterable[LoggerCallback], run: LoggedRun) -> Iterator[RunLoggers]:
    """Give the loggers of a run, and close them with it: as failed when the block raises.

    :param callbacks: Those of the run.
    :param run: The run.
    """
    loggers = [(callback, open_logger(callback, run)) for callback in callbacks]
    succeeded = False
    try:
        yield RunLoggers(loggers)
        succeeded = True
    finally:
        for _, each in loggers:
            each.close(succeeded=succeeded)

"""A run's loss and metrics as TensorBoard, Weights & Biases and MLflow keep them.

All three write into the run's folder and reach no network, unless the server's environment names an
account or a tracking server. Their packages are extras, imported when a run uses them. Training
does not depend on them: a logger that fails says so once in the log and is silent from then on.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from finetuner.callback import (
    LoggerCallback,
    LoggingStep,
    MLflowLogger,
    TensorBoardLogger,
    WandBLogger,
)
from finetuner.errors import ConfigError

logger = logging.getLogger(__name__)

_TENSORBOARD_FLUSH_S = 5
_MAX_MLFLOW_PARAMETER_LENGTH = 250
_NOT_IN_MLFLOW_NAME = re.compile(r"[^\w.\- /]", re.ASCII)

# Set before the first import, where the operator has set nothing else. Their own defaults report
# crashes to their makers, and retry for hours when a server is away, with the run waiting.
_ENVIRONMENT = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "WANDB__FILE_STREAM_RETRY_MAX": "3",
    "WANDB__FILE_TRANSFER_RETRY_MAX": "3",
    "WANDB__GRAPHQL_RETRY_MAX": "3",
}


@dataclass(frozen=True)
class LoggedRun:
    """What loggers need to know of a run.

    :param folder: The run's folder, which exists.
    :param name: The run's name.
    :param experiment_name: Its experiment.
    :param settings: What to show as its configuration; JSON values.
    :param first_step: The first step that will be logged. Where an interrupted start has already
        logged that step or later ones, TensorBoard hides them.
    """

    folder: Path
    name: str
    experiment_name: str
    settings: Mapping[str, Any]
    first_step: int = 0


class MetricLogger(Protocol):
    """Where the numbers of one run go."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write numbers.

        :param metrics: By name.
        :param step: Batches trained so far, of all epochs; never less than the last.
        """

    def close(self, *, succeeded: bool) -> None:
        """Write what is outstanding, and how the run ended."""


class _TensorBoard:
    def __init__(self, callback: TensorBoardLogger, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            run.folder / "tensorboard", purge_step=run.first_step, flush_secs=_TENSORBOARD_FLUSH_S
        )
        settings = orjson.dumps(run.settings, option=orjson.OPT_INDENT_2).decode()
        text = f"```json\n{settings}\n```"
        self._writer.add_text("settings", text, run.first_step)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, succeeded: bool) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, callback: WandBLogger, run: LoggedRun) -> None:
        import wandb

        named = {name: value for name, value in asdict(callback.arguments()).items() if value}
        is_configured = {"WANDB_MODE", "WANDB_API_KEY"} & os.environ.keys()
        self._teardown = wandb.teardown
        self._run = wandb.init(
            dir=str(run.folder),
            mode=None if is_configured else "offline",
            config=dict(run.settings),
            reinit="create_new",
            **({"project": run.experiment_name, "name": run.name} | named),
        )

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, *, succeeded: bool) -> None:
        try:
            self._run.finish(exit_code=0 if succeeded else 1)
        finally:
            self._teardown()  # waits for W&B's process, which writes the file after `finish` too


class _MLflow:
    def __init__(self, callback: MLflowLogger, run: LoggedRun) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        folder = run.folder / "mlruns"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or folder.as_uri())
        found = self._client.get_experiment_by_name(run.experiment_name)
        experiment_id = (
            found.experiment_id if found else self._client.create_experiment(run.experiment_name)
        )
        created = self._client.create_run(experiment_id, tags={"mlflow.runName": run.name})
        self._id = created.info.run_id
        parameters = [
            Param(_mlflow_name(name), str(value)[:_MAX_MLFLOW_PARAMETER_LENGTH])
            for name, value in _flat(run.settings)
        ]
        self._client.log_batch(self._id, params=parameters)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        now_ms = int(time.time() * 1000)
        rows = [
            self._metric(_mlflow_name(name), float(value), now_ms, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=rows)

    def close(self, *, succeeded: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if succeeded else "FAILED")


def _mlflow_name(name: str) -> str:
    return _NOT_IN_MLFLOW_NAME.sub("_", name)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


@dataclass(frozen=True)
class _Backend:
    """What writes for a callback.

    :param package: What is imported, and the name of the extra that installs it.
    :param open: Makes the logger.
    """

    package: str
    open: Callable[[Any, LoggedRun], MetricLogger]


_BACKENDS: dict[type, _Backend] = {
    TensorBoardLogger: _Backend("tensorboard", _TensorBoard),
    WandBLogger: _Backend("wandb", _WandB),
    MLflowLogger: _Backend("mlflow", _MLflow),
}


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
        package = _BACKENDS[kind].package
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
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._inner = _BACKENDS[type(self.callback)].open(self.callback, run)

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

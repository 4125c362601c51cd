"""How TensorBoard, Weights & Biases and MLflow keep a run's loss and metrics.

All three write into the run's folder and reach no network, unless the server's environment names an
account or a tracking server. Their packages are extras, imported when a run uses them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from finetuner.callback import LoggerCallback, MLflowLogger, TensorBoardLogger, WandBLogger

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
class Backend:
    """What writes for a callback.

    :param package: What is imported, and the name of the extra that installs it.
    :param open: Makes the logger.
    """

    package: str
    open: Callable[[Any, LoggedRun], MetricLogger]


BACKENDS: dict[type, Backend] = {
    TensorBoardLogger: Backend("tensorboard", _TensorBoard),
    WandBLogger: Backend("wandb", _WandB),
    MLflowLogger: Backend("mlflow", _MLflow),
}


def open_backend(callback: LoggerCallback, run: LoggedRun) -> MetricLogger:
    """Return what writes for a callback; whatever its package raises comes through.

    :param callback: The callback.
    :param run: The run.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return BACKENDS[type(callback)].open(callback, run)

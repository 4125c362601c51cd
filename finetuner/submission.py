"""From a request to a run: read it, check all that can be checked now, and keep the data with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuner.adaptation import LoRAOptions, check_frozen_layers, check_lora_available
from finetuner.artifact import read_manifest
from finetuner.backbones import check_available, locate_on_disk
from finetuner.callback import (
    BestModelCheckpoint,
    EarlyStopping,
    EvaluationCallback,
    LoggerCallback,
)
from finetuner.config import CallbackConfig, RunConfig
from finetuner.datastore import DataStore
from finetuner.device import resolve_device, resolve_precision
from finetuner.errors import ConfigError
from finetuner.loggers import check_loggers
from finetuner.losses import CENTRE_LOSSES
from finetuner.metrics import METRIC_NAMES
from finetuner.models import (
    ModelOptions,
    check_options,
    read_dim,
    read_n_layers,
    read_options,
)
from finetuner.monitoring import watched
from finetuner.resubmission import Submitted, create_once
from finetuner.run_data import run_data
from finetuner.run_store import RunStore
from finetuner.runs import Run
from finetuner.schema import read
from finetuner.space import Space, check_space, full_disk_named, rows_bytes
from finetuner.training import TRAINING_FIELDS, check_training


def submit(request: dict[str, Any], workspace: Path, *, allow_cpu_fallback: bool = True) -> Run:
    """Return the run of a fit request, as :func:`submit_once` does."""
    return submit_once(request, Space(workspace), allow_cpu_fallback=allow_cpu_fallback).run


def submit_once(
    request: dict[str, Any], space: Space, *, allow_cpu_fallback: bool = True
) -> Submitted:
    """Create a run from the body of a fit request, find the one that it has made before, or refuse it.

    :param request: The fields of :class:`RunConfig`.
    :param space: The volume, and the room there.
    :param allow_cpu_fallback: Take a request for a GPU where there is none; the run then warns.
    :raises ConfigError: When a setting is wrong, or a GPU is asked for and refused.
    :raises DataError: When the data cannot train or evaluate.
    :raises DataNotFoundError, ModelNotFoundError, ArtifactNotFound: When a named thing does not exist.
    :raises RunInProgressError, RunFailedError: When ``model_artifact`` is there not yet, or never.
    :raises RunExistsError: When name or key stand for a run of another request.
    :raises InsufficientSpaceError: When the volume has no room for the run.
    """
    workspace = space.workspace
    config = read(RunConfig, request, "fit")
    for check in setting_checks(config, workspace, allow_cpu_fallback=allow_cpu_fallback):
        check.run()
    data = run_data(config, DataStore(workspace))
    with full_disk_named(f"run `{config.run_name}`"):
        return create_once(
            RunStore(workspace),
            without_data(config),
            data,
            is_named=bool(request.get("run_name")),
            check_space=lambda: check_space(config, space, data_bytes=rows_bytes(data)),
        )


@dataclass(frozen=True)
class Check:
    """One of the things that settings are refused for, whatever the data.

    :param fields: Those that it looks at; the first one names it.
    :param run: Raises what is wrong.
    """

    fields: tuple[str, ...]
    run: Callable[[], object]


def setting_checks(
    config: RunConfig, workspace: Path, *, allow_cpu_fallback: bool
) -> tuple[Check, ...]:
    """Return the checks of a request's settings, each independent of the others.

    :param config: The settings.
    :param workspace: The volume.
    :param allow_cpu_fallback: Take a request for a GPU where there is none.
    """
    return (
        Check(("lora", "freeze", "n_frozen_layers"), lambda: _check_adapters(config)),
        Check(("eval_data", "val_split", "loss"), lambda: _check_validation(config)),
        Check(("callbacks", "eval_data", "val_split"), lambda: _check_watching(config)),
        Check(
            (
                "model",
                "model_options",
                "model_artifact",
                "output_dim",
                "n_frozen_layers",
                "dimensions",
            ),
            lambda: _check_dimensions(config, _vector_length(config, workspace)),
        ),
        Check(TRAINING_FIELDS, lambda: check_training(config)),
        Check(("callbacks",), lambda: check_loggers(_loggers_of(config))),
        Check(("device",), lambda: _check_device(config, allow_cpu_fallback=allow_cpu_fallback)),
        Check(
            ("precision", "device"),
            lambda: resolve_precision(config.precision, resolve_device(config.device)[0]),
        ),
    )


def _loggers_of(config: RunConfig) -> list[LoggerCallback]:
    return [c for c in config.built_callbacks() if isinstance(c, LoggerCallback)]


def _check_device(config: RunConfig, *, allow_cpu_fallback: bool) -> None:
    _, warning = resolve_device(config.device)
    if warning and not allow_cpu_fallback:
        raise ConfigError(
            "device='cuda' was asked for, and this server has no GPU: use device='cpu'"
        )


def _check_adapters(config: RunConfig) -> None:
    is_given = {
        "lora": config.lora is not None,
        "freeze": config.freeze,
        "n_frozen_layers": config.n_frozen_layers is not None,
    }
    names = [name for name, given in is_given.items() if given]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} exclude each other; leave one out")
    if config.lora is not None:
        read(LoRAOptions, config.lora, "lora")
        check_lora_available()


def _check_validation(config: RunConfig) -> None:
    """Refuse validation data that do not fit the loss, or each other."""
    if config.eval_data is not None and config.val_split:
        raise ConfigError("eval_data and val_split are two ways to one thing; leave one out")
    if config.eval_data is not None and config.loss in CENTRE_LOSSES:
        raise ConfigError(
            f"{config.loss} has a centre for each label of the training data and none for other data: "
            "take val_split in place of eval_data, or an EvaluationCallback"
        )


def _check_watching(config: RunConfig) -> None:
    """Refuse callbacks that watch what the run will not have."""
    has_validation = config.eval_data is not None or bool(config.val_split)
    names = ["train_loss", *(["val_loss"] if has_validation else [])]
    for evaluation in config.callbacks_of(EvaluationCallback):
        names += [evaluation.prefix + name for name in METRIC_NAMES]
    watching: list[EarlyStopping | BestModelCheckpoint] = [
        *config.callbacks_of(EarlyStopping),
        *config.callbacks_of(BestModelCheckpoint),
    ]
    for callback in watching:
        watched(dict.fromkeys(names, 0.0), callback.monitor, type(callback).__name__)


def _vector_length(config: RunConfig, workspace: Path) -> int | None:
    """Return the length of the model's vectors by what its small files say; None for one of the hub.

    :raises ConfigError: When the model cannot have the options.
    """
    options = read_options(config.model_options)
    if config.output_dim is not None:
        if options.output_dim not in (None, config.output_dim):
            raise ConfigError(
                f"output_dim is {config.output_dim}, and model_options.output_dim is "
                f"{options.output_dim}; leave one out"
            )
        options = dataclasses.replace(options, output_dim=config.output_dim)
    if config.model_artifact is not None:
        return _artifact_vector_length(config.model_artifact, options, workspace)
    check_available(config.model, workspace)
    folder = locate_on_disk(config.model, workspace)
    if folder is None:
        return options.output_dim
    check_options(folder, options)
    if config.n_frozen_layers is not None:
        check_frozen_layers(config.n_frozen_layers, read_n_layers(folder))
    return read_dim(folder, options)


def _artifact_vector_length(artifact: str, options: ModelOptions, workspace: Path) -> int:
    manifest = read_manifest(RunStore(workspace).find_artifact(artifact))
    has_head = any(name.partition("/")[0].endswith("_Dense") for name in manifest.files)
    if has_head and options.output_dim not in (None, manifest.dim):
        raise ConfigError(
            f"output_dim is {options.output_dim}, but the artifact `{artifact}` has a trained projection "
            f"head to {manifest.dim}: leave output_dim out"
        )
    return options.output_dim or manifest.dim


def _check_dimensions(config: RunConfig, dim: int | None) -> None:
    """Refuse to cut vectors to more than they have."""
    largest = max(config.dimensions, default=0)
    if dim is not None and largest > dim:
        raise ConfigError(
            f"dimensions must be at most the length of the vectors, {dim}, got {largest}; leave larger "
            "ones out"
        )


def _described(source: Any) -> Any:
    return f"{len(source)} rows" if isinstance(source, list) else source


def without_data(config: RunConfig) -> RunConfig:
    """Replace data by their description: the texts lie in the run's folder, not in its settings."""
    callbacks = tuple(
        CallbackConfig(
            callback.name, {key: _described(value) for key, value in callback.options.items()}
        )
        for callback in config.callbacks
    )
    return dataclasses.replace(
        config,
        train_data=_described(config.train_data),
        eval_data=_described(config.eval_data),
        callbacks=callbacks,
    )

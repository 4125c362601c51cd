"""From a request to a run: read it, check all that can be checked now, and keep the data with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from finetuner.adaptation import LoRAOptions, check_lora_available
from finetuner.backbones import check_available, locate_on_disk
from finetuner.callback import EvaluationCallback, LoggerCallback
from finetuner.config import CallbackConfig, RunConfig
from finetuner.data import LabelledTexts
from finetuner.datastore import DataStore
from finetuner.device import resolve_device
from finetuner.errors import ConfigError
from finetuner.evaluation import EvaluationSet
from finetuner.loggers import check_loggers
from finetuner.models import ModelOptions, check_options
from finetuner.pairs import Texts, labelled_together, read_rows
from finetuner.run_store import RunStore
from finetuner.runs import TRAIN_FILE, VALIDATION_FILE, Run, evaluation_file
from finetuner.schema import read
from finetuner.training import check_training
from finetuner.training_set import prepare, split


def submit(request: dict[str, Any], workspace: Path, *, allow_cpu_fallback: bool = True) -> Run:
    """Create a run from the body of a fit request, or refuse it.

    :param request: The fields of :class:`RunConfig`.
    :param workspace: The volume.
    :param allow_cpu_fallback: Take a request for a GPU where there is none; the run then warns.
    :raises ConfigError: When a setting is wrong, or a GPU is asked for and refused.
    :raises DataError: When the data cannot train or evaluate.
    :raises DataNotFoundError, ModelNotFoundError: When a named thing does not exist.
    :raises RunExistsError: When the name is taken.
    """
    config = read(RunConfig, request, "fit")
    _check_model(config, workspace)
    check_training(config)
    check_loggers([c for c in config.built_callbacks() if isinstance(c, LoggerCallback)])
    _, warning = resolve_device(config.device)
    if warning and not allow_cpu_fallback:
        raise ConfigError(
            "device='cuda' was asked for, and this server has no GPU: use device='cpu'"
        )
    store = DataStore(workspace)
    data = {TRAIN_FILE: _texts(config.train_data, store, "train_data")}
    prepared = prepare(config.loss, data[TRAIN_FILE])
    if config.val_split:
        split(prepared, config=config)
    if config.eval_data is not None:
        data[VALIDATION_FILE] = _texts(config.eval_data, store, "eval_data")
        prepare(config.loss, data[VALIDATION_FILE])
    for number, callback in enumerate(config.callbacks_of(EvaluationCallback)):
        data |= _evaluation_data(number, callback, store)
    return RunStore(workspace).create(_without_data(config), data)


def _check_model(config: RunConfig, workspace: Path) -> None:
    """Refuse options that the model cannot have, by what its small files say."""
    options = read(ModelOptions, config.model_options, "model_options")
    if config.output_dim is not None:
        options = dataclasses.replace(options, output_dim=config.output_dim)
    if config.lora is not None:
        read(LoRAOptions, config.lora, "lora")
        check_lora_available()
        if config.freeze:
            raise ConfigError("lora and freeze exclude each other; leave one out")
    if config.eval_data is not None and config.val_split:
        raise ConfigError("eval_data and val_split are two ways to one thing; leave one out")
    if config.model_artifact is not None:
        RunStore(workspace).find_artifact(config.model_artifact)
        return
    check_available(config.model, workspace)
    folder = locate_on_disk(config.model, workspace)
    if folder is not None:
        check_options(folder, options)


def _texts(source: Any, store: DataStore, where: str) -> Texts:
    if isinstance(source, str):
        return store.texts(source)
    if isinstance(source, list):
        return read_rows(source)
    raise ConfigError(
        f"{where} must be the name of stored data or a list of [text, label] rows"
        + ("; it is missing" if source is None else f", got {type(source).__name__}")
    )


def _evaluation_data(
    number: int, callback: EvaluationCallback, store: DataStore
) -> dict[str, LabelledTexts]:
    sources = {"query": callback.query_data, "index": callback.index_data}
    roles = [role for role, source in sources.items() if role == "query" or source is not None]
    texts = [_texts(sources[role], store, f"EvaluationCallback.{role}_data") for role in roles]
    labelled = labelled_together(texts)
    EvaluationSet.create(labelled[0], labelled[1] if labelled[1:] else None, callback=callback)
    return {evaluation_file(number, role): data for role, data in zip(roles, labelled, strict=True)}


def _described(source: Any) -> Any:
    return f"{len(source)} rows" if isinstance(source, list) else source


def _without_data(config: RunConfig) -> RunConfig:
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

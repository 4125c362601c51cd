"""The texts that a run is given: to train on, for a validation loss, and for its evaluations."""

from __future__ import annotations

from typing import Any

from finetuner.callback import EvaluationCallback
from finetuner.config import RunConfig
from finetuner.data import LabelledTexts
from finetuner.datastore import DataStore
from finetuner.errors import ConfigError, DataError
from finetuner.evaluation import EvaluationSet
from finetuner.hold_out import hold_out
from finetuner.linked_texts import labelled_together
from finetuner.pairs import Texts, read_rows
from finetuner.runs import TRAIN_FILE, VALIDATION_FILE, evaluation_file
from finetuner.training_set import prepare
from finetuner.validation_split import split


def read_source(source: Any, store: DataStore, where: str) -> Texts:
    """Return the texts that a request names or holds.

    :param source: The name of stored data, or rows.
    :param store: The stored data.
    :param where: The field, for the message.
    :raises ConfigError: When it is neither.
    :raises DataNotFoundError: When nothing has the name.
    :raises DataError: When rows or stored data are no texts.
    """
    if isinstance(source, str):
        return store.texts(source)
    if isinstance(source, list):
        return read_rows(source)
    raise ConfigError(
        f"{where} must be the name of stored data or a list of [text, label] rows"
        + ("; it is missing" if source is None else f", got {type(source).__name__}")
    )


def run_data(config: RunConfig, store: DataStore) -> dict[str, Texts]:
    """Return all texts of a run, by file name within ``data/``, or refuse them.

    :param config: The settings, with their data.
    :param store: The stored data.
    :raises ConfigError, DataError, DataNotFoundError: When the data cannot train or evaluate.
    """
    data = training_data(config, read_source(config.train_data, store, "train_data"))
    if config.eval_data is not None:
        data |= validation_data(config, store)
    for number, callback in enumerate(config.callbacks_of(EvaluationCallback)):
        if callback.hold_out is None:
            data |= evaluation_data(number, callback, store)
    return data


def training_data(config: RunConfig, texts: Texts) -> dict[str, Texts]:
    """Return what is trained on, and what is held out of it for an evaluation.

    :param config: The settings.
    :param texts: The data that they name.
    :raises ConfigError: When the loss works on data of another form.
    :raises DataError: When nothing can be learnt from the data, or from what is left of them.
    """
    prepare(config.loss, texts)
    data = divided(config, texts)
    check_split(config, data[TRAIN_FILE])
    return data


def divided(config: RunConfig, texts: Texts) -> dict[str, Texts]:
    """Return training data that can be learnt from without what an evaluation holds out of them, and that.

    :param config: The settings.
    :param texts: The data that they name.
    :raises DataError: When there are too few.
    """
    for number, callback in enumerate(config.callbacks_of(EvaluationCallback)):
        if callback.hold_out is None:
            continue
        held = hold_out(texts, callback.hold_out, seed=config.seed)
        try:
            prepare(config.loss, held.training)
        except DataError as exc:
            raise DataError(
                f"hold_out={callback.hold_out:g} leaves too little to train on: {exc}. Hold out less, give "
                "more data, or query_data in place of hold_out"
            ) from exc
        files = _evaluation_files(number, callback, held.queries, held.index)
        return {TRAIN_FILE: held.training, **files}  # a run has only one of these
    return {TRAIN_FILE: texts}


def check_split(config: RunConfig, texts: Texts) -> None:
    """Refuse a ``val_split`` that leaves one part too small.

    :param config: The settings.
    :param texts: What is trained on.
    :raises DataError: When it does.
    """
    if config.val_split:
        split(prepare(config.loss, texts), config=config)


def validation_data(config: RunConfig, store: DataStore) -> dict[str, Texts]:
    """Return what a validation loss is computed on.

    :param config: The settings; they have ``eval_data``.
    :param store: The stored data.
    :raises ConfigError, DataError, DataNotFoundError: When they are not there, or cannot be compared.
    """
    texts = read_source(config.eval_data, store, "eval_data")
    prepare(config.loss, texts)
    return {VALIDATION_FILE: texts}


def evaluation_data(
    number: int, callback: EvaluationCallback, store: DataStore
) -> dict[str, Texts]:
    """Return queries and index of an evaluation with data of its own.

    :param number: The callback's place among the run's evaluations, from 0.
    :param callback: It.
    :param store: The stored data.
    :raises ConfigError, DataError, DataNotFoundError: When there is nothing to find.
    """
    if callback.query_data is None:
        raise ConfigError(
            "an EvaluationCallback needs query_data, or hold_out, the share of the training data that it "
            "evaluates with"
        )
    texts = [read_source(callback.query_data, store, "EvaluationCallback.query_data")]
    if callback.index_data is not None:
        texts.append(read_source(callback.index_data, store, "EvaluationCallback.index_data"))
    queries, *index = labelled_together(texts)
    return _evaluation_files(number, callback, queries, index[0] if index else None)


def _evaluation_files(
    number: int,
    callback: EvaluationCallback,
    queries: LabelledTexts,
    index: LabelledTexts | None,
) -> dict[str, Texts]:
    EvaluationSet.create(queries, index, callback=callback)
    files: dict[str, Texts] = {evaluation_file(number, "query"): queries}
    return files if index is None else {**files, evaluation_file(number, "index"): index}

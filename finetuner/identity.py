"""Whether a request asks for a run that is there already, and in what it differs when it does not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import orjson

from finetuner.callback import EvaluationCallback
from finetuner.config import RunConfig
from finetuner.data import HasRows
from finetuner.runs import TRAIN_FILE, VALIDATION_FILE, Run

# Fields that do not say what the run computes, and the data, which are compared by what they hold.
_NOT_COMPARED = ("run_name", "experiment_name", "idempotency_key", "train_data", "eval_data")
_FIELDS = {TRAIN_FILE: "train_data", VALIDATION_FILE: "eval_data"}
_MISSING = "not given"
_LONGEST_VALUE = 60


def data_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return what identifies data: the sha256 of their rows, in order.

    Ids are left out: docarray makes them up anew each time that a script builds its documents.

    :param rows: As :meth:`finetuner.data.HasRows.rows` gives them.
    """
    digest = hashlib.sha256()
    for row in rows:
        if "id" in row:
            row = {name: value for name, value in row.items() if name != "id"}
        digest.update(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return digest.hexdigest()


def data_digests(data: Mapping[str, HasRows]) -> dict[str, str]:
    """Return the digest of each file of a run's data, by its name."""
    return {name: data_digest(texts.rows()) for name, texts in data.items()}


def differences(run: Run, config: RunConfig, data: Mapping[str, HasRows]) -> list[str]:
    """Return in what a request differs from a run, one line each; none when it asks for that run.

    :param run: The run that is there.
    :param config: The settings asked for.
    :param data: The texts asked for, by file name within ``data/``.
    :raises RunNotFoundError: When the run was deleted.
    """
    found = [*_changes(_compared(run.config()), _compared(config), "")]
    before, now = _digests_of(run), data_digests(data)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            found.append(f"{_shown_file(name, config)}: other texts")
    return found


def _shown_file(name: str, config: RunConfig) -> str:
    shown = _FIELDS.get(name, name.removesuffix(".jsonl"))
    # Another seed or share leaves other texts of the same data.
    is_split = any(c.hold_out is not None for c in config.callbacks_of(EvaluationCallback))
    return f"{shown}, without what is held out" if name == TRAIN_FILE and is_split else shown


def _compared(config: RunConfig) -> dict[str, Any]:
    """Return the settings with the callbacks' defaults in them, and without what is not compared."""
    callbacks = []
    for callback in config.built_callbacks():
        options = asdict(callback)
        if isinstance(callback, EvaluationCallback):
            del options["query_data"], options["index_data"]
        callbacks.append({"name": type(callback).__name__, **options})
    settings = {**asdict(config), "callbacks": callbacks}
    return {name: value for name, value in settings.items() if name not in _NOT_COMPARED}


def _changes(before: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            path = f"{where}.{name}" if where else name
            yield from _changes(before.get(name), now.get(name), path)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(old, new, f"{where}[{number}]")
    elif before != now:
        yield f"{where}: {_shown(before)} → {_shown(now)}"


def _shown(value: Any) -> str:
    text = _MISSING if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _digests_of(run: Run) -> dict[str, str]:
    """Return the digests noted in ``spec.json``, or, for a run that has none there, those of its files."""
    noted = run.spec().get("data_digest")
    if noted is not None:
        return dict(noted)
    files = sorted((run.folder / "data").glob("*.jsonl"))
    return {path.name: data_digest(map(orjson.loads, path.open("rb"))) for path in files}

"""A fit request looked at without making a run: all that it would be refused for, and what its data hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ParamSpec, TypeVar

from finetuner.callback import EvaluationCallback
from finetuner.config import Device, RunConfig
from finetuner.config_problems import PartlyRead, Problem, default_of, is_clear, read_partly
from finetuner.data import LabelledTexts
from finetuner.data_report import DataReport, Form, data_report, trouble_of
from finetuner.datastore import DataStore
from finetuner.device import resolve_device
from finetuner.errors import ConfigError, DataError, FinetunerError, InsufficientSpaceError
from finetuner.evaluation import EvaluationSet, skipped_line
from finetuner.pairs import TextPairs, Texts
from finetuner.resubmission import find_made
from finetuner.run_data import (
    check_split,
    divided,
    evaluation_data,
    read_source,
    validation_data,
)
from finetuner.run_store import RunStore
from finetuner.runs import TRAIN_FILE, evaluation_file
from finetuner.space import Space, check_space, footprint, rows_bytes
from finetuner.submission import setting_checks, without_data
from finetuner.training import TRAINING_FIELDS, TRAINING_GROUPS, check_training
from finetuner.training_set import prepare

P = ParamSpec("P")
T = TypeVar("T")
_FIRST_SERVER_ERROR = 500


@dataclass
class Findings:
    """What was found so far."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def attempt(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Return what a call gives, or None when it refuses, which is a problem of the field.

        :param name: The field.
        :param call: Raises what is wrong.
        :raises FinetunerError: When the server is to blame.
        """
        try:
            return call(*args, **kwargs)
        except FinetunerError as exc:
            is_of_server = exc.http_status >= _FIRST_SERVER_ERROR
            if is_of_server and not isinstance(exc, InsufficientSpaceError):
                raise
            self.add(name, str(exc))
            return None

    def add(self, name: str, message: str) -> None:
        """Note a problem, unless it has been noted."""
        if message not in {problem.message for problem in self.problems}:
            self.problems.append(Problem(name, message))


def check_request(
    request: Mapping[str, Any], space: Space, *, allow_cpu_fallback: bool = True
) -> dict[str, Any]:
    """Find all that :func:`finetuner.submission.submit_once` would refuse a request for; write nothing.

    :param request: The fields of :class:`RunConfig`.
    :param space: The volume, and the room there.
    :param allow_cpu_fallback: Take a request for a GPU where there is none.
    :returns: ``problems``, ``warnings``, and what there is to show of settings, data and evaluation.
    """
    found = Findings()
    partly = read_partly(request)
    found.problems += partly.problems
    _check_settings(partly, found, space, allow_cpu_fallback=allow_cpu_fallback)
    store = DataStore(space.workspace)
    source = partly.config.train_data
    texts = found.attempt("train_data", read_source, source, store, "train_data")
    data = {} if texts is None else _check_training_data(texts, partly, found)
    data |= _check_other_data(partly, found, store)
    report = None if texts is None else data_report(texts)
    _warn(partly.config, report, found)
    sets = _evaluation_sets(partly, data, found)
    data_bytes = rows_bytes(data)
    is_new = bool(found.problems) or _is_new(partly.config, data, found, space, request)
    if is_new:
        found.attempt("", check_space, partly.config, space, data_bytes=data_bytes)
    needed = footprint(partly.config, space.workspace, data_bytes=data_bytes)
    return {
        "problems": [asdict(problem) for problem in found.problems],
        "warnings": [asdict(warning) for warning in found.warnings],
        "config": None if partly.problems else _shown(partly.config, request),
        "train_data": None if report is None else report.answer(),
        "evaluation": _sizes(sets[0]) if sets else None,
        "size_bytes": needed.total_bytes,
        "free_bytes": space.free_bytes(),
        "has_gpu": _has_gpu(),
    }


def _has_gpu() -> bool:
    _, warning = resolve_device(Device.CUDA)
    return warning is None


def _check_settings(
    partly: PartlyRead, found: Findings, space: Space, *, allow_cpu_fallback: bool
) -> None:
    config = partly.config
    checks = setting_checks(config, space.workspace, allow_cpu_fallback=allow_cpu_fallback)
    for check in checks:
        if check.fields == TRAINING_FIELDS:
            _check_training_fields(partly, found)
        elif is_clear(check.fields, partly.problems):
            found.attempt(check.fields[0], check.run)


def _check_training_fields(partly: PartlyRead, found: Findings) -> None:
    """Try loss, miner, optimizer and schedule each with the others' defaults, then all together."""
    n_problems = len(found.problems)
    for group in TRAINING_GROUPS:
        if is_clear(group[:1], partly.problems):
            others = {name: default_of(name) for name in TRAINING_FIELDS if name not in group}
            alone = dataclasses.replace(partly.config, **others)
            found.attempt(group[0], check_training, alone)
    if len(found.problems) == n_problems and is_clear(TRAINING_FIELDS, partly.problems):
        found.attempt(TRAINING_FIELDS[0], check_training, partly.config)


def _check_training_data(texts: Texts, partly: PartlyRead, found: Findings) -> dict[str, Texts]:
    """Return the files of the training data; the texts themselves where they cannot be divided."""
    config, data = partly.config, {TRAIN_FILE: texts}
    if not _can_train(config, texts, found):
        return data
    places = [place for place, callback in _evaluations(partly) if callback.hold_out is not None]
    name = f"callbacks[{places[0]}]" if places else "train_data"
    parts = found.attempt(name, divided, config, texts)
    if parts is None:
        return data
    found.attempt("val_split", check_split, config, parts[TRAIN_FILE])
    return parts


def _can_train(config: RunConfig, texts: Texts, found: Findings) -> bool:
    """Note whether it is the loss or the data that nothing can be learnt with."""
    if is_clear(("loss",), found.problems):
        try:
            prepare(config.loss, texts)
            return True
        except DataError as exc:
            found.add("train_data", str(exc))
            return False
        except ConfigError as exc:  # the loss works on data of another form
            found.add("loss", str(exc))
    if trouble := trouble_of(texts):
        found.add("train_data", trouble)
    return False


def _check_other_data(partly: PartlyRead, found: Findings, store: DataStore) -> dict[str, Texts]:
    """Return the files of the validation, and of evaluations with data of their own."""
    config = partly.config
    data: dict[str, Texts] = {}
    if config.eval_data is not None and is_clear(("loss",), found.problems):
        data |= found.attempt("eval_data", validation_data, config, store) or {}
    elif config.eval_data is not None:
        found.attempt("eval_data", read_source, config.eval_data, store, "eval_data")
    for number, (place, callback) in enumerate(_evaluations(partly)):
        if callback.hold_out is None:
            name = f"callbacks[{place}]"
            data |= found.attempt(name, evaluation_data, number, callback, store) or {}
    return data


def _evaluations(partly: PartlyRead) -> list[tuple[int, EvaluationCallback]]:
    """Return the evaluations, with the place in the request that each had."""
    callbacks = zip(partly.callback_places, partly.config.built_callbacks(), strict=True)
    return [(place, c) for place, c in callbacks if isinstance(c, EvaluationCallback)]


def _warn(config: RunConfig, report: DataReport | None, found: Findings) -> None:
    """Add what the log of the run would warn of."""
    _, warning = resolve_device(config.device)
    if warning:
        found.warnings.append(Problem("device", warning))
    if report is not None and report.n_repeated + report.n_ambiguous:
        contradict = "under several labels" if report.form is Form.LABELS else "contradictory"
        message = f"left out: {report.n_repeated} repeated, {report.n_ambiguous} {contradict}"
        found.warnings.append(Problem("train_data", message))


def _evaluation_sets(
    partly: PartlyRead, data: Mapping[str, Texts], found: Findings
) -> list[EvaluationSet]:
    """Return the evaluations that can be made, and warn of queries that they leave out."""
    sets = []
    for number, (place, callback) in enumerate(_evaluations(partly)):
        queries = data.get(evaluation_file(number, "query"))
        index = data.get(evaluation_file(number, "index"))
        if not isinstance(queries, LabelledTexts) or isinstance(index, TextPairs):
            continue
        made = EvaluationSet.create(queries, index, callback=callback)
        if made.n_skipped:
            message = skipped_line(made.n_skipped)
            found.warnings.append(Problem(f"callbacks[{place}]", message))
        sets.append(made)
    return sets


def _sizes(data: EvaluationSet) -> dict[str, int]:
    return {
        "n_queries": len(data.queries),
        "n_index": len(data.index),
        "n_labels": len(set(data.queries.labels)),
    }


def _is_new(
    config: RunConfig,
    data: dict[str, Texts],
    found: Findings,
    space: Space,
    request: Mapping[str, Any],
) -> bool:
    """Whether the request would make a run; warn when it has made it before."""
    store, settings = RunStore(space.workspace), without_data(config)
    is_named = bool(request.get("run_name"))
    made = found.attempt("run_name", find_made, store, settings, data, is_named=is_named)
    if made is not None:
        message = f"this request has made run `{made.name}` before: it would be given back"
        found.warnings.append(Problem("run_name", message))
    return made is None


def _shown(config: RunConfig, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a run's record has them; a name that was made up would be another one then."""
    shown = asdict(without_data(config))
    return shown if request.get("run_name") else {**shown, "run_name": ""}

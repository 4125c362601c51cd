"""All that is wrong with a request's settings at once, and the settings without it.

:func:`finetuner.schema.read` refuses the first thing; who fills in a form wants to know of each.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetuner.config import CallbackConfig, RunConfig
from finetuner.errors import ConfigError
from finetuner.schema import convert, read


@dataclass(frozen=True)
class Problem:
    """What a request is refused for, or warned of.

    :param field: Where, such as ``epochs`` or ``callbacks[1]``; empty where it is of no one field.
    :param message: What, and what to do.
    """

    field: str
    message: str


@dataclass(frozen=True)
class PartlyRead:
    """What could be read of a request.

    :param config: Fields with a problem have their defaults; a missing model is an empty name.
    :param problems: One for each such field.
    :param callback_places: Where in the request each callback of ``config`` stood.
    """

    config: RunConfig
    problems: tuple[Problem, ...]
    callback_places: tuple[int, ...]


def read_partly(request: Mapping[str, Any]) -> PartlyRead:
    """Read the fields of a fit request that can be read.

    :param request: The fields of :class:`RunConfig`, and perhaps others.
    """
    problems: list[Problem] = []
    values = _converted(request, problems)
    places = _readable_callbacks(values, problems)
    while True:
        try:
            config = RunConfig(**values)
        except ConfigError as exc:
            field = _culprit(values, str(exc))
            problems.append(Problem(field, str(exc)))
            del values[field]
            if field == "callbacks":
                places = ()
            continue
        return PartlyRead(config, tuple(problems), places)


def _converted(request: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Return the fields whose types are right."""
    hints = typing.get_type_hints(RunConfig)
    values: dict[str, Any] = {"model": ""}
    for name, value in request.items():
        try:
            if name == "callbacks" and isinstance(value, list):
                values[name] = value  # each by itself, below
            elif name in hints:
                values[name] = convert(hints[name], value, f"fit.{name}")
            else:
                read(RunConfig, {name: value}, "fit")
        except ConfigError as exc:
            problems.append(Problem(str(name), str(exc)))
    if "model" not in request:
        problems.append(Problem("model", "fit needs the field `model`"))
    return values


def _readable_callbacks(values: dict[str, Any], problems: list[Problem]) -> tuple[int, ...]:
    """Leave the callbacks that can be built, and return where they stood."""
    kept: dict[int, CallbackConfig] = {}
    for place, entry in enumerate(values.get("callbacks", ())):
        try:
            callback = convert(CallbackConfig, entry, f"fit.callbacks[{place}]")
            callback.build()
            kept[place] = callback
        except ConfigError as exc:
            problems.append(Problem(f"callbacks[{place}]", str(exc)))
    if kept:
        values["callbacks"] = tuple(kept.values())
    else:
        values.pop("callbacks", None)
    return tuple(kept)


def _culprit(values: Mapping[str, Any], message: str) -> str:
    """Return the field without which the settings are refused for nothing, or for something else."""
    for name in values:
        if name == "model":
            continue
        try:
            RunConfig(**{key: value for key, value in values.items() if key != name})
        except ConfigError as exc:
            if str(exc) == message:
                continue
        return name
    raise ConfigError(message)  # no field by itself is to blame; none of the present rules is so


def is_clear(fields: tuple[str, ...], problems: typing.Iterable[Problem]) -> bool:
    """Whether none of some fields has a problem."""
    return not {problem.field.partition("[")[0] for problem in problems} & set(fields)


def default_of(field: str) -> Any:
    """Return a setting's default.

    :param field: One that has a default.
    """
    (found,) = (one for one in dataclasses.fields(RunConfig) if one.name == field)
    if found.default_factory is not dataclasses.MISSING:
        return found.default_factory()
    return found.default

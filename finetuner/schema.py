"""Frozen dataclasses from plain data, checked, and the same dataclasses described as JSON schema.

Both read the type hints, so what the server takes and what its documentation says cannot differ.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from finetuner.errors import ConfigError

T = TypeVar("T")


def documented(doc: str, **kwargs: Any) -> Any:
    """Declare a dataclass field whose description appears in the API's documentation.

    :param doc: One phrase, with unit and range.
    :param kwargs: Passed to :func:`dataclasses.field`.
    """
    return dataclasses.field(metadata={"doc": doc}, **kwargs)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean `x`?`` for the closest known name, or a bare semicolon."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean `{matches[0]}`?" if matches else ";"


def read(cls: type[T], data: object, where: str) -> T:
    """Build a frozen dataclass from a mapping.

    :param cls: The dataclass; its ``__post_init__`` checks ranges.
    :param data: The mapping, as JSON or protobuf gave it.
    :param where: What the data are, for the messages.
    :raises ConfigError: When ``data`` is no mapping, a key is unknown, a required one is missing, or
        a value has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be an object, got {_kind(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    for key in data:
        if key not in fields:
            raise ConfigError(
                f"unknown field `{key}` in {where}{nearest(str(key), fields)} "
                f"known: {', '.join(fields)}"
            )
    hints = _hints(cls)
    values = {
        name: convert(hints[name], data[name], f"{where}.{name}") for name in fields if name in data
    }
    for name, field in fields.items():
        if name not in values and _is_required(field):
            raise ConfigError(f"{where} needs the field `{name}`")
    return cls(**values)


_known_hints: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    # To evaluate them takes longer than to embed a short text.
    if cls not in _known_hints:
        _known_hints[cls] = typing.get_type_hints(cls)
    return _known_hints[cls]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else f"`{value!r}`"[:80])


def convert(hint: Any, value: object, where: str) -> Any:
    """Check one value against one type hint and return it in that type.

    :param hint: A type of those that this module knows: ``str``, ``bool``, ``int``, ``float``, an
        enum, a dataclass, ``dict[str, Any]``, ``tuple[X, ...]``, ``X | None``, ``Any``.
    :param value: The value got.
    :param where: The field, for the message.
    :raises ConfigError: When the value does not fit.
    """
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = [h for h in typing.get_args(hint) if h is not type(None)]
        return convert(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {_kind(value)}")
        item = typing.get_args(hint)[0]
        return tuple(convert(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if dataclasses.is_dataclass(hint):
        # A class, not an instance of one, which is_dataclass would say yes to as well.
        return value if isinstance(value, hint) else read(hint, value, where)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _to_enum(hint, value, where)
    return _SCALARS[origin or hint](value, where)


def _to_enum(hint: type[StrEnum], value: object, where: str) -> StrEnum:
    allowed = [member.value for member in hint]
    if value not in allowed:
        raise ConfigError(
            f"{where} must be one of {', '.join(allowed)}; got {_kind_of_text(value)}"
        )
    return hint(value)


def _kind_of_text(value: object) -> str:
    return f"`{value}`"[:80] if isinstance(value, str) else _kind(value)


def _to_int(value: object, where: str) -> int:
    # Protobuf's Struct, which carries parameters over gRPC, has only doubles: 3 arrives as 3.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{where} must be a whole number, got {_kind(value)}")
    if not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where} must be a whole number of 64 bits, got {_kind(value)}")
    return value


def _to_float(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, got {_kind(value)}")
    return float(value)


def _instance_of(cls: type, article: str) -> Callable[[object, str], Any]:
    def check(value: object, where: str) -> Any:
        if not isinstance(value, cls):
            raise ConfigError(f"{where} must be {article}, got {_kind(value)}")
        return value

    return check


_SCALARS: dict[Any, Callable[[object, str], Any]] = {
    str: _instance_of(str, "a string"),
    bool: _instance_of(bool, "true or false"),
    dict: _instance_of(dict, "an object"),
    int: _to_int,
    float: _to_float,
}

_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object"}


def describe(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a dataclass, with the fields' descriptions and defaults.

    :param cls: A dataclass that :func:`read` can build.
    """
    hints = _hints(cls)
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        schema = _describe_hint(hints[field.name])
        if doc := field.metadata.get("doc"):
            schema["description"] = doc
        if field.default not in (dataclasses.MISSING, None):
            schema["default"] = field.default
        properties[field.name] = schema
        if _is_required(field):
            required.append(field.name)
    result: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        result["required"] = required
    return {**result, "additionalProperties": False}


def _describe_hint(hint: Any) -> dict[str, Any]:
    origin = typing.get_origin(hint)
    if hint is Any:
        return {}
    if origin in (types.UnionType, typing.Union):
        (hint,) = [h for h in typing.get_args(hint) if h is not type(None)]
        return {"anyOf": [_describe_hint(hint), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _describe_hint(typing.get_args(hint)[0])}
    if dataclasses.is_dataclass(hint):
        return describe(hint)  # type: ignore[arg-type]  # a class, as in convert
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"type": "string", "enum": [member.value for member in hint]}
    return {"type": _JSON_TYPES[origin or hint]}

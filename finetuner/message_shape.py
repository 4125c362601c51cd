"""How many values a protobuf message holds and how deep it nests, found before anything is made of it.

Two bytes on the wire can stand for an empty document, which takes a kilobyte once it is read: without a
bound, a short message fills the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetuner.errors import DataError, TooLargeError

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED_64: 8, _FIXED_32: 4}
_LONGEST_VARINT = 10


@dataclass(frozen=True)
class ShapeLimits:
    """What a message may hold.

    :param n_values: Values and messages, at all levels together.
    :param depth: Levels of messages.
    :param free_bytes: Shorter messages are not looked into: they cannot hold much.
    """

    n_values: int = 200_000
    depth: int = 100  # protobuf's own bound
    free_bytes: int = 2**16


def check_shape(content: bytes, descriptor: Any, *, limits: ShapeLimits) -> None:
    """Refuse a message with too much in it.

    :param content: Its bytes.
    :param descriptor: Of the message that they shall be read as.
    :param limits: What it may hold.
    :raises TooLargeError: When it holds more.
    :raises DataError: When the bytes are no message.
    """
    if len(content) <= limits.free_bytes:
        return
    n_values = 0
    pending = [(0, len(content), descriptor, 1)]
    while pending:
        start, end, message, depth = pending.pop()
        if depth > limits.depth:
            raise TooLargeError(f"the message nests deeper than {limits.depth} levels")
        inner = {f.number: f.message_type for f in message.fields if f.message_type is not None}
        for number, place, place_behind in _values(content, start, end):
            n_values += 1
            if n_values > limits.n_values:
                raise TooLargeError(
                    f"the message holds more than {limits.n_values} values; send fewer documents at once"
                )
            if place_behind and number in inner:
                pending.append((place, place_behind, inner[number], depth + 1))


def _values(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield for each field its number, and where its bytes begin and end: at 0 for one without any."""
    place = start
    while place < end:
        tag, place = _read_varint(content, place, end)
        kind, begin, behind = tag & 7, 0, 0
        if kind == _BYTES:
            length, begin = _read_varint(content, place, end)
            place = behind = begin + length
        elif kind == _VARINT:
            _, place = _read_varint(content, place, end)
        elif kind in _FIXED_SIZES:
            place += _FIXED_SIZES[kind]
        else:
            raise DataError(f"the bytes are no protobuf message: there is no wire type {kind}")
        if place > end:
            raise DataError("the bytes are no protobuf message: it ends within a value")
        yield tag >> 3, begin, behind


def _read_varint(content: bytes, place: int, end: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it."""
    if place < end and content[place] < 0x80:  # nearly all are one byte long
        return content[place], place + 1
    value = 0
    for position in range(min(_LONGEST_VARINT, end - place)):
        byte = content[place + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, place + position + 1
    raise DataError("the bytes are no protobuf message: a number has no end")

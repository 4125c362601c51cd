"""Labelled texts: from rows and DocumentArray, cleaned, and checked before anything is trained.

One form is used everywhere behind the edge: :class:`LabelledTexts`. The rules for training data:

- labels ``1``, ``1.0``, ``'1'``, ``'1.0'`` and ``True`` are one label;
- a text that occurs twice under one label counts once;
- a text that occurs under two labels is left out: it would be drawn to and pushed from itself.

Texts compare without case, extra space and the different ways to write one character (Unicode NFKC: a
letter with its accent in one code or two, full-width letters, ligatures). Punctuation counts: without it
``C`` and ``C++`` would be one text, and a question the same as a statement.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from finetuner.errors import DataError

if TYPE_CHECKING:
    from docarray import DocumentArray

LABEL_TAG = "finetuner_label"
_N_SHOWN = 5  # rows, in a message
_WHOLE_NUMBER = re.compile(r"[+-]?\d+\.0+")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their labels and, where the source had them, document ids; all of one length."""

    texts: Sequence[str]
    labels: Sequence[str | None]
    ids: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each text as ``{"text", "label"[, "id"]}``."""
        for text, label, id_ in zip(self.texts, self.labels, self.ids, strict=True):
            row = {"text": text, "label": label}
            yield row if id_ is None else {**row, "id": id_}

    def subset(self, positions: Iterable[int]) -> LabelledTexts:
        """Return the texts at the positions, in that order."""
        chosen = list(positions)
        return LabelledTexts(
            [self.texts[i] for i in chosen],
            [self.labels[i] for i in chosen],
            [self.ids[i] for i in chosen],
        )


def normalise_label(value: object) -> str | None:
    """Return the one form of a label, or None for a missing one.

    :param value: A string, number or boolean; CSV gives ``'1'``, protobuf ``1.0``, Python ``1``.
    :raises DataError: When it is none of these, or not finite.
    """
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | float | np.integer | np.floating):
        number = float(value)
        if not math.isfinite(number):
            raise DataError(f"a label must be finite, got `{value}`")
        return str(int(value)) if number.is_integer() else str(number)
    if isinstance(value, str):
        label = value.strip()
        if _WHOLE_NUMBER.fullmatch(label):
            label = str(int(label.partition(".")[0]))
        return label or None
    raise DataError(f"a label must be a string or a number, got `{value!r}`"[:200])


def fold(text: str) -> str:
    """Return the form in which texts are compared: NFKC, without case and extra space."""
    if not text.isascii():  # ASCII is NFKC already
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.lower().split())


def check_text(text: object, where: str) -> str:
    """Return a text unchanged, or refuse what is none.

    :param text: What was given.
    :param where: The row or document, for the message.
    :raises DataError: When it is no string, or no Unicode.
    """
    if not isinstance(text, str):
        raise DataError(f"{where}: the text must be a string, got `{text!r}`"[:200])
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise DataError(f"{where}: the text holds half a surrogate pair; it is no Unicode") from exc
    return text


def from_rows(rows: Sequence[Any]) -> LabelledTexts:
    """Read rows ``(text, label)`` or ``{"text": …, "label": …[, "id": …]}``.

    :param rows: The rows; an empty list gives empty data.
    :raises DataError: When a row has another form; the message names the first such row.
    """
    texts, labels, ids = [], [], []
    for number, row in enumerate(rows, start=1):
        text, label, id_ = _unpack(row, number)
        texts.append(check_text(text, f"row {number}"))
        labels.append(normalise_label(label))
        # An empty cell of a CSV is none.
        ids.append(None if id_ in (None, "") else str(id_))
    return LabelledTexts(texts, labels, ids)


def _unpack(row: Any, number: int) -> tuple[Any, Any, Any]:
    if isinstance(row, Mapping):
        unknown = set(row) - {"text", "label", "id"}
        if unknown or "text" not in row:
            raise DataError(
                f"row {number} must have the fields text, label and perhaps id; "
                f"got {', '.join(map(str, row)) or 'none'}"
            )
        return row["text"], row.get("label"), row.get("id")
    if isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2:
        return row[0], row[1], None
    raise DataError(f"row {number} must be [text, label] or {{text, label}}, got `{row!r}`"[:160])


def from_documents(documents: DocumentArray) -> LabelledTexts:
    """Read the texts, the tag ``finetuner_label`` and the ids of a DocumentArray.

    :param documents: Documents without the tag get the label None.
    :raises DataError: When a document has no text.
    """
    texts, labels, ids = [], [], []
    for number, document in enumerate(documents, start=1):
        if not document.text:
            raise DataError(f"document {number} (`{document.id}`) has no text")
        texts.append(check_text(document.text, f"document {number}"))
        labels.append(normalise_label(document.tags.get(LABEL_TAG)))
        ids.append(document.id)
    return LabelledTexts(texts, labels, ids)


class HasRows(Protocol):
    """Data that can be written row by row."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row under the names of its fields."""
        ...


def write_jsonl(data: HasRows, path: Path) -> None:
    """Write one JSON object a line, such as text, label and, where there is one, id."""
    with path.open("wb") as file:
        for row in data.rows():
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def read_jsonl(path: Path) -> LabelledTexts:
    """Read what :func:`write_jsonl` wrote; it was checked then, and 100,000 checks cost 0.3 s."""
    with path.open("rb") as file:
        return rows_as_read([orjson.loads(line) for line in file])


def rows_as_read(rows: Sequence[Mapping[str, Any]]) -> LabelledTexts:
    """Return rows that were checked before as texts, labels and ids."""
    return LabelledTexts(
        [row["text"] for row in rows],
        [row["label"] for row in rows],
        [row.get("id") for row in rows],
    )


@dataclass(frozen=True)
class TrainingData:
    """Texts to train on, cleaned by the rules of this module.

    :param texts: Each once.
    :param classes: *Shape:* ``(n_texts,)`` int64; labels numbered from 0 by first appearance.
    :param n_repeated: Rows left out as repetitions of a text under the same label.
    :param n_ambiguous: Texts left out because they occur under several labels.
    """

    texts: list[str]
    classes: NDArray[np.int64]
    n_repeated: int
    n_ambiguous: int

    @property
    def n_classes(self) -> int:
        """Different labels."""
        return int(self.classes.max()) + 1 if len(self.classes) else 0


def prepare_training(data: LabelledTexts) -> TrainingData:
    """Clean training data, or say why nothing can be learnt from them.

    :param data: Every text labelled.
    :raises DataError: When there are no texts, a text is empty or unlabelled, fewer than two labels
        are left, or no label has two texts; the message gives the numbers found.
    """
    if not len(data):
        raise DataError("the training data are empty")
    _check_complete(data)
    labels_of: dict[str, dict[str, str]] = {}
    for text, label in zip(data.texts, data.labels, strict=True):
        assert label is not None  # _check_complete has refused these
        labels_of.setdefault(fold(text), {}).setdefault(label, text)
    kept = [
        (text, label)
        for found in labels_of.values()
        if len(found) == 1
        for label, text in found.items()
    ]
    n_ambiguous = len(labels_of) - len(kept)
    numbers: dict[str, int] = {}
    classes = np.array(
        [numbers.setdefault(label, len(numbers)) for _, label in kept], dtype=np.int64
    )
    n_repeated = len(data) - sum(map(len, labels_of.values()))
    prepared = TrainingData([text for text, _ in kept], classes, n_repeated, n_ambiguous)
    _check_trainable(prepared)
    return prepared


def _check_complete(data: LabelledTexts) -> None:
    for problem, missing in (
        ("no text", [i for i, text in enumerate(data.texts, 1) if not text.strip()]),
        ("no label", [i for i, label in enumerate(data.labels, 1) if label is None]),
    ):
        if missing:
            shown = ", ".join(map(str, missing[:_N_SHOWN])) + (
                ", …" if len(missing) > _N_SHOWN else ""
            )
            raise DataError(
                f"{len(missing)} of {len(data)} training texts have {problem}: row {shown}; a header is not "
                f"counted. Give each one (a label is the tag `{LABEL_TAG}` of a Document), or leave it out"
            )


def _check_trainable(prepared: TrainingData) -> None:
    sizes = Counter(prepared.classes.tolist())
    found = (
        f"found {len(prepared.texts)} different texts with {len(sizes)} labels, "
        f"{sum(size >= 2 for size in sizes.values())} of them with two texts or more"
    )
    if prepared.n_ambiguous:
        found += f" ({prepared.n_ambiguous} texts under several labels left out)"
    if len(sizes) < 2:
        raise DataError(f"training needs at least two labels; {found}")
    if max(sizes.values()) < 2:
        raise DataError(f"training needs a label with at least two texts; {found}")

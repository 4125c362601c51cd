"""Pairs of texts, as they come in rows, documents and files.

Three kinds of rows: ``anchor, positive`` say that two texts mean the same; a ``negative`` beside them is a
text that does not, though it may look so; ``sentence1, sentence2, score`` give a similarity.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import orjson

from finetuner.data import LabelledTexts, check_text, from_documents, from_rows, rows_as_read
from finetuner.errors import DataError

if TYPE_CHECKING:
    from docarray import DocumentArray

SCORE_TAG = "finetuner_score"
_PAIR_FIELDS = ({"anchor", "positive"}, {"anchor", "positive", "negative"})
_SCORED_FIELDS = {"sentence1", "sentence2", "score"}
PAIR_HEADERS = (*_PAIR_FIELDS, _SCORED_FIELDS)
_MAX_SCORE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class TextPairs:
    """Pairs as they came; all sequences of one length.

    :param anchors: Texts.
    :param positives: Texts that mean the same, or, with scores, that are compared.
    :param negatives: Texts that do not mean the same, or None.
    :param scores: Similarities; all are given, or none is.
    """

    anchors: Sequence[str]
    positives: Sequence[str]
    negatives: Sequence[str | None]
    scores: Sequence[float | None]

    def __len__(self) -> int:
        return len(self.anchors)

    @property
    def has_scores(self) -> bool:
        """Whether the pairs are scored."""
        return bool(self.scores) and self.scores[0] is not None

    @property
    def has_negatives(self) -> bool:
        """Whether any pair has a negative."""
        return any(negative is not None for negative in self.negatives)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each pair under the names of its kind."""
        for anchor, positive, negative, score in zip(
            self.anchors, self.positives, self.negatives, self.scores, strict=True
        ):
            if score is not None:
                yield {"sentence1": anchor, "sentence2": positive, "score": score}
            else:
                row = {"anchor": anchor, "positive": positive}
                yield row if negative is None else {**row, "negative": negative}


Texts = LabelledTexts | TextPairs


def read_rows(rows: Sequence[Any]) -> Texts:
    """Read rows of labelled texts or of pairs; the first row says which.

    :param rows: ``(text, label)``, or objects with the fields text and label, anchor and positive (and
        negative), or sentence1, sentence2 and score; an empty list gives empty labelled data.
    :raises DataError: When a row has another form than the first; the message names it.
    """
    first = rows[0] if rows else None
    if not isinstance(first, Mapping) or "text" in first:
        return from_rows(rows)
    is_scored = not _SCORED_FIELDS.isdisjoint(first)
    if not is_scored and {"anchor", "positive"}.isdisjoint(first):
        raise DataError(
            f"row 1 has the fields {', '.join(map(str, first)) or 'none'}; rows have text and label, "
            "or anchor, positive and perhaps negative, or sentence1, sentence2 and score"
        )
    found = [
        _read_scored(row, number) if is_scored else _read_pair(row, number)
        for number, row in enumerate(rows, start=1)
    ]
    return TextPairs(*(list(column) for column in zip(*found, strict=True)))


def _read_pair(row: Any, number: int) -> tuple[str, str, str | None, None]:
    if not isinstance(row, Mapping) or set(row) not in _PAIR_FIELDS:
        raise DataError(
            f"row {number} must have the fields anchor, positive and perhaps negative; "
            f"got `{row!r}`"[:200]
        )
    negative = row.get("negative")
    return (
        _filled(row["anchor"], number),
        _filled(row["positive"], number),
        # A CSV says by an empty cell that there is none.
        None if negative is None or negative == "" else _filled(negative, number),
        None,
    )


def _read_scored(row: Any, number: int) -> tuple[str, str, None, float]:
    if not isinstance(row, Mapping) or set(row) != _SCORED_FIELDS:
        raise DataError(
            f"row {number} must have the fields sentence1, sentence2 and score; got `{row!r}`"[:200]
        )
    return (
        _filled(row["sentence1"], number),
        _filled(row["sentence2"], number),
        None,
        _score(row["score"], f"row {number}"),
    )


def _filled(text: object, number: int) -> str:
    checked = check_text(text, f"row {number}")
    if not checked.strip():
        raise DataError(f"row {number} holds an empty text")
    return checked


def _score(value: object, where: str) -> float:
    try:
        score = float(value)  # type: ignore[arg-type]  # what it is, is found out by trying
    except (TypeError, ValueError) as exc:
        raise DataError(f"{where}: the score must be a number, got `{value!r}`"[:200]) from exc
    if isinstance(value, bool) or not abs(score) <= _MAX_SCORE:  # of NaN too nothing is true
        raise DataError(f"{where}: the score must be a finite number, got `{value!r}`"[:200])
    return score


def are_documents(data: Any) -> TypeGuard[DocumentArray]:
    """Whether data are a DocumentArray, which nobody can have while docarray is not loaded.

    :param data: Anything.
    """
    kind = getattr(sys.modules.get("docarray"), "DocumentArray", None)
    return kind is not None and isinstance(data, kind)


def read_documents(documents: DocumentArray) -> Texts:
    """Read labelled texts, or, where documents have chunks, pairs.

    :param documents: A pair is a document with two chunks (anchor, positive), three (and a negative), or
        two and the tag ``finetuner_score``. The first document says which it is.
    :raises DataError: When a document has no text, or another form than the first.
    """
    if not len(documents) or not len(documents[0].chunks):
        return from_documents(documents)
    is_scored = SCORE_TAG in documents[0].tags
    rows = []
    for number, document in enumerate(documents, start=1):
        texts = [chunk.text for chunk in document.chunks]
        names = ("sentence1", "sentence2") if is_scored else ("anchor", "positive", "negative")
        if not 2 <= len(texts) <= len(names) or (SCORE_TAG in document.tags) != is_scored:
            raise DataError(
                f"document {number} (`{document.id}`) has {len(texts)} chunks; a pair has 2, or 3 with "
                f"a negative, and either all pairs have the tag `{SCORE_TAG}` or none"
            )
        row: dict[str, Any] = dict(zip(names, texts, strict=False))
        rows.append({**row, "score": document.tags[SCORE_TAG]} if is_scored else row)
    return read_rows(rows)


def read_data(path: Path) -> Texts:
    """Read what :func:`finetuner.data.write_jsonl` wrote: labelled texts or pairs, checked then."""
    with path.open("rb") as file:
        rows = [orjson.loads(line) for line in file]
    if not rows or "text" in rows[0]:
        return rows_as_read(rows)
    first, second = ("sentence1", "sentence2") if "score" in rows[0] else ("anchor", "positive")
    return TextPairs(
        [row[first] for row in rows],
        [row[second] for row in rows],
        [row.get("negative") for row in rows],
        [row.get("score") for row in rows],
    )

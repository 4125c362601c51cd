"""Pairs of texts: as they come in rows and documents, as labels, and cleaned for training.

Three kinds of rows: ``anchor, positive`` say that two texts mean the same; a ``negative`` beside them is a
text that does not, though it may look so; ``sentence1, sentence2, score`` give a similarity. The rules for
training:

- texts compare as labelled texts do (:func:`finetuner.data.fold`); each is kept once;
- texts that positives link, directly or over others, are alike: none is taken for another's negative;
- a row that says what another has said, in either order, counts once;
- left out are a text paired with itself, a negative that is alike, and a pair with two scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from finetuner.data import (
    LabelledTexts,
    check_text,
    fold,
    from_documents,
    from_rows,
    rows_as_read,
)
from finetuner.errors import DataError

if TYPE_CHECKING:
    from docarray import DocumentArray

SCORE_TAG = "finetuner_score"
_PAIR_FIELDS = ({"anchor", "positive"}, {"anchor", "positive", "negative"})
_SCORED_FIELDS = {"sentence1", "sentence2", "score"}
PAIR_HEADERS = (*_PAIR_FIELDS, _SCORED_FIELDS)
_MAX_SCORE = float(np.finfo(np.float32).max)
Positions = NDArray[np.int64]


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


def as_labelled(data: Texts) -> LabelledTexts:
    """Label texts so that all that pairs link, directly or not, share one label.

    :param data: Labelled texts are given back as they are.
    :returns: Each different text once, in the order of appearance; labels and ids are numbers from 0.
    :raises DataError: When the pairs are scored, or have negatives: labels cannot say that.
    """
    return labelled_together([data])[0]


def labelled_together(parts: Sequence[Texts]) -> list[LabelledTexts]:
    """Label several data by what all their pairs link, so that a label means the same in each.

    :param parts: Such as queries and what they search; labelled texts are given back as they are.
    :returns: For each what :func:`as_labelled` says; a text has the same id wherever it occurs.
    :raises DataError: As there, and when some parts have labels and others are pairs.
    """
    pairs = [part for part in parts if isinstance(part, TextPairs)]
    labelled = [part for part in parts if isinstance(part, LabelledTexts)]
    if not pairs:
        return labelled
    if labelled:
        raise DataError("queries and index must both have labels, or both be pairs")
    for part in pairs:
        if part.has_scores or part.has_negatives:
            kind = "scores" if part.has_scores else "negatives"
            raise DataError(f"texts with labels are needed here; these are pairs with {kind}")
    columns = ([part.anchors for part in pairs], [part.positives for part in pairs])
    places, texts = _places([list(chain.from_iterable(column)) for column in columns])
    labels = _linked(len(texts), places[0], places[1])
    borders = np.cumsum([len(part) for part in pairs])[:-1]
    found = []
    for rows in np.split(np.column_stack(places), borders):
        _, first = np.unique(rows, return_index=True)
        chosen = rows.ravel()[np.sort(first)].tolist()
        found.append(
            LabelledTexts(
                [texts[i] for i in chosen], [str(labels[i]) for i in chosen], [*map(str, chosen)]
            )
        )
    return found


def linked_pairs(data: TextPairs) -> Positions:
    """Return the group of each pair, *Shape:* ``(n_pairs,)``: those that texts link, directly or not."""
    (anchors, positives), texts = _places([data.anchors, data.positives])
    linked: Positions = _linked(len(texts), anchors, positives)[anchors]
    return linked


def _places(columns: Sequence[Sequence[str | None]]) -> tuple[list[Positions], list[str]]:
    """Number the different texts of some columns by first appearance, row by row; None is -1."""
    numbers: dict[str, int] = {}
    texts: list[str] = []

    def place(text: str | None) -> int:
        if text is None:
            return -1
        number = numbers.setdefault(fold(text), len(texts))
        if number == len(texts):
            texts.append(text)
        return number

    cells = chain.from_iterable(zip(*columns, strict=True))
    places = np.fromiter(map(place, cells), dtype=np.int64)
    return list(places.reshape(-1, len(columns)).T), texts


def _linked(n_texts: int, left: Positions, right: Positions) -> Positions:
    """Return the group of each text that links join, numbered by first appearance."""
    # `import finetuner` comes by here, and scipy takes longer to load than all the rest of it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n_texts, n_texts))
    _, found = connected_components(links, directed=False)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    groups: Positions = numbers[inverse]
    return groups


def _different(*columns: Positions) -> tuple[Positions, Positions]:
    """Return where each different row stands first, and for each row which of them it is.

    One number a row sorts eight times faster than ``np.unique(axis=0)``, which compares rows as bytes.
    """
    rows = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        _, numbers = np.unique(rows, return_inverse=True)
        # Below n_rows * (n_texts + 1), so 64 bits hold it; a missing text is -1.
        rows = numbers * (column.max(initial=-1) + 2) + column + 1
    _, first, numbers = np.unique(rows, return_index=True, return_inverse=True)
    return first, numbers


@dataclass(frozen=True)
class PairData:
    """Pairs to train on, cleaned by the rules of this module.

    :param texts: The different texts.
    :param classes: *Shape:* ``(n_texts,)`` int64; texts that are alike have one class. With scores, every
        text has its own.
    :param pairs: *Shape:* ``(n_pairs, 2)`` int64; places of anchor and positive.
    :param negatives: *Shape:* ``(n_pairs,)`` int64; place of a hard negative, -1 for none.
    :param scores: *Shape:* ``(n_pairs,)`` float32, or None.
    :param n_repeated: Rows left out as repetitions.
    :param n_ambiguous: Rows, or their negatives, left out because they contradict themselves or others.
    """

    texts: list[str]
    classes: Positions
    pairs: Positions
    negatives: Positions
    scores: NDArray[np.float32] | None
    n_repeated: int
    n_ambiguous: int


def prepare_pairs(data: TextPairs) -> PairData:
    """Clean pairs, or say why nothing can be learnt from them.

    :param data: Pairs, with scores or without.
    :raises DataError: When fewer than two pairs are left, all are of one group of linked texts and have
        no negatives, or all scores are equal; the message gives the numbers found.
    """
    prepared = clean_pairs(data)
    found = (
        f"found {len(prepared.pairs)} different pairs of {len(prepared.texts)} texts in {len(data)} rows "
        f"({prepared.n_repeated} repeated, {prepared.n_ambiguous} contradictory)"
    )
    if len(prepared.pairs) < 2:
        raise DataError(f"training needs at least two pairs; {found}")
    if prepared.scores is not None and np.ptp(prepared.scores) == 0:
        raise DataError(f"all scores are {prepared.scores[0]:g}: nothing can be learnt; {found}")
    groups = prepared.classes[prepared.pairs[:, 0]]
    if prepared.scores is None and np.ptp(groups) == 0 and prepared.negatives.max() < 0:
        raise DataError(f"all texts mean the same: there are no negatives; {found}")
    return prepared


def clean_pairs(data: TextPairs) -> PairData:
    """Clean pairs by the rules of this module, however little is left."""
    (anchors, positives, negatives), texts = _places([data.anchors, data.positives, data.negatives])
    pairs = np.stack([anchors, positives], axis=1)
    if data.has_scores:
        return _scored(data, texts, pairs)
    return _unscored(texts, pairs, negatives)


def _unscored(texts: list[str], pairs: Positions, negatives: Positions) -> PairData:
    classes = _linked(len(texts), pairs[:, 0], pairs[:, 1])
    is_self = pairs[:, 0] == pairs[:, 1]
    is_alike = (negatives >= 0) & (classes[negatives] == classes[pairs[:, 0]])
    negatives = np.where(is_alike, -1, negatives)
    usable = np.flatnonzero(~is_self)
    first, _ = _different(*np.sort(pairs[usable], axis=1).T, negatives[usable])
    kept = usable[np.sort(first)]
    return PairData(
        texts,
        classes,
        pairs[kept],
        negatives[kept],
        None,
        n_repeated=len(usable) - len(kept),
        n_ambiguous=int(is_self.sum() + (is_alike & ~is_self).sum()),
    )


def _scored(data: TextPairs, texts: list[str], pairs: Positions) -> PairData:
    scores = np.array(data.scores, dtype=np.float32)
    first, numbers = _different(*np.sort(pairs, axis=1).T)
    is_disputed = np.zeros(len(first), dtype=bool)
    is_disputed[numbers[scores != scores[first][numbers]]] = True
    kept = np.sort(first[~is_disputed])
    n_disputed_rows = int(is_disputed[numbers].sum())
    return PairData(
        texts,
        np.arange(len(texts)),
        pairs[kept],
        np.full(len(kept), -1, dtype=np.int64),
        scores[kept],
        n_repeated=len(pairs) - n_disputed_rows - len(kept),
        n_ambiguous=n_disputed_rows,
    )

"""What training data hold, for a person to look at before anything is trained.

The counts are those of :func:`finetuner.data.prepare_training` and
:func:`finetuner.clean_pairs.prepare_pairs`, and are given for data too that these refuse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from finetuner.clean_pairs import clean_pairs, prepare_pairs
from finetuner.data import LabelledTexts, fold, prepare_training
from finetuner.errors import DataError
from finetuner.linked_texts import linked_pairs
from finetuner.pairs import TextPairs, Texts

_N_PREVIEWED = 20
_N_LISTED = 20
_N_LARGEST = 10
_LONGEST_SHOWN = 500


class Form(StrEnum):
    """What rows are."""

    LABELS = "labels"
    PAIRS = "pairs"
    SCORED_PAIRS = "scored pairs"


@dataclass(frozen=True)
class SizeBin:
    """How many labels have so many texts.

    :param first: The least size in it.
    :param last: The greatest.
    """

    first: int
    last: int
    n_labels: int


@dataclass(frozen=True)
class DataReport:
    """What data hold.

    :param form: What the rows are.
    :param n_rows: All rows.
    :param n_texts: Different texts that are trained on; those of pairs with their negatives.
    :param n_labels: Their labels; for pairs, groups of linked texts; none for scored pairs.
    :param n_repeated: Rows left out as repetitions.
    :param n_ambiguous: Left out because they contradict themselves or others: texts, or rows of pairs.
    :param sizes: Different texts by label.
    :param repeated: Some of the repeated rows, with how often they are there.
    :param ambiguous: Some of what contradicts, with what it says.
    :param preview: The first rows.
    :param lengths: In characters, of all texts: ``p50``, ``p99``, ``max``.
    """

    form: Form
    n_rows: int
    n_texts: int
    n_labels: int
    n_repeated: int
    n_ambiguous: int
    sizes: Mapping[str, int]
    repeated: Sequence[dict[str, Any]]
    ambiguous: Sequence[dict[str, Any]]
    preview: Sequence[dict[str, Any]]
    lengths: Mapping[str, int]

    def answer(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        largest = sorted(self.sizes.items(), key=lambda item: -item[1])[:_N_LARGEST]
        return {
            "form": self.form.value,
            "n_rows": self.n_rows,
            "n_texts": self.n_texts,
            "n_labels": self.n_labels,
            "n_repeated": self.n_repeated,
            "n_ambiguous": self.n_ambiguous,
            "n_alone": sum(size == 1 for size in self.sizes.values()),
            "class_sizes": [
                {"from": one.first, "to": one.last, "n_labels": one.n_labels}
                for one in size_bins(self.sizes.values())
            ],
            "largest": [{"label": _cut(label), "n_texts": size} for label, size in largest],
            "preview": list(self.preview),
            "repeated": list(self.repeated),
            "ambiguous": list(self.ambiguous),
            "lengths": dict(self.lengths),
        }


def data_report(data: Texts) -> DataReport:
    """Look at data; at any, also at those that cannot be trained on.

    :param data: Labelled texts or pairs; rows without text or label count as rows alone.
    """
    if isinstance(data, LabelledTexts):
        return _of_labels(data)
    return _of_scored(data) if data.has_scores else _of_pairs(data)


def trouble_of(data: Texts) -> str:
    """Return why nothing can be learnt from data, by any loss of their form; empty when something can."""
    try:
        if isinstance(data, LabelledTexts):
            prepare_training(data)
        else:
            prepare_pairs(data)
    except DataError as exc:
        return str(exc)
    return ""


def size_bins(sizes: Any) -> list[SizeBin]:
    """Count labels by size, in bins that double: 1, 2, 3 to 4, 5 to 8, …, up to the largest size.

    :param sizes: Texts of each label, at least 1.
    """
    # Of 1, 2, 3 to 4, 5 to 8 the numbers 0, 1, 2, 3.
    counts = Counter((size - 1).bit_length() for size in sizes)
    return [
        SizeBin(2 ** (number - 1) + 1 if number else 1, 2**number, counts[number])
        for number in range(max(counts, default=-1) + 1)
    ]


def _of_labels(data: LabelledTexts) -> DataReport:
    found: dict[str, dict[str, list[str]]] = {}
    for text, label in zip(data.texts, data.labels, strict=True):
        if label is not None and text.strip():
            found.setdefault(fold(text), {}).setdefault(label, []).append(text)
    clear = [next(iter(labels.items())) for labels in found.values() if len(labels) == 1]
    sizes = Counter(label for label, _ in clear)
    repeated = [
        (label, texts)
        for labels in found.values()
        for label, texts in labels.items()
        if len(texts) > 1
    ]
    ambiguous = [
        {"text": _cut(next(iter(labels.values()))[0]), "labels": [_cut(label) for label in labels]}
        for labels in found.values()
        if len(labels) > 1
    ]
    return DataReport(
        form=Form.LABELS,
        n_rows=len(data),
        n_texts=len(clear),
        n_labels=len(sizes),
        n_repeated=sum(len(texts) - 1 for _, texts in repeated),
        n_ambiguous=len(ambiguous),
        sizes=sizes,
        repeated=[
            {"text": _cut(texts[0]), "label": _cut(label), "n": len(texts)}
            for label, texts in repeated[:_N_LISTED]
        ],
        ambiguous=ambiguous[:_N_LISTED],
        preview=_preview(data),
        lengths=_lengths(data.texts),
    )


def _of_pairs(data: TextPairs) -> DataReport:
    cleaned = clean_pairs(data)
    groups = linked_pairs(data).tolist()
    names: dict[int, str] = {}
    members: dict[int, set[str]] = {}
    for group, anchor, positive in zip(groups, data.anchors, data.positives, strict=True):
        names.setdefault(group, anchor)
        members.setdefault(group, set()).update((fold(anchor), fold(positive)))
    return DataReport(
        form=Form.PAIRS,
        n_rows=len(data),
        n_texts=len(cleaned.texts),
        n_labels=len(members),
        n_repeated=cleaned.n_repeated,
        n_ambiguous=cleaned.n_ambiguous,
        # The first text stands for its group; two groups have none in common.
        sizes={names[group]: len(texts) for group, texts in members.items()},
        repeated=_repeated_pairs(data),
        ambiguous=list(islice(_contradictory(data, groups), _N_LISTED)),
        preview=_preview(data),
        lengths=_lengths([*data.anchors, *data.positives, *filter(None, data.negatives)]),
    )


def _contradictory(data: TextPairs, groups: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield texts paired with themselves, and texts with a negative that is alike."""
    group_of: dict[str, int] = {}
    for group, anchor, positive in zip(groups, data.anchors, data.positives, strict=True):
        group_of[fold(anchor)] = group_of[fold(positive)] = group
    for group, anchor, positive, negative in zip(
        groups, data.anchors, data.positives, data.negatives, strict=True
    ):
        if fold(anchor) == fold(positive):
            yield {"text": _cut(anchor), "labels": [_cut(positive)]}
        elif negative is not None and group_of.get(fold(negative)) == group:
            yield {"text": _cut(anchor), "labels": [_cut(positive), _cut(negative)]}


def _of_scored(data: TextPairs) -> DataReport:
    cleaned = clean_pairs(data)
    scores_of: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for row, (first, second, score) in enumerate(
        zip(data.anchors, data.positives, data.scores, strict=True)
    ):
        assert score is not None  # all are given, or none is
        key = tuple(sorted((fold(first), fold(second))))
        scores_of.setdefault(key, []).append((row, score))
    disputed = [found for found in scores_of.values() if len({score for _, score in found}) > 1]
    return DataReport(
        form=Form.SCORED_PAIRS,
        n_rows=len(data),
        n_texts=len(cleaned.texts),
        n_labels=0,
        n_repeated=cleaned.n_repeated,
        n_ambiguous=cleaned.n_ambiguous,
        sizes={},
        repeated=_repeated_pairs(data),
        ambiguous=[
            {
                "text": _cut(f"{data.anchors[found[0][0]]} / {data.positives[found[0][0]]}"),
                "labels": [f"{score:g}" for _, score in found],
            }
            for found in disputed[:_N_LISTED]
        ],
        preview=_preview(data),
        lengths=_lengths([*data.anchors, *data.positives]),
    )


def _repeated_pairs(data: TextPairs) -> list[dict[str, Any]]:
    """Return rows that say the same in either order: the second text stands where a label would."""
    rows: dict[tuple[Any, ...], list[int]] = {}
    for row, (first, second, negative, score) in enumerate(
        zip(data.anchors, data.positives, data.negatives, data.scores, strict=True)
    ):
        texts = sorted((fold(first), fold(second)))
        key = (*texts, None if negative is None else fold(negative), score)
        rows.setdefault(key, []).append(row)
    return [
        {
            "text": _cut(data.anchors[found[0]]),
            "label": _cut(data.positives[found[0]]),
            "n": len(found),
        }
        for found in islice((f for f in rows.values() if len(f) > 1), _N_LISTED)
    ]


def _preview(data: Texts) -> list[dict[str, Any]]:
    return [
        {
            name: _cut(value) if isinstance(value, str) else value
            for name, value in row.items()
            if name != "id"
        }
        for row in islice(data.rows(), _N_PREVIEWED)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def _lengths(texts: Sequence[str]) -> dict[str, int]:
    """Return percentiles by nearest rank: the least length that so many percent do not exceed."""
    lengths = sorted(map(len, texts))

    def percentile(percent: int) -> int:
        return lengths[math.ceil(percent * len(lengths) / 100) - 1] if lengths else 0

    return {"p50": percentile(50), "p99": percentile(99), "max": percentile(100)}

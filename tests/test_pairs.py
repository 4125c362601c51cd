import io
from itertools import pairwise

import numpy as np
import pytest
from docarray import Document, DocumentArray

from finetuner.csv_file import CSVOptions, read_csv
from finetuner.data import LabelledTexts, write_jsonl
from finetuner.errors import DataError
from finetuner.pairs import (
    TextPairs,
    as_labelled,
    prepare_pairs,
    read_data,
    read_documents,
    read_rows,
)


def _pairs(*rows):
    """Rows of (anchor, positive[, negative])."""
    padded = [(*row, None)[:3] for row in rows]
    anchors, positives, negatives = (list(column) for column in zip(*padded, strict=True))
    return TextPairs(anchors, positives, negatives, [None] * len(rows))


def _scored(*rows):
    left, right, scores = (list(column) for column in zip(*rows, strict=True))
    return TextPairs(left, right, [None] * len(rows), scores)


_PAIR = {"anchor": "a", "positive": "b"}
_SCORED = {"sentence1": "a", "sentence2": "b", "score": 0.5}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([_PAIR, {"positive": "d", "anchor": "c"}], _pairs(("a", "b"), ("c", "d"))),
        ([{**_PAIR, "negative": "n"}, _PAIR], _pairs(("a", "b", "n"), ("a", "b"))),
        ([{**_PAIR, "negative": ""}], _pairs(("a", "b"))),
        ([_SCORED, {**_SCORED, "score": "-1"}], _scored(("a", "b", 0.5), ("a", "b", -1.0))),
        ([("a", 1)], LabelledTexts(["a"], ["1"], [None])),
        ([], LabelledTexts([], [], [])),
    ],
)
def test_rows(rows, expected, tmp_path):
    assert read_rows(rows) == expected
    write_jsonl(expected, tmp_path / "x")
    assert read_data(tmp_path / "x") == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([_PAIR, {"anchor": "a"}], "row 2 must have the fields anchor, positive and perhaps"),
        ([_PAIR, ("a", "b")], "row 2 must have the fields anchor, positive"),
        ([{**_PAIR, "label": 1}], "row 1 must have the fields anchor, positive"),
        ([_SCORED, _PAIR], "row 2 must have the fields sentence1, sentence2 and score"),
        ([{**_SCORED, "score": "x"}], "row 1: the score must be a number, got `'x'`"),
        ([{**_SCORED, "score": None}], "row 1: the score must be a number, got `None`"),
        ([{**_SCORED, "score": float("nan")}], "row 1: the score must be a finite number"),
        ([{**_SCORED, "score": True}], "row 1: the score must be a finite number, got `True`"),
        ([{**_PAIR, "positive": 5}], "row 1: the text must be a string"),
        ([{**_PAIR, "positive": "  "}], "row 1 holds an empty text"),
    ],
)
def test_rows_that_are_none(rows, message):
    with pytest.raises(DataError, match=message):
        read_rows(rows)


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ("anchor,positive\na,b\n", {}, _pairs(("a", "b"))),
        ("Positive;Anchor;negative\nb;a;n\nd;c;\n", {}, _pairs(("a", "b", "n"), ("c", "d"))),
        ("sentence1,sentence2,score\na,b,1\n", {}, _scored(("a", "b", 1.0))),
        ("a,b,.5\nc,d,1\n", {}, _scored(("a", "b", 0.5), ("c", "d", 1.0))),
        ("a,b\nc,d\n", {}, _pairs(("a", "b"), ("c", "d"))),
        ("a,1\n", {"is_labeled": True}, LabelledTexts(["a"], ["1"], [None])),
    ],
)
def test_csv(content, options, expected):
    assert read_csv(io.StringIO(content), CSVOptions(**options)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("anchor,positive\na,b,c\n", "CSV row 1 has 3 columns, 2 are needed"),
        ("a,b,x\n", "CSV row 1 has 3 columns, 2 are needed"),
        ("a,b,1\nc,d\n", "CSV row 2 has 2 columns, 3 are needed|CSV row 1 has 3 columns"),
    ],
)
def test_csv_that_is_none(content, message):
    with pytest.raises(DataError, match=message):
        read_csv(io.StringIO(content))


def _document(*texts, **tags):
    return Document(chunks=[Document(text=text) for text in texts], tags=tags)


def test_documents():
    documents = DocumentArray([_document("a", "b"), _document("c", "d", "n")])
    assert read_documents(documents) == _pairs(("a", "b"), ("c", "d", "n"))
    documents = DocumentArray([_document("a", "b", finetuner_score=0.25)])
    assert read_documents(documents) == _scored(("a", "b", 0.25))
    labelled = DocumentArray([Document(id="x", text="a", tags={"finetuner_label": "1"})])
    assert read_documents(labelled) == LabelledTexts(["a"], ["1"], ["x"])
    assert len(read_documents(DocumentArray())) == 0


@pytest.mark.parametrize(
    "second",
    [
        _document("a"),
        _document(*"abcd"),
        _document("a", "b", finetuner_score=1),
        Document(text="x"),
    ],
)
def test_documents_that_are_none(second):
    with pytest.raises(DataError, match="document 2 .* chunks; a pair has 2, or 3 with a negative"):
        read_documents(DocumentArray([_document("a", "b"), second]))


def test_linked_texts_share_a_label():
    found = as_labelled(_pairs(("a", "b"), ("c", "d"), ("B ", "e"), ("f", "f")))
    assert found.texts == ["a", "b", "c", "d", "e", "f"]
    assert found.labels == ["0", "0", "1", "1", "0", "2"]
    labelled = LabelledTexts(["a"], ["1"], [None])
    assert as_labelled(labelled) is labelled


@pytest.mark.parametrize(
    ("data", "kind"), [(_scored(("a", "b", 1)), "scores"), (_pairs(("a", "b", "n")), "negatives")]
)
def test_what_labels_cannot_say(data, kind):
    with pytest.raises(DataError, match=f"texts with labels are needed here; .* with {kind}"):
        as_labelled(data)


def test_linked_texts_against_a_plain_search():
    generator = np.random.default_rng(0)
    rows = [tuple(map(str, generator.integers(0, 60, 2))) for _ in range(40)]
    group = {}
    for text in [text for row in rows for text in row]:
        if text in group:
            continue
        group[text], found = len(set(group.values())), [text]
        for one in found:
            near = [t for row in rows if one in row for t in row if t not in group]
            group |= dict.fromkeys(near, group[text])
            found += near
    labelled = as_labelled(_pairs(*rows))
    assert dict(zip(labelled.texts, map(int, labelled.labels), strict=True)) == group
    assert 1 < max(group.values()) < len(group) - 1


def test_pairs_are_cleaned():
    data = prepare_pairs(
        _pairs(
            ("a", "b"),
            ("B", "A "),  # again, the other way round
            ("c", "d", "a"),
            ("c", "d", "b"),  # another negative is another row
            ("e", "E"),  # itself
            ("b", "x", "a"),  # its negative is alike
        )
    )
    assert data.texts == ["a", "b", "c", "d", "e", "x"]
    assert data.pairs.tolist() == [[0, 1], [2, 3], [2, 3], [1, 5]]
    assert data.negatives.tolist() == [-1, 0, 1, -1]
    assert data.classes.tolist() == [0, 0, 1, 1, 2, 0]
    assert (data.scores, data.n_repeated, data.n_ambiguous) == (None, 1, 2)


def test_scored_pairs_are_cleaned():
    data = prepare_pairs(
        _scored(("a", "b", 1), ("b", "a", 1), ("a", "c", 0), ("c", "d", 0.5), ("d", "c", 0.75))
    )
    assert data.pairs.tolist() == [[0, 1], [0, 2]]
    np.testing.assert_array_equal(data.scores, np.float32([1, 0]))
    assert data.classes.tolist() == [0, 1, 2, 3]
    assert (data.n_repeated, data.n_ambiguous) == (1, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_pairs(("a", "b")), "at least two pairs; found 1 different pairs of 2 texts in 1 rows"),
        (_pairs(("a", "a"), ("b", "b")), r"found 0 different .* \(0 repeated, 2 contradictory\)"),
        (_pairs(*pairwise("abcd")), "all texts mean the same: there are no negatives; found 3"),
        (_scored(("a", "b", 0.5), ("c", "d", 0.5)), "all scores are 0.5: nothing can be learnt"),
    ],
)
def test_pairs_that_teach_nothing(data, message):
    with pytest.raises(DataError, match=message):
        prepare_pairs(data)

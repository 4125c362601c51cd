import io
import random
from itertools import pairwise

import numpy as np
import orjson
import pytest
from docarray import Document, DocumentArray

from finetuner.clean_pairs import prepare_pairs
from finetuner.csv_file import CSVOptions, read_csv
from finetuner.data import LabelledTexts, write_jsonl
from finetuner.datastore import DataStore
from finetuner.errors import DataError
from finetuner.experiment import wire_data
from finetuner.linked_texts import as_labelled, labelled_together
from finetuner.pairs import TextPairs, read_data, read_documents, read_rows


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
        ([{"positive": "b", "negative": "c"}], "row 1 must have the fields anchor, positive"),
        ([{"a": "b", "c": "d"}], "row 1 has the fields a, c; rows have text and label, or anchor"),
        ([{}], "row 1 has the fields none; rows have text and label"),
        ([{"text": "a", "label": 1}, _PAIR], "row 2 must have the fields text, label"),
        ([_SCORED, _PAIR], "row 2 must have the fields sentence1, sentence2 and score"),
        ([{**_SCORED, "score": "x"}], "row 1: the score must be a number, got `'x'`"),
        ([{**_SCORED, "score": None}], "row 1: the score must be a number, got `None`"),
        ([{**_SCORED, "score": float("nan")}], "row 1: the score must be a finite number"),
        ([{**_SCORED, "score": 1e39}], "row 1: the score must be a finite number, got `1e\\+39`"),
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
        ("a,b,1\nc,d,x\n", "CSV row 2: the third column must be a number, got `x`"),
        ("a,b,1\nc,d,nan\n", "CSV row 2: the third column must be a number, got `nan`"),
        (
            "q1,q2,is_duplicate\na,b,1\n",
            "CSV row 1: .*got `is_duplicate`.*name the columns: anchor",
        ),
        ("a,b,1\nc,d\n", "CSV row 2 has 2 columns, 3 are needed"),
        ("anchor,positive\n", "no row of the CSV is left; it is a header alone"),
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


def test_queries_and_index_share_labels_and_ids():
    queries, index = labelled_together(
        [_pairs(("a", "b"), ("c", "d")), _pairs(("x", "y"), ("D", "e"), ("a", "f"))]
    )
    assert list(zip(queries.texts, queries.labels, queries.ids, strict=True)) == [
        ("a", "0", "0"),
        ("b", "0", "1"),
        ("c", "1", "2"),
        ("d", "1", "3"),
    ]
    assert list(zip(index.texts, index.labels, index.ids, strict=True)) == [
        ("x", "2", "4"),
        ("y", "2", "5"),
        ("d", "1", "3"),
        ("e", "1", "6"),
        ("a", "0", "0"),
        ("f", "0", "7"),
    ]
    with pytest.raises(DataError, match="must both have labels, or both be pairs"):
        labelled_together([_pairs(("a", "b")), LabelledTexts(["a"], ["0"], [None])])


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
        (_pairs("xx", "ab", "bc"), "all texts mean the same: there are no negatives; found 2"),
        (
            _pairs(*[("a", "b", "c"), ("b", "c")]),
            r"all texts mean .* \(0 repeated, 1 contradictory",
        ),
        (_scored(("a", "b", 0.5), ("c", "d", 0.5)), "all scores are 0.5: nothing can be learnt"),
    ],
)
def test_pairs_that_teach_nothing(data, message):
    with pytest.raises(DataError, match=message):
        prepare_pairs(data)


def test_negatives_make_up_for_a_second_group():
    data = prepare_pairs(_pairs(("a", "b", "n"), ("b", "c")))
    assert (data.pairs.tolist(), data.negatives.tolist()) == ([[0, 1], [1, 3]], [2, -1])


def _cleaned_by_a_loop(rows):
    """Clean rows of one-letter texts as the rules say, one after another."""
    groups = {}
    for left, right, _ in rows:
        merged = groups.get(left, {left}) | groups.get(right, {right})
        groups |= dict.fromkeys(merged, merged)
    kept, n_repeated, n_ambiguous = [], 0, 0
    for anchor, positive, negative in rows:
        if anchor == positive:
            n_ambiguous += 1
            continue
        if negative in groups[anchor]:
            n_ambiguous += 1
            negative = None
        if any({anchor, positive} == {a, p} and negative == n for a, p, n in kept):
            n_repeated += 1
        else:
            kept.append((anchor, positive, negative))
    return kept, n_repeated, n_ambiguous


@pytest.mark.parametrize("seed", range(5))
def test_cleaning_against_a_plain_loop(seed):
    draw = random.Random(seed)
    islands = [draw.choice(["abc", "defg", "hi", "jkl"]) for _ in range(120)]
    rows = [
        (draw.choice(island), draw.choice(island), draw.choice([None, *"abcdefghijklm"]))
        for island in islands
    ]
    data = prepare_pairs(_pairs(*rows))
    kept, n_repeated, n_ambiguous = _cleaned_by_a_loop(rows)
    names = [*data.texts, None]  # a negative of -1 is none
    found = [
        (names[anchor], names[positive], names[negative])
        for (anchor, positive), negative in zip(data.pairs, data.negatives, strict=True)
    ]
    assert found == kept
    assert (data.n_repeated, data.n_ambiguous) == (n_repeated, n_ambiguous)
    assert min(n_repeated, n_ambiguous, sum(n is not None for _, _, n in kept)) > 0


_DOCUMENTS = {
    "pairs": [_document("a", "b"), _document("c", "d", "n")],
    "scored": [_document("a", "b", finetuner_score=0.25), _document("c", "d", finetuner_score=1)],
}
_AS_DOCUMENTS = {
    "pairs": _pairs(("a", "b"), ("c", "d", "n")),
    "scored": _scored(("a", "b", 0.25), ("c", "d", 1.0)),
}


@pytest.mark.parametrize("kind", _DOCUMENTS)
def test_documents_come_through_the_store_and_the_wire(kind, tmp_path):
    documents, expected = DocumentArray(_DOCUMENTS[kind]), _AS_DOCUMENTS[kind]
    store = DataStore(tmp_path)
    store.put("x", io.BytesIO(documents.to_bytes(protocol="protobuf", compress="gzip")))
    assert store.texts("x") == expected
    pulled = DocumentArray.load_binary(
        store.documents_path("x").read_bytes(), protocol="protobuf", compress="gzip"
    )
    assert read_documents(pulled) == expected
    assert read_documents(DocumentArray.from_protobuf(documents.to_protobuf())) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (DocumentArray(_DOCUMENTS["pairs"]), _AS_DOCUMENTS["pairs"]),
        (DocumentArray(_DOCUMENTS["scored"]), _AS_DOCUMENTS["scored"]),
        (io.StringIO("a,b,.25\nc,d,1\n"), _AS_DOCUMENTS["scored"]),
        (io.StringIO("anchor,positive,negative\na,b,\nc,d,n\n"), _AS_DOCUMENTS["pairs"]),
        ([_PAIR, {"anchor": "c", "positive": "d", "negative": "n"}], _AS_DOCUMENTS["pairs"]),
    ],
)
def test_what_a_client_sends_is_read_as_it_was(data, expected):
    assert read_rows(orjson.loads(orjson.dumps(wire_data(data, None)))) == expected

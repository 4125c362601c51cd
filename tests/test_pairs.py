import io

import orjson
import pytest
from docarray import Document, DocumentArray
from pair_rows import pairs, scored

from finetuner.csv_file import CSVOptions, read_csv
from finetuner.data import LabelledTexts, write_jsonl
from finetuner.datastore import DataStore
from finetuner.errors import DataError
from finetuner.experiment import wire_data
from finetuner.pairs import read_data, read_documents, read_rows

_PAIR = {"anchor": "a", "positive": "b"}
_SCORED = {"sentence1": "a", "sentence2": "b", "score": 0.5}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([_PAIR, {"positive": "d", "anchor": "c"}], pairs(("a", "b"), ("c", "d"))),
        ([{**_PAIR, "negative": "n"}, _PAIR], pairs(("a", "b", "n"), ("a", "b"))),
        ([{**_PAIR, "negative": ""}], pairs(("a", "b"))),
        ([_SCORED, {**_SCORED, "score": "-1"}], scored(("a", "b", 0.5), ("a", "b", -1.0))),
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
        ("anchor,positive\na,b\n", {}, pairs(("a", "b"))),
        ("Positive;Anchor;negative\nb;a;n\nd;c;\n", {}, pairs(("a", "b", "n"), ("c", "d"))),
        ("sentence1,sentence2,score\na,b,1\n", {}, scored(("a", "b", 1.0))),
        ("a,b,.5\nc,d,1\n", {}, scored(("a", "b", 0.5), ("c", "d", 1.0))),
        ("a,b\nc,d\n", {}, pairs(("a", "b"), ("c", "d"))),
        ("a,1\n", {"is_labeled": True}, LabelledTexts(["a"], ["1"], [None])),
    ],
)
def test_csv(content, options, expected):
    assert read_csv(io.StringIO(content), CSVOptions(**options)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "anchor,positive\na,b,c\n",
            r"CSV row 1 \(line 2 of the file\) has 3 columns, 2 are needed",
        ),
        (
            "a,b,1\nc,d,x\n",
            r"CSV row 2 \(line 2 of the file\): the third column must be a number, got `x`",
        ),
        (
            "a,b,1\nc,d,nan\n",
            r"CSV row 2 \(line 2 .*\): the third column must be a number, got `nan`",
        ),
        (
            "q1,q2,is_duplicate\na,b,1\n",
            r"CSV row 1 \(line 1 of the file\): .*got `is_duplicate`.*name the columns: anchor",
        ),
        ("a,b,1\nc,d\n", r"CSV row 2 \(line 2 of the file\) has 2 columns, 3 are needed"),
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
    assert read_documents(documents) == pairs(("a", "b"), ("c", "d", "n"))
    documents = DocumentArray([_document("a", "b", finetuner_score=0.25)])
    assert read_documents(documents) == scored(("a", "b", 0.25))
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


_DOCUMENTS = {
    "pairs": [_document("a", "b"), _document("c", "d", "n")],
    "scored": [_document("a", "b", finetuner_score=0.25), _document("c", "d", finetuner_score=1)],
}
_AS_DOCUMENTS = {
    "pairs": pairs(("a", "b"), ("c", "d", "n")),
    "scored": scored(("a", "b", 0.25), ("c", "d", 1.0)),
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

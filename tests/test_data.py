import io

import numpy as np
import pytest
from docarray import Document, DocumentArray

from finetuner.csv_file import CSVOptions, read_csv
from finetuner.data import (
    fold,
    from_documents,
    from_rows,
    normalise_label,
    prepare_training,
    read_jsonl,
    write_jsonl,
)
from finetuner.errors import DataError
from finetuner.linked_texts import as_labelled


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        ("1.0", "1"),
        (" 1 ", "1"),
        (True, "1"),
        (np.int64(1), "1"),
        (np.float32(1), "1"),
        (-3.0, "-3"),
        (1.5, "1.5"),
        ("007", "007"),
        ("1.5", "1.5"),
        ("v1.0", "v1.0"),
        ("card_arrival", "card_arrival"),
        ("", None),
        (None, None),
    ],
)
def test_one_form_of_a_label(value, label):
    assert normalise_label(value) == label


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], {"a": 1}])
def test_what_is_no_label(value):
    with pytest.raises(DataError, match="a label must be"):
        normalise_label(value)


@pytest.mark.parametrize(
    ("one", "other", "is_equal"),
    [
        ("A  b\tC\n", "a b c", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("\uff21\uff22\uff23\uff1f", "abc?", True),  # full-width letters and question mark
        ("\ufb01ne", "fine", True),  # a ligature
        ("a\u00a0b", "a b", True),
        ("caf\u00e9", "cafe", False),
        ("learn C++", "learn C", False),
        ("You can come.", "You can come?", False),
        ("Ma\u00dfe", "Masse", False),
    ],
)
def test_when_texts_are_one(one, other, is_equal):
    assert (fold(one) == fold(other)) is is_equal


def pairs(data):
    return list(zip(data.texts, data.labels, strict=True))


def test_rows_in_both_forms():
    data = from_rows([("a", 1), ["b", "x"], {"text": "c", "label": 2.0}, {"text": "d", "id": 5}])
    assert pairs(data) == [("a", "1"), ("b", "x"), ("c", "2"), ("d", None)]
    assert data.ids == [None, None, None, "5"]
    assert len(from_rows([])) == 0
    assert pairs(data.subset([2, 0])) == [("c", "2"), ("a", "1")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a"], r"row 2 must be \[text, label\]"),
        ("ab", r"row 2 must be \[text, label\]"),
        ({"text": "a", "labl": 1}, "row 2 must have the fields text, label"),
        ({"label": 1}, "row 2 must have the fields text, label"),
        ([5, 1], "row 2: the text must be a string"),
        (["\ud800", 1], "row 2: the text holds half a surrogate pair"),
    ],
)
def test_rows_that_are_none(row, message):
    with pytest.raises(DataError, match=message):
        from_rows([("a", 1), row])


def test_documents():
    documents = DocumentArray(
        [Document(id="x", text="a", tags={"finetuner_label": 1}), Document(id="y", text="b")]
    )
    data = from_documents(documents)
    assert (data.texts, data.labels, data.ids) == (["a", "b"], ["1", None], ["x", "y"])
    with pytest.raises(DataError, match="document 1 .* has no text"):
        from_documents(DocumentArray([Document(uri="a.png")]))


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ('text,label\n"a, b",1\nc,1.0\n', {}, [("a, b", "1"), ("c", "1")]),
        ("Label;Text\n1;a, and more\nx;c\n", {}, [("a, and more", "1"), ("c", "x")]),
        ("a\t1\nb\t1\n", {"is_labeled": True}, [("a", "1"), ("b", "1")]),
        ('"he said ""no""",1\n', {"is_labeled": True}, [('he said "no"', "1")]),
        ("a,b\na,c\nd,b\na,d\ne,f\n", {}, [*((t, "0") for t in "abcd"), ("e", "1"), ("f", "1")]),
        ("a,1\nb,2\nc,3\n", {"is_labeled": True, "size": 2}, [("a", "1"), ("b", "2")]),
        ("a\t1\n", {"is_labeled": True, "dialect": "excel-tab"}, [("a", "1")]),
    ],
)
def test_csv_forms(tmp_path, content, options, expected):
    path = tmp_path / "x.csv"
    path.write_text(content, encoding="utf-8")
    for file in (path, str(path), io.StringIO(content)):
        found = as_labelled(read_csv(file, CSVOptions(**options)))
        assert sorted(pairs(found)) == sorted(expected)


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,1\nb,2\n", encoding="utf-8-sig")
    assert pairs(read_csv(path)) == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize("options", [{"size": 3}, {"sampling_rate": 0.25}])
def test_a_sample_is_drawn_below_the_header(options):
    rows = "".join(f"t{i},{i}\n" for i in range(20))
    with_header = read_csv(io.StringIO("text,label\n" + rows), CSVOptions(**options))
    without = read_csv(io.StringIO(rows), CSVOptions(is_labeled=True, **options))
    assert with_header == without
    assert 0 < len(with_header) < 20


def test_csv_sample_is_the_same_each_time():
    content = "".join(f"t{i},{i}\n" for i in range(1000))
    options = CSVOptions(is_labeled=True, sampling_rate=0.25)
    first = pairs(read_csv(io.StringIO(content), options))
    assert 200 < len(first) < 300
    assert pairs(read_csv(io.StringIO(content), options)) == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not exist or is empty"),
        (
            b"a,b\nc,d,e\n",
            r"CSV row 2 \(line 2 of the file\) has 3 columns, 2 are needed; put quotes",
        ),
        (
            b"text,label\na,b\nc\n",
            r"CSV row 2 \(line 3 of the file\) has 1 column, 2 are needed; put quotes",
        ),
        (b"text,label\n", "no row of the CSV is left; it is a header alone"),
        ("é,1\n".encode("latin-1"), "is not utf-8 text .*name its encoding"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_csv(path)
    with pytest.raises(DataError, match="there is no CSV file"):
        read_csv(tmp_path / "none.csv")


def test_jsonl_round_trip(tmp_path):
    data = from_rows([("a\n", 1), {"text": "ü", "label": None, "id": "x"}])
    write_jsonl(data, tmp_path / "x.jsonl")
    assert read_jsonl(tmp_path / "x.jsonl") == data


def test_training_data_are_cleaned_by_the_rules():
    rows = [("A  b", 1), ("a b", "1"), ("c", 1.0), ("d", 2), ("e", 2), ("C ", 2), ("f", 3)]
    prepared = prepare_training(from_rows(rows))

    assert prepared.texts == ["A  b", "d", "e", "f"]
    assert prepared.classes.tolist() == [0, 1, 1, 2]
    assert (prepared.n_repeated, prepared.n_ambiguous, prepared.n_classes) == (1, 1, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the training data are empty"),
        ([("a", 1), (" ", 1)], "1 of 2 training texts have no text: row 2; a header is"),
        (
            [("a", 1), ("b", None), ("c", "")],
            "2 of 3 training texts have no label: row 2",
        ),
        (
            [("a", 1), ("b", 1)],
            "at least two labels; found 2 different texts with 1 labels, 1 of them",
        ),
        ([("a", 1), ("b", 2)], "a label with at least two texts; found 2 .* 0 of them"),
        ([("a", 1), ("a", 2), ("b", 1), ("c", 2)], r"\(1 texts under several labels left out\)"),
    ],
)
def test_what_cannot_train_is_refused_with_the_numbers(rows, message):
    with pytest.raises(DataError, match=message):
        prepare_training(from_rows(rows))

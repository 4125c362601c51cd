"""What is written as CSV is read again, whatever the texts hold."""

import io

import pytest

from finetuner.csv_file import CSVOptions, read_csv, write_csv
from finetuner.errors import DataError, TooLargeError
from finetuner.pairs import read_rows

TEXTS = [
    "plain",
    "commas, and; semicolons\tand | bars",
    'quotes " and "" twice',
    "lines\nof\r\nevery\rkind",
    " spaces around ",
    "ü 漢 \U0001f600 \x00 \ufeff",
    "text,label",
    "'s ;' and ';'",
]
ROWS = {
    "labels": [{"text": text, "label": f"l{i % 3}"} for i, text in enumerate(TEXTS)],
    "no label": [{"text": "a", "label": None}, {"text": "b", "label": "1.5"}],
    "ids": [{"text": "a", "label": "1", "id": "x"}, {"text": "b", "label": "1"}],
    "pairs": [{"anchor": text, "positive": text[::-1]} for text in TEXTS],
    "negatives": [
        {"anchor": "a", "positive": "b", "negative": "c"},
        {"anchor": "d", "positive": "e"},
    ],
    "scores": [
        {"sentence1": text, "sentence2": "b", "score": i / 7} for i, text in enumerate(TEXTS)
    ],
}


def written(data):
    file = io.StringIO(newline="")
    write_csv(data, file)
    return file.getvalue()


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_what_is_written_is_read_again(rows):
    data = read_rows(rows)
    assert [*data.rows()] == rows
    assert read_csv(io.StringIO(written(data), newline="")) == data


def test_the_form_is_plain():
    content = written(read_rows([{"anchor": "a", "positive": 'b "c"', "negative": None}]))
    assert content == '"anchor","positive"\n"a","b ""c"""\n'


@pytest.mark.parametrize("delimiter", ",;\t|")
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_header_says_what_is_between_columns(delimiter, end):
    """The sniffer takes the semicolons of these texts for it, or finds none."""
    rows = [
        "text;label".replace(";", delimiter),
        *(f'"a; b; c, {i}"{delimiter}1' for i in range(9)),
    ]
    data = read_csv(io.StringIO(end.join(rows) + end, newline=""))
    assert (len(data), data.texts[0], set(data.labels)) == (9, "a; b; c, 0", {"1"})


def test_more_rows_than_allowed_are_refused():
    content = "text,label\n" + "a,1\n" * 4
    assert len(read_csv(io.StringIO(content), max_rows=5)) == 4
    with pytest.raises(TooLargeError, match="the CSV has more than 4 rows; store it in parts"):
        read_csv(io.StringIO(content), max_rows=4)


FAQ = [(f"how do I pay {n}", "payment") for n in range(3)] + [
    (f"where is my card {n}", "card") for n in range(3)
]


def guessed(rows, delimiter=","):
    content = "\n".join(delimiter.join(row) for row in rows)
    return read_csv(io.StringIO(content), CSVOptions(is_labeled=None))


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("names", [None, ("Question", "Category"), ("text", "label")])
def test_labels_are_known_by_being_short_and_by_coming_again(names, delimiter):
    data = guessed([names, *FAQ] if names else FAQ, delimiter)
    assert [(row["text"], row["label"]) for row in data.rows()] == FAQ


def test_a_first_row_whose_label_comes_again_is_no_header():
    rows = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")]
    assert [row["text"] for row in guessed(rows).rows()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "rows",
    [
        [(f"question {n}", f"answer {n}") for n in range(6)],
        [(f"question {n}", "an answer " * 9) for n in range(6)],
        [("a", "b")],
        [("a", "b"), ("c", "d")],
    ],
)
def test_other_columns_are_two_texts(rows):
    assert [(row["anchor"], row["positive"]) for row in guessed(rows).rows()] == rows


def test_without_being_asked_nothing_is_guessed():
    content = "\n".join(",".join(row) for row in FAQ)
    assert [*read_csv(io.StringIO(content)).rows()] == [
        {"anchor": text, "positive": label} for text, label in FAQ
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # An empty line and a text of two lines: an editor counts both, a row is neither.
        (
            'text,label\n\n"two\nlines",1\na,b,c\n',
            r"CSV row 2 \(line 5 of the file\) has 3 columns",
        ),
        ("a,b,1\nc,d,x\n", r"CSV row 2 \(line 2 of the file\): the third column must be a number"),
        (
            "sentence1,sentence2,score\na,b,1\nc,d,x\n",
            r"CSV row 2 \(line 3 of the file\): the score must be a number, got `'x'`",
        ),
        ("anchor,positive\na, \n", r"CSV row 1 \(line 2 of the file\) holds an empty text"),
    ],
)
def test_a_message_names_the_row_and_its_line(content, message):
    with pytest.raises(DataError, match=message):
        read_csv(io.StringIO(content))

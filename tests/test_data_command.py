"""The command ``finetuner data``."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from finetuner import data_verbs
from finetuner.cli import app
from finetuner.data_report import data_report
from finetuner.data_routes import add_data_routes
from finetuner.http_messages import add_error_handlers
from finetuner.pairs import read_rows
from finetuner.space import Space

ROWS = [
    *(("boil an egg", 1), ("Boil  an egg", 1), ("eggs, boiled", 1), ("a [b]river[/b]", 2)),
    *(("the river", 2), ("a stream", 2), ("both", 1), ("both", 3), ("alone", 3)),
]


@pytest.fixture(autouse=True)
def _server(connect, tmp_path):
    http = FastAPI()
    add_error_handlers(http)
    add_data_routes(http, Space(tmp_path / "volume"))
    connect(data_verbs, TestClient(http))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.csv"
    lines = [f'"{text}",{label}' for text, label in ROWS]
    path.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments):
    """Return exit code, what was printed, and the errors."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_life_of_a_csv(file, tmp_path):
    code, shown, _ = run("list")
    assert (code, "finetuner data push NAME FILE.csv" in shown) == (0, True)
    code, shown, _ = run("push", "mine/x", file)
    assert (code, shown.startswith("Stored as `mine/x`: 9 documents, ")) == (0, True)
    code, shown, _ = run("list")
    assert [word in shown for word in ("mine/x", "9", "bytes")] == [True] * 3
    (entry,) = json.loads(run("list", "--json")[1])
    assert (entry["name"], entry["n_documents"]) == ("mine/x", 9)

    code, shown, _ = run("pull", "mine/x")
    assert (code, shown.splitlines()[0]) == (0, '"text","label","id"')
    pulled = tmp_path / "y.csv"
    assert run("pull", "mine/x", pulled) == (0, f"9 rows are in {pulled}.\n", "")
    assert pulled.read_text(encoding="utf-8") == shown
    rows = json.loads(run("pull", "mine/x", "--json")[1])
    assert [(row["text"], int(row["label"])) for row in rows] == ROWS

    assert run("delete", "mine/x") == (0, "`mine/x` is deleted.\n", "")
    assert json.loads(run("list", "--json")[1]) == []


def test_check_shows_a_report(file):
    code, shown, errors = run("check", file)
    assert (code, errors) == (0, "")
    lines = [line.rstrip() for line in shown.splitlines()]
    assert lines[0] == "9 rows of labels: 6 different texts, 3 labels"
    assert lines[1] == "characters: half have up to 9, 99 % up to 14, all up to 14"
    cells = [line.split() for line in lines[2:6]]
    assert cells == [
        ["texts", "labels"],
        ["1", "1", "█" * 40],
        ["2", "1", "█" * 40],
        ["3", "to", "4", "1", "█" * 40],
    ]
    assert lines[6:] == [
        "labels of one text alone, to which nothing is drawn: 1",
        "1 repeated, which are left out:",
        "  2 times: boil an egg (1)",
        "1 contradictory, which are left out:",
        "  both (1, 3)",
        "It can be trained on.",
    ]


def test_check_in_json_is_the_report(file):
    code, shown, _ = run("check", file, "--json")
    assert code == 0
    assert json.loads(shown) == {
        "problems": [],
        "train_data": data_report(read_rows(ROWS)).answer(),
    }


def test_bars_are_as_long_as_their_numbers(file):
    rows = [(f"alone {i}", f"a{i}") for i in range(10)]
    rows += [(f"{i} of {label}", f"b{label}") for label in range(3) for i in range(2)]
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    lengths = [line.count("█") for line in run("check", file)[1].splitlines()]
    assert [length for length in lengths if length] == [40, 12]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text,label\na,1\nb,1\n", "training needs at least two labels; found 2 different texts"),
        ("text,label\na,1\n,1\n", "1 of 2 training texts have no text: row 2; a header is"),
        ("anchor,positive\na,b\n", "training needs at least two pairs; found 1 different pairs"),
        ("sentence1,sentence2,score\na,b,1\nc,d,1\n", "all scores are 1: nothing can be learnt"),
    ],
)
def test_check_ends_with_1_when_nothing_can_be_learnt(file, content, problem):
    file.write_text(content)
    code, shown, _ = run("check", file)
    assert (code, f"Problem: {problem}" in shown) == (1, True)
    code, shown, _ = run("check", file, "--json")
    (found,) = json.loads(shown)["problems"]
    assert (code, found["field"], found["message"].startswith(problem)) == (1, "train_data", True)


def test_a_file_without_a_header(file):
    file.write_text("a,1\nb,1\nc,2\n")
    assert "3 rows of pairs" in run("check", file)[1]
    assert "3 rows of labels" in run("check", file, "--labelled")[1]
    run("push", "x", file, "--labelled")
    assert [row["label"] for row in json.loads(run("pull", "x", "--json")[1])] == ["1", "1", "2"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("push", "x", "none.csv"), 1, "there is no CSV file `none.csv`"),
        (("check", "none.csv"), 1, "there is no CSV file `none.csv`"),
        (("check", "."), 1, "there is no CSV file `.`"),
        (("pull", "[b]x"), 2, "the data name `[b]x` is not allowed"),
        (
            ("pull", "x"),
            3,
            "no stored data `x`; stored: none. Store a CSV with `finetuner data push x",
        ),
        (("delete", "x"), 3, "no stored data `x`; stored: none"),
    ],
)
def test_errors_are_sentences(arguments, exit_code, message):
    code, shown, errors = run(*arguments)
    assert (code, shown) == (exit_code, "")
    assert errors.startswith("Error: ")
    assert message in errors


def test_a_file_that_cannot_be_written(file, tmp_path):
    run("push", "x", file)
    code, _, errors = run("pull", "x", tmp_path / "none" / "x.csv")
    assert (code, errors.startswith("Error: ")) == (3, True)

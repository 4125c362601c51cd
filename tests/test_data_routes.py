"""Stored data over HTTP and by the client's verbs."""

import orjson
import pytest
from docarray import Document, DocumentArray
from fastapi import FastAPI
from fastapi.testclient import TestClient

import finetuner
from finetuner import data_routes, data_verbs
from finetuner.audit import AUDIT_FILE
from finetuner.data_report import data_report
from finetuner.data_routes import add_data_routes
from finetuner.datastore import DataStore
from finetuner.errors import DataError, DataNotFoundError
from finetuner.http_api import build_app
from finetuner.http_messages import add_error_handlers
from finetuner.pairs import read_documents
from finetuner.space import Space

CSV = b"text,label\nHow do I boil an egg?,1\nWhat boils eggs best?,1\n"
TYPE = {"Content-Type": "text/csv"}


def client_of(space):
    app = FastAPI()
    add_error_handlers(app)
    add_data_routes(app, space)
    return TestClient(app)


@pytest.fixture
def http(tmp_path):
    return client_of(Space(tmp_path))


def put(http, content, name="quora", content_type="text/csv"):
    return http.put(f"/data/{name}", content=content, headers={"Content-Type": content_type})


@pytest.mark.parametrize(
    ("query", "form"),
    [("", "labels"), ("?is_labeled=true", "labels"), ("?is_labeled=false", "pairs")],
)
def test_columns_without_a_header_are_read_as_told_or_guessed(http, tmp_path, query, form):
    rows = "".join(f"question {n},{'ab'[n % 2]}\n" for n in range(6)).encode()
    put(http, rows, name=f"quora{query}")
    assert data_report(DataStore(tmp_path).texts("quora")).form == form


def test_a_word_that_says_neither_is_refused(http):
    answer = put(http, CSV, name="quora?is_labeled=perhaps")
    assert answer.status_code == 422
    assert "is_labeled must be one of true, 1, false, 0; got `perhaps`" in answer.text


def test_life_of_a_csv(http, tmp_path):
    assert http.get("/data").json() == {"items": []}
    answer = put(http, CSV)
    entry = answer.json()
    assert (answer.status_code, entry["name"], entry["n_documents"]) == (201, "quora", 2)
    assert http.get("/data").json() == {"items": [entry]}
    documents = DocumentArray.load_binary(
        http.get("/data/quora").content, protocol="protobuf", compress="gzip"
    )
    assert [(d.text, d.tags["finetuner_label"]) for d in documents] == [
        ("How do I boil an egg?", "1"),
        ("What boils eggs best?", "1"),
    ]
    assert DataStore(tmp_path).texts("quora").texts == documents.texts
    replaced = put(http, b"anchor,positive\na,b\n").json()
    assert http.get("/data").json() == {"items": [replaced]}
    assert DataStore(tmp_path).texts("quora").positives == ["b"]
    assert http.delete("/data/quora").json() == replaced
    assert http.get("/data").json() == {"items": []}
    assert http.delete("/data/quora").status_code == 404


@pytest.mark.parametrize(
    "content_type",
    ["text/csv", "Text/CSV; charset=UTF-8", 'text/csv;charset="utf-8"; header=present'],
)
def test_types_that_are_taken(http, content_type):
    assert put(http, "text,label\nü,ä\n".encode(), content_type=content_type).status_code == 201


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"", {}, "the CSV file does not exist or is empty"),
        (b"text,label\n", {}, "no row of the CSV is left"),
        (b"text,label\na,1,2\n", {}, "CSV row 1 (line 2 of the file) has 3 columns, 2 are needed"),
        (
            b"text,label\n ,1\n",
            {},
            "row 1, a header not counted, holds an empty text; leave it out",
        ),
        ("text,label\nü,1\n".encode("latin-1"), {}, "the CSV is no UTF-8: 'utf-8' codec"),
        (CSV, {"content_type": "application/json"}, "must be text/csv, in UTF-8, got `applicat"),
        (CSV, {"content_type": ""}, "must be text/csv, in UTF-8, got `none`"),
        (CSV, {"content_type": "text/csv; charset=latin-1"}, "must be text/csv, in UTF-8, got"),
        (CSV, {"name": "../x"}, "the data name `../x` is not allowed"),
        (CSV, {"name": "a/b/c"}, "the data name `a/b/c` is not allowed"),
        (CSV, {"name": "x?y=1"}, "unknown query field `y`"),
    ],
)
def test_what_is_no_csv_is_refused_and_leaves_nothing(http, tmp_path, content, changes, message):
    changes = {**changes, "name": changes.get("name", "x").replace("..", "%2e%2e")}
    answer = put(http, content, **changes)
    assert (answer.status_code, message in answer.json()["detail"]) == (422, True), answer.text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("bound", ["MAX_CSV_BYTES", "MAX_CSV_ROWS"])
def test_what_is_too_large_is_refused(http, monkeypatch, bound):
    monkeypatch.setattr(data_routes, bound, 2)
    answer = put(http, CSV)
    assert (answer.status_code, answer.json()["error"]) == (413, "TooLargeError")
    assert "store it in parts" in answer.json()["detail"]


def test_what_has_no_room_is_refused(tmp_path):
    http = client_of(Space(tmp_path, quota_bytes=1000))
    answer = put(http, CSV)
    assert (answer.status_code, answer.json()["error"]) == (507, "InsufficientSpaceError")
    assert "the upload `quora` needs about" in answer.json()["detail"]
    assert http.get("/data").json() == {"items": []}


def test_what_changes_is_audited(tmp_path):
    http = TestClient(build_app(None, tmp_path))
    put(http, CSV, "a/b")
    put(http, b"", "a/b")
    http.delete("/data/a/b")
    http.get("/data")
    lines = [orjson.loads(line) for line in (tmp_path / AUDIT_FILE).read_bytes().splitlines()]
    assert [(line["action"], line["target"], line["status"]) for line in lines] == [
        ("pushed data", "a/b", 201),
        ("pushed data", "a/b", 422),
        ("deleted data", "a/b", 200),
    ]


DOCUMENTS = DocumentArray(
    [Document(id="d1", text="a\r\nb", tags={"finetuner_label": 1}), Document(id="d2", text="c")]
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([("a", 1), ("b", None)], [{"text": "a", "label": "1"}, {"text": "b", "label": None}]),
        ([{"anchor": "a", "positive": "b"}], [{"anchor": "a", "positive": "b"}]),
        (
            DOCUMENTS,
            [
                {"text": "a\r\nb", "label": "1", "id": "d1"},
                {"text": "c", "label": None, "id": "d2"},
            ],
        ),
    ],
)
def test_verbs_take_and_give_every_form(http, connect, tmp_path, data, expected):
    connect(data_verbs, http)
    entry = finetuner.push_data("mine/x", data)
    assert finetuner.list_data() == [entry]
    pulled = finetuner.pull_data("mine/x")
    stored = [*read_documents(pulled).rows()]
    assert [*DataStore(tmp_path).texts("mine/x").rows()] == stored
    assert [{k: v for k, v in row.items() if k in expected[0]} for row in stored] == expected
    assert finetuner.delete_data("mine/x") == entry
    with pytest.raises(DataNotFoundError, match="no stored data `mine/x`; stored: none"):
        finetuner.pull_data("mine/x")


def test_a_csv_is_pushed_by_its_path(http, connect, tmp_path):
    connect(data_verbs, http)
    path = tmp_path / "x.csv"
    path.write_bytes(CSV)
    assert finetuner.push_data("x", str(path))["n_documents"] == 2
    with pytest.raises(DataError, match=r"there is no CSV file `other\.csv`"):
        finetuner.push_data("x", "other.csv")

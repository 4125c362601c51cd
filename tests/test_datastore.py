import gzip
import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from docarray import Document, DocumentArray

from finetuner.datastore import DataStore, summary_of
from finetuner.errors import ConfigError, DataError, DataNotFoundError, TooLargeError
from finetuner.pairs import read_rows

DOCUMENTS = DocumentArray(
    [Document(id=f"d{i}", text=f"text {i}", tags={"finetuner_label": i % 2}) for i in range(5)]
)


def stream(documents=DOCUMENTS):
    return documents.to_bytes(protocol="protobuf", compress="gzip")


@pytest.fixture
def store(tmp_path):
    return DataStore(tmp_path)


@pytest.mark.parametrize("name", ["quora_train.da", "a", "a/b", "ns/x.y-z_1"])
def test_what_is_put_can_be_got(store, name):
    entry = store.put(name, io.BytesIO(stream()))
    assert (entry.name, entry.n_documents) == (name, 5)
    assert store.get(name) == entry
    assert store.texts(name).texts == DOCUMENTS.texts
    assert store.texts(name).labels == ["0", "1", "0", "1", "0"]
    assert store.texts(name).ids == DOCUMENTS[:, "id"]
    content = store.documents_path(name).read_bytes()
    loaded = DocumentArray.load_binary(content, protocol="protobuf", compress="gzip")
    assert loaded == DOCUMENTS
    assert summary_of(entry)["metaData"]["summary"] == [{"name": "Length", "value": 5}]


def test_names_lie_beside_each_other_and_are_replaced_and_deleted(store):
    for name in ("a", "a/b"):
        store.put(name, io.BytesIO(stream()))
    store.put("a", io.BytesIO(stream(DOCUMENTS[:2])))
    assert [(e.name, e.n_documents) for e in store.list()] == [("a", 2), ("a/b", 5)]
    store.delete("a")
    assert [entry.name for entry in store.list()] == ["a/b"]
    for call in (store.get, store.delete, store.texts, store.documents_path):
        with pytest.raises(DataNotFoundError, match="no stored data `a`; stored: a/b"):
            call("a")


def test_length_depends_on_the_content(store):
    lengths = set()
    for label in range(1, 9):
        documents = DocumentArray([Document(id="a", text="t", tags={"finetuner_label": label})])
        store.put("x", io.BytesIO(stream(documents)))
        lengths.add(store.documents_path("x").stat().st_size)
    assert len(lengths) == 8


@pytest.mark.parametrize(
    "name", ["..", "../x", "/x", "a/b/c", "a/../b", "", ".x", "a\0", "a//b", "a/"]
)
def test_names_cannot_leave_the_store(store, name):
    with pytest.raises(ConfigError, match="the data name .* is not allowed"):
        store.put(name, io.BytesIO(stream()))
    assert store.list() == []


def one_document(body):
    return struct.pack(">BQI", 1, 1, len(body)) + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a DocumentArray as `push` sends it"),
        # Random ids are within: names of tests must be the same each time.
        pytest.param(
            DOCUMENTS.to_bytes(protocol="pickle-array"),
            "pickle and other formats are refused",
            id="pickle",
        ),
        pytest.param(
            DOCUMENTS.to_bytes(protocol="pickle", compress="gzip"),
            "no gzipped protobuf",
            id="gzipped pickle",
        ),
        pytest.param(stream()[:-1], "the upload ends within document 5", id="cut"),
        pytest.param(stream() + b"x", "goes on behind its last document", id="longer"),
        (one_document(b"no gzip"), "document 1 of the upload is no gzipped protobuf"),
        (
            one_document(gzip.compress(b"\xff" * 40, mtime=0)),
            "document 1 of the upload is no gzipped protobuf",
        ),
    ],
)
def test_other_streams_are_refused_and_leave_nothing(store, tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        store.put("x", io.BytesIO(content))
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (one_document(gzip.compress(bytes(65 * 2**20))), "larger than 67108864 bytes"),
        (struct.pack(">BQI", 1, 1, 2**32 - 1) + b"x", "takes 4294967295 bytes, 67108864 are all"),
    ],
)
def test_too_large_streams_are_refused_and_leave_nothing(store, tmp_path, content, message):
    with pytest.raises(TooLargeError, match=message):
        store.put("x", io.BytesIO(content))
    assert list((tmp_path / "data").iterdir()) == []


def test_documents_without_text_are_kept_but_are_no_texts(store):
    store.put("images", io.BytesIO(stream(DocumentArray([Document(uri="a.png")]))))
    assert store.get("images").n_documents == 1
    with pytest.raises(DataError, match="`images` cannot be used as texts: document 1"):
        store.texts("images")


def test_data_of_version_0_1_0_are_read_and_replaced(store, tmp_path):
    """Its files lay where now the folder lies that `entry.json` names."""
    store.put("a", io.BytesIO(stream()))
    folder = tmp_path / "data" / "a"
    upload = store.documents_path("a").parent
    for path in upload.iterdir():
        path.rename(folder / path.name)
    upload.rmdir()
    content = json.loads((folder / "entry.json").read_text())
    del content["folder"]
    (folder / "entry.json").write_text(json.dumps(content))
    assert store.texts("a").texts == DOCUMENTS.texts
    store.put("a", io.BytesIO(stream(DOCUMENTS[:2])))
    assert store.texts("a").texts == DOCUMENTS[:2].texts
    assert len(list(folder.iterdir())) == 2


def test_many_that_push_one_name_at_once(store):
    with ThreadPoolExecutor(8) as pool:
        lengths = [1, 2, 3, 4, 5] * 4
        pushes = [pool.submit(store.put, "a", io.BytesIO(stream(DOCUMENTS[:n]))) for n in lengths]
    assert [push.result().n_documents for push in pushes] == lengths
    assert len(store.texts("a").texts) == store.get("a").n_documents
    assert len(list(store.documents_path("a").parents[1].iterdir())) == 2


TEXTS = {
    "labels": [{"text": "a", "label": "1"}, {"text": "b\n", "label": None}],
    "ids": [{"text": "a", "label": "1", "id": "x"}, {"text": "b", "label": "2", "id": "y"}],
    "pairs": [{"anchor": "a", "positive": "b"}],
    "negatives": [
        {"anchor": "a", "positive": "b", "negative": "c"},
        {"anchor": "d", "positive": "e"},
    ],
    "scores": [{"sentence1": "a", "sentence2": "b", "score": 0.25}],
}


@pytest.mark.parametrize("rows", TEXTS.values(), ids=TEXTS)
def test_texts_lie_as_if_their_documents_had_been_pushed(store, rows):
    texts = read_rows(rows)
    entry = store.put_texts("x", texts)
    assert (entry.n_documents, entry) == (len(rows), store.get("x"))
    content = store.documents_path("x").read_bytes()
    documents = DocumentArray.load_binary(content, protocol="protobuf", compress="gzip")
    pushed = store.put("y", io.BytesIO(stream(documents)))
    assert (pushed.n_documents, pushed.size_bytes) == (entry.n_documents, entry.size_bytes)
    assert store.texts("y") == store.texts("x")
    without_ids = [
        {name: value for name, value in row.items() if name != "id" or "id" in rows[0]}
        for row in store.texts("x").rows()
    ]
    assert without_ids == rows


def test_texts_get_ids_of_their_own(store):
    store.put_texts("x", read_rows([("a", 1), ("b", 1)]))
    assert len(set(store.texts("x").ids) - {None}) == 2


def test_empty_texts_are_not_stored(store, tmp_path):
    with pytest.raises(
        DataError, match="row 2, a header not counted, holds an empty text; leave it out"
    ):
        store.put_texts("x", read_rows([("a", 1), (" ", 1)]))
    assert store.list() == []

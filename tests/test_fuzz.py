"""Bytes that nobody foresaw: real artifacts, streams, messages and bodies, changed at random.

Whatever they are turned into, the readers give a result or an error of our own tree, in time. In the suite a
fixed draw of examples; ``make fuzz`` (``FUZZ_SECONDS``) draws new ones until the time is over.
"""

import copy
import gzip
import io
import json
import os
import struct
import time
import zipfile
from contextlib import contextmanager, suppress

import numpy as np
import orjson
import pytest
from docarray import Document, DocumentArray
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jina.types.request.data import DataRequest

from finetuner.artifact import Manifest, pack, read_manifest, unpacked
from finetuner.datastore import DataStore
from finetuner.encode_parameters import EncodeParameters
from finetuner.errors import FinetunerError
from finetuner.flow_calls import admit, request_for
from finetuner.hardening import harden_docarray
from finetuner.http_api import build_app
from finetuner.message_shape import ShapeLimits, check_shape
from finetuner.request_check import check_request
from finetuner.run_api import RunAPI
from finetuner.run_summary import record_of
from finetuner.schema import read
from finetuner.space import Space
from finetuner.submission import submit
from finetuner.wire import (
    json_document,
    own_parameters,
    pack_vectors,
    read_json_document,
    read_request,
    unpack_request,
)

pytestmark = pytest.mark.slow

_SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
_N_TARGETS = 8
_EXAMPLES = 150
# Generous: another process may hold the cores.
_DEADLINE_MS = 5000

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_place = st.floats(0, 1, exclude_max=True)
_in_place = (
    st.tuples(st.just("set"), _place, st.integers(0, 255)),
    st.tuples(st.just("number"), _place, st.sampled_from(_NUMBERS)),
)
_edits = st.lists(
    st.one_of(
        *_in_place,
        st.tuples(st.just("insert"), _place, st.binary(min_size=1, max_size=12)),
        st.tuples(st.just("delete"), _place, st.integers(1, 40)),
        st.tuples(st.just("repeat"), _place, st.integers(1, 200)),
        st.tuples(st.just("cut"), _place, st.none()),
    ),
    min_size=1,
    max_size=6,
)


# Those that move nothing: a zip and a message hold where their parts lie.
_small_edits = st.lists(st.one_of(*_in_place), min_size=1, max_size=2)


def changed(content, edits):
    """Return bytes with some edits made to them."""
    content = bytearray(content)
    for kind, share, value in edits:
        place = int(share * len(content))
        if kind == "set" and content:
            content[place] = value
        elif kind == "number":
            content[place : place + 4] = struct.pack("<I", value)
        elif kind == "insert":
            content[place:place] = value
        elif kind == "delete":
            del content[place : place + value]
        elif kind == "repeat":
            content[place:place] = content[place : place + value]
        elif kind == "cut":
            del content[place:]
    return bytes(content)


_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "../x", "/", "\0", "cpu", "cuda", "1e400", "tiny"]),
)
_values = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
# Changes of a JSON object: some of its fields, by number, get another value.
_fields = st.lists(st.tuples(st.integers(0, 100), _values), min_size=1, max_size=3)


def with_fields(value, fields):
    """Return a JSON object with other values in some places, at any depth."""
    value = copy.deepcopy(value)
    for number, new in fields:
        places = _places(value)
        container, key = places[number % len(places)]
        container[key] = new
    return _as_json(value)


def _places(value):
    if isinstance(value, dict):
        found = [(value, key) for key in value]
    elif isinstance(value, list):
        found = [(value, index) for index in range(len(value))]
    else:
        return []
    return found + [place for container, key in list(found) for place in _places(container[key])]


def _as_json(value):
    """JSON as other writers make it: with NaN, long numbers and lone surrogates."""
    return json.dumps(value).encode()


@contextmanager
def foreseen():
    """Pass over an error of our own tree; each says something."""
    try:
        yield
    except FinetunerError as error:
        if not str(error):
            raise


def fuzz(strategy, check):
    """Draw examples for a check: once in the suite, anew until the time is over when that is set."""
    until = time.monotonic() + _SECONDS / _N_TARGETS
    while True:
        drawn = settings(
            max_examples=_EXAMPLES if not _SECONDS else 500,
            deadline=_DEADLINE_MS,
            derandomize=not _SECONDS,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(given(strategy)(check))
        drawn()
        if time.monotonic() > until:
            return


def test_artifacts(tmp_path):
    manifest = Manifest(
        run_name="r",
        model="tiny",
        dim=2,
        pooler="mean",
        normalize=True,
        max_length=8,
        input_names=("input_ids",),
        metrics={"after": {"hit_at_k": 1.0}},
        has_onnx=False,
        created_at="2026-01-01T00:00:00+00:00",
    )
    folder = tmp_path / "folder"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 2)
    pack(folder, tmp_path / "r.zip", manifest=manifest)
    stored = (tmp_path / "r.zip").read_bytes()
    deflated = io.BytesIO()
    with (
        zipfile.ZipFile(tmp_path / "r.zip") as source,
        zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        members = {name: source.read(name) for name in source.namelist()}
        for name, content in members.items():
            archive.writestr(name, content)
    written = orjson.loads(members["r/manifest.json"])

    def check(example):
        content, fields = example
        if fields is not None:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for name, member in members.items():
                    is_manifest = name.endswith("manifest.json")
                    archive.writestr(name, with_fields(written, fields) if is_manifest else member)
            content = buffer.getvalue()
        path = tmp_path / "r.zip"
        path.write_bytes(content)
        for read_it in (_unpack, read_manifest):
            with foreseen():
                read_it(path)
        assert {p.name for p in tmp_path.iterdir()} == {"folder", "r.zip"}

    bases = st.sampled_from([stored, deflated.getvalue()])
    fuzz(
        st.one_of(
            st.tuples(st.builds(changed, bases, _edits), st.none()),
            st.tuples(st.builds(changed, bases, _small_edits), st.none()),
            st.tuples(st.just(b""), _fields),
        ),
        check,
    )


def _unpack(path):
    with unpacked(path):
        pass


def _documents():
    pair = Document(id="p", chunks=[Document(text="a"), Document(text="b")])
    pair.tags["finetuner_score"] = 0.5
    labelled = Document(id="d", text="text", tags={"finetuner_label": "x", "more": {"a": [1]}})
    vector = Document(text="v", embedding=np.arange(3, dtype=np.float32))
    return DocumentArray([labelled, pair, vector])


def _stream(bodies):
    parts = [struct.pack(">BQ", 1, len(bodies))]
    return b"".join([*parts, *(struct.pack(">I", len(body)) + body for body in bodies)])


def test_streams_of_documents(tmp_path):
    documents = _documents()
    plain = [document.to_protobuf().SerializeToString() for document in documents]
    whole = documents.to_bytes(protocol="protobuf", compress="gzip")
    store = DataStore(tmp_path)

    def check(content):
        with foreseen():
            store.put("x", io.BytesIO(content))
            store.texts("x")
        assert {p.name for p in (tmp_path / "data").iterdir()} <= {"x", ".lock"}

    def within(number, edits):
        bodies = [changed(b, edits) if i == number else b for i, b in enumerate(plain)]
        return _stream([gzip.compress(body) for body in bodies])

    fuzz(
        st.one_of(
            st.builds(changed, st.just(whole), _edits),
            st.builds(changed, st.just(whole), _small_edits),
            st.builds(within, st.integers(0, 2), _edits),
            st.builds(lambda body: _stream([gzip.compress(body)]), st.binary(max_size=200)),
        ),
        check,
    )


@pytest.fixture
def _hardened(monkeypatch):
    import docarray.array.mixins.io.binary as arrays
    import docarray.document.mixins.porting as documents
    import docarray.proto.io as messages

    for module, name in ((arrays, "pickle"), (documents, "pickle"), (messages, "read_ndarray")):
        monkeypatch.setattr(module, name, getattr(module, name))
    harden_docarray()


@pytest.mark.usefixtures("_hardened")
def test_requests_over_grpc(tmp_path):
    """The gateway's reading; an executor's may fail as it likes, before ours is called."""
    requests = [
        request_for("/encode", _documents(), {"artifact": "r", "batch_size": 3}),
        request_for("/fit", json_document({"model": "tiny"}), {}),
    ]
    wires = [request.proto.SerializeToString() for request in requests]
    descriptor = requests[0].proto.DESCRIPTOR
    api = RunAPI(tmp_path, None)

    def check(content):
        request = DataRequest(content)
        documents = None
        with foreseen():
            check_shape(content, descriptor, limits=ShapeLimits(free_bytes=0))
            admit(request, {"/encode", "/fit"})
            with suppress(Exception):  # Jina answers with it; it has no kind of its own
                documents = request.docs
        if documents is None:
            return
        for read_it in (read_request, lambda d, p: api.request_of(d, own_parameters(p))):
            with foreseen():
                read_it(documents, request.parameters)

    edits = st.one_of(_edits, _small_edits)
    fuzz(st.builds(changed, st.sampled_from(wires), edits), check)


ROWS = [["a", 1], ["b", 1], ["c", 2], ["d", 2]]
BODIES = {
    "/fit": {
        "model": "tiny",
        "train_data": ROWS,
        "epochs": 1,
        "device": "cpu",
        "loss": "SupConLoss",
        "loss_options": {"temperature": 0.05},
        "model_options": {"max_length": 16, "pooler": "mean"},
        "dimensions": [8],
        "val_split": 0.0,
        "callbacks": [{"name": "EvaluationCallback", "options": {"query_data": ROWS}}],
    },
    "/check": {
        "model": "tiny",
        "train_data": [{"anchor": f"a{i}", "positive": f"b{i}"} for i in range(6)],
        "loss": "MultipleNegativesRankingLoss",
        "learning_rate": 1e-4,
        "idempotency_key": "k",
        "callbacks": [{"name": "EvaluationCallback", "options": {"hold_out": 0.4}}],
    },
    "/encode": {"data": [{"text": "a"}], "parameters": {"artifact": "r", "dimensions": 2}},
    "/v1/embeddings": {"model": "r", "input": ["a", "b"], "encoding_format": "base64"},
    "/similarity": {"pairs": [["a", "b"]], "parameters": {"artifact": "r"}},
    "/rank": {"query": "a", "documents": ["b"], "parameters": {"artifact": "r"}},
    "/tokenize": {"data": [{"text": "a"}], "parameters": {"artifact": "r"}},
}


@pytest.fixture
def client(tmp_path, tiny_model_folder):
    """The HTTP side; behind it what the executors do with a request before they train or embed."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)

    async def call(endpoint, documents, parameters):
        if endpoint == "/fit":
            run = submit(read_json_document(documents), tmp_path)
            return json_document({**record_of(run), "is_new": True})
        if endpoint == "/check":
            return json_document(check_request(read_json_document(documents), Space(tmp_path)))
        return json_document({"items": [{}], "text": "", "offset": 0, "ended": True})

    async def encode(request):
        texts, given_ = unpack_request(request)
        asked = read(EncodeParameters, given_, "parameters")
        width = asked.dimensions or 4
        vectors = np.ones((len(texts), min(width, 4)), dtype=np.float32)
        said = {"artifact": "r", "artifact_id": "i", "digest": "d", "backend": "torch"}
        said |= {"precision": "fp32", "dtype": "float32", "dim": 4, "n_tokens": len(texts)}
        return pack_vectors(vectors, said)

    return TestClient(build_app(call, tmp_path, encode=encode))


def _post(client, path, content, headers=None):
    """An error that nobody foresaw is raised here."""
    answer = client.post(path, content=content, headers=headers)
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]


def test_bodies_with_other_bytes(client):
    examples = st.sampled_from([(path, _as_json(body)) for path, body in BODIES.items()])

    def check(example):
        (path, content), edits = example
        _post(client, path, changed(content, edits))

    fuzz(st.tuples(examples, _edits), check)


def test_bodies_with_other_values(client):
    def check(example):
        path, fields = example
        _post(client, path, with_fields(BODIES[path], fields))

    fuzz(st.tuples(st.sampled_from(list(BODIES)), _fields), check)


def test_forms(client):
    parts = (
        b'--zz\r\ncontent-disposition: form-data; name="name"\r\n\r\nx.da\r\n',
        b'--zz\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n',
        _documents().to_bytes(protocol="protobuf", compress="gzip") + b"\r\n--zz--\r\n",
    )
    headers = {"content-type": "multipart/form-data; boundary=zz"}
    paths = st.sampled_from(["/v2/rpc/artifact.upload", "/v2/rpc/artifact.delete"])

    def check(example):
        path, edits = example
        _post(client, path, changed(b"".join(parts), edits), headers)

    fuzz(st.tuples(paths, _edits), check)


def test_csvs(client):
    contents = (
        'text,label\n"a, b",1\nc,1.0\n\nü,2\n',
        "anchor;positive;negative\na;b;c\nd;e;\n",
        "sentence1\tsentence2\tscore\na\tb\t0.5\n",
    )
    headers = {"content-type": "text/csv"}

    def check(example):
        content, edits = example
        answer = client.put("/data/x", content=changed(content.encode(), edits), headers=headers)
        assert answer.status_code in (201, 413, 422), answer.text

    fuzz(st.tuples(st.sampled_from(contents), _edits), check)


def test_addresses(client):
    paths = ["/runs/r/logs", "/runs?page=1&size=2", "/data/x", "/experiments/e", "/aliases/a"]
    characters = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#")

    def check(example):
        path, method, (place, more), host = example
        address = path[:place] + more + path[place:]
        answer = client.request(method, "/" + address.lstrip("/"), headers={"host": host})
        assert answer.status_code < 500 or answer.status_code == 503, answer.text

    extra = st.tuples(st.integers(0, 20), st.text(characters, min_size=1, max_size=10))
    methods, hosts = st.sampled_from(["GET", "DELETE"]), st.text(characters, max_size=10)
    fuzz(st.tuples(st.sampled_from(paths), methods, extra, hosts), check)

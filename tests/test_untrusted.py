"""What strangers send: no pickle is loaded, no code is run, nothing grows without a bound."""

import ast
import asyncio
import gzip
import io
import pickle
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from docarray import Document, DocumentArray
from docarray.proto.docarray_pb2 import DocumentProto
from fastapi.testclient import TestClient
from jina.proto.jina_pb2 import DataRequestProto
from jina.types.request.data import DataRequest

from finetuner.artifact import read_manifest, unpacked
from finetuner.datastore import DataStore
from finetuner.document_stream import StreamLimits, read_documents
from finetuner.errors import (
    CorruptedArtifact,
    DataError,
    FinetunerError,
    MalformedRequestError,
    ModelNotFoundError,
    TooLargeError,
)
from finetuner.files import write_json
from finetuner.flow_calls import check_size
from finetuner.hardening import harden_docarray
from finetuner.http_api import build_app
from finetuner.message_shape import ShapeLimits, check_shape
from finetuner.models import load_model
from finetuner.zip_reader import ZipLimits, extract, read_member

_ROOT = Path(__file__).parents[1]
_SOURCES = [
    path
    for folder in ("finetuner", "executors", "benchmarks", "examples")
    for path in sorted((_ROOT / folder).rglob("*.py"))
]


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path):
    """A file that no reader may make."""
    path = tmp_path / "the canary sang"
    pickle.loads(pickle.dumps(Canary(path)))
    assert path.exists(), "the canary itself must work"
    path.unlink()
    yield path
    assert not path.exists(), "a pickle was loaded"


# -- the sources


def _is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def _forbidden(call):
    """Return why a call is forbidden, or None."""
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    rules = (
        (name in ("eval", "exec", "compile", "__import__"), "code from text"),
        (
            name.partition(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "marshal"),
            "pickle",
        ),
        (name == "torch.load" and not _is_constant(given.get("weights_only"), True), "torch.load"),
        (
            "allow_pickle" in given and not _is_constant(given["allow_pickle"], False),
            "allow_pickle",
        ),
        (name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), "yaml.load"),
        ("shell" in given and not _is_constant(given["shell"], False), "a shell"),
        (name in ("os.system", "os.popen", "subprocess.getoutput"), "a shell"),
        (
            "trust_remote_code" in given and not _is_constant(given["trust_remote_code"], False),
            "code of models",
        ),
        (
            name.startswith("Auto")
            and name.endswith(".from_pretrained")
            and "trust_remote_code" not in given,
            "code of models unless told otherwise",
        ),
        (
            name.rpartition(".")[2] in ("from_bytes", "load_binary", "from_base64")
            and not name.startswith("int.")
            and "protocol" not in given,
            "docarray's default, pickle",
        ),
        (name in ("DocumentArray.load", "zipfile.ZipFile.extractall"), "unbounded"),
    )
    return next((reason for is_so, reason in rules if is_so), None)


def _forbidden_calls(source):
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [(call.lineno, reason) for call in calls if (reason := _forbidden(call))]


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: path.relative_to(_ROOT).as_posix())
def test_no_source_calls_what_runs_strangers_code(path):
    assert _forbidden_calls(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "pickle.loads(x)",
        "pickle.load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=flag)",
        "eval(x)",
        "exec(x)",
        "yaml.load(x, Loader=y)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "AutoModel.from_pretrained(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "DocumentArray.from_bytes(x)",
        "DocumentArray.load_binary(x)",
    ],
)
def test_each_forbidden_call_is_seen(source):
    assert len(_forbidden_calls(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(x, weights_only=True)",
        "np.load(x)",
        "model.eval()",
        "yaml.safe_load(x)",
        "int.from_bytes(x, 'big')",
        "subprocess.run(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=False)",
    ],
)
def test_the_safe_forms_are_let_be(source):
    assert _forbidden_calls(source) == []


# -- zips


def _zip(path, *members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def _patched(path, place, value, *, header=b"PK\x01\x02"):
    """Change a number in the header of the first member."""
    content = bytearray(path.read_bytes())
    start = content.find(header) + place
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


def _refused(path, error, message, limits=None):
    target = path.parent / "unpacked"
    target.mkdir()
    with pytest.raises(error, match=message):
        extract(path, target, limits=limits or ZipLimits())
    outside = {p.name for p in path.parent.iterdir()} - {path.name, "unpacked"}
    assert outside == set()


def _info(name, mode=0, method=zipfile.ZIP_STORED):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = method
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../x", "outside the zip's folder"),
        ("a/../../x", "outside the zip's folder"),
        ("a/..", "outside the zip's folder"),
        ("/etc/x", "outside the zip's folder"),
        ("//x", "outside the zip's folder"),
        ("a\\..\\x", "a backslash, a colon or a control character"),
        ("C:/x", "a backslash, a colon or a control character"),
        ("a\nb", "a backslash, a colon or a control character"),
        ("a//b", "not in its shortest form"),
        ("./a", "not in its shortest form"),
        (_info("a", stat.S_IFLNK | 0o777), "a link or a special file"),
        (_info("a", stat.S_IFIFO), "a link or a special file"),
        (_info("a", stat.S_IFCHR), "a link or a special file"),
        (_info("a", stat.S_IFSOCK), "a link or a special file"),
        (_info("a", method=zipfile.ZIP_LZMA), "neither stored nor deflated"),
        (_info("a", method=zipfile.ZIP_BZIP2), "neither stored nor deflated"),
    ],
)
def test_zips_hold_plain_files_inside_them(tmp_path, member, reason):
    path = _zip(tmp_path / "x.zip", ("good", b"x"), (member, b"target"))
    _refused(path, CorruptedArtifact, f"`x.zip` holds the unsafe member .*: .*{reason}")


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    path = _zip(tmp_path / "x.zip", ("abcd", b"x"))
    path.write_bytes(path.read_bytes().replace(b"abcd", b"ab\0d"))
    _refused(path, CorruptedArtifact, "a control character")


def test_an_encrypted_member_is_refused(tmp_path):
    path = _patched(_zip(tmp_path / "x.zip", ("a", b"x")), 8, b"\x01\x00")
    _refused(path, CorruptedArtifact, "unsafe member `a`: it is encrypted")


def test_a_name_may_come_once(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = _zip(tmp_path / "x.zip", ("a", b"1"), ("a", b"2"))
    _refused(path, CorruptedArtifact, "`x.zip` holds `a` twice")


def test_a_file_where_a_folder_is_needed(tmp_path):
    path = _zip(tmp_path / "x.zip", ("a", b"1"), ("a/b", b"2"))
    _refused(path, CorruptedArtifact, "is not a zip file, or is damaged")


def test_a_bomb_is_refused_by_its_ratio_before_it_is_unpacked(tmp_path):
    path = _zip(tmp_path / "x.zip", ("a", bytes(50 * 2**20)))
    assert path.stat().st_size < 60_000
    _refused(path, TooLargeError, r"`a` of `x.zip` grows from [0-9]+ bytes to 52428800, 100 times")
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_small_files_may_pack_well(tmp_path):
    path = _zip(tmp_path / "x.zip", ("a", bytes(2**20)))
    extract(path, tmp_path, limits=ZipLimits())
    assert (tmp_path / "a").read_bytes() == bytes(2**20)


def test_a_header_that_says_less_gives_no_more_than_it_says(tmp_path):
    path = _zip(tmp_path / "x.zip", ("a", bytes(10 * 2**20)))
    path = _patched(path, 24, struct.pack("<I", 1000))
    _refused(path, CorruptedArtifact, "is damaged: Bad CRC-32")
    assert (tmp_path / "unpacked" / "a").stat().st_size <= 1000


def test_a_header_that_says_more_than_there_is(tmp_path):
    path = _zip(tmp_path / "x.zip", ("a", b"abc"))
    path = _patched(path, 24, struct.pack("<I", 1000))
    _refused(path, CorruptedArtifact, "`a` has 3 bytes, and the zip's header says 1000")


def test_bytes_are_counted_while_they_are_read(tmp_path, monkeypatch):
    path = _zip(tmp_path / "x.zip", ("a", b"x" * 5000))
    monkeypatch.setattr("finetuner.zip_reader._check_sizes", lambda *_: None)
    _refused(path, TooLargeError, "more than the 4999 bytes", ZipLimits(size_bytes=4999))


def test_the_limit_is_of_all_members_together(tmp_path):
    path = _zip(tmp_path / "x.zip", *((f"{i}", b"x" * 1000) for i in range(5)))
    _refused(path, TooLargeError, "holds 5000 bytes, 4999 are", ZipLimits(size_bytes=4999))


def test_members_that_lie_over_each_other(tmp_path):
    path = _zip(tmp_path / "x.zip", *((f"{i}", b"x" * 1000) for i in range(3)), compression=0)
    content = path.read_bytes()
    first = content.find(b"PK\x01\x02")
    second = content.find(b"PK\x01\x02", first + 4)
    entry = content[first:second]
    many = content[:first] + b"".join(entry.replace(b"0", b"%d" % i) for i in range(9))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, 9 * len(entry), first, 0)
    path.write_bytes(many + end)
    _refused(path, CorruptedArtifact, "lie over each other")


def test_a_directory_of_very_many_members_is_not_read(tmp_path):
    path = tmp_path / "x.zip"
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**26, 0, 0)
    path.write_bytes(bytes(2**26) + end)
    tracemalloc.start()
    _refused(path, TooLargeError, "the zip's directory has 67108864 bytes, 1048576 are allowed")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_too_many_members(tmp_path):
    path = _zip(tmp_path / "x.zip", *((f"{i}", b"") for i in range(201)))
    _refused(path, TooLargeError, "`x.zip` holds 201 files, 200 are allowed")


def test_a_large_stored_file_is_within_the_limits(tmp_path):
    path = tmp_path / "x.zip"
    block = np.random.default_rng(0).bytes(2**20)
    with zipfile.ZipFile(path, "w") as archive, archive.open("w", "w", force_zip64=True) as file:
        for _ in range(64):
            file.write(block)
    tracemalloc.start()
    extract(path, tmp_path, limits=ZipLimits())
    assert tracemalloc.get_traced_memory()[1] < 2**24, "files must be copied in parts"
    tracemalloc.stop()
    assert (tmp_path / "w").stat().st_size == 64 * 2**20


def test_a_lone_member_has_a_bound(tmp_path):
    path = _zip(tmp_path / "x.zip", ("x/manifest.json", b" " * 2000), compression=0)
    with pytest.raises(TooLargeError, match="more than the 1999 bytes"):
        read_member(path, "x/manifest.json", limits=ZipLimits(free_bytes=1999))
    with pytest.raises(CorruptedArtifact, match="`x.zip` holds no `y`"):
        read_member(path, "y", limits=ZipLimits())


def test_a_full_disk_is_not_a_damaged_zip(tmp_path):
    path = _zip(tmp_path / "x.zip", ("a", bytes(2**20)))
    (tmp_path / "a").symlink_to("/dev/full")
    with pytest.raises(CorruptedArtifact, match="File exists"):
        extract(path, tmp_path, limits=ZipLimits())

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    path_open = Path.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda p, mode: Full() if mode == "xb" else path_open(p, mode))
        with pytest.raises(OSError, match="No space left"):
            extract(path, tmp_path, limits=ZipLimits())


def test_a_manifest_that_never_ends_is_not_read(tmp_path):
    path = _zip(tmp_path / "r.zip", ("r/manifest.json", b" " * (17 * 2**20)))
    with pytest.raises(CorruptedArtifact, match="no readable manifest.json"):
        read_manifest(path)


# -- pickles in artifacts and model folders


def _pickled_weights(folder, canary):
    torch.save({"weight": Canary(canary)}, folder / "pytorch_model.bin")


def _as_artifact(run, change):
    """Unpack a run's artifact, change its folder, and pack it as `pack` does."""
    from finetuner.artifact import pack

    folder = run.artifact_path.parent / "changed"
    with unpacked(run.artifact_path) as (files, manifest):
        folder.mkdir()
        for path in files.iterdir():
            path.rename(folder / path.name)
    change(folder)
    pack(folder, run.artifact_path, manifest=manifest)


@pytest.mark.parametrize("is_alone", [True, False])
def test_an_artifact_with_pickled_weights_is_refused(publish_run, tmp_path, canary, is_alone):
    from finetuner.encoder import load_encoder

    run = publish_run(tmp_path, "r")

    def change(folder):
        _pickled_weights(folder, canary)
        if is_alone:
            (folder / "model.safetensors").unlink()

    _as_artifact(run, change)
    with pytest.raises(CorruptedArtifact, match="holds `pytorch_model.bin`: pickles and code"):
        load_encoder(run.artifact_path)


@pytest.mark.parametrize("name", ["x.pkl", "a/x.PT", "modeling_x.py", "x.joblib", "x.npy"])
def test_an_artifact_holds_neither_pickles_nor_code(publish_run, tmp_path, canary, name):
    run = publish_run(tmp_path, "r")

    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))

    _as_artifact(run, change)
    with pytest.raises(CorruptedArtifact, match=f"holds `{name}`"), unpacked(run.artifact_path):
        pass


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../x"])
def test_a_manifest_names_only_what_is_inside(publish_run, tmp_path, name):
    run = publish_run(tmp_path, "r")
    with unpacked(run.artifact_path) as (folder, _):
        import orjson

        content = orjson.loads((folder / "manifest.json").read_bytes())
        write_json(folder / "manifest.json", {**content, "files": {name: "0" * 64}})
        with pytest.raises(CorruptedArtifact, match="lies outside it"), unpacked(folder):
            pass


@pytest.fixture
def model_folder(tiny_model_folder, tmp_path):
    import shutil

    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))


def test_a_model_folder_with_pickled_weights_alone_is_refused(model_folder, canary):
    (model_folder / "model.safetensors").unlink()
    _pickled_weights(model_folder, canary)
    with pytest.raises(ModelNotFoundError, match="holds no model.safetensors, and pytorch_model"):
        load_model(model_folder)


def test_pickled_weights_beside_others_are_passed_over(model_folder, canary):
    _pickled_weights(model_folder, canary)
    assert load_model(model_folder).model.dim == 32


def test_an_adapter_in_a_model_folder_is_refused(model_folder, canary):
    torch.save({"weight": Canary(canary)}, model_folder / "adapter_model.bin")
    adapter = {"base_model_name_or_path": "someone/else", "peft_type": "LORA"}
    write_json(model_folder / "adapter_config.json", adapter)
    with pytest.raises(ModelNotFoundError, match="merge it into the model first"):
        load_model(model_folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_is_not_run(model_folder, canary, file):
    import orjson

    code = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
    (model_folder / "evil.py").write_text(code)
    names = ("AutoConfig", "AutoModel", "AutoTokenizer")
    auto_map = {name: "evil.Evil" for name in names} | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    content = orjson.loads((model_folder / file).read_bytes())
    write_json(model_folder / file, {**content, "model_type": "evil", "auto_map": auto_map})
    try:
        load_model(model_folder)
    except FinetunerError as error:
        assert "cannot be loaded" in str(error)  # noqa: PT017 - a tokenizer's may be passed over


@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_graph_reads_no_file_outside_its_folder(tmp_path, is_absolute):
    """onnxruntime sees to it; should it ever stop to, artifacts must be checked here."""
    onnxruntime = pytest.importorskip("onnxruntime")
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    location = str(tmp_path / "secret") if is_absolute else "../secret"
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    result = onnx.helper.make_tensor_value_info("y", 1, [4])
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [result], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    path = tmp_path / "model" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match="External data path validation failed"):
        onnxruntime.InferenceSession(str(path))


# -- stored data


def _stream(*bodies, n_documents=None):
    parts = [struct.pack(">BQ", 1, n_documents or len(bodies))]
    parts += [struct.pack(">I", len(body)) + body for body in bodies]
    return b"".join(parts)


def _packed(document):
    return gzip.compress(document.SerializeToString())


def _read(tmp_path, content, **limits):
    (tmp_path / "stream").write_bytes(content)
    return list(read_documents(tmp_path / "stream", limits=StreamLimits(**limits)))


@pytest.mark.parametrize("compress", [None, "gzip", "bz2", "lzma"])
@pytest.mark.parametrize("protocol", ["pickle", "pickle-array"])
def test_a_pickle_is_no_stored_data(tmp_path, canary, protocol, compress):
    documents = DocumentArray([Document(text="a")])
    documents[0].tags["x"] = Canary(canary)
    content = documents.to_bytes(protocol=protocol, compress=compress)
    with pytest.raises(FinetunerError, match="the upload"):
        DataStore(tmp_path).put("x", io.BytesIO(content))


@pytest.mark.parametrize("wrap", [lambda b: b, gzip.compress, lambda b: _stream(gzip.compress(b))])
def test_a_bare_pickle_is_no_stored_data(tmp_path, canary, wrap):
    content = wrap(pickle.dumps(Canary(canary)))
    with pytest.raises(DataError, match="the upload"):
        DataStore(tmp_path).put("x", io.BytesIO(content))


def test_what_is_kept_of_documents(tmp_path):
    chunk = DocumentProto(id="c", text="chunk", uri="x", chunks=[DocumentProto(text="deep")])
    message = DocumentProto(id="d", text="text", uri="file:///etc/passwd")
    message.chunks.append(chunk)
    message.matches.append(chunk)
    message.tags.update({"finetuner_label": "l"})
    message.embedding.dense.shape.extend([2**31, 2**31])
    message.embedding.cls_name = "list"
    (document,) = _read(tmp_path, _stream(_packed(message)))
    assert (document.id, document.text, document.tags) == ("d", "text", {"finetuner_label": "l"})
    assert (document.embedding, document.uri, document.blob) == (None, "", b"")
    assert len(document.matches) == 0
    assert [(c.text, len(c.chunks)) for c in document.chunks] == [("chunk", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack(">BQ", 1, 2**64 - 1), "the upload ends within document 1"),
        (_stream(n_documents=1) + b"\0\0", "the upload ends within document 1"),
        (_stream(b""), "the upload ends within document 1"),
        (_stream(gzip.compress(b"x", mtime=0)[:-1]), "its gzip is cut short"),
        (_stream(gzip.compress(b"", mtime=0) + b"more"), "goes on behind its end"),
        (
            _stream(gzip.compress(b"", mtime=0) + gzip.compress(b"", mtime=0)),
            "goes on behind its end",
        ),
        (struct.pack(">BQ", 2, 0), "not a DocumentArray"),
    ],
)
def test_streams_that_are_cut_or_go_on(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        _read(tmp_path, content)


def _nested(n_levels):
    content = b""
    for _ in range(n_levels):
        size, length = len(content), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        content = b"\x72" + bytes([*length, size]) + content  # chunks
    return content


def test_nesting_has_a_bound(tmp_path):
    with pytest.raises(FinetunerError, match="document 1 of the upload"):
        _read(tmp_path, _stream(gzip.compress(_nested(5000))))
    _read(tmp_path, _stream(gzip.compress(_nested(30))))


def test_a_gzip_bomb_costs_no_memory(tmp_path):
    bomb = gzip.compress(bytes(2**27))
    tracemalloc.start()
    with pytest.raises(TooLargeError, match="document 1 of the upload: it is larger than 1048576"):
        _read(tmp_path, _stream(bomb), document_bytes=2**20)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_many_small_gzip_bombs_are_counted_together(tmp_path):
    body = _packed(DocumentProto(blob=bytes(2**20)))
    with pytest.raises(TooLargeError, match="document [0-9]+ .* by what they took packed"):
        _read(tmp_path, _stream(*[body] * 20), free_bytes=2**22)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"n_texts": 5}, "holds 6 documents and chunks or more, 5 are allowed"),
        ({"kept_bytes": 100}, "bytes of texts and tags or more, 100 are allowed"),
    ],
)
def test_texts_are_counted(tmp_path, limits, message):
    pair = DocumentProto(text="a" * 50, chunks=[DocumentProto(text="b")] * 2)
    with pytest.raises(TooLargeError, match=message):
        _read(tmp_path, _stream(_packed(pair), _packed(pair)), **limits)


def test_two_bytes_a_document_do_not_fill_the_memory(tmp_path):
    chunks = gzip.compress(b"\x72\x00" * 250_000)
    with pytest.raises(TooLargeError, match="holds more than 200000 values"):
        _read(tmp_path, _stream(chunks))


# -- messages


def test_values_are_counted_at_all_levels():
    message = DocumentProto(chunks=[DocumentProto(text="a", id="b")] * 10)
    content = message.SerializeToString()
    limits = {"free_bytes": 0, "depth": 2}
    check_shape(content, DocumentProto.DESCRIPTOR, limits=ShapeLimits(n_values=30, **limits))
    with pytest.raises(TooLargeError, match="more than 29 values"):
        check_shape(content, DocumentProto.DESCRIPTOR, limits=ShapeLimits(n_values=29, **limits))
    with pytest.raises(TooLargeError, match="deeper than 1 level"):
        check_shape(content, DocumentProto.DESCRIPTOR, limits=ShapeLimits(free_bytes=0, depth=1))


def test_all_kinds_of_values_are_passed_over():
    message = DocumentProto(weight=1.5, granularity=300, blob=b"x" * 300, location=[1.0, 2.0])
    message.tags.update({"a": {"b": [1, None, True]}})
    message.scores["s"].value = 2.0
    check_shape(
        message.SerializeToString(), DocumentProto.DESCRIPTOR, limits=ShapeLimits(free_bytes=0)
    )


@pytest.mark.parametrize("content", [b"\x0a\x05abc", b"\x0b", b"\xff" * 20, b"\x09abc", b"\x08"])
def test_what_is_no_message(content):
    with pytest.raises(DataError, match="the bytes are no protobuf message"):
        check_shape(content, DocumentProto.DESCRIPTOR, limits=ShapeLimits(free_bytes=0))


def _request(n_documents):
    request = DataRequestProto()
    request.header.exec_endpoint = "/encode"
    request.data.docs.docs.extend([DocumentProto()] * n_documents)
    return DataRequest(request.SerializeToString())


def test_a_request_of_empty_documents_is_refused_before_it_is_read():
    request = _request(1_000_001)
    with pytest.raises(TooLargeError, match="more than 1000000 values; send fewer documents"):
        asyncio.run(check_size(request))
    assert not request.is_decompressed


@pytest.mark.parametrize("n_documents", [1, 200_000])
def test_other_requests_pass_unread(n_documents):
    request = _request(n_documents)
    asyncio.run(check_size(request))
    assert not request.is_decompressed


def test_a_long_request_of_nonsense():
    with pytest.raises(MalformedRequestError, match="the request cannot be read"):
        asyncio.run(check_size(DataRequest(b"\xff" * 2**20)))


# -- docarray in the service


@pytest.fixture
def hardened(monkeypatch):
    """docarray as the parts of the service have it, for this test alone."""
    import docarray.array.mixins.io.binary as arrays
    import docarray.document.mixins.porting as documents
    import docarray.proto.io as messages

    for module, name in ((arrays, "pickle"), (documents, "pickle"), (messages, "read_ndarray")):
        monkeypatch.setattr(module, name, getattr(module, name))
    harden_docarray()


@pytest.mark.usefixtures("hardened")
def test_a_request_that_carries_a_pickle_is_refused(canary):
    message = DataRequestProto()
    message.data.docs_bytes = pickle.dumps(Canary(canary))
    with pytest.raises(MalformedRequestError, match="the documents are a pickle, which is never"):
        _ = DataRequest(message.SerializeToString()).docs


@pytest.mark.usefixtures("hardened")
@pytest.mark.parametrize("reader", [Document.from_bytes, DocumentArray.from_bytes])
@pytest.mark.parametrize("protocol", ["pickle", "pickle-array"])
def test_docarray_loads_no_pickle(canary, reader, protocol):
    content = pickle.dumps(Canary(canary))
    if protocol == "pickle" and reader == DocumentArray.from_bytes:
        content = _stream(content)
    if protocol == "pickle" or reader == DocumentArray.from_bytes:
        with pytest.raises(MalformedRequestError, match="never read"):
            reader(content, protocol=protocol)


@pytest.mark.usefixtures("hardened")
def test_arrays_state_no_more_than_they_hold():
    for kind in ("dense", "sparse"):
        message = DocumentProto(text="a")
        message.embedding.cls_name = "list" if kind == "dense" else "scipy"
        part = message.embedding.dense if kind == "dense" else message.embedding.sparse.values
        part.shape.extend([2**31, 2**31])
        with pytest.raises(TooLargeError, match=f"states {2**62} numbers and holds none"):
            Document.from_protobuf(message)
    message = DocumentProto(text="a")
    message.embedding.cls_name = "scipy"
    message.embedding.sparse.shape.extend([2**31, 2])
    with pytest.raises(TooLargeError, match="states more than 134217728 numbers"):
        Document.from_protobuf(message)


@pytest.mark.usefixtures("hardened")
def test_ordinary_documents_are_read_as_before():
    harden_docarray()  # twice does no harm
    vector = np.arange(3, dtype=np.float32)
    for value in (vector, vector.tolist(), np.zeros((0, 3))):
        document = Document(text="a", embedding=value)
        found = Document.from_protobuf(document.to_protobuf())
        np.testing.assert_array_equal(np.asarray(found.embedding), np.asarray(value))
    documents = DocumentArray([Document(text="a", tags={"b": 1})])
    content = documents.to_bytes(protocol="protobuf", compress="gzip")
    assert DocumentArray.from_bytes(content, protocol="protobuf", compress="gzip") == documents


@pytest.mark.parametrize(
    "module", ["finetuner/finetuner_executor", "encoder/encoder_executor", "gateway/gateway"]
)
def test_each_part_of_the_service_is_hardened(module):
    source = (_ROOT / "executors" / f"{module}.py").read_text(encoding="utf-8")
    (constructor,) = [
        node
        for cls in ast.walk(ast.parse(source))
        if isinstance(cls, ast.ClassDef)
        and cls.name in ("FinetunerExecutor", "EncoderExecutor", "Gateway")
        for node in cls.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    assert "harden_docarray()" in [ast.unparse(node) for node in constructor.body]


# -- HTTP


@pytest.fixture
def client(tmp_path):
    async def call(*_):
        raise AssertionError("nothing here asks an executor")

    return TestClient(build_app(call, tmp_path))


@pytest.mark.parametrize("host", ["[", "x/v1/", "a?b", "@evil", "x#y"])
def test_the_host_header_moves_no_path(client, host):
    answer = client.get("/nowhere", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]) == (404, "EndpointNotFoundError")
    assert answer.json()["detail"].startswith("unknown endpoint `/nowhere`;")


@pytest.mark.parametrize("route", ["upload", "delete"])
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_forms_of_the_other_kind_are_short(client, route, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    sent = client.post(f"/v2/rpc/artifact.{route}", content=b"a=" + b"b" * 2**20, headers=headers)
    if content_type == "application/x-www-form-urlencoded":
        assert sent.status_code == 413
        assert sent.json()["detail"] == "the body is longer than the 1048576 bytes that are allowed"
    else:
        assert sent.status_code in (404, 422)


def test_a_form_has_one_file_and_few_fields(client):
    files = [("file", ("a", b"x")), ("file", ("b", b"x"))]
    assert client.post("/v2/rpc/artifact.upload", files=files).status_code == 400
    many = {f"f{i}": "x" for i in range(30)}
    answer = client.post("/v2/rpc/artifact.upload", files=files[:1], data=many)
    assert answer.status_code == 400

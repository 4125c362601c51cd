import shutil
import stat
import tempfile
import warnings
import zipfile
from dataclasses import replace
from hashlib import sha256

import pytest

from finetuner import artifact as module
from finetuner.artifact import MANIFEST, Manifest, VariantFigures, digest_of, pack, unpacked
from finetuner.config import OnnxVariant
from finetuner.errors import ArtifactNotFound, CorruptedArtifact, TooLargeError
from finetuner.files import read_json, write_json
from finetuner.zip_reader import ZipLimits

_FILES = {"config.json": b'{"a": 1}', "weights": bytes(range(256)) * 20, "1_Pooling/c.json": b"{}"}
_MANIFEST = Manifest(
    run_name="my-run",
    model="tiny",
    dim=32,
    pooler="mean",
    normalize=True,
    max_length=64,
    input_names=("input_ids", "attention_mask"),
    metrics={"before": {"hit_at_k": 0.5}, "after": {"hit_at_k": 1.0}},
    has_onnx=False,
    created_at="2024-01-02T03:04:05+00:00",
)
_DIGESTS = {path: sha256(content).hexdigest() for path, content in _FILES.items()}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files, for this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    for path, content in _FILES.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(content)
    return tmp_path / "model"


@pytest.fixture
def packed(folder, tmp_path):
    pack(folder, tmp_path / "my-run.zip", manifest=_MANIFEST)
    return tmp_path / "my-run.zip"


def _members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _rewrite(path, members, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)


def _contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_round_trip(packed, temporary):
    with unpacked(packed) as (folder, manifest):
        files = _contents(folder)
        manifest_file = files.pop(MANIFEST)
        assert folder.name == "my-run"
        assert files == _FILES
        assert manifest == replace(_MANIFEST, files=_DIGESTS)
        assert b"format_version" in manifest_file
        assert folder.is_relative_to(temporary)
    assert list(temporary.iterdir()) == []


def test_the_digest_is_the_manifests_and_follows_every_file(folder, tmp_path):
    digests = []
    for content in (b"weights", b"others"):
        (folder / "weights").write_bytes(content)
        pack(folder, tmp_path / "my-run.zip", manifest=_MANIFEST)
        with unpacked(tmp_path / "my-run.zip") as (found, _):
            digests.append(digest_of(found))
        manifest = _members(tmp_path / "my-run.zip")[f"my-run/{MANIFEST}"]
        assert digests[-1] == sha256(manifest).hexdigest()
    assert digests[0] != digests[1]


def test_a_file_that_the_manifest_does_not_list_is_refused(packed):
    members = list(_members(packed).items())
    _rewrite(packed, [*members, ("my-run/added_tokens.json", b"{}")])
    with (
        pytest.raises(
            CorruptedArtifact, match="holds `added_tokens.json`, which is not in its man"
        ),
        unpacked(packed),
    ):
        pass


def test_what_the_zip_holds(packed):
    with zipfile.ZipFile(packed) as archive:
        assert [(info.filename, info.compress_type) for info in archive.infolist()] == [
            ("my-run/manifest.json", zipfile.ZIP_STORED),
            ("my-run/1_Pooling/c.json", zipfile.ZIP_STORED),
            ("my-run/config.json", zipfile.ZIP_STORED),
            ("my-run/weights", zipfile.ZIP_STORED),
        ]


def test_what_the_manifest_holds(packed, folder):
    assert read_json(folder / MANIFEST) == {
        "run_name": "my-run",
        "model": "tiny",
        "dim": 32,
        "pooler": "mean",
        "normalize": True,
        "max_length": 64,
        "input_names": ["input_ids", "attention_mask"],
        "metrics": {"before": {"hit_at_k": 0.5}, "after": {"hit_at_k": 1.0}},
        "has_onnx": False,
        "created_at": "2024-01-02T03:04:05+00:00",
        "format_version": 1,
        "variants": [],
        "refused_variants": [],
        "prompts": {},
        "verdicts": {},
        "dimensions": [],
        "files": _DIGESTS,
    }


_PUBLISHED = VariantFigures(
    name=OnnxVariant.INT8,
    file="onnx/model_int8.onnx",
    size_bytes=7,
    n_texts=3,
    min_cosine=0.97,
    mean_cosine=0.99,
    metrics={"average_precision": 0.5},
    reference_metrics={"average_precision": 0.51},
)
_REFUSED = VariantFigures(OnnxVariant.WEIGHT_INT8, "", 9, 3, 0.5, 0.9, refused_for=("too far",))


def test_figures_of_variants_come_back(folder, tmp_path):
    manifest = replace(_MANIFEST, variants=(_PUBLISHED,), refused_variants=(_REFUSED,))
    pack(folder, tmp_path / "my-run.zip", manifest=manifest)
    assert read_json(folder / MANIFEST)["variants"] == [
        {
            "name": "int8",
            "file": "onnx/model_int8.onnx",
            "size_bytes": 7,
            "n_texts": 3,
            "min_cosine": 0.97,
            "mean_cosine": 0.99,
            "metrics": {"average_precision": 0.5},
            "reference_metrics": {"average_precision": 0.51},
            "refused_for": [],
        }
    ]
    with unpacked(tmp_path / "my-run.zip") as (_, found):
        assert found == replace(manifest, files=_DIGESTS)


def test_an_artifact_from_before_variants_is_read(packed, folder):
    content = read_json(folder / MANIFEST)
    del content["variants"], content["refused_variants"]
    write_json(folder / MANIFEST, content)
    with unpacked(folder) as (_, manifest):
        assert (manifest.variants, manifest.refused_variants) == ((), ())


def test_the_folder_inside_a_zip_is_an_artifact(packed, tmp_path, temporary):
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "by-hand")
    inner = tmp_path / "by-hand" / "my-run"
    with unpacked(inner) as (folder, manifest):
        assert (folder, manifest) == (inner, replace(_MANIFEST, files=_DIGESTS))
        assert list(temporary.iterdir()) == []
    assert set(_contents(inner)) == {MANIFEST, *_FILES}


def test_deflated_by_someone_is_read_too(packed):
    _rewrite(packed, _members(packed).items(), zipfile.ZIP_DEFLATED)
    with unpacked(packed) as (_, manifest):
        assert manifest.files == _DIGESTS


def test_entries_of_folders_are_passed_over(packed):
    _rewrite(packed, [("my-run/", b""), *_members(packed).items()])
    with unpacked(packed) as (_, manifest):
        assert manifest.run_name == "my-run"


def test_a_folder_is_packed_twice(folder, packed, tmp_path):
    pack(folder, tmp_path / "again.zip", manifest=replace(_MANIFEST, run_name="again"))
    with unpacked(tmp_path / "again.zip") as (found, manifest):
        assert manifest == replace(_MANIFEST, run_name="again", files=_DIGESTS)
        assert set(_contents(found)) == {MANIFEST, *_FILES}


@pytest.mark.parametrize("before", [None, b"the old one"])
def test_destination_is_whole_or_as_it_was(folder, tmp_path, monkeypatch, before):
    destination = tmp_path / "out" / "my-run.zip"
    destination.parent.mkdir()
    if before is not None:
        destination.write_bytes(before)
    write = zipfile.ZipFile.write

    def fail_at_the_third(self, path, name):
        if len(self.filelist) == 2:
            raise OSError("no space left")
        write(self, path, name)

    monkeypatch.setattr(zipfile.ZipFile, "write", fail_at_the_third)
    with pytest.raises(OSError, match="no space left"):
        pack(folder, destination, manifest=_MANIFEST)
    assert _contents(destination.parent) == ({} if before is None else {"my-run.zip": before})


def test_temporary_files_go_when_the_block_fails(packed, temporary):
    with pytest.raises(KeyError, match="mine"), unpacked(packed):
        raise KeyError("mine")
    assert list(temporary.iterdir()) == []


def test_what_is_not_there(tmp_path):
    with (
        pytest.raises(ArtifactNotFound, match="there is no artifact `.*nothing.zip`"),
        unpacked(tmp_path / "nothing.zip"),
    ):
        pass


def _refused(artifact, message):
    with pytest.raises(CorruptedArtifact, match=message), unpacked(artifact):
        pass


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04" + bytes(100)])
def test_no_zip(tmp_path, temporary, content):
    (tmp_path / "x.zip").write_bytes(content)
    _refused(tmp_path / "x.zip", "`x.zip` is not a zip file, or is damaged: ")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_cut_short(packed, share):
    content = packed.read_bytes()
    packed.write_bytes(content[: int(len(content) * share)])
    _refused(packed, "`my-run.zip` is not a zip file, or is damaged: ")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_flipped_byte_of_the_weights_is_found(packed, temporary, compression):
    _rewrite(packed, _members(packed).items(), compression)
    with zipfile.ZipFile(packed) as archive:
        info = archive.getinfo("my-run/weights")
    content = packed.read_bytes()
    # Behind the local header: 30 bytes and the name.
    start = info.header_offset + 30 + len(info.filename)
    for place in range(start, start + info.compress_size, 7):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        packed.write_bytes(damaged)
        _refused(packed, "is not a zip file, or is damaged: ")
    assert list(temporary.iterdir()) == []


def test_an_encrypted_zip(packed):
    content = bytearray(packed.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + offset] |= 1
            place = content.find(signature, place + 1)
    packed.write_bytes(content)
    _refused(packed, "holds the unsafe member `my-run/manifest.json`: it is encrypted")


@pytest.mark.parametrize(
    ("name", "content"), [("weights", b"other"), ("weights", None), ("1_Pooling/c.json", b"{ }")]
)
@pytest.mark.parametrize("as_folder", [True, False])
def test_changed_and_missing_files(packed, tmp_path, temporary, name, content, as_folder):
    members = _members(packed)
    del members[f"my-run/{name}"]
    if content is not None:
        members[f"my-run/{name}"] = content
    _rewrite(packed, members.items())
    artifact = packed
    if as_folder:
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(tmp_path / "by-hand")
        artifact = tmp_path / "by-hand" / "my-run"
    _refused(artifact, f"`{name}` of `my-run` is missing or was changed")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: None, "`my-run` has no readable manifest.json; an artifact is the zip"),
        (lambda content: b"{", "`my-run` has no readable manifest.json; an artifact is the zip"),
        (lambda content: [content], "`my-run` has format version None, this package reads 1"),
        (lambda content: {}, "`my-run` has format version None, this package reads 1"),
        (
            lambda content: {**content, "format_version": 2},
            "`my-run` has format version 2, this package reads 1",
        ),
        (
            lambda content: {**content, "dim": "many"},
            "the manifest of `my-run` is wrong: manifest.json.dim must be a whole number",
        ),
        (
            lambda content: {**content, "extra": 1},
            "the manifest of `my-run` is wrong: unknown field `extra`",
        ),
        (
            lambda content: {"format_version": 1},
            "the manifest of `my-run` is wrong: manifest.json needs the field `run_name`",
        ),
    ],
)
def test_manifests_that_are_refused(packed, tmp_path, change, message):
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "by-hand")
    inner = tmp_path / "by-hand" / "my-run"
    changed = change(read_json(inner / MANIFEST))
    (inner / MANIFEST).unlink()
    if isinstance(changed, bytes):
        (inner / MANIFEST).write_bytes(changed)
    elif changed is not None:
        write_json(inner / MANIFEST, changed)
    _refused(inner, message)
    archive = shutil.make_archive(str(tmp_path / "again"), "zip", tmp_path / "by-hand")
    _refused(tmp_path / archive, message)


def _link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "member",
    [
        "../x",
        "my-run/../../x",
        "my-run/..",
        "/x",
        "my-run\\..\\x",
        "C:\\x",
        _link("my-run/link"),
    ],
)
def test_unsafe_members(packed, temporary, member):
    _rewrite(packed, [*_members(packed).items(), (member, b"/etc/passwd")])
    _refused(packed, "`my-run.zip` holds the unsafe member `")
    assert list(temporary.iterdir()) == []
    assert not (temporary / "x").exists()


def test_too_many_files(packed):
    more = [(f"my-run/{i}", b"") for i in range(200)]
    _rewrite(packed, [*_members(packed).items(), *more])
    with pytest.raises(TooLargeError, match="holds 204 files, 200 are allowed"), unpacked(packed):
        pass


def test_too_many_bytes(packed, monkeypatch):
    n_bytes = sum(map(len, _members(packed).values()))
    monkeypatch.setattr(module, "LIMITS", ZipLimits(size_bytes=n_bytes))
    with unpacked(packed) as (_, manifest):
        assert manifest.run_name == "my-run"
    _rewrite(packed, [*_members(packed).items(), ("my-run/more", b"1")])
    message = f"holds {n_bytes + 1} bytes, {n_bytes} are allowed"
    with pytest.raises(TooLargeError, match=message), unpacked(packed):
        pass


@pytest.mark.parametrize(
    ("change", "n_found"),
    [
        (lambda members: [*members, ("other/config.json", b"{}")], 2),
        (lambda members: [(name.partition("/")[2], content) for name, content in members], 1),
        (lambda members: [("manifest.json", b"{}")], 0),
    ],
)
def test_a_zip_holds_one_folder(packed, change, n_found):
    _rewrite(packed, change(list(_members(packed).items())))
    message = {
        1: "`1_Pooling` has no readable manifest.json",
    }.get(n_found, f"`my-run.zip` must hold one folder, found {n_found}")
    _refused(packed, message)

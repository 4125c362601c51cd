"""Artifacts in an object store: uploaded file by file, and read back as they were."""

import hashlib
import zipfile

import orjson
import pytest

from finetuner.artifact import read_manifest
from finetuner.artifact_store import (
    ArtifactStore,
    Published,
    artifact_store_of,
    entry_names,
    read_entry,
)
from finetuner.errors import ArtifactNotFound, CorruptedArtifact, UnavailableError
from finetuner.object_store import ObjectStore

ID, DIGEST = "0" * 24, "1" * 64


def _members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def volume(tmp_path):
    return tmp_path / "volume"


@pytest.fixture
def store(s3):
    return ArtifactStore("s3://bucket/models")


def test_an_artifact_comes_back_as_it_was(s3, store, volume, publish_run, tmp_path):
    run = publish_run(volume, "one")
    published = store.publish(run)
    store.fetch(published, tmp_path / "one.zip")
    members = _members(run.artifact_path)
    assert _members(tmp_path / "one.zip") == members
    digest = hashlib.sha256(members["one/manifest.json"]).hexdigest()
    files = [f"artifacts/{digest}/{name.removeprefix('one/')}" for name in members]
    entries = [f"ids/{run.spec()['artifact_id']}.json", "runs/default/one.json"]
    assert s3.names("bucket") == sorted(f"models/{name}" for name in (*files, *entries))
    for entry in entries:
        assert read_entry(store.read(entry), entry) == published
    assert (published.digest, store.location(digest)) == (
        digest,
        f"s3://bucket/models/artifacts/{digest}",
    )


def test_files_come_first_the_manifest_then_and_the_names_last(s3, store, volume, publish_run):
    order = []
    write = ObjectStore.write

    class Recorded(ObjectStore):
        def write(self, name, chunks):
            order.append(name.rpartition("/")[2])
            write(self, name, chunks)

    store._objects = Recorded(store.url)
    run = publish_run(volume, "one")
    store.publish(run)
    n_files = len(read_manifest(run.artifact_path).files)
    assert order.index("manifest.json") == n_files
    assert order[n_files:] == ["manifest.json", f"{run.spec()['artifact_id']}.json", "one.json"]


def test_what_was_cut_off_is_taken_up_where_it_was(s3, store, volume, publish_run):
    run = publish_run(volume, "one")
    n_calls = 0

    def check():
        nonlocal n_calls
        n_calls += 1
        if n_calls > 8:
            raise InterruptedError("cut off")

    with pytest.raises(InterruptedError, match="cut off"):
        store.publish(run, check=check)
    there = s3.names("bucket")
    assert there
    assert not [name for name in there if "ids/" in name or "runs/" in name]
    assert store.read("runs/default/one.json") is None
    s3.objects[f"bucket/{there[0]}"] = b""  # torn
    s3.requests.clear()
    store.publish(run)
    written = {k.partition(" ")[2] for k in s3.requests if k.startswith(("PUT", "POST"))}
    assert f"bucket/{there[0]}" in written
    assert not written & {f"bucket/{name}" for name in there[1:-1]}


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: b"x" + c[1:], lambda c: None])
@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_what_was_torn_changed_or_lost_is_refused(
    s3, store, volume, publish_run, tmp_path, file, change
):
    published = store.publish(publish_run(volume, "one"))
    key = f"bucket/models/artifacts/{published.digest}/{file}"
    content = change(s3.objects.pop(key))
    if content is not None:
        s3.objects[key] = content
    with pytest.raises(CorruptedArtifact, match="is missing or was changed"):
        store.fetch(published, tmp_path / "one.zip")
    assert not list(tmp_path.glob("*.zip*"))


def test_a_manifest_cannot_write_outside_or_bring_code(store, volume, tmp_path):
    manifest = {"run_name": "one", "model": "m", "dim": 1, "pooler": "mean", "normalize": True}
    manifest |= {"max_length": 1, "input_names": [], "metrics": {}, "has_onnx": False}
    manifest |= {"created_at": "", "format_version": 1}
    for path, message in (("../../x", "lies outside it"), ("x.pkl", "pickles and code")):
        content = orjson.dumps({**manifest, "files": {path: DIGEST}})
        digest = hashlib.sha256(content).hexdigest()
        store.write(f"artifacts/{digest}/manifest.json", content)
        with pytest.raises(CorruptedArtifact, match=message):
            store.fetch(Published(ID, "one", "default", digest, ""), tmp_path / "one.zip")


def test_a_damaged_zip_is_not_uploaded(s3, store, volume, publish_run):
    run = publish_run(volume, "one")
    content = bytearray(run.artifact_path.read_bytes())
    content[content.index(b'"run_name"') + 14] ^= 1
    run.artifact_path.write_bytes(content)
    with pytest.raises(CorruptedArtifact, match="one"):
        store.publish(run)
    run.artifact_path.unlink()
    with pytest.raises(ArtifactNotFound, match="no artifact"):
        store.publish(run)
    assert s3.names("bucket") == []


def test_a_store_that_is_away_is_no_error_of_the_artifact(s3, store, volume, publish_run):
    run = publish_run(volume, "one")
    s3.refuses = "AccessDenied"
    with pytest.raises(UnavailableError, match="lets nobody in"):
        store.publish(run)


@pytest.mark.parametrize(
    ("artifact", "names"),
    [
        ("one", ["runs/default/one.json"]),
        ("tests/one.v2", ["runs/tests/one.v2.json"]),
        (ID, [f"ids/{ID}.json", f"runs/default/{ID}.json"]),
        ("../one", []),
        ("a/b/c", []),
        ("", []),
    ],
)
def test_what_a_name_may_mean(artifact, names):
    assert list(entry_names(artifact)) == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, this package reads 1"),
        ({"digest": "../x"}, "its digest or its artifact id is none"),
        ({"artifact_id": "x"}, "its digest or its artifact id is none"),
        ({"run_name": "../x"}, "run name"),
        ({"experiment_name": "a/b"}, "experiment name"),
        ({"more": 1}, "unknown field `more`"),
    ],
)
def test_an_entry_that_is_none_of_ours_is_refused(change, message):
    entry = {"artifact_id": ID, "run_name": "r", "experiment_name": "e", "digest": DIGEST}
    content = orjson.dumps({**entry, "created_at": "", **change})
    with pytest.raises(CorruptedArtifact, match=message):
        read_entry(content, "ids/x.json")
    with pytest.raises(CorruptedArtifact, match=r"ids/x.json.* cannot be read"):
        read_entry(b"{", "ids/x.json")


def test_where_the_store_is_told(monkeypatch):
    monkeypatch.delenv("FINETUNER_ARTIFACT_STORE", raising=False)
    assert artifact_store_of() is None
    monkeypatch.setenv("FINETUNER_ARTIFACT_STORE", "s3://a/b")
    assert [artifact_store_of(given) for given in (None, "", "s3://c")] == [
        "s3://a/b",
        None,
        "s3://c",
    ]

"""Room on the volume: what is there, what a run needs, and the refusal when that is more."""

import dataclasses
import errno
import io
import shutil
from types import SimpleNamespace

import pytest
from docarray import Document, DocumentArray
from fastapi.testclient import TestClient
from safetensors.numpy import load_file, save_file

from finetuner import checkpoint, space
from finetuner.config import RunConfig
from finetuner.data import from_rows
from finetuner.datastore import DataStore
from finetuner.errors import ConfigError, DataNotFoundError, InsufficientSpaceError
from finetuner.http_api import build_app
from finetuner.run_store import RunStore
from finetuner.schema import read
from finetuner.space import (
    ASSUMED_WEIGHTS_BYTES,
    Space,
    check_space,
    footprint,
    full_disk_named,
    quota_of,
    rows_bytes,
    size_bytes_of,
)
from finetuner.submission import submit, submit_once

ROWS = [["a", 1], ["b", 1], ["c", 2], ["d", 2]]
MB = 10**6
NO_MODEL = RunConfig(model="not-here", run_name="one")


@pytest.fixture
def model(tmp_path, tiny_model_folder):
    shutil.copytree(tiny_model_folder, tmp_path / "models" / "tiny")
    return tmp_path / "models" / "tiny"


@pytest.fixture
def free_bytes(monkeypatch):
    def free_bytes(number):
        monkeypatch.setattr(space.shutil, "disk_usage", lambda _: SimpleNamespace(free=number))

    return free_bytes


def weights_bytes(model):
    return sum(4 * tensor.size for tensor in load_file(model / "model.safetensors").values())


def config_of(**settings):
    return RunConfig(model="tiny", run_name="one", **settings)


def callback(name, **options):
    return {"name": name, "options": options}


@pytest.mark.parametrize("needed", [0, 999, 1000])
def test_what_fits_passes(tmp_path, free_bytes, needed):
    free_bytes(1000)
    Space(tmp_path).require(needed, "this")


def test_a_short_disk_is_refused_with_both_figures_and_what_to_do(tmp_path, free_bytes):
    free_bytes(3_500 * MB)
    with pytest.raises(
        InsufficientSpaceError,
        match=r"^run `r` needs about 5\.0 GB, and 3\.5 GB are free on the volume: `finetuner gc` on",
    ):
        Space(tmp_path / "not" / "yet" / "there").require(5_000 * MB, "run `r`")


def test_the_error_is_an_oserror_that_says_its_sentence():
    error = InsufficientSpaceError("no room")
    assert isinstance(error, OSError)
    assert (str(error), error.http_status) == ("no room", 507)


def test_a_quota_counts_what_lies_in_the_workspace(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").write_bytes(b"x" * 600)
    room = Space(tmp_path, quota_bytes=1000)
    room.require(400, "this")
    with pytest.raises(
        InsufficientSpaceError,
        match=r"this needs about 401 bytes, and 400 bytes are left of the workspace's quota of 1\.0 kB",
    ):
        room.require(401, "this")
    (tmp_path / "runs" / "file").write_bytes(b"x" * 1100)
    with pytest.raises(InsufficientSpaceError, match="this needs about 500 bytes, and 0 bytes are"):
        room.require(500, "this")


def test_a_quota_is_not_counted_at_each_request_but_always_before_a_refusal(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(space, "size_bytes_of", lambda path: counted.append(path) or 0)
    room = Space(tmp_path, quota_bytes=1000)
    for _ in range(5):
        room.require(10, "this")
    assert len(counted) == 1
    with pytest.raises(InsufficientSpaceError, match="this needs about 2.0 kB"):
        room.require(2000, "this")
    assert len(counted) == 2
    monkeypatch.setattr(space.time, "monotonic", lambda: float("inf"))
    room.require(10, "this")
    assert len(counted) == 3


def test_room_that_was_made_is_seen_at_once(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 1000)
    room = Space(tmp_path, quota_bytes=1000)
    with pytest.raises(InsufficientSpaceError, match="0 bytes are left"):
        room.require(1, "this")
    (tmp_path / "file").unlink()
    room.require(1000, "this")


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (None, None, None),
        (None, "", None),
        (None, "1000", 1000),
        (5, "1000", 5),
    ],
)
def test_quota_is_given_or_of_the_environment(monkeypatch, given, variable, expected):
    monkeypatch.delenv(space.QUOTA_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(space.QUOTA_VARIABLE, variable)
    assert quota_of(given) == expected


@pytest.mark.parametrize("given", [0, -1, True, "10GB", 1.5])
def test_a_quota_that_is_no_number_of_bytes_is_refused(given):
    with pytest.raises(ConfigError, match=f"whole number of bytes, at least 1, got `{given}`"):
        quota_of(given)


def test_sizes_of_files_folders_links_and_nothing(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 70)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b")
    n_link = len(str(tmp_path / "a" / "b"))
    assert size_bytes_of(tmp_path / "a" / "b" / "file") == 70
    assert size_bytes_of(tmp_path / "a" / "link") == n_link
    assert size_bytes_of(tmp_path / "a") == 70 + n_link
    assert size_bytes_of(tmp_path / "nothing") == 0


def test_a_run_needs_two_checkpoints_the_artifact_and_what_is_being_written(model, tmp_path):
    weights = weights_bytes(model)
    found = footprint(config_of(), tmp_path, data_bytes=77)
    assert dataclasses.astuple(found) == (77, 6 * weights, 0, weights, 3 * weights, False)
    assert found.total_bytes == 77 + 10 * weights + 16 * 2**20


@pytest.mark.parametrize(
    ("settings", "checkpoints", "epochs", "artifact", "in_work"),
    [
        ({"freeze": True}, 2.2, 0, 1, 1.1),
        ({"lora": {}}, 2.2, 0, 1, 1.1),
        ({"to_onnx": True}, 6, 0, 2, 3),
        ({"to_onnx": True, "onnx_variants": ["int8", "weight_int8"], "freeze": True}, 2.2, 0, 3, 3),
        ({"callbacks": [callback("BestModelCheckpoint", monitor="train_loss")]}, 8, 0, 1, 4),
        ({"callbacks": [callback("TrainingCheckpoint", last_k_epochs=3)]}, 6, 3, 1, 3),
    ],
)
def test_settings_change_what_a_run_needs(
    model, tmp_path, settings, checkpoints, epochs, artifact, in_work
):
    config = read(RunConfig, {"model": "tiny", **settings}, "fit")
    found = footprint(config, tmp_path)
    weights = weights_bytes(model)
    shares = [checkpoints, epochs, artifact, in_work]
    sizes = [found.checkpoints, found.epochs, found.artifact, found.in_work]
    assert [size / weights for size in sizes] == pytest.approx(shares, rel=1e-4)


def test_the_estimate_knows_how_many_checkpoints_are_kept():
    assert space._N_CHECKPOINTS == checkpoint._N_KEPT


def test_weights_in_16_bits_count_as_what_they_become(model, tmp_path):
    full = footprint(config_of(), tmp_path)
    tensors = load_file(model / "model.safetensors")
    halves = {name: tensor.astype("float16") for name, tensor in tensors.items()}
    save_file(halves, model / "model.safetensors")
    assert footprint(config_of(), tmp_path) == full


def test_weights_in_torchs_form_and_damaged_ones_count_by_their_length(model, tmp_path):
    (model / "model.safetensors").write_bytes(b"\0" * 500)
    assert footprint(config_of(), tmp_path).artifact == 500
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"x" * 700)
    assert footprint(config_of(), tmp_path).artifact == 700


def test_the_model_of_an_artifact_counts_by_what_the_zip_holds(publish_run, model, tmp_path):
    publish_run(tmp_path, "base")
    config = RunConfig(model="not-here", model_artifact="base")
    found = footprint(config, tmp_path)
    assert not found.is_assumed
    assert found.artifact == pytest.approx(weights_bytes(model), rel=0.05)


@pytest.mark.parametrize("settings", [{"model": "not-here"}, {"model_artifact": "deleted"}])
def test_a_model_that_is_not_here_is_taken_for_bert_base_and_the_message_says_so(
    tmp_path, free_bytes, settings
):
    config = RunConfig(**{"model": "not-here", "run_name": "one", **settings})
    found = footprint(config, tmp_path)
    assert (found.artifact, found.is_assumed) == (ASSUMED_WEIGHTS_BYTES, True)
    free_bytes(10 * MB)
    with pytest.raises(
        InsufficientSpaceError,
        match=r"run `one` \(the size of `not-here` is not known; BERT base's was taken\) needs about 4",
    ):
        check_space(config, Space(tmp_path))


def test_what_a_run_has_written_already_is_not_asked_for_again(tmp_path, free_bytes):
    total = footprint(NO_MODEL, tmp_path).total_bytes
    free_bytes(total - 1000)
    with pytest.raises(InsufficientSpaceError, match="run `one`.*are free on the volume"):
        check_space(NO_MODEL, Space(tmp_path))
    check_space(NO_MODEL, Space(tmp_path), present_bytes=1000)
    check_space(NO_MODEL, Space(tmp_path), present_bytes=2 * total)


def test_rows_are_as_long_as_their_files(tmp_path):
    data = {"train.jsonl": from_rows([["ä ✨", 1], {"text": "b", "label": None, "id": "x"}])}
    run = RunStore(tmp_path).create(NO_MODEL, data)
    assert rows_bytes(data) == (run.folder / "data" / "train.jsonl").stat().st_size


def test_a_request_for_which_there_is_no_room_makes_nothing(model, tmp_path, free_bytes):
    body = {"model": "tiny", "train_data": ROWS, "run_name": "one", "device": "cpu"}
    free_bytes(1 * MB)
    with pytest.raises(InsufficientSpaceError, match="run `one` needs about .* 1.0 MB are free"):
        submit_once(body, Space(tmp_path))
    assert RunStore(tmp_path).list() == []
    free_bytes(10**12)
    assert submit(body, tmp_path).name == "one"
    free_bytes(0)
    assert not submit_once(body, Space(tmp_path)).is_new  # nothing is written for it


def test_a_disk_that_fills_up_while_a_run_is_made_is_named_and_leaves_nothing(
    model, tmp_path, monkeypatch
):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("finetuner.run_store.write_jsonl", fill)
    body = {"model": "tiny", "train_data": ROWS, "run_name": "one", "device": "cpu"}
    with pytest.raises(
        InsufficientSpaceError, match="run `one` does not fit on the volume, which is full: `fine"
    ):
        submit(body, tmp_path)
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["default"]


def test_other_errors_of_a_disk_stay_as_they_are():
    with pytest.raises(PermissionError, match="no"), full_disk_named("this"):
        raise PermissionError(errno.EACCES, "no")


@pytest.fixture
def upload(tmp_path):
    """Push documents the way docarray does, to an application with a quota."""
    documents = DocumentArray([Document(text="a" * 50, tags={"finetuner_label": 1})])
    content = documents.to_bytes(protocol="protobuf", compress="gzip")

    def upload(quota_bytes):
        app = build_app(None, tmp_path, quota_bytes=quota_bytes)
        files, fields = {"file": ("x", io.BytesIO(content))}, {"name": "x.da"}
        return TestClient(app).post("/v2/rpc/artifact.upload", files=files, data=fields)

    return upload


def test_uploads_respect_the_quota(upload, tmp_path):
    answer = upload(100)
    assert answer.status_code == 507
    assert answer.json()["error"] == "InsufficientSpaceError"
    assert answer.json()["message"].startswith("the upload `x.da` needs about ")
    with pytest.raises(DataNotFoundError, match=r"no stored data `x\.da`; stored: none"):
        DataStore(tmp_path).get("x.da")
    assert upload(100_000).status_code == 200
    assert DataStore(tmp_path).get("x.da").n_documents == 1


def test_free_bytes_are_the_disks_or_what_the_quota_leaves(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"1234567")
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert Space(tmp_path).free_bytes() == Space(tmp_path / "none").free_bytes() == free
    assert Space(tmp_path, quota_bytes=10).free_bytes() == 3
    assert Space(tmp_path, quota_bytes=5).free_bytes() == 0
    assert Space(tmp_path, quota_bytes=2 * free).free_bytes() == free

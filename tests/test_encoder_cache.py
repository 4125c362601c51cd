"""The encoders that a server keeps loaded."""

import gc
import math
import os
import threading
import weakref
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from finetuner import encoder_cache
from finetuner.config import RunConfig
from finetuner.encoder import torch_encoder
from finetuner.encoder_cache import EncoderCache
from finetuner.errors import ArtifactNotFound, ConfigError, CorruptedArtifact, RunInProgressError
from finetuner.files import write_json
from finetuner.models import load_model
from finetuner.run_store import RunStore
from finetuner.states import Status


@pytest.fixture
def volume(publish_run, tmp_path):
    """Make a finished run by its name; gives the run."""
    return lambda name, **options: publish_run(tmp_path, name, **options)


@pytest.fixture
def loads(monkeypatch):
    """Count the loads by artifact."""
    found = []
    load = encoder_cache.load_encoder

    def counted(path, **options):
        found.append(path.stem)
        return load(path, **options)

    monkeypatch.setattr(encoder_cache, "load_encoder", counted)
    return found


def test_an_artifact_goes_by_name_by_path_and_by_id_and_is_loaded_once(volume, tmp_path, loads):
    run = volume("one")
    artifact_id = run.spec()["artifact_id"]
    cache = EncoderCache(tmp_path)
    found = [cache.get(name) for name in ("one", "default/one", artifact_id)]
    assert found[0] is found[1] is found[2]
    assert loads == ["one"]
    assert (found[0].artifact_id, found[0].encoder.name) == (artifact_id, "one")
    assert found[0].size_bytes == run.artifact_path.stat().st_size


def test_what_is_loaded_is_found_without_a_search(volume, tmp_path, monkeypatch):
    volume("one")
    cache = EncoderCache(tmp_path)
    assert cache.loaded("one") is None
    served = cache.get("one")
    monkeypatch.setattr(RunStore, "find_artifact", None)
    assert cache.loaded("one") is served


def test_a_run_made_again_is_another_model(volume, tmp_path, loads):
    run = volume("one")
    cache = EncoderCache(tmp_path)
    old = cache.get("one")
    RunStore(tmp_path).delete(run)
    assert cache.loaded("one") is None
    with pytest.raises(ArtifactNotFound, match="no run and no artifact `one`"):
        cache.get("one")
    run = volume("one")
    os.utime(run.artifact_path, ns=(1, 1))
    assert cache.loaded("one") is None
    assert cache.get("one") is not old
    assert loads == ["one", "one"]


def test_beyond_the_budget_the_one_used_longest_ago_goes(volume, tmp_path, loads):
    size_bytes = [volume(name).artifact_path.stat().st_size for name in ("a", "b", "c")][0]
    cache = EncoderCache(tmp_path, max_bytes=int(size_bytes * 2.5))
    cache.get("a"), cache.get("b"), cache.get("a"), cache.get("c")
    assert [cache.loaded(name) is not None for name in "abc"] == [True, False, True]
    cache.get("b")
    assert loads == ["a", "b", "c", "b"]


def test_what_is_pinned_stays(volume, tmp_path):
    kept = volume("a").artifact_path
    volume("b"), volume("c")
    cache = EncoderCache(tmp_path, max_bytes=1, pinned=lambda: [kept])
    cache.get("a"), cache.get("b"), cache.get("c")
    assert [cache.loaded(name) is not None for name in "abc"] == [True, False, True]


def test_one_is_kept_whatever_its_size(volume, tmp_path):
    volume("a")
    cache = EncoderCache(tmp_path, max_bytes=1)
    served = cache.get("a")
    assert cache.loaded("a") is served


def test_what_was_taken_out_lives_as_long_as_it_is_used(volume, tmp_path):
    volume("a"), volume("b")
    cache = EncoderCache(tmp_path, max_bytes=1)
    served = cache.get("a")
    cache.get("b")
    assert cache.loaded("a") is None
    assert served.encoder.encode(["still here"]).shape == (1, 32)
    watched = weakref.ref(served.encoder)
    del served
    gc.collect()
    assert watched() is None


def test_a_load_keeps_nobody_else_waiting_and_is_done_once(volume, tmp_path, monkeypatch):
    volume("slow"), volume("quick")
    cache = EncoderCache(tmp_path)
    load, gate, begun = encoder_cache.load_encoder, threading.Event(), []

    def slow_load(path, **options):
        if path.stem == "slow":
            begun.append(path)
            assert gate.wait(10)
        return load(path, **options)

    monkeypatch.setattr(encoder_cache, "load_encoder", slow_load)
    found = []
    threads = [threading.Thread(target=lambda: found.append(cache.get("slow"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert cache.get("quick").encoder.name == "quick"
    assert cache.loaded("slow") is None
    gate.set()
    for thread in threads:
        thread.join(10)
    assert len(found) == 3
    assert len(set(map(id, found))) == len(begun) == 1


def test_a_load_that_failed_is_tried_again(volume, tmp_path):
    run = volume("a")
    content = run.artifact_path.read_bytes()
    run.artifact_path.write_bytes(b"no zip")
    cache = EncoderCache(tmp_path)
    for _ in range(2):
        with pytest.raises(CorruptedArtifact, match="`a.zip` is not a zip file"):
            cache.get("a")
    run.artifact_path.write_bytes(content)
    assert cache.get("a").encoder.name == "a"


def test_the_default_may_be_a_path_and_a_request_may_not(volume, tmp_path):
    path = volume("a").artifact_path
    copied = tmp_path / "elsewhere.zip"
    copied.write_bytes(path.read_bytes())
    cache = EncoderCache(tmp_path, artifact=str(copied))
    served = cache.loaded(None)
    assert served is cache.get(None)
    assert (served.encoder.name, served.artifact_id) == ("a", "")
    np.testing.assert_array_equal(
        served.encoder.encode(["x"]), cache.get("a").encoder.encode(["x"])
    )
    with pytest.raises(ArtifactNotFound, match="no run and no artifact"):
        cache.get(str(copied))


def test_without_a_default_a_request_must_name_one(tmp_path):
    cache = EncoderCache(tmp_path)
    assert cache.loaded(None) is None
    with pytest.raises(ConfigError, match="name the artifact: parameters="):
        cache.get(None)


def test_a_run_in_work_has_no_artifact(tmp_path):
    RunStore(tmp_path).create(RunConfig(model="tiny", run_name="a"), {})
    with pytest.raises(RunInProgressError, match="a"):
        EncoderCache(tmp_path).get("a")


def test_what_can_be_served(volume, tmp_path, come_to):
    runs = [volume("a"), volume("b")]
    RunStore(tmp_path).create(RunConfig(model="tiny", run_name="unfinished"), {})
    other = RunConfig(model="tiny", run_name="x", experiment_name="other")
    come_to(RunStore(tmp_path).create(other, {}), Status.FINISHED)
    cache = EncoderCache(tmp_path)
    served = cache.get("b")
    first, second, third = cache.list()
    assert [row["id"] for row in (first, second, third)] == ["a", "b", "other/x"]
    assert [row["artifact_id"] for row in (first, second)] == [
        run.spec()["artifact_id"] for run in runs
    ]
    assert [first[name] for name in ("is_loaded", "digest", "dim")] == [False, None, None]
    assert [second[name] for name in ("is_loaded", "digest", "dim", "max_length")] == [
        *(True, served.encoder.digest),
        *(32, 128),
    ]
    created = datetime.fromtimestamp(first["created"], UTC)
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=5)


def test_prompts(volume, tmp_path):
    volume("a", prompts={"query": "find: "})
    served = EncoderCache(tmp_path).get("a")
    assert served.prompt("query") == "find: "
    with pytest.raises(
        ConfigError, match="has no prompt `qury`; did you mean `query`. it has: query"
    ):
        served.prompt("qury")


@pytest.fixture
def backbone(tmp_path, tiny_model_folder):
    """The model that runs begin with, in the volume."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    return torch_encoder(load_model(tiny_model_folder))


def test_what_a_run_began_with_is_kept_beside_it_and_counted(volume, tmp_path, backbone):
    path = volume("a", seed=1).artifact_path
    cache = EncoderCache(tmp_path)
    tuned, untuned = cache.load(path), cache.load(path, untuned=True)
    assert cache.load(path, untuned=True) is untuned
    assert cache.loaded_from(path) is tuned
    np.testing.assert_array_equal(untuned.encoder.encode(["x"]), backbone.encode(["x"]))
    assert np.abs(tuned.encoder.encode(["x"]) - untuned.encoder.encode(["x"])).max() > 0.01
    weights = load_model(tmp_path / "models" / "tiny").model.parameters()
    expected = sum(4 * math.prod(weight.shape) for weight in weights)
    assert cache.sizes() == {
        str(path): path.stat().st_size,
        f"{path} (untuned)": expected,
    }


def test_what_a_pinned_run_began_with_is_not_pinned(volume, tmp_path, backbone):
    path = volume("a").artifact_path
    cache = EncoderCache(tmp_path, max_bytes=1, pinned=lambda: [path])
    cache.load(path), cache.load(path, untuned=True), cache.load(volume("b").artifact_path)
    assert set(cache.sizes()) == {str(path), str(path).replace("/a", "/b")}


def test_a_run_that_began_with_another(volume, tmp_path):
    volume("first", seed=1)
    second = volume("second", seed=2)
    spec = second.spec()
    spec["config"]["model_artifact"] = "first"
    write_json(second.folder / "spec.json", spec)
    cache = EncoderCache(tmp_path)
    np.testing.assert_allclose(
        cache.load(second.artifact_path, untuned=True).encoder.encode(["x"]),
        cache.get("first").encoder.encode(["x"]),
        atol=1e-6,
    )

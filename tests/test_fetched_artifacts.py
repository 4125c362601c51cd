"""Artifacts of a store on a machine without the volume: fetched once, kept, served when the store is away."""

import subprocess
import sys
import threading
import time
from dataclasses import asdict

import orjson
import pytest

from finetuner import fetched_artifacts
from finetuner.alias_store import AliasStore
from finetuner.aliases import Alias, Split, Target
from finetuner.artifact import read_manifest, unpacked
from finetuner.artifact_store import ArtifactStore
from finetuner.encoder import load_encoder
from finetuner.encoder_cache import EncoderCache
from finetuner.errors import ArtifactNotFound, CorruptedArtifact, UnavailableError
from finetuner.fetched_artifacts import FetchedArtifacts, fetched
from finetuner.inference import get_model
from finetuner.named_run import local_artifact

URL = "s3://bucket/models"


@pytest.fixture
def store(s3):
    return ArtifactStore(URL)


@pytest.fixture
def publish(store, publish_run, tmp_path):
    """Make a finished run on a volume, and put it into the store."""

    def publish(name, **options):
        run = publish_run(tmp_path / "volume", name, **options)
        store.publish(run)
        return run

    return publish


@pytest.fixture
def elsewhere(tmp_path):
    """The workspace of a machine that has no share in the volume."""
    return tmp_path / "elsewhere"


@pytest.fixture
def artifacts(store, elsewhere):
    found = FetchedArtifacts(elsewhere, store)
    yield found
    found.close()


def _n_downloads(s3, file="model.safetensors"):
    return sum(n for key, n in s3.requests.items() if key.startswith("GET") and key.endswith(file))


def _put_alias(store, alias):
    store.write(f"aliases/{alias.name}.json", orjson.dumps(asdict(alias)))


def _target(run):
    return Target(f"{run.experiment_name}/{run.name}", run.spec()["artifact_id"])


def test_an_artifact_goes_by_name_and_id_and_is_fetched_once(s3, artifacts, publish, elsewhere):
    run = publish("one")
    artifact_id = run.spec()["artifact_id"]
    paths = [artifacts.find(name) for name in ("one", "default/one", artifact_id)]
    assert paths[0] == paths[1] == paths[2]
    assert paths[0].parts[-3:] == ("default", "one", "one.zip")
    assert _n_downloads(s3) == 1
    with unpacked(paths[0]) as (_, manifest):
        assert manifest == read_manifest(run.artifact_path)
    spec = run.spec()
    (kept,) = artifacts.runs()
    assert kept.spec() == {k: spec[k] for k in ("artifact_id", "created_at", "config")} | {
        "description": ""
    }
    assert not list(elsewhere.glob("fetched/.new-*"))


def test_an_encoder_finds_what_is_not_on_its_volume(artifacts, publish, elsewhere):
    run = publish("one")
    cache = EncoderCache(elsewhere, fetched=artifacts)
    assert cache.loaded("one") is None
    served = cache.get("one")
    assert cache.loaded("one") is served
    assert served.artifact_id == run.spec()["artifact_id"]
    texts = ["some text", "x"]
    expected = load_encoder(run.artifact_path).encode(texts)
    assert (served.encoder.encode(texts) == expected).all()
    assert [(row["id"], row["is_loaded"]) for row in cache.list()] == [("one", True)]
    assert (
        EncoderCache(elsewhere, artifact="one", fetched=artifacts).get(None).encoder.name == "one"
    )
    with pytest.raises(ArtifactNotFound, match=f"`two`, neither here nor in `{URL}`"):
        cache.get("two")


def test_what_is_on_the_volume_is_not_asked_for_elsewhere(s3, artifacts, publish_run, elsewhere):
    publish_run(elsewhere, "one")
    EncoderCache(elsewhere, fetched=artifacts).get("one")
    assert not s3.requests


def test_an_alias_of_the_store_is_followed(
    store, artifacts, publish, elsewhere, monkeypatch, tmp_path
):
    one, two = publish("one"), publish("two", seed=1)
    AliasStore(tmp_path / "volume").set("prod", "one")
    store.write("aliases/prod.json", (tmp_path / "volume/aliases/prod.json").read_bytes())
    assert artifacts.find("prod").stem == "one"
    assert artifacts.known("prod").stem == "one"
    _put_alias(store, Alias("prod", _target(two)))
    monkeypatch.setattr(fetched_artifacts, "FRESH_S", 0.0)
    deadline = time.monotonic() + 20
    # Nobody waits: first what was known, then what is said in the background, once that is here.
    while (path := artifacts.known("prod")) is not None and time.monotonic() < deadline:
        assert path.stem == "one"
        time.sleep(0.02)
    assert path is None
    assert artifacts.find("prod").stem == "two"
    _put_alias(store, Alias("prod", _target(one), split=Split(_target(two), 0.5)))
    fresh = FetchedArtifacts(elsewhere, store)
    chosen = {client: fresh.find("prod", client).stem for client in map(str, range(20))}
    fresh.close()
    assert set(chosen.values()) == {"one", "two"}
    # Without a client each request draws, also once both are loaded.
    fresh = FetchedArtifacts(elsewhere, store)
    cache = EncoderCache(elsewhere, fetched=fresh)
    for _ in range(40):
        cache.get("prod")
    drawn = {cache.loaded("prod").encoder.name for _ in range(40)}
    fresh.close()
    assert drawn == {"one", "two"}


def test_what_was_fetched_is_served_on_when_the_store_is_away(s3, artifacts, publish, elsewhere):
    publish("one")
    path = artifacts.find("one")
    s3.refuses = "AccessDenied"
    started_anew = FetchedArtifacts(elsewhere, ArtifactStore(URL))
    with pytest.raises(UnavailableError, match="lets nobody in"):
        started_anew.find("two")
    assert started_anew.find("one") == path
    started_anew.close()


def test_a_store_that_is_away_is_not_asked_by_each_request(s3, artifacts):
    s3.refuses = "AccessDenied"
    for _ in range(3):
        with pytest.raises(UnavailableError, match="lets nobody in"):
            artifacts.find("one")
    assert s3.requests.total() == 1


def test_a_run_made_again_is_fetched_anew(store, artifacts, publish_run, tmp_path, monkeypatch):
    monkeypatch.setattr(fetched_artifacts, "FRESH_S", 0.0)
    store.publish(publish_run(tmp_path / "a", "one"))
    old = artifacts.find("one")
    store.publish(publish_run(tmp_path / "b", "one", seed=1))
    deadline = time.monotonic() + 20
    while (new := artifacts.find("one")) == old and time.monotonic() < deadline:
        time.sleep(0.02)
    assert new != old
    assert new.stem == old.stem == "one"


def test_what_was_changed_is_refused_and_not_fetched_by_each_request(
    s3, store, artifacts, publish, elsewhere
):
    run = publish("one")
    (key,) = [key for key in s3.objects if key.endswith("model.safetensors")]
    s3.objects[key] = s3.objects[key][:-1] + b"x"
    for _ in range(3):
        with pytest.raises(CorruptedArtifact, match=r"model\.safetensors.* was changed"):
            artifacts.find("one")
    assert _n_downloads(s3) == 1
    assert not list(elsewhere.glob("fetched/*/*/*/*.zip"))
    assert run.artifact_path.exists()


def test_what_a_killed_fetch_left_is_removed(artifacts, publish, elsewhere):
    publish("one")
    path = artifacts.find("one")
    left = elsewhere / "fetched" / f".new-{path.parents[2].name}-killed"
    left.mkdir()
    path.unlink()
    path.parents[2].rename(elsewhere / "moved")
    assert artifacts.find("one") == path
    assert not left.exists()


def test_threads_of_one_process_fetch_once(s3, artifacts, publish):
    publish("one")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(artifacts.find("one"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(set(found)), _n_downloads(s3)) == (8, 1, 1)


def test_processes_at_once_fetch_once(s3, publish, elsewhere):
    publish("one")
    code = (
        "import sys; from pathlib import Path; from finetuner.fetched_artifacts import fetched\n"
        "sys.stdin.readline(); print(fetched(sys.argv[1], Path(sys.argv[2])))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, f"{URL}/one", str(elsewhere)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = {process.communicate(timeout=120)[0] for process in processes}
    assert len(found) == 1
    assert found.pop().strip().endswith("one.zip")
    assert _n_downloads(s3) == 1


def test_a_url_is_a_model_too(publish, elsewhere, monkeypatch):
    run = publish("one")
    monkeypatch.setenv("FINETUNER_WORKSPACE", str(elsewhere))
    url = f"{URL}/{run.spec()['artifact_id']}"
    expected = load_encoder(run.artifact_path).encode(["some text"])
    assert (get_model(url, device="cpu").encode(["some text"]) == expected).all()
    assert local_artifact(url) == fetched(f"{URL}/one", elsewhere)
    with pytest.raises(ArtifactNotFound, match="`two`, neither here"):
        get_model(f"{URL}/two")

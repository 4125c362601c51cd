"""Finished artifacts on their way into a store: each once, in spite of kills and of a store that is away."""

import os
import signal
import subprocess
import sys
import time

import pytest

from finetuner import publication
from finetuner.alias_store import AliasStore
from finetuner.artifact_store import ArtifactStore
from finetuner.errors import ArtifactNotFound, UnavailableError
from finetuner.fetched_artifacts import FetchedArtifacts, fetched
from finetuner.publication import Publication
from finetuner.run_store import RunStore

URL = "s3://bucket/models"


@pytest.fixture
def store(s3):
    return ArtifactStore(URL)


def _wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_finished_runs_are_uploaded_once_and_say_where(s3, store, publish_run, tmp_path):
    one = publish_run(tmp_path, "one")
    upload = Publication(tmp_path, store)
    upload.publish()
    assert one.published_url() == store.location(fetched_digest(tmp_path, store, "one"))
    s3.requests.clear()
    upload.publish()
    Publication(tmp_path, store).publish()  # the service started anew
    assert not s3.requests
    publish_run(tmp_path, "two")
    upload.publish()
    assert {name for name in s3.names("bucket") if "/runs/" in name} == {
        "models/runs/default/one.json",
        "models/runs/default/two.json",
    }


def fetched_digest(workspace, store, name):
    return fetched(f"{store.url}/{name}", workspace / "elsewhere").parents[2].name.partition("-")[0]


def test_a_run_made_again_and_another_store_are_uploaded_too(s3, store, publish_run, tmp_path):
    upload = Publication(tmp_path, store)
    run = publish_run(tmp_path, "one")
    upload.publish()
    RunStore(tmp_path).delete(run)
    run = publish_run(tmp_path, "one", seed=1)
    assert run.published_url() == ""
    upload.publish()
    assert run.published_url().startswith(URL)
    Publication(tmp_path, ArtifactStore("s3://bucket/other")).publish()
    assert run.published_url().startswith("s3://bucket/other/artifacts/")


def test_one_that_is_damaged_does_not_hold_up_the_others(s3, store, publish_run, tmp_path, caplog):
    bad, good = publish_run(tmp_path, "bad"), publish_run(tmp_path, "good")
    bad.artifact_path.write_bytes(b"no zip")
    upload = Publication(tmp_path, store)
    upload.publish()
    upload.publish()
    assert (bad.published_url(), bool(good.published_url())) == ("", True)
    assert sum("run `bad` cannot be uploaded" in r.message for r in caplog.records) == 1


def test_what_a_store_missed_while_away_comes_when_it_is_back(
    s3, store, publish_run, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(publication, "_INTERVAL_S", 0.02)
    monkeypatch.setattr(publication, "_LONGEST_PAUSE_S", 0.05)
    s3.refuses = "AccessDenied"
    run = publish_run(tmp_path, "one")
    with pytest.raises(UnavailableError, match="lets nobody in"):
        Publication(tmp_path, store).publish()
    upload = Publication(tmp_path, store)
    upload.start()
    try:
        _wait_for(lambda: s3.requests.total() > 4)
        s3.refuses = ""
        _wait_for(run.published_url)
    finally:
        upload.close()
    told = [r.message for r in caplog.records if "cannot publish" in r.message]
    assert len(told) == 1  # and not each time anew
    assert "the-secret" not in caplog.text


def test_aliases_are_those_of_the_volume(s3, store, publish_run, tmp_path):
    publish_run(tmp_path, "one")
    publish_run(tmp_path, "two", seed=1)
    upload, aliases = Publication(tmp_path, store), AliasStore(tmp_path)
    aliases.set("prod", "one")
    upload.publish()
    path = tmp_path / "aliases" / "prod.json"
    assert store.read("aliases/prod.json") == path.read_bytes()
    aliases.set("prod", "two")
    upload.publish()
    assert store.read("aliases/prod.json") == path.read_bytes()
    aliases.delete("prod")
    Publication(tmp_path, store).publish()  # the service was down meanwhile
    assert store.read("aliases/prod.json") is None


def test_a_kill_in_an_upload_leaves_nothing_that_is_served(s3, store, publish_run, tmp_path):
    run = publish_run(tmp_path, "one")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from finetuner import object_store, publication\n"
        "from finetuner.artifact_store import ArtifactStore\n"
        "write = object_store.ObjectStore.write\n"
        "def slow(self, name, chunks):\n"
        "    def waiting():\n"
        "        for chunk in chunks:\n"
        "            yield chunk[:1000]\n"
        "            if name.endswith('model.safetensors'):\n"
        "                print('here', flush=True); time.sleep(60)\n"
        "            yield chunk[1000:]\n"
        "    write(self, name, waiting())\n"
        "object_store.ObjectStore.write = slow\n"
        "publication.Publication(Path(sys.argv[1]), ArtifactStore(sys.argv[2])).publish()"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), URL],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "here\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    there = s3.names("bucket")
    assert any("artifacts" in name for name in there)
    assert not any(name.endswith(("manifest.json", "model.safetensors")) for name in there)
    assert run.published_url() == ""
    artifacts = FetchedArtifacts(tmp_path / "elsewhere", store)
    with pytest.raises(ArtifactNotFound, match="`one`, neither here"):
        artifacts.find("one")
    Publication(tmp_path, store).publish()
    artifacts.close()
    assert fetched(f"{URL}/one", tmp_path / "elsewhere").is_file()


def test_a_service_that_stops_does_not_wait_for_an_upload(s3, store, publish_run, tmp_path):
    run = publish_run(tmp_path, "one")
    upload = Publication(tmp_path, store)
    upload._stop.set()
    upload.start()
    upload.close()
    assert not upload._thread.is_alive()
    assert run.published_url() == ""

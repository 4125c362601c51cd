import os
import shutil
import subprocess
import sys
import threading

import pytest

from finetuner import run_index
from finetuner.config import RunConfig
from finetuner.errors import ArtifactNotFound
from finetuner.run_index import RunIndex
from finetuner.run_queue import Queue
from finetuner.run_store import RunStore
from finetuner.runs import Run
from finetuner.states import Status

LATER_S = 10.0


def create(store, name, experiment="default"):
    return store.create(RunConfig(model="tiny", run_name=name, experiment_name=experiment), {})


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


@pytest.fixture
def index(tmp_path):
    """Another process's index of the store: it is not told what the store does."""
    return RunIndex(tmp_path / "runs")


@pytest.fixture
def clock(monkeypatch):
    """Let time pass for the index alone."""

    class Clock:
        passed_s = 0.0

        def monotonic(self, _real=run_index.time.monotonic):
            return _real() + self.passed_s

        def time(self, _real=run_index.time.time):
            return _real() + self.passed_s

    clock = Clock()
    monkeypatch.setattr(run_index, "time", clock)
    return clock


@pytest.fixture
def n_listed(monkeypatch):
    """The folders that are listed, by name."""
    listed, folders = [], run_index._folders

    def noted(path):
        listed.append(path.name)
        return folders(path)

    monkeypatch.setattr(run_index, "_folders", noted)
    return lambda: listed.count("default")


def test_runs_are_in_the_order_of_their_creation(store):
    runs = [create(store, name, experiment) for name, experiment in ("bx", "ay", "cx")]
    assert store.list() == runs
    assert store.list("x") == [runs[0], runs[2]]


def test_what_this_process_does_is_seen_at_once_without_a_listing(tmp_path, store, clock, n_listed):
    create(store, "a")
    assert [run.name for run in store.list()] == ["a"]
    n_before = n_listed()
    for name in "bcd":
        create(RunStore(tmp_path), name)
        assert store.list()[-1].name == name
    store.delete(store.get("b"))
    assert [run.name for run in store.list()] == ["a", "c", "d"]
    assert [run.name for run in store.list("default")] == ["a", "c", "d"]
    assert n_listed() == n_before


def test_what_others_do_is_seen_when_a_second_has_passed(store, index, clock):
    one = create(store, "one")
    assert index.runs() == [one]
    two, other = create(store, "two"), create(store, "other", "more")
    store.delete(one)
    clock.passed_s += 1.1
    assert index.runs() == [two, other]
    assert index.runs("more") == [other]
    store.delete(other)
    store.delete_experiment("more")
    assert index.runs() == [two]


def test_a_change_within_the_resolution_of_the_folder_s_time_is_seen(store, index, clock):
    create(store, "one")
    folder = store.get("one").folder.parent
    assert len(index.runs()) == 1
    times = folder.stat()
    create(store, "two")
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    clock.passed_s += 1.1
    assert len(index.runs()) == 2


def test_a_change_that_the_volume_hides_is_seen_some_seconds_later(store, index, clock):
    create(store, "one")
    folder = store.get("one").folder.parent
    clock.passed_s += LATER_S
    assert len(index.runs()) == 1
    times = folder.stat()
    create(store, "two")
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    clock.passed_s += 1.1
    assert len(index.runs()) == 1
    clock.passed_s += LATER_S
    assert len(index.runs()) == 2


def test_a_folder_that_rests_is_rarely_listed_and_no_spec_read_twice(
    store, index, clock, n_listed, monkeypatch
):
    for number in range(5):
        create(store, f"r{number}")
    clock.passed_s += LATER_S
    assert len(index.runs()) == 5
    monkeypatch.setattr(Run, "spec", None)
    n_before = n_listed()
    for _ in range(50):
        index.runs()
    assert n_listed() == n_before
    clock.passed_s += LATER_S
    assert len(index.runs()) == 5
    assert n_listed() == n_before + 1


@pytest.mark.parametrize("is_inode_reused", [False, True])
def test_a_run_made_anew_under_its_name_is_another(
    store, index, clock, monkeypatch, is_inode_reused
):
    if is_inode_reused:
        monkeypatch.setattr(run_index, "_inode", lambda entry: 1)
    first = create(store, "one").spec()["artifact_id"]
    assert index.find(first) == store.get("one")
    store.delete(store.get("one"))
    again = create(store, "one").spec()["artifact_id"]
    clock.passed_s += LATER_S
    assert (index.find(again), index.find(first)) == (store.get("one"), None)


def test_unknown_ids_do_not_make_it_read_everything_each_time(store, index, clock, monkeypatch):
    create(store, "one")
    assert index.find("unknown") is None
    monkeypatch.setattr(Run, "spec", None)
    for _ in range(10):
        assert index.find("unknown") is None


def test_the_queue_does_not_read_again_what_has_ended_or_waits(store, come_to, monkeypatch):
    runs = [create(store, f"r{number}") for number in range(4)]
    queue = Queue(store)
    queue.refresh()
    assert queue.waiting == runs
    come_to(runs[0], Status.FINISHED)
    come_to(runs[2], Status.FAILED)
    claim = come_to(runs[1], Status.STARTED)
    queue.refresh()
    assert (queue.waiting, queue.started) == ([runs[3]], {runs[1].folder: claim})
    store.delete(runs[3])
    come_to(runs[1], Status.FINISHED)
    queue.refresh()
    assert (queue.waiting, queue.started) == ([], {})
    waiting = create(store, "waiting")
    queue.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "state", None)
        queue.refresh()
        assert queue.waiting == [waiting]
    store.delete(runs[0])
    again = create(store, "r0")
    queue.refresh()
    assert queue.waiting == [waiting, again]


def test_artifact_ids_are_found_and_forgotten(come_to, store):
    run = create(store, "one")
    come_to(run, Status.FINISHED, "")
    artifact_id = run.spec()["artifact_id"]
    assert store.find_artifact(artifact_id) == run.artifact_path
    later = create(store, "two")
    come_to(later, Status.FINISHED, "")
    assert store.find_artifact(later.spec()["artifact_id"]) == later.artifact_path
    store.delete(run)
    with pytest.raises(ArtifactNotFound, match="no run and no artifact"):
        store.find_artifact(artifact_id)


def test_what_is_no_run_is_passed_over_until_it_is_one(store, index, clock, tmp_path):
    run = create(store, "one")
    root = tmp_path / "runs"
    (root / "default" / "stray").mkdir()
    (root / "default" / "file").write_text("")
    (root / "file").write_text("")
    copied = root / "default" / "copied"
    copied.mkdir()
    (copied / "spec.json").write_text("{")
    assert index.runs() == [run]
    shutil.copytree(run.folder, copied, dirs_exist_ok=True)
    clock.passed_s += LATER_S
    assert [found.name for found in index.runs()] == ["copied", "one"]


def test_an_empty_volume_has_none(index):
    assert index.runs() == []
    assert index.runs("default") == []
    assert index.find("0" * 24) is None


def test_threads_that_create_delete_and_list_agree_in_the_end(store):
    failures = []

    def work(number):
        try:
            for turn in range(10):
                run = create(store, f"r{number}-{turn}")
                assert run in store.list()
                if turn % 2:
                    store.delete(run)
                    assert run not in store.list()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    expected = sorted(f"r{n}-{turn}" for n in range(6) for turn in range(0, 10, 2))
    assert sorted(run.name for run in store.list()) == expected
    created = [run.spec()["created_at"] for run in store.list()]
    assert created == sorted(created)


def test_a_run_of_another_process_is_seen(tmp_path, store, clock):
    create(store, "mine")
    assert len(store.list()) == 1
    code = (
        "import sys, pathlib\n"
        "from finetuner.run_store import RunStore\n"
        "from finetuner.config import RunConfig\n"
        "RunStore(pathlib.Path(sys.argv[1])).create(RunConfig(model='m', run_name='theirs'), {})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    clock.passed_s += 1.1
    assert [run.name for run in store.list()] == ["mine", "theirs"]

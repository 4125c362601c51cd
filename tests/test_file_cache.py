import os

import pytest

from finetuner.file_cache import FileCache
from finetuner.files import write_json

HOUR_NS = 3600 * 10**9


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.json"


@pytest.fixture
def reads():
    return []


@pytest.fixture
def cache(reads):
    def load(path):
        reads.append(path)
        return path.read_text()

    return FileCache(load)


def make_older(path):
    changed = os.stat(path).st_mtime_ns - HOUR_NS
    os.utime(path, ns=(changed, changed))
    return changed


def test_what_has_not_changed_is_read_once_and_asked_for_once_a_call(
    path, cache, reads, monkeypatch
):
    write_json(path, 1)
    make_older(path)
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: asked.append(args) or stat(*args))
    assert [cache.get(path) for _ in range(5)] == ["1"] * 5
    assert (len(reads), len(asked)) == (1, 5)


def test_what_has_changed_is_read_again(path, cache):
    for value in (1, 2, 30):
        write_json(path, value)
        make_older(path)
        assert cache.get(path) == str(value)


def test_a_file_replaced_within_a_tick_is_read_again(path, cache):
    """The same time, inode and size, and other content: a fresh file is not trusted."""
    write_json(path, 1)
    state = os.stat(path)
    assert cache.get(path) == "1"
    path.write_text("2")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(path).st_ino == state.st_ino
    assert cache.get(path) == "2"


def test_a_file_that_is_gone(path, cache):
    write_json(path, 1)
    make_older(path)
    cache.get(path)
    path.unlink()
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"x\.json"):
            cache.get(path)

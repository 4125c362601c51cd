import os
import threading
import time

import pytest

from finetuner import heartbeat as heartbeat_module
from finetuner.heartbeat import Beat, Heartbeat, read_beat

SIZE_BYTES = 1024


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(heartbeat_module, "INTERVAL_S", 0.01)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "heartbeat.json"


def nothing():
    """See nothing amiss."""


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def test_it_beats_while_the_work_says_nothing(path):
    with Heartbeat(path, 7, look=nothing):
        first = read_beat(path)
        assert (first.number, first.n_said) == (7, 1)
        wait_until(lambda: read_beat(path).n_beats > 5)
        assert read_beat(path).n_said == 1


def test_it_beats_while_the_work_computes(path):
    """Python gives other threads their turn; what never does so is taken for hung by the silence."""
    with Heartbeat(path, 1, look=nothing):
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            sum(range(1000))
        assert read_beat(path).n_beats > 3


def test_what_is_said_is_progress(path):
    with Heartbeat(path, 1, look=nothing) as heartbeat:
        heartbeat.say("Epoch 1/2")
        heartbeat.say("Epoch 2/2")
        found = read_beat(path)
        assert (found.n_said, found.details) == (3, "Epoch 2/2")
        wait_until(lambda: read_beat(path).n_beats > found.n_beats)
        assert read_beat(path).details == "Epoch 2/2"


@pytest.mark.parametrize(
    ("details", "kept"),
    [
        ("", 0),
        ("x" * 300, 300),
        ("x" * 10_000, 300),
        ("é" * 300, 300),
        ('"\n\\' * 100, 300),
        ("\N{ROCKET}" * 300, 220),
        ("\0" * 300, 140),
    ],
)
def test_details_are_cut_to_what_fits(path, details, kept):
    with Heartbeat(path, 1, look=nothing) as heartbeat:
        heartbeat.say(details)
        found = read_beat(path)
    assert details.startswith(found.details)
    assert len(found.details) >= kept
    assert path.stat().st_size == SIZE_BYTES


def test_its_file_keeps_place_and_size(path):
    """So it needs nothing of a disk that has become full."""
    with Heartbeat(path, 1, look=nothing) as heartbeat:
        before = path.stat()
        heartbeat.say("x" * 300)
        wait_until(lambda: read_beat(path).n_beats > 5)
        after = path.stat()
    assert (before.st_ino, before.st_size, before.st_blocks) == (
        after.st_ino,
        after.st_size,
        after.st_blocks,
    )
    assert os.listdir(path.parent) == [path.name]


def test_a_volume_that_is_away_does_not_end_it(path, monkeypatch):
    with Heartbeat(path, 1, look=nothing) as heartbeat:
        n_before = read_beat(path).n_beats
        tried = threading.Event()

        def away(*_):
            tried.set()
            raise OSError("Stale file handle")

        with monkeypatch.context() as patch:
            patch.setattr(heartbeat_module.os, "pwrite", away)
            heartbeat.say("unheard")
            assert tried.wait(10)
        wait_until(lambda: read_beat(path).n_beats > n_before)
        assert read_beat(path).details == "unheard"


def test_it_looks_with_each_beat_also_after_the_volume_was_away(path):
    looks = []

    def look():
        looks.append(True)
        if len(looks) == 1:
            raise OSError("Stale file handle")

    with Heartbeat(path, 1, look=look):
        wait_until(lambda: len(looks) > 3)


def test_it_ends_with_its_block(path):
    with Heartbeat(path, 1, look=nothing):
        pass
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


@pytest.mark.parametrize(
    "content", [b"", b'{"number": 1', b"\0" * SIZE_BYTES, b"[1]", b'{"other": 1}', b"\xff"]
)
def test_what_is_torn_or_something_else_is_none(path, content):
    path.write_bytes(content)
    assert read_beat(path) is None


def test_numbers_stay_until_there_are_newer_ones(path):
    with Heartbeat(path, 1, look=nothing) as heartbeat:
        assert read_beat(path).progress is None
        heartbeat.say("Epoch 1/2", {"step": 1})
        heartbeat.say("Evaluating")
        assert (read_beat(path).details, read_beat(path).progress) == ("Evaluating", {"step": 1})
        heartbeat.say("Epoch 1/2", {"step": 2})
        assert read_beat(path).progress == {"step": 2}
        assert path.stat().st_size == SIZE_BYTES


def test_details_make_room_for_numbers(path):
    names = ("epoch", "n_epochs", "step", "n_steps", "n_steps_done", "n_steps_total", "loss")
    numbers = dict.fromkeys([*names, "active", "texts_per_s", "eta_s"], -1234567.123456)
    with Heartbeat(path, 1, look=nothing) as heartbeat:
        heartbeat.say("\N{ROCKET}" * 300, numbers)
        assert read_beat(path).progress == numbers
        assert len(read_beat(path).details) >= 100
        assert path.stat().st_size == SIZE_BYTES


def test_no_file_is_none(path):
    assert read_beat(path) is None


def test_one_written_over_another_is_that_alone(path):
    with Heartbeat(path, 1, look=nothing) as heartbeat:
        heartbeat.say("x" * 300)
    with Heartbeat(path, 3, look=nothing):
        assert read_beat(path) == Beat(3, 1, 1, "")

import pytest

from finetuner import silence as silence_module
from finetuner.config import RunConfig
from finetuner.heartbeat import Heartbeat
from finetuner.run_store import RunStore
from finetuner.silence import Silence, SilenceWatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(silence_module, "time", clock)
    return clock


@pytest.fixture
def run(tmp_path):
    return RunStore(tmp_path).create(RunConfig(model="tiny", run_name="one"), {})


@pytest.fixture
def heartbeat(run):
    """Of the run's worker, beating when it is told."""
    claim = run.claim()
    return claim, Heartbeat(run.folder / "heartbeat.json", claim.number, look=lambda: None)


def test_silence_begins_when_it_is_first_looked_at(run, clock):
    claim, watch = run.claim(), SilenceWatch()
    assert watch.look(run, claim) == Silence(0.0, 0.0)
    clock.now += 7
    assert watch.look(run, claim) == Silence(7.0, 7.0)


def test_a_beat_is_life_and_a_word_is_progress(run, clock, heartbeat):
    (claim, heartbeat), watch = heartbeat, SilenceWatch()
    heartbeat.say("begun")
    watch.look(run, claim)
    clock.now += 5
    heartbeat._write()
    assert watch.look(run, claim) == Silence(0.0, 5.0)
    clock.now += 5
    assert watch.look(run, claim) == Silence(5.0, 10.0)
    heartbeat.say("on it")
    assert watch.look(run, claim) == Silence(0.0, 0.0)


def test_a_word_that_was_there_before_is_no_sign(run, clock, heartbeat):
    (claim, heartbeat), watch = heartbeat, SilenceWatch()
    heartbeat.say("said long ago")
    watch.look(run, claim)
    clock.now += 60
    assert watch.look(run, claim) == Silence(60.0, 60.0)


def test_a_file_that_cannot_be_read_is_no_sign(run, clock, heartbeat):
    (claim, heartbeat), watch = heartbeat, SilenceWatch()
    heartbeat.say("begun")
    watch.look(run, claim)
    clock.now += 9
    (run.folder / "heartbeat.json").write_bytes(b"{")
    watch.look(run, claim)
    clock.now += 9
    (run.folder / "heartbeat.json").write_bytes(b"")
    assert watch.look(run, claim) == Silence(18.0, 18.0)


def test_beats_of_an_earlier_worker_are_not_this_ones(run, clock, heartbeat, come_to):
    (claim, heartbeat), watch = heartbeat, SilenceWatch()
    heartbeat.say("begun")
    clock.now += 50
    watch.look(run, claim)
    clock.now += 50
    later = type(claim)(**{**vars(claim), "number": claim.number + 2})
    assert watch.look(run, later) == Silence(0.0, 0.0)
    clock.now += 3
    heartbeat.say("of the earlier one")
    assert watch.look(run, later) == Silence(3.0, 3.0)


def test_what_is_forgotten_begins_anew(run, clock):
    claim, watch = run.claim(), SilenceWatch()
    watch.look(run, claim)
    clock.now += 20
    watch.forget_all_but({run.folder})
    assert watch.look(run, claim).beat_s == 20
    watch.forget_all_but(set())
    assert watch.look(run, claim).beat_s == 0

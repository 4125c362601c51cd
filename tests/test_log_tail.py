"""Tails over runs whose files the tests write; a look is taken a hundred times a second."""

import asyncio
import os
import random

import pytest

from finetuner import log_tail
from finetuner.config import RunConfig
from finetuner.errors import UnavailableError
from finetuner.log_tail import Followed, Tails
from finetuner.run_store import RunStore
from finetuner.states import Status

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(log_tail, "INTERVAL_S", 0.01)


@pytest.fixture
def run(tmp_path):
    return RunStore(tmp_path).create(RunConfig(model="tiny", run_name="one"), {})


def followed(run, file_name="log.txt"):
    return Followed(run, run.spec()["artifact_id"], file_name)


def write(run, content, file_name="log.txt"):
    with (run.folder / file_name).open("ab") as file:
        file.write(content)


async def collect(tails, what, offset=0, *, lines=False):
    got = b""
    with tails.following(what) as tail:
        async for chunk in tail.lines(offset) if lines else tail.chunks(offset):
            got += chunk
    return got


async def follow_while(coroutine, what, offset=0, *, lines=False, is_stopping=lambda: False):
    """Follow, do something beside it, and return what the follower got."""
    tails = Tails(is_stopping)
    follower = asyncio.create_task(collect(tails, what, offset, lines=lines))
    await coroutine
    got = await asyncio.wait_for(follower, 10)
    assert len(tails) == 0
    return got


async def pause(n_looks=8):
    await asyncio.sleep(n_looks * 0.01)


def test_a_log_is_followed_from_before_the_start_to_the_end(come_to, run):
    async def work():
        await pause()
        come_to(run, Status.STARTED, "")
        for number in range(5):
            write(run, b"line %d\n" % number)
            await pause(3)
        come_to(run, Status.INTERRUPTED, "stopped with the service")
        await pause()
        come_to(run, Status.STARTED, "goes on")
        write(run, b"again\n")
        await pause(2)
        write(run, b"the end, without a newline")
        come_to(run, Status.FINISHED, "")

    got = asyncio.run(follow_while(work(), followed(run)))
    assert got == (run.folder / "log.txt").read_bytes()
    assert got.endswith(b"again\nthe end, without a newline")


@pytest.mark.parametrize("status", [Status.FINISHED, Status.FAILED])
@pytest.mark.parametrize("offset", [0, 1, 99_999, 299_999, 300_000, 300_001, 10**15])
def test_what_is_there_already_is_given_from_any_offset(come_to, run, status, offset):
    content = random.Random(0).randbytes(300_000)
    write(run, content)
    come_to(run, status, "")

    async def nothing():
        pass

    assert asyncio.run(follow_while(nothing(), followed(run), offset)) == content[offset:]


def test_a_run_without_a_log_ends_without_one(come_to, run):
    come_to(run, Status.FAILED, "")
    assert asyncio.run(follow_while(pause(1), followed(run))) == b""


def test_followers_of_one_file_share_its_looks(come_to, run, monkeypatch):
    come_to(run, Status.STARTED, "")
    n_looks = 0
    look_again = log_tail.Tail._look_again

    def counted(*arguments):
        nonlocal n_looks
        n_looks += 1
        return look_again(*arguments)

    monkeypatch.setattr(log_tail.Tail, "_look_again", counted)

    async def follow_many():
        tails = Tails(lambda: False)
        followers = [asyncio.create_task(collect(tails, followed(run))) for _ in range(300)]
        for number in range(10):
            write(run, b"%d\n" % number)
            await pause(2)
        assert len(tails) == 1
        come_to(run, Status.FINISHED, "")
        return await asyncio.wait_for(asyncio.gather(*followers), 10)

    assert set(asyncio.run(follow_many())) == {b"".join(b"%d\n" % n for n in range(10))}
    assert n_looks < 300


def test_a_slow_follower_holds_nobody_up_and_misses_nothing(come_to, run):
    content = random.Random(0).randbytes(2_000_000)
    come_to(run, Status.STARTED, "")

    async def follow_slowly():
        tails, is_open, got = Tails(lambda: False), asyncio.Event(), b""
        with tails.following(followed(run)) as tail:
            quick = asyncio.create_task(collect(tails, followed(run)))
            write(run, content[:10])
            async for chunk in tail.chunks(0):
                got += chunk
                if not is_open.is_set():
                    for start in range(10, len(content), 100_000):
                        write(run, content[start : start + 100_000])
                        await pause(2)
                    write(run, b"")
                    come_to(run, Status.FINISHED, "")
                    quick_got = await asyncio.wait_for(quick, 10)
                    is_open.set()
                assert len(tail._look.window) <= log_tail._WINDOW_BYTES
        return got, quick_got

    got, quick_got = asyncio.run(follow_slowly())
    assert quick_got == (run.folder / "log.txt").read_bytes()
    assert got == quick_got


def test_it_ends_with_the_run_s_folder(come_to, run, tmp_path):
    come_to(run, Status.STARTED, "")
    write(run, b"a\n")

    async def delete():
        await pause()
        RunStore(tmp_path).delete(run)

    assert asyncio.run(follow_while(delete(), followed(run))) == b"a\n"


def test_a_later_run_of_the_same_name_is_not_followed(come_to, run, tmp_path):
    come_to(run, Status.STARTED, "")
    write(run, b"a\n")
    store = RunStore(tmp_path)

    async def replace():
        await pause()
        store.delete(run)
        write(store.create(RunConfig(model="tiny", run_name="one"), {}), b"other\n")

    old = followed(run)
    assert asyncio.run(follow_while(replace(), old)) == b"a\n"
    assert asyncio.run(follow_while(pause(1), old)) == b""


def test_it_ends_when_the_service_stops(come_to, run):
    come_to(run, Status.STARTED, "")
    write(run, b"a\n")
    stopping = False

    async def stop():
        nonlocal stopping
        await pause()
        write(run, b"b\n")
        await pause()
        stopping = True

    got = asyncio.run(follow_while(stop(), followed(run), is_stopping=lambda: stopping))
    assert got == b"a\nb\n"


def test_a_volume_that_is_away_for_a_moment_is_waited_for(come_to, run, tmp_path):
    come_to(run, Status.STARTED, "")
    write(run, b"a\n")
    log, away = run.folder / "log.txt", tmp_path / "away.txt"

    async def go_away():
        await pause()
        os.rename(log, away)
        log.mkdir()  # what cannot be read
        await pause()
        log.rmdir()
        os.rename(away, log)
        await pause()
        write(run, b"b\n")
        come_to(run, Status.FINISHED, "")

    assert asyncio.run(follow_while(go_away(), followed(run))) == b"a\nb\n"


def test_what_cannot_be_read_any_more_is_no_end(come_to, run):
    write(run, bytes(400_000))
    come_to(run, Status.FINISHED, "")

    async def follow_and_lose():
        tails = Tails(lambda: False)
        with tails.following(followed(run)) as tail:
            async for _ in tail.chunks(0):
                (run.folder / "log.txt").unlink(missing_ok=True)

    with pytest.raises(UnavailableError, match="`log.txt` of run `one` cannot be read any more"):
        asyncio.run(follow_and_lose())


def test_lines_are_given_whole_and_torn_ones_never(come_to, run):
    come_to(run, Status.STARTED, "")

    async def work():
        for part in (b'{"n":1}\n{"n"', b":2}\n", b'{"n":3\n', b'{"n":4}\n{"n":5'):
            write(run, part, "steps.jsonl")
            await pause(3)
        come_to(run, Status.FAILED, "killed in the middle of a line")

    got = asyncio.run(follow_while(work(), followed(run, "steps.jsonl"), lines=True))
    assert got == b'{"n":1}\n{"n":2}\n\n{"n":4}\n'  # the empty one keeps the numbers


@pytest.mark.parametrize("n_seen", [0, 1, 3, 4, 9])
def test_lines_are_given_from_any_number_on(come_to, run, n_seen):
    lines = [b"%d\n" % n for n in range(4)]
    write(run, b"".join(lines), "steps.jsonl")
    come_to(run, Status.FINISHED, "")
    got = asyncio.run(follow_while(pause(1), followed(run, "steps.jsonl"), n_seen, lines=True))
    assert got == b"".join(lines[n_seen:])


@pytest.mark.parametrize("n_kept", [0, 2, 3])
def test_lines_that_are_written_again_are_given_once(come_to, run, n_kept):
    come_to(run, Status.STARTED, "")
    path = run.folder / "steps.jsonl"
    lines = [b"%d\n" % n for n in range(6)]

    async def work():
        write(run, b"".join(lines[:4]), path.name)
        await pause()
        path.with_suffix(".new").write_bytes(b"".join(lines[:n_kept]))
        path.with_suffix(".new").replace(path)
        await pause()
        for line in lines[n_kept:]:
            write(run, line, path.name)
            await pause(2)
        come_to(run, Status.FINISHED, "")

    got = asyncio.run(follow_while(work(), followed(run, path.name), lines=True))
    assert got == b"".join(lines)

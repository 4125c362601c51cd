"""The short way between gateway and encoder, over real sockets."""

import asyncio
import logging

import pytest

from finetuner.direct import DirectClient, DirectServer, socket_name, sockets_folder
from finetuner.errors import (
    FinetunerServerError,
    OverloadedError,
    UnavailableError,
)


def run(scenario):
    """Run a scenario with a client and a function that starts servers; end them all."""

    async def main():
        client, servers = DirectClient(), []

        async def start(path, answer):
            servers.append(DirectServer(path, answer))
            await servers[-1].start()
            return servers[-1]

        try:
            await scenario(client, start)
        finally:
            await client.close()
            for server in servers:
                await server.stop()

    asyncio.run(main())


def test_bytes_come_back(tmp_path):
    async def scenario(client, start):
        async def answer(request):
            return request[::-1]

        await start(tmp_path / "a.sock", answer)
        large = bytes(range(256)) * 2**16  # 16 MiB, beyond what gRPC takes by default
        assert await client.ask([tmp_path / "a.sock"], large) == large[::-1]
        assert await client.ask([tmp_path / "a.sock"], b"") == b""

    run(scenario)


def test_errors_keep_their_class_and_tell_nothing_that_is_not_ours(tmp_path, caplog):
    errors = [
        OverloadedError("8 tokens wait already; retry in 3 s"),
        FinetunerServerError("The alias is damaged", "/the/path", 500),
        KeyError("/the/path"),
    ]

    async def scenario(client, start):
        async def answer(_request):
            raise errors.pop(0)

        await start(tmp_path / "a.sock", answer)
        with pytest.raises(OverloadedError, match="retry in 3 s"):
            await client.ask([tmp_path / "a.sock"], b"")
        for sentence in ("The alias is damaged", "The executor failed"):
            with pytest.raises(FinetunerServerError, match=sentence) as caught:
                await client.ask([tmp_path / "a.sock"], b"")
            assert "/the/path" not in str(caught.value)

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert "a request for vectors failed" in caplog.text


def test_the_replica_with_least_to_do_is_asked_and_a_dead_one_is_passed_over(tmp_path):
    paths = [tmp_path / name for name in ("dead.sock", "a.sock", "b.sock")]

    async def scenario(client, start):
        gate = asyncio.Event()
        asked = []

        def answering(name):
            async def answer(_request):
                asked.append(name)
                await gate.wait()
                return name

            return answer

        for path in paths[1:]:
            await start(path, answering(path.stem.encode()))
        tasks = []
        for number in range(4):
            tasks.append(asyncio.ensure_future(client.ask(paths, b"")))
            async with asyncio.timeout(5):
                while len(asked) <= number:
                    await asyncio.sleep(0.01)
        gate.set()
        assert sorted(await asyncio.gather(*tasks)) == [b"a", b"a", b"b", b"b"]

    run(scenario)


def test_nobody_there(tmp_path):
    async def scenario(client, _start):
        with pytest.raises(UnavailableError, match="the encoder does not answer"):
            await client.ask([tmp_path / "a.sock", tmp_path / "b.sock"], b"")

    run(scenario)


def test_a_request_that_is_given_up_is_given_up_on_the_other_side(tmp_path):
    async def scenario(client, start):
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def answer(_request):
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        await start(tmp_path / "a.sock", answer)
        task = asyncio.ensure_future(client.ask([tmp_path / "a.sock"], b""))
        await asyncio.wait_for(begun.wait(), 5)
        task.cancel()
        await asyncio.wait_for(cancelled.wait(), 5)

    run(scenario)


def test_what_a_dead_process_left_is_in_nobodys_way(tmp_path):
    async def scenario(client, start):
        async def answer(_request):
            return b"new"

        (tmp_path / "a.sock").write_text("left behind")
        server = await start(tmp_path / "a.sock", answer)
        assert await client.ask([tmp_path / "a.sock"], b"") == b"new"
        server.stop_listening()
        assert not (tmp_path / "a.sock").exists()

    run(scenario)


def test_sockets_lie_where_the_service_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNER_SOCKETS", str(tmp_path))
    assert sockets_folder() == tmp_path
    assert socket_name("encoder/rep-0") == "encoder-rep-0.sock"
    monkeypatch.delenv("FINETUNER_SOCKETS")
    assert sockets_folder() is None

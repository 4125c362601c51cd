"""Files that grow while a run is at work, read once for all who follow them.

A follower costs the volume nothing: one look a fifth of a second is taken for each file that is followed,
and what was written last is kept in memory for all. A follower has only its own offset; one that is slow
neither holds the others up nor lets anything pile up, since what it asks for later is read from the file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from finetuner.errors import RunNotFoundError, UnavailableError
from finetuner.files import file_version
from finetuner.json_lines import NewLines
from finetuner.runs import Run

logger = logging.getLogger(__name__)
INTERVAL_S = 0.2
# What is kept of a file's end, for all followers together, and what one of them gets at once.
_WINDOW_BYTES = 256 * 1024
_CHUNK_BYTES = 64 * 1024
# A state may be replaced twice within the resolution of a file's time, so it is read now and then anyway.
_LOOKS_BETWEEN_STATES = 10
_N_THREADS = 4


@dataclass(frozen=True)
class Followed:
    """What is followed.

    :param run: The run.
    :param artifact_id: Tells the run from a later one of the same name.
    :param file_name: Within its folder.
    """

    run: Run
    artifact_id: str
    file_name: str

    @property
    def path(self) -> Path:
        """The file, which need not exist yet."""
        return self.run.folder / self.file_name


@dataclass(frozen=True)
class _Look:
    """What was found at one moment.

    :param size_bytes: Of the file; 0 when there is none.
    :param window: Its last bytes.
    :param inode: Of the file.
    :param n_replaced: How often it has become another file, or a shorter one.
    :param has_ended: Whether there will be no more.
    :param spec_version: Tells the run's folder from a later one of the same name.
    :param state_version: Tells whether the state has changed.
    """

    size_bytes: int = 0
    window: bytes = b""
    inode: int = 0
    n_replaced: int = 0
    has_ended: bool = False
    spec_version: tuple[int, int] | None = None
    state_version: tuple[int, int] | None = None

    @property
    def news(self) -> tuple[int, int, bool]:
        """What followers wait for."""
        return self.size_bytes, self.n_replaced, self.has_ended


class Tail:
    """One growing file.

    :param followed: Which.
    :param is_stopping: Whether the service stops, which ends it as the run's end does.
    :param pool: Where files are read: a volume that hangs must not stop the event loop.
    """

    def __init__(
        self, followed: Followed, is_stopping: Callable[[], bool], pool: ThreadPoolExecutor
    ) -> None:
        self._followed, self._is_stopping, self._pool = followed, is_stopping, pool
        self._look = _Look()
        self._n_looks = 0
        self._changed = asyncio.Event()
        # At most one follower's read at a time: a hanging volume takes one thread and not all.
        self._reading = asyncio.Lock()

    async def watch(self) -> None:
        """Look at the file until there will be no more, and wake the followers."""
        while not self._look.has_ended:
            if self._n_looks:
                await asyncio.sleep(INTERVAL_S)
            look = await self._next_look()
            is_news, self._look = look.news != self._look.news, look
            self._n_looks += 1
            if is_news or self._n_looks == 1:
                self._changed.set()
                self._changed = asyncio.Event()

    async def _next_look(self) -> _Look:
        loop = asyncio.get_running_loop()
        try:
            look = await loop.run_in_executor(self._pool, self._look_again, self._look)
        # The volume is away for a moment, or holds half of what someone copies there.
        except (OSError, ValueError):
            if self._n_looks % _LOOKS_BETWEEN_STATES == 0:
                logger.warning("cannot read %s", self._followed.path, exc_info=True)
            look = self._look
        return replace(look, has_ended=True) if self._is_stopping() else look

    def _look_again(self, before: _Look) -> _Look:
        # The state first: when it says that the run has ended, all of the file is there.
        try:
            look = self._with_state(before)
        except (FileNotFoundError, RunNotFoundError):  # deleted
            return replace(before, has_ended=True)
        try:
            file = self._followed.path.open("rb", buffering=0)
        except FileNotFoundError:
            n_replaced = before.n_replaced + (before.size_bytes > 0)
            return replace(look, size_bytes=0, window=b"", n_replaced=n_replaced)
        # Opened and not only asked for its size: that is when a network volume shows what is new.
        with file:
            found = os.fstat(file.fileno())
            is_other = found.st_ino != before.inode or found.st_size < before.size_bytes
            if is_other:
                n_replaced = before.n_replaced + (before.size_bytes > 0)
                look = replace(look, size_bytes=0, window=b"", n_replaced=n_replaced)
            start = max(look.size_bytes, found.st_size - _WINDOW_BYTES)
            file.seek(start)
            grown = file.read(found.st_size - start)
        kept = look.window if start == look.size_bytes else b""
        window = (kept + grown)[-_WINDOW_BYTES:]
        return replace(look, size_bytes=start + len(grown), window=window, inode=found.st_ino)

    def _with_state(self, before: _Look) -> _Look:
        run = self._followed.run
        spec_version = file_version(run.folder / "spec.json")
        if before.spec_version not in (None, spec_version) or (
            before.spec_version is None and run.spec()["artifact_id"] != self._followed.artifact_id
        ):
            raise RunNotFoundError(f"another run has the name `{run.name}` now")
        state_version = run.version()
        is_due = self._n_looks % _LOOKS_BETWEEN_STATES == 0
        return replace(
            before,
            has_ended=(is_due or state_version != before.state_version) and run.has_ended(),
            spec_version=spec_version,
            state_version=state_version,
        )

    async def chunks(self, offset: int) -> AsyncIterator[bytes]:
        """Yield the file's bytes from an offset on, until there will be no more.

        :raises UnavailableError: When what is there cannot be read.
        """
        async for _ in self._news():
            while offset < self._look.size_bytes:
                chunk = await self._read(offset)
                offset += len(chunk)
                if chunk:
                    yield chunk

    async def lines(self, n_given: int) -> AsyncIterator[bytes]:
        """Yield the file's whole lines but the first, some at a time, until there will be no more.

        A run that goes on from a checkpoint cuts its file and writes the last lines again; those whose
        numbers were given are not given again.

        :param n_given: How many lines to leave out.
        :raises UnavailableError: When what is there cannot be read.
        """
        lines, offset, n_replaced = NewLines(n_given), 0, 0
        async for _ in self._news():
            while True:
                if self._look.n_replaced != n_replaced:
                    lines.restart()
                    offset, n_replaced = 0, self._look.n_replaced
                if offset >= self._look.size_bytes:
                    break
                chunk = await self._read(offset)
                if self._look.n_replaced != n_replaced:
                    continue
                offset += len(chunk)
                if new := lines.take(chunk):
                    yield new

    async def _news(self) -> AsyncIterator[None]:
        """Yield each time that a look has found something, until there will be no more.

        Followers keep no look while they wait for their clients: it holds the window.
        """
        if not self._n_looks:
            await self._changed.wait()
        while True:
            changed, has_ended = self._changed, self._look.has_ended
            yield
            if has_ended:
                return
            # What was found while the follower was at work has set the event that it took before.
            await changed.wait()

    async def _read(self, offset: int) -> bytes:
        """Return some bytes from an offset on; none when they cannot be read at the moment."""
        look = self._look
        start = offset - (look.size_bytes - len(look.window))
        if start >= 0:
            return look.window[start : start + _CHUNK_BYTES]
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            async with self._reading:
                chunk = await loop.run_in_executor(self._pool, self._read_file, look, offset)
            if chunk:
                return chunk
        if self._look.has_ended:
            raise UnavailableError(
                f"`{self._followed.file_name}` of run `{self._followed.run.name}` cannot be read any "
                "more; ask again, unless the run was deleted"
            )
        await asyncio.sleep(INTERVAL_S)
        return b""

    def _read_file(self, look: _Look, offset: int) -> bytes:
        with self._followed.path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_ino != look.inode:
                return b""
            file.seek(offset)
            return file.read(min(_CHUNK_BYTES, look.size_bytes - offset))


@dataclass
class _Watched:
    """A tail, the task that looks, and how many wait for it."""

    tail: Tail
    task: asyncio.Task[None]
    n_followers: int = 0


class Tails:
    """The files that are followed at the moment; one look serves all followers of a file.

    :param is_stopping: Whether the service stops.
    """

    def __init__(self, is_stopping: Callable[[], bool]) -> None:
        self._is_stopping = is_stopping
        self._pool = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="tail")
        self._watched: dict[Followed, _Watched] = {}

    def __len__(self) -> int:
        return len(self._watched)

    @contextmanager
    def following(self, followed: Followed) -> Iterator[Tail]:
        """Give a file's tail, which looks as long as anyone follows."""
        watched = self._watched.get(followed)
        if watched is None:
            tail = Tail(followed, self._is_stopping, self._pool)
            watched = _Watched(tail, asyncio.create_task(tail.watch()))
            self._watched[followed] = watched
        watched.n_followers += 1
        try:
            yield watched.tail
        finally:
            watched.n_followers -= 1
            if not watched.n_followers:
                watched.task.cancel()
                del self._watched[followed]

"""Batches across requests: texts of like length side by side, whoever sent them, and nobody left waiting.

A batch begins with the text whose turn it is: clients take turns, and the requests of a client take turns,
so neither a large request nor a busy client holds the others up. It is then filled with the texts that are
nearest in length among all that wait for the same model, up to a budget of tokens, padding counted. A free
worker takes what is there at once and waits for nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from finetuner.errors import OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
TokenIds = Sequence[int]
# Below this many tokens a batch is not shared among idle workers: its fixed cost would outweigh the gain.
_SMALLEST_SHARE_TOKENS = 64
# A batch is overdue after this, and after so many times what the measured rate lets expect.
_OVERDUE_S = 4.0
_OVERDUE_FACTOR = 20.0
# Until a rate is known: the first batch of a process may compile kernels.
_FIRST_OVERDUE_S = 60.0
# How much the latest batch counts in the measured rate.
_RATE_WEIGHT = 0.1


class Embedder(Protocol):
    """What turns token ids into vectors."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def embed_tokens(self, token_ids: Sequence[TokenIds], *, is_alone: bool = False) -> Vectors:
        """Return the vectors of one batch, *Shape:* ``(n_texts, dim)`` float32.

        :param token_ids: Of its texts.
        :param is_alone: Whether nothing else is in work, so that it may take all cores.
        """


@dataclass
class Timing:
    """Where a request's time went.

    :param queue_s: From its submission to its first batch, in seconds.
    :param inference_s: Spent in the batches that held its texts, in seconds.
    """

    queue_s: float = 0.0
    inference_s: float = 0.0


@dataclass(frozen=True)
class BatchCounts:
    """What has been embedded since the start.

    :param n_batches: Batches.
    :param n_texts: Texts in them.
    :param n_tokens: Their tokens, without padding.
    :param n_padding_tokens: Padding beside them.
    :param inference_s: Time spent in them, in seconds, all workers together.
    """

    n_batches: int = 0
    n_texts: int = 0
    n_tokens: int = 0
    n_padding_tokens: int = 0
    inference_s: float = 0.0

    def plus(self, lengths: Sequence[int], took_s: float) -> BatchCounts:
        """Return the counts with one more batch, of texts with so many tokens each."""
        n_tokens = sum(lengths)
        return BatchCounts(
            self.n_batches + 1,
            self.n_texts + len(lengths),
            self.n_tokens + n_tokens,
            self.n_padding_tokens + max(lengths) * len(lengths) - n_tokens,
            self.inference_s + took_s,
        )


@dataclass(eq=False)
class Job:
    """One request in work.

    :param embedder: The model asked for; the job keeps it alive until it has ended.
    :param vectors: *Shape:* ``(n_texts, dim)`` float32; filled as batches end.
    :param future: Gives ``vectors``; to cancel it takes its waiting texts out.
    :param timing: Filled by the time the future is done.
    """

    embedder: Embedder
    vectors: Vectors
    future: Future[Vectors] = field(default_factory=Future)
    timing: Timing = field(default_factory=Timing)
    submitted_at: float = field(default_factory=time.monotonic)
    waiting: deque[_Text] = field(default_factory=deque)
    n_left: int = 0
    has_started: bool = False
    has_ended: bool = False


@dataclass(eq=False)
class _Text:
    job: Job
    position: int
    token_ids: TokenIds
    place: tuple[int, int]  # by length, then by arrival
    is_waiting: bool = True

    @property
    def n_tokens(self) -> int:
        return self.place[0]


_BY_PLACE = attrgetter("place")


class Batcher:
    """Embeds the texts of many requests on a few worker threads.

    :param n_workers: Batches in work at the same time; one a core where a batch uses one core.
    :param max_batch_tokens: Texts times the longest of them, at most; a longer text goes alone.
    :param max_queue_tokens: Tokens that may wait; a request that does not fit is refused as a whole,
        unless nothing waits.
    """

    def __init__(
        self, *, n_workers: int, max_batch_tokens: int = 256, max_queue_tokens: int = 100_000
    ) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._turns: OrderedDict[str, deque[Job]] = OrderedDict()
        # All waiting texts of a model by length, for the neighbours of the one whose turn it is.
        self._by_length: dict[Embedder, list[_Text]] = {}
        self._arrivals = count()
        self._n_queued_tokens = 0
        self._tokens_per_second = 0.0
        self._counts = BatchCounts()
        self._n_idle = 0
        # Of each batch in work: when it was begun, and its tokens with padding.
        self._in_work: dict[int, tuple[float, int]] = {}
        self._is_closed = False
        self._condition = threading.Condition()
        self._workers = [
            threading.Thread(target=self._work, name=f"encode-{number}", daemon=True)
            for number in range(n_workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def n_queued_tokens(self) -> int:
        """Tokens of the texts that wait for a batch."""
        return self._n_queued_tokens

    @property
    def counts(self) -> BatchCounts:
        """What has been embedded since the start."""
        return self._counts

    @property
    def overdue_s(self) -> float:
        """By how much the batch in work that is latest is late, in seconds; 0 when none is.

        Late is what takes longer than 4 s and 20 times the measured rate: the model hangs.
        """
        now = time.monotonic()
        latest = 0.0
        for started_at, n_tokens in list(self._in_work.values()):
            if rate := self._tokens_per_second:
                allowed_s = max(_OVERDUE_S, _OVERDUE_FACTOR * n_tokens * len(self._workers) / rate)
            else:
                allowed_s = _FIRST_OVERDUE_S
            latest = max(latest, now - started_at - allowed_s)
        return latest

    def submit(self, embedder: Embedder, token_ids: Sequence[TokenIds], *, client: str = "") -> Job:
        """Take a request.

        :param embedder: The model.
        :param token_ids: Its texts, each with at least one token; for none the job is done at once.
        :param client: Who asks, for the turns.
        :raises OverloadedError: When too much is waiting; none of the texts was taken.
        :raises UnavailableError: When the batcher is closed.
        """
        job = Job(embedder, np.empty((len(token_ids), embedder.dim), dtype=np.float32))
        for position, ids in enumerate(token_ids):
            job.waiting.append(_Text(job, position, ids, (len(ids), next(self._arrivals))))
        job.n_left = len(token_ids)
        if not token_ids:
            job.future.set_result(job.vectors)
            return job
        n_tokens = sum(text.n_tokens for text in job.waiting)
        with self._condition:
            if self._is_closed:
                raise UnavailableError("the encoder is stopping")
            self._check_room(n_tokens)
            self._n_queued_tokens += n_tokens
            by_length = self._by_length.setdefault(embedder, [])
            by_length.extend(job.waiting)
            by_length.sort(key=_BY_PLACE)
            self._turns.setdefault(client, deque()).append(job)
            self._condition.notify(len(token_ids))
        job.future.add_done_callback(lambda future: self._withdraw(job))
        return job

    def close(self) -> None:
        """Finish what was taken, and stop; later requests are refused."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        for worker in self._workers:
            worker.join()

    def _check_room(self, n_tokens: int) -> None:
        queued = self._n_queued_tokens
        if queued and queued + n_tokens > self._max_queue_tokens:
            wait_s = max(1, round(queued / (self._tokens_per_second or queued)))
            raise OverloadedError(
                f"{queued} tokens wait already, of at most {self._max_queue_tokens}, and this request "
                f"has {n_tokens}; retry in {wait_s} s"
            )

    def _work(self) -> None:
        while True:
            batch, is_alone = self._next_batch()
            if not batch:
                return
            self._embed(batch, is_alone=is_alone)

    def _next_batch(self) -> tuple[list[_Text], bool]:
        """Wait for texts and take a batch of them; gives whether it is all that there is to do.

        The list is empty when there is nothing more to come.
        """
        with self._condition:
            while not self._n_queued_tokens:
                if self._is_closed:
                    return [], False
                self._n_idle += 1
                self._condition.wait()
                self._n_idle -= 1
            batch = self._take_with_neighbours(self._next_in_turn())
            is_alone = not self._n_queued_tokens and self._n_idle == len(self._workers) - 1
        now = time.monotonic()
        for job in {text.job for text in batch}:
            if not job.has_started:
                job.has_started = True
                job.timing.queue_s = now - job.submitted_at
        return batch, is_alone

    def _next_in_turn(self) -> _Text:
        """Return the next text of the next request of the next client, and move both to the end."""
        while True:
            client, jobs = next(iter(self._turns.items()))
            self._turns.move_to_end(client)
            job = jobs[0]
            jobs.rotate(-1)
            while job.waiting and not job.waiting[0].is_waiting:
                job.waiting.popleft()
            if job.waiting:
                return job.waiting[0]
            jobs.remove(job)
            if not jobs:
                del self._turns[client]

    def _take_with_neighbours(self, first: _Text) -> list[_Text]:
        """Take a text and those nearest to it in length, as many as the budget allows."""
        texts = self._by_length[first.job.embedder]
        share = self._n_queued_tokens // (self._n_idle + 1)
        budget = min(self._max_batch_tokens, max(share, _SMALLEST_SHARE_TOKENS))
        start = bisect_left(texts, first.place, key=_BY_PLACE)
        end = start + 1
        while start > 0 or end < len(texts):
            to_shorter = first.n_tokens - texts[start - 1].n_tokens if start else math.inf
            to_longer = texts[end].n_tokens - first.n_tokens if end < len(texts) else math.inf
            grown = (start - 1, end) if to_shorter <= to_longer else (start, end + 1)
            if texts[grown[1] - 1].n_tokens * (grown[1] - grown[0]) > budget:
                break
            start, end = grown
        batch = texts[start:end]
        self._remove(first.job.embedder, start, end)
        return batch

    def _remove(self, embedder: Embedder, start: int, end: int) -> None:
        texts = self._by_length[embedder]
        for text in texts[start:end]:
            text.is_waiting = False
            self._n_queued_tokens -= text.n_tokens
        del texts[start:end]
        if not texts:
            del self._by_length[embedder]

    def _withdraw(self, job: Job) -> None:
        """Take out what still waits of a request that was cancelled or has failed."""
        with self._condition:
            job.has_ended = True
            for text in job.waiting:
                if text.is_waiting:
                    place = bisect_left(self._by_length[job.embedder], text.place, key=_BY_PLACE)
                    self._remove(job.embedder, place, place + 1)

    def _embed(self, batch: list[_Text], *, is_alone: bool = False) -> None:
        """Embed a batch; one that fails is halved until the text is found that it fails for."""
        started_at = time.monotonic()
        n_padded = max(text.n_tokens for text in batch) * len(batch)
        self._in_work[threading.get_ident()] = (started_at, n_padded)
        try:
            vectors = batch[0].job.embedder.embed_tokens(
                [text.token_ids for text in batch], is_alone=is_alone
            )
        except Exception as exc:  # whatever a backend raises belongs to the request that caused it
            if len(batch) > 1:
                middle = len(batch) // 2
                self._embed(batch[:middle])
                self._embed(batch[middle:])
                return
            logger.warning("a text of %d tokens cannot be embedded: %s", batch[0].n_tokens, exc)
            self._fail(batch[0].job, exc)
            return
        finally:
            self._in_work.pop(threading.get_ident(), None)
        self._deliver(batch, vectors, time.monotonic() - started_at)

    def _deliver(self, batch: list[_Text], vectors: Vectors, took_s: float) -> None:
        for text, vector in zip(batch, vectors, strict=True):
            text.job.vectors[text.position] = vector
        lengths = [text.n_tokens for text in batch]
        rate = sum(lengths) * len(self._workers) / max(took_s, 1e-6)
        ended = []
        with self._condition:
            self._counts = self._counts.plus(lengths, took_s)
            weight = _RATE_WEIGHT if self._tokens_per_second else 1
            self._tokens_per_second += weight * (rate - self._tokens_per_second)
            for job, n_texts in Counter(text.job for text in batch).items():
                job.timing.inference_s += took_s
                job.n_left -= n_texts
                if not job.n_left and not job.has_ended:
                    job.has_ended = True
                    ended.append(job)
        for job in ended:
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(job.vectors)

    def _fail(self, job: Job, error: Exception) -> None:
        with self._condition:
            if job.has_ended:
                return
            job.has_ended = True
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)

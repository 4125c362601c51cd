"""Texts that wait to be embedded: whose turn it is, and what is nearest to that text in length.

Clients take turns, and the requests of a client take turns, so neither a large request nor a busy client
holds the others up.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
TokenIds = Sequence[int]


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


@dataclass(eq=False)
class Job:
    """One request in work.

    :param embedder: The model asked for; the job keeps it alive until it has ended.
    :param vectors: *Shape:* ``(n_texts, dim)`` float32; filled as batches end.
    :param future: Gives ``vectors``; to cancel it takes its waiting texts out.
    :param timing: Filled by the time the future is done.
    :param n_tokens: Of all its texts.
    :param n_left: Texts whose vectors are not there yet.
    """

    embedder: Embedder
    vectors: Vectors
    future: Future[Vectors] = field(default_factory=Future)
    timing: Timing = field(default_factory=Timing)
    submitted_at: float = field(default_factory=time.monotonic)
    waiting: deque[Text] = field(default_factory=deque)
    n_tokens: int = 0
    n_left: int = 0
    has_started: bool = False
    has_ended: bool = False


@dataclass(eq=False)
class Text:
    """One text of a request.

    :param place: Its length in tokens, then its arrival: the order of those that wait.
    """

    job: Job
    position: int
    token_ids: TokenIds
    place: tuple[int, int]
    is_waiting: bool = True

    @property
    def n_tokens(self) -> int:
        """Its length."""
        return self.place[0]


_BY_PLACE = attrgetter("place")


class TextQueue:
    """The waiting texts of all models and clients; whoever shares it between threads holds a lock."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, deque[Job]] = OrderedDict()
        # All waiting texts of a model by length, for the neighbours of the one whose turn it is.
        self._by_length: dict[Embedder, list[Text]] = {}
        self._arrivals = count()
        self._n_tokens = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of the texts that wait."""
        return self._n_tokens

    def new_job(self, embedder: Embedder, token_ids: Sequence[TokenIds]) -> Job:
        """Return a request that does not wait yet; needs no lock.

        :param embedder: The model.
        :param token_ids: Its texts, each with at least one token.
        """
        job = Job(embedder, np.empty((len(token_ids), embedder.dim), dtype=np.float32))
        for position, ids in enumerate(token_ids):
            job.waiting.append(Text(job, position, ids, (len(ids), next(self._arrivals))))
        job.n_tokens, job.n_left = sum(map(len, token_ids)), len(token_ids)
        return job

    def add(self, job: Job, *, client: str) -> None:
        """Let all texts of a request wait.

        :param job: From :meth:`new_job`, with a text at least.
        :param client: Who asks, for the turns.
        """
        self._n_tokens += job.n_tokens
        by_length = self._by_length.setdefault(job.embedder, [])
        by_length.extend(job.waiting)
        by_length.sort(key=_BY_PLACE)
        self._turns.setdefault(client, deque()).append(job)

    def take(self, budget_tokens: int) -> list[Text]:
        """Take the text whose turn it is and those nearest to it in length; there must be one.

        :param budget_tokens: Texts times the longest of them, at most; a longer text comes alone.
        """
        first = self._next_in_turn()
        texts = self._by_length[first.job.embedder]
        start = bisect_left(texts, first.place, key=_BY_PLACE)
        end = start + 1
        while start > 0 or end < len(texts):
            to_shorter = first.n_tokens - texts[start - 1].n_tokens if start else math.inf
            to_longer = texts[end].n_tokens - first.n_tokens if end < len(texts) else math.inf
            grown = (start - 1, end) if to_shorter <= to_longer else (start, end + 1)
            if texts[grown[1] - 1].n_tokens * (grown[1] - grown[0]) > budget_tokens:
                break
            start, end = grown
        batch = texts[start:end]
        self._remove(first.job.embedder, start, end)
        return batch

    def withdraw(self, job: Job) -> None:
        """Take out what still waits of a request."""
        for text in job.waiting:
            if text.is_waiting:
                place = bisect_left(self._by_length[job.embedder], text.place, key=_BY_PLACE)
                self._remove(job.embedder, place, place + 1)

    def _next_in_turn(self) -> Text:
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

    def _remove(self, embedder: Embedder, start: int, end: int) -> None:
        texts = self._by_length[embedder]
        for text in texts[start:end]:
            text.is_waiting = False
            self._n_tokens -= text.n_tokens
        del texts[start:end]
        if not texts:
            del self._by_length[embedder]

"""Batches across requests: texts of like length side by side, whoever sent them, and nobody left waiting.

A batch begins with the text whose turn it is, and is filled with the texts that are nearest in length among
all that wait for the same model, up to a budget of tokens, padding counted. A free worker takes what is there
at once and waits for nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from finetuner.errors import OverloadedError, UnavailableError
from finetuner.text_queue import Embedder, Job, Text, TextQueue, TokenIds, Vectors

logger = logging.getLogger(__name__)

# Below this many tokens a batch is not shared among idle workers: its fixed cost would outweigh the gain.
_SMALLEST_SHARE_TOKENS = 64
# A batch is overdue after this, and after so many times what the measured rate lets expect.
_OVERDUE_S = 4.0
_OVERDUE_FACTOR = 20.0
# Until a rate is known: the first batch of a process may compile kernels.
_FIRST_OVERDUE_S = 60.0
# How much the latest batch counts in the measured rate.
_RATE_WEIGHT = 0.1


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
        self._queue = TextQueue()
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
        return self._queue.n_tokens

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
        job = self._queue.new_job(embedder, token_ids)
        if not token_ids:
            job.future.set_result(job.vectors)
            return job
        with self._condition:
            if self._is_closed:
                raise UnavailableError("the encoder is stopping")
            self._check_room(job.n_tokens)
            self._queue.add(job, client=client)
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
        queued = self._queue.n_tokens
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

    def _next_batch(self) -> tuple[list[Text], bool]:
        """Wait for texts and take a batch of them; gives whether it is all that there is to do.

        The list is empty when there is nothing more to come.
        """
        with self._condition:
            while not self._queue.n_tokens:
                if self._is_closed:
                    return [], False
                self._n_idle += 1
                self._condition.wait()
                self._n_idle -= 1
            share = self._queue.n_tokens // (self._n_idle + 1)
            budget = min(self._max_batch_tokens, max(share, _SMALLEST_SHARE_TOKENS))
            batch = self._queue.take(budget)
            is_alone = not self._queue.n_tokens and self._n_idle == len(self._workers) - 1
        now = time.monotonic()
        for job in {text.job for text in batch}:
            if not job.has_started:
                job.has_started = True
                job.timing.queue_s = now - job.submitted_at
        return batch, is_alone

    def _withdraw(self, job: Job) -> None:
        """Take out what still waits of a request that was cancelled or has failed."""
        with self._condition:
            job.has_ended = True
            self._queue.withdraw(job)

    def _embed(self, batch: list[Text], *, is_alone: bool = False) -> None:
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

    def _deliver(self, batch: list[Text], vectors: Vectors, took_s: float) -> None:
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

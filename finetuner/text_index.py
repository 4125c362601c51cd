"""Indexes of texts to search by hand: encoded once, in the background, and kept while there is room.

One is built after the other, a few batches at a time, under one name among the batcher's clients, and only
while little else waits: a person who looks at results must not slow down what is served.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetuner.batcher import Batcher
from finetuner.data import LabelledTexts
from finetuner.encoder_cache import Served
from finetuner.errors import OverloadedError, UnavailableError
from finetuner.pairs import Texts, read_data

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
MAX_TEXTS = 20_000
_CLIENT = "index"
# Of one part of an index, so that the batcher's queue has room for others.
_PART_TOKENS = 2_000
# Where others wait with more, a part lets them go first, for so long at most: it must come to an end.
_FEW_TOKENS = 2_000
_LONGEST_PAUSE_S = 1.0
_PAUSE_S = 0.02
# A failure is told to all who ask meanwhile; the next one to ask tries again.
_FAILURE_S = 5.0
_MAX_INDEXES = 16
_SEED = 0


@dataclass(frozen=True)
class IndexTexts:
    """What is searched.

    :param texts: Each once under a label, at most 20,000.
    :param labels: Of each; None where there is none, as in pairs.
    """

    texts: Sequence[str]
    labels: Sequence[str | None]


@dataclass(frozen=True)
class TextIndex:
    """Texts with their vectors.

    :param content: The texts.
    :param vectors: *Shape:* ``(n_texts, dim)`` float32.
    """

    content: IndexTexts
    vectors: Vectors

    @cached_property
    def size_bytes(self) -> int:
        """What it takes of the memory, about."""
        return self.vectors.nbytes + sum(2 * len(text) + 100 for text in self.content.texts)


@dataclass
class Building:
    """An index in work.

    :param n_done: Texts encoded.
    :param n_texts: Texts in all; 0 until they have been read.
    :param index: The result, when it is there.
    :param error: Why there will be none.
    :param failed_at: When that was, by the monotonic clock.
    :param is_cancelled: Whether nobody wants it any more.
    """

    n_done: int = 0
    n_texts: int = 0
    index: TextIndex | None = None
    error: Exception | None = None
    failed_at: float = 0.0
    is_cancelled: bool = False


def read_index_texts(path: Path) -> IndexTexts:
    """Read what to search from a file of texts or pairs.

    :param path: As :func:`finetuner.data.write_jsonl` writes it.
    """
    return index_texts(read_data(path))


def index_texts(data: Texts) -> IndexTexts:
    """Return what to search: each text once under a label, and of many a sample in their order.

    :param data: Labelled texts, or pairs, whose texts have no label here.
    """
    rows: dict[tuple[str, str | None], None]
    if isinstance(data, LabelledTexts):
        rows = dict.fromkeys(zip(data.texts, data.labels, strict=True))
    else:
        columns = zip(data.anchors, data.positives, data.negatives, strict=True)
        rows = dict.fromkeys((text, None) for row in columns for text in row if text is not None)
    kept = list(rows)
    if len(kept) > MAX_TEXTS:
        generator = np.random.default_rng(_SEED)
        chosen = np.sort(generator.choice(len(kept), MAX_TEXTS, replace=False))
        kept = [kept[place] for place in chosen.tolist()]
    return IndexTexts([text for text, _ in kept], [label for _, label in kept])


class TextIndexes:
    """Builds indexes, and keeps those used last; safe to share between threads.

    :param batcher: Embeds the texts.
    :param max_bytes: What the indexes may take together; the two asked for last, such as those of a
        model and of the one before, are kept whatever their size.
    """

    def __init__(self, batcher: Batcher, *, max_bytes: int = 512 * 2**20) -> None:
        self._batcher, self._max_bytes = batcher, max_bytes
        self._entries: OrderedDict[Hashable, Building] = OrderedDict()
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="index")

    def get(
        self, key: Hashable, load: Callable[[], Served], read: Callable[[], IndexTexts]
    ) -> Building:
        """Return an index, or how far it is; the first to ask has it built.

        :param key: Of model and texts: another for each version of either.
        :param load: Gives the model, when its turn has come.
        :param read: Gives the texts, likewise.
        :raises Exception: What has kept it from being built, to all who ask for some seconds after.
        :raises UnavailableError: When the indexes are closed.
        """
        with self._lock:
            found = self._entries.get(key)
            if found is not None and found.error is not None:
                if time.monotonic() - found.failed_at < _FAILURE_S:
                    raise found.error
                found = None
            if found is None:
                found = self._entries[key] = self._begin(load, read)
            self._entries.move_to_end(key)
            self._evict()
        return found

    def close(self) -> None:
        """Give up what is in work, and stop; to be called before the batcher is closed."""
        self._is_closed.set()
        self._worker.shutdown(cancel_futures=True)

    def _begin(self, load: Callable[[], Served], read: Callable[[], IndexTexts]) -> Building:
        if self._is_closed.is_set():
            raise UnavailableError("the encoder is stopping")
        building = Building()
        self._worker.submit(self._build, building, load, read)
        return building

    def _evict(self) -> None:
        """Take out what was asked for longest ago until the rest fits; what is in work of it ends."""
        sizes = {key: e.index.size_bytes if e.index else 0 for key, e in self._entries.items()}
        total_bytes = sum(sizes.values())
        for key in list(self._entries)[:-2]:
            if total_bytes <= self._max_bytes and len(self._entries) <= _MAX_INDEXES:
                return
            if sizes[key] or len(self._entries) > _MAX_INDEXES:
                self._entries.pop(key).is_cancelled = True
                total_bytes -= sizes[key]

    def _build(
        self, building: Building, load: Callable[[], Served], read: Callable[[], IndexTexts]
    ) -> None:
        try:
            if self._is_unwanted(building):
                return
            content = read()
            building.n_texts = len(content.texts)
            vectors = self._embed(building, load(), content.texts)
            if vectors is not None:
                building.index = TextIndex(content, vectors)
                with self._lock:
                    self._evict()
        except Exception as exc:  # told to those who ask
            logger.warning("an index cannot be built: %s", exc)
            building.failed_at, building.error = time.monotonic(), exc

    def _embed(self, building: Building, served: Served, texts: Sequence[str]) -> Vectors | None:
        """Return the vectors; None when nobody wants them any more."""
        encoder = served.encoder
        token_ids = encoder.tokenizer.tokenize(texts)
        vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
        # By length, so that a part makes batches without padding.
        order = np.argsort([len(ids) for ids in token_ids], kind="stable").tolist()
        while order:
            part: list[int] = []
            n_tokens = 0
            while order and (not part or n_tokens + len(token_ids[order[-1]]) <= _PART_TOKENS):
                part.append(order.pop())
                n_tokens += len(token_ids[part[-1]])
            found = None
            while found is None:
                if self._is_unwanted(building):
                    return None
                found = self._embed_part(served, [token_ids[place] for place in part])
            vectors[part] = found
            building.n_done += len(part)
        return vectors

    def _embed_part(self, served: Served, token_ids: list[Sequence[int]]) -> Vectors | None:
        """Embed when others have little to wait for; None when the queue takes no more now."""
        end = time.monotonic() + _LONGEST_PAUSE_S
        while self._batcher.n_queued_tokens > _FEW_TOKENS and time.monotonic() < end:
            time.sleep(_PAUSE_S)
        try:
            return self._batcher.submit(served.encoder, token_ids, client=_CLIENT).future.result()
        except OverloadedError:
            time.sleep(_PAUSE_S)
            return None

    def _is_unwanted(self, building: Building) -> bool:
        return building.is_cancelled or self._is_closed.is_set()

"""Indexes of texts, over a batcher and an encoder of a few lines."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from finetuner import text_index
from finetuner.batcher import Batcher
from finetuner.data import LabelledTexts
from finetuner.errors import DataError, UnavailableError
from finetuner.pairs import read_rows
from finetuner.text_index import MAX_TEXTS, IndexTexts, TextIndexes, index_texts


class Encoder:
    """A text's vector is its length and that times itself; texts wait at the gate."""

    dim = 2

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.tokenizer = SimpleNamespace(tokenize=lambda texts: [[len(t)] * len(t) for t in texts])
        self.n_embedded = 0

    def embed_tokens(self, token_ids, *, is_alone=False):
        assert self.gate.wait(10)
        self.n_embedded += len(token_ids)
        return np.array([[ids[0], ids[0] ** 2] for ids in token_ids], dtype=np.float32)


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def batcher():
    batcher = Batcher(n_workers=1)
    yield batcher
    batcher.close()


@pytest.fixture
def indexes(batcher, encoder):
    indexes = TextIndexes(batcher, max_bytes=1)
    yield indexes
    encoder.gate.set()
    indexes.close()


TEXTS = IndexTexts(["ccc", "a", "bb", "a" * 3000], ["1", "2", None, "3"])


def wait_for(condition, timeout_s=10):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "that did not come true"
        time.sleep(0.005)


@pytest.fixture
def ask(indexes, encoder):
    def ask(key, texts=TEXTS, load=lambda: SimpleNamespace(encoder=encoder)):
        return indexes.get(key, load, lambda: texts)

    return ask


def test_vectors_stand_in_the_order_of_the_texts(ask):
    building = ask("k")
    wait_for(lambda: building.index)
    assert building.index.content is TEXTS
    assert building.index.vectors.tolist() == [[3, 9], [1, 1], [2, 4], [3000, 9e6]]
    assert (building.n_done, building.n_texts) == (4, 4)


def test_no_texts(ask):
    building = ask("k", IndexTexts([], []))
    wait_for(lambda: building.index)
    assert building.index.vectors.shape == (0, 2)


def test_many_that_ask_have_one_built(ask, encoder):
    encoder.gate.clear()
    found = []
    threads = [threading.Thread(target=lambda: found.append(ask("k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    encoder.gate.set()
    wait_for(lambda: found[0].index)
    assert ask("k") is found[0]
    assert encoder.n_embedded == 4


def test_it_says_how_far_it_is(ask, encoder, monkeypatch):
    monkeypatch.setattr(text_index, "_PART_TOKENS", 10)
    encoder.gate, steps = threading.Event(), threading.Semaphore(0)
    encoder.gate.wait = lambda timeout: steps.acquire(timeout=timeout)
    building = ask("k", IndexTexts(["a" * 10] * 5, ["1"] * 5))
    wait_for(lambda: building.n_texts)
    assert (building.n_done, building.n_texts, building.index) == (0, 5, None)
    for n_done in range(1, 6):
        steps.release()
        wait_for(lambda n_done=n_done: building.n_done == n_done)


def test_an_error_is_told_to_all_and_the_next_tries_again(ask, encoder, monkeypatch):
    loads = []

    def fail():
        loads.append(1)
        raise DataError("no such model")

    building = ask("k", load=fail)
    wait_for(lambda: building.error)
    for _ in range(3):
        with pytest.raises(DataError, match="no such model"):
            ask("k")
    assert len(loads) == 1
    monkeypatch.setattr(text_index, "_FAILURE_S", 0.0)
    again = ask("k")
    wait_for(lambda: again.index)


def test_what_was_asked_for_longest_ago_goes(ask):
    first = {key: ask(key) for key in "abc"}
    for building in first.values():
        wait_for(lambda building=building: building.index or building.is_cancelled)
    assert (ask("b") is first["b"], ask("c") is first["c"]) == (True, True)
    assert ask("a") is not first["a"]


def test_what_is_taken_out_is_not_built_on(ask, encoder, monkeypatch):
    monkeypatch.setattr(text_index, "_MAX_INDEXES", 2)
    monkeypatch.setattr(text_index, "_PART_TOKENS", 1)
    encoder.gate.clear()
    building = ask("a")
    wait_for(lambda: building.n_texts)
    others = [ask("b"), ask("c")]
    assert building.is_cancelled
    encoder.gate.set()
    for other in others:
        wait_for(lambda other=other: other.index)
    assert (building.index, building.error) == (None, None)
    assert building.n_done < 4


def test_others_go_first(ask, encoder, batcher, monkeypatch):
    """A part waits while much is queued, and goes all the same when that does not end."""
    monkeypatch.setattr(text_index, "_LONGEST_PAUSE_S", 0.2)
    encoder.gate.clear()
    others = [batcher.submit(encoder, [[1] * 200] * 20, client="other") for _ in range(2)]
    building = ask("k", IndexTexts(["a"], [None]))
    wait_for(lambda: building.n_texts)
    queued = batcher.n_queued_tokens
    time.sleep(0.05)
    assert batcher.n_queued_tokens == queued
    wait_for(lambda: batcher.n_queued_tokens == queued + 1)
    encoder.gate.set()
    wait_for(lambda: building.index)
    assert all(len(job.future.result(10)) == 20 for job in others)


def test_a_full_queue_is_waited_for(encoder):
    batcher = Batcher(n_workers=1, max_queue_tokens=50)
    indexes = TextIndexes(batcher)
    encoder.gate.clear()
    batcher.submit(encoder, [[1] * 40], client="other")
    wait_for(lambda: not batcher.n_queued_tokens)
    batcher.submit(encoder, [[1] * 40], client="other")
    served = SimpleNamespace(encoder=encoder)
    building = indexes.get("k", lambda: served, lambda: IndexTexts(["a" * 20], [None]))
    wait_for(lambda: building.n_texts)
    time.sleep(0.1)
    assert building.error is None
    encoder.gate.set()
    wait_for(lambda: building.index)
    indexes.close()
    batcher.close()


def test_nothing_is_begun_when_closed(batcher, encoder):
    indexes = TextIndexes(batcher)
    indexes.close()
    with pytest.raises(UnavailableError, match="the encoder is stopping"):
        indexes.get("k", lambda: None, lambda: TEXTS)


def test_each_text_is_there_once_under_a_label():
    data = LabelledTexts(["a", "b", "a", "a"], ["1", "1", "1", "2"], [None] * 4)
    assert index_texts(data) == IndexTexts(["a", "b", "a"], ["1", "1", "2"])


def test_pairs_give_their_texts():
    rows = [
        {"anchor": "q", "positive": "p", "negative": "n"},
        {"anchor": "q", "positive": "r"},
    ]
    assert index_texts(read_rows(rows)) == IndexTexts(["q", "p", "n", "r"], [None] * 4)
    scored = [{"sentence1": "a", "sentence2": "b", "score": 0.5}]
    assert index_texts(read_rows(scored)) == IndexTexts(["a", "b"], [None] * 2)


def test_of_many_a_sample_is_taken_in_order():
    n_texts = MAX_TEXTS + 500
    data = LabelledTexts(list(map(str, range(n_texts))), ["1"] * n_texts, [None] * n_texts)
    found = index_texts(data)
    places = list(map(int, found.texts))
    assert len(set(places)) == MAX_TEXTS
    assert places == sorted(places)
    assert max(places) >= MAX_TEXTS
    assert index_texts(data) == found

"""Batches across requests, with a model whose vectors can be told by heart."""

import threading
import time
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuner.batcher import Batcher
from finetuner.errors import OverloadedError, UnavailableError

_POISON = 666


class Sums:
    """The vector of a text is the sum of its token ids and their number; notes its batches.

    :param is_held: Whether batches wait until :attr:`gate` is set.
    """

    dim = 2

    def __init__(self, *, is_held=False):
        self.batches, self.were_alone = [], []
        self.gate = threading.Event()
        self.entered = threading.Event()
        if not is_held:
            self.gate.set()

    def embed_tokens(self, token_ids, *, is_alone=False):
        self.were_alone.append(is_alone)
        self.batches.append([list(ids) for ids in token_ids])
        self.entered.set()
        assert self.gate.wait(10)
        if any(_POISON in ids for ids in token_ids):
            raise RuntimeError("the model choked")
        return np.array([[sum(ids), len(ids)] for ids in token_ids], dtype=np.float32)


def expected(token_ids):
    rows = np.zeros((len(token_ids), 2), dtype=np.float32)
    for row, ids in enumerate(token_ids):
        for token in ids:
            rows[row] += (token, 1)
    return rows


@pytest.fixture
def batcher_of():
    made = []

    def batcher_of(**options):
        made.append(Batcher(**{"n_workers": 1, **options}))
        return made[-1]

    yield batcher_of
    for batcher in made:
        batcher.close()


@pytest.fixture
def held(batcher_of):
    """A batcher whose one worker is busy until the gate opens, and its model."""

    def held(**options):
        model, batcher = Sums(is_held=True), batcher_of(**options)
        batcher.submit(model, [[0]])
        assert model.entered.wait(10)
        model.batches.clear()
        return model, batcher

    return held


def results(jobs):
    return [job.future.result(10) for job in jobs]


@settings(max_examples=30, deadline=None)
@given(
    requests=st.lists(
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), max_size=8), max_size=12
    ),
    n_workers=st.integers(1, 3),
    budget=st.integers(1, 100),
)
def test_every_request_gets_its_own_vectors_in_its_order(requests, n_workers, budget):
    model = Sums()
    batcher = Batcher(n_workers=n_workers, max_batch_tokens=budget)
    jobs = [batcher.submit(model, texts, client=f"c{i % 3}") for i, texts in enumerate(requests)]
    for job, texts in zip(jobs, requests, strict=True):
        np.testing.assert_array_equal(job.future.result(10), expected(texts))
    batcher.close()
    assert batcher.n_queued_tokens == 0
    assert sum(map(len, model.batches)) == sum(map(len, requests))
    for batch in model.batches:
        assert len(batch) == 1 or max(map(len, batch)) * len(batch) <= budget


def test_many_threads_at_once(batcher_of):
    model, batcher = Sums(), batcher_of(n_workers=3)
    generator = np.random.default_rng(0)
    requests = [
        [generator.integers(0, 99, n).tolist() for n in generator.integers(1, 50, 5)]
        for _ in range(200)
    ]
    found = [None] * len(requests)

    def ask(thread):
        for i in range(thread, len(requests), 8):
            found[i] = batcher.submit(model, requests[i], client=str(thread)).future.result(10)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for vectors, texts in zip(found, requests, strict=True):
        np.testing.assert_array_equal(vectors, expected(texts))


def test_no_texts_need_no_worker(batcher_of):
    job = batcher_of().submit(Sums(), [])
    assert job.future.result(0).shape == (0, 2)


def test_a_batch_holds_texts_of_like_length_across_requests(held):
    model, batcher = held(max_batch_tokens=12)
    jobs = [batcher.submit(model, [[1] * 4, [2] * 11]), batcher.submit(model, [[3] * 9, [4] * 3])]
    model.gate.set()
    results(jobs)
    # 4 begins, 3 is nearest to it, 9 would make 3 x 9 of 12; then 9, and 2 x 11 is too much.
    assert model.batches == [[[4] * 3, [1] * 4], [[3] * 9], [[2] * 11]]


def test_clients_and_requests_take_turns(held):
    model, batcher = held(max_batch_tokens=1)
    jobs = [
        batcher.submit(model, [[10], [11], [12]], client="a"),
        batcher.submit(model, [[20], [21]], client="a"),
        batcher.submit(model, [[30], [31]], client="b"),
    ]
    model.gate.set()
    results(jobs)
    order = [batch[0][0] for batch in model.batches]
    assert order == [10, 30, 20, 31, 11, 21, 12]


def test_a_large_request_does_not_hold_up_a_small_one(held):
    model, batcher = held(max_batch_tokens=10)
    large = batcher.submit(model, [[1] * 5] * 1000, client="a")
    small = batcher.submit(model, [[2] * 9], client="a")
    model.gate.set()
    small.future.result(10)
    results([large])
    assert [batch[0][0] for batch in model.batches].index(2) == 1


def test_models_do_not_share_a_batch(held):
    one, batcher = held(max_batch_tokens=100)
    other = Sums()
    jobs = [batcher.submit(model, [[1] * 3]) for model in (one, other, one, other)]
    one.gate.set()
    results(jobs)
    assert one.batches == other.batches == [[[1] * 3] * 2]


def test_idle_workers_share_what_there_is(batcher_of):
    model, batcher = Sums(is_held=True), batcher_of(n_workers=2, max_batch_tokens=10_000)
    job = batcher.submit(model, [[1] * 128] * 8)
    while len(model.batches) < 2:
        assert not job.future.done()
    model.gate.set()
    results([job])
    assert sorted(map(len, model.batches)) == [4, 4]


def test_a_poisoned_text_fails_its_own_request_alone(held):
    model, batcher = held()
    good = [batcher.submit(model, [[i, i]]) for i in range(5)]
    bad = batcher.submit(model, [[1, 1], [_POISON, 1], [2, 2]])
    model.gate.set()
    with pytest.raises(RuntimeError, match="the model choked"):
        bad.future.result(10)
    for i, job in enumerate(good):
        np.testing.assert_array_equal(job.future.result(10), expected([[i, i]]))


def test_two_poisoned_texts_fail_once(held):
    model, batcher = held(max_batch_tokens=1)
    job = batcher.submit(model, [[_POISON], [_POISON]])
    model.gate.set()
    with pytest.raises(RuntimeError, match="the model choked"):
        job.future.result(10)
    assert batcher.submit(model, [[7]]).future.result(10).tolist() == [[7, 1]]


def test_a_cancelled_request_leaves_the_queue(held):
    model, batcher = held()
    gone, stays = batcher.submit(model, [[1] * 5] * 3), batcher.submit(model, [[2] * 5])
    assert batcher.n_queued_tokens == 20
    assert gone.future.cancel()
    assert batcher.n_queued_tokens == 5
    model.gate.set()
    results([stays])
    assert model.batches == [[[2] * 5]]
    with pytest.raises(CancelledError):
        gone.future.result(10)


def test_a_request_cancelled_in_work_harms_nobody(batcher_of):
    model, batcher = Sums(is_held=True), batcher_of()
    gone = batcher.submit(model, [[1]])
    assert model.entered.wait(10)
    assert gone.future.cancel()
    model.gate.set()
    assert batcher.submit(model, [[7]]).future.result(10).tolist() == [[7, 1]]


def test_what_does_not_fit_is_refused_as_a_whole(held):
    model, batcher = held(max_queue_tokens=10)
    job = batcher.submit(model, [[1] * 8])
    with pytest.raises(
        OverloadedError, match=r"8 tokens wait already, of at most 10, .* has 4; retry in 1 s"
    ):
        batcher.submit(model, [[1], [1] * 3])
    assert batcher.n_queued_tokens == 8
    small = batcher.submit(model, [[1] * 2])
    model.gate.set()
    results([job, small])


def test_a_request_above_the_bound_passes_where_nothing_waits(batcher_of):
    model, batcher = Sums(), batcher_of(max_queue_tokens=10, max_batch_tokens=10)
    assert len(batcher.submit(model, [[1] * 5] * 100).future.result(10)) == 100


def test_close_finishes_what_was_taken(held):
    model, batcher = held(max_batch_tokens=1)
    jobs = [batcher.submit(model, [[i]]) for i in range(5)]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    model.gate.set()
    closer.join(10)
    assert not wait_for([job.future for job in jobs], timeout=0).not_done
    with pytest.raises(UnavailableError, match="the encoder is stopping"):
        batcher.submit(model, [[1]])


def test_time_is_told(held):
    model, batcher = held()
    job = batcher.submit(model, [[1]])
    threading.Timer(0.05, model.gate.set).start()
    results([job])
    assert job.timing.queue_s >= 0.04
    assert 0 < job.timing.inference_s < 1


def test_a_batch_that_hangs_is_overdue_and_one_that_ends_is_not(batcher_of, monkeypatch):
    monkeypatch.setattr("finetuner.batcher._OVERDUE_S", 0.05)
    monkeypatch.setattr("finetuner.batcher._FIRST_OVERDUE_S", 0.05)
    batcher, model = batcher_of(), Sums(is_held=True)
    assert batcher.overdue_s == 0
    job = batcher.submit(model, [[1, 2]])
    assert model.entered.wait(5)
    assert batcher.overdue_s == 0
    deadline = time.monotonic() + 5
    while not batcher.overdue_s:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    model.gate.set()
    job.future.result(5)
    assert batcher.overdue_s == 0


def test_a_batch_is_told_whether_it_may_take_all_cores(batcher_of):
    batcher, held, model = batcher_of(n_workers=2), Sums(is_held=True), Sums()
    batcher.submit(model, [[1]]).future.result(5)
    first = batcher.submit(held, [[1]])
    assert held.entered.wait(5)
    batcher.submit(model, [[1]]).future.result(5)
    held.gate.set()
    first.future.result(5)
    assert held.were_alone == [True]
    assert model.were_alone == [True, False]

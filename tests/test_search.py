import tracemalloc

import numpy as np
import pytest

from finetuner import search as module
from finetuner.callback import Distance
from finetuner.errors import DataError
from finetuner.search import search

# Vectors of length one whose products and distances are exact, so that equal is equal.
_EXACT = np.concatenate(
    [np.eye(4), -np.eye(4), np.array(np.meshgrid(*[[-0.5, 0.5]] * 4)).reshape(4, -1).T]
).astype(np.float32)
_DISTANCES = {
    Distance.COSINE: lambda q, x: 1 - q @ x / np.linalg.norm(q) / np.linalg.norm(x),
    Distance.EUCLIDEAN: lambda q, x: np.sqrt(((q - x) ** 2).sum()),
    Distance.SQEUCLIDEAN: lambda q, x: ((q - x) ** 2).sum(),
}


def _plain_search(queries, index, limit, distance, own=None):
    """Sort the whole index for each query; Python's sort keeps equal ones in order."""
    all_places, all_distances = [], []
    for number, query in enumerate(queries.astype(np.float64)):
        distances = [_DISTANCES[distance](query, x) for x in index.astype(np.float64)]
        places = sorted(range(len(index)), key=lambda place: distances[place])
        if own is not None and own[number] >= 0:
            places.remove(own[number])
        found = [distances[place] for place in places]
        n_missing = len(index) - len(places)
        all_places.append((places + [-1] * n_missing)[:limit])
        all_distances.append((found + [np.inf] * n_missing)[:limit])
    return np.array(all_places), np.array(all_distances)


def _exact_vectors(n):
    return _EXACT[np.random.default_rng(n).integers(0, len(_EXACT), n)]


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _set_blocks(monkeypatch, queries, index, pairs=256):
    monkeypatch.setattr(module, "_BLOCK_QUERIES", queries)
    monkeypatch.setattr(module, "_BLOCK_INDEX", index)
    monkeypatch.setattr(module, "_BLOCK_PAIRS", pairs)


@pytest.fixture
def n_measured(monkeypatch):
    """Counts the pairs that are measured in 64 bit."""
    counts = []
    measure = module._measure

    def counting(queries, index, rows, columns, distance):
        counts.append(len(rows))
        return measure(queries, index, rows, columns, distance)

    monkeypatch.setattr(module, "_measure", counting)
    return counts


@pytest.mark.parametrize("has_own", [False, True])
@pytest.mark.parametrize("limit", [1, 5, 59, 60, 100])
@pytest.mark.parametrize("distance", list(Distance))
def test_search_with_ties_is_a_full_sort(distance, limit, has_own):
    index, queries = _exact_vectors(60), _exact_vectors(25)
    own = np.random.default_rng(0).integers(-1, 60, 25) if has_own else None
    places, distances = search(queries, index, limit=limit, distance=distance, own=own)
    expected = _plain_search(queries, index, limit, distance, own)
    np.testing.assert_array_equal(places, expected[0])
    np.testing.assert_allclose(distances, expected[1], rtol=1e-12)
    assert (places.dtype, distances.dtype) == (np.int64, np.float64)


@pytest.mark.parametrize("limit", [3, 60])
@pytest.mark.parametrize("distance", list(Distance))
@pytest.mark.parametrize("blocks", [(1, 1, 1), (7, 11, 3), (25, 59, 999), (26, 61, 5)])
def test_blocks_do_not_show(monkeypatch, blocks, distance, limit):
    index, queries = _exact_vectors(60), _exact_vectors(25)
    own = np.arange(59, 34, -1)
    whole = search(queries, index, limit=limit, distance=distance, own=own)
    _set_blocks(monkeypatch, *blocks)
    places, distances = search(queries, index, limit=limit, distance=distance, own=own)
    np.testing.assert_array_equal(places, whole[0])
    np.testing.assert_array_equal(distances, whole[1])


@pytest.mark.parametrize("distance", list(Distance))
@pytest.mark.parametrize(
    ("offset", "scale"), [(0, 1), (0, 1e-20), (0, 1e18), (3, 1e-3), (1000, 1e-2)]
)
def test_places_are_those_of_64_bit(monkeypatch, n_measured, distance, offset, scale):
    """Also for vectors that are all nearly the same, where 32 bit alone cannot tell them apart."""
    vectors = (_normal(1, 16, seed=1) * offset + _normal(340, 16) * scale).astype(np.float32)
    queries, index = vectors[:40], vectors[40:]
    _set_blocks(monkeypatch, 16, 128)
    places, distances = search(queries, index, limit=20, distance=distance)
    expected = _plain_search(queries, index, 20, distance)
    np.testing.assert_array_equal(places, expected[0])
    np.testing.assert_allclose(distances, expected[1], rtol=1e-6, atol=1e-15)
    # 20 of each of the three blocks, and a few that are as near for all that 32 bit can say.
    assert 40 * 3 * 20 <= sum(n_measured) < 40 * 3 * 20 * 1.1


def test_copies_are_ordered_by_place(monkeypatch):
    """Whatever the kernel with which a library multiplies the ends of a matrix."""
    _set_blocks(monkeypatch, 16, 64)
    queries, distinct = _normal(20, 384), _normal(40, 384, seed=1)
    copies = np.random.default_rng(2).integers(0, 40, 301)
    places, distances = search(queries, distinct[copies], limit=30)
    for query, row in zip(queries.astype(np.float64), places, strict=True):
        to_distinct = [_DISTANCES[Distance.COSINE](query, x) for x in distinct.astype(np.float64)]
        expected = sorted(range(301), key=lambda place: to_distinct[copies[place]])
        assert row.tolist() == expected[:30]
    assert (np.diff(distances) == 0).sum() > 300


def test_an_index_of_one_vector():
    places, distances = search(_exact_vectors(3), np.tile(_EXACT[:1], (50, 1)), limit=4)
    assert places.tolist() == [[0, 1, 2, 3]] * 3
    assert (distances == distances[:, :1]).all()


def test_search_by_hand():
    index = np.array([[0, 1], [3, 4], [1, 0], [0, 1]], dtype=np.float32)
    query = np.array([[0, 2]], dtype=np.float32)
    places, distances = search(query, index, limit=9, distance=Distance.EUCLIDEAN)
    assert places.tolist() == [[0, 3, 2, 1]]
    np.testing.assert_allclose(distances, [[1, 1, 5**0.5, 13**0.5]], rtol=1e-12)
    places, distances = search(query, index, limit=9, own=np.array([0]))
    assert places.tolist() == [[3, 1, 2, -1]]
    np.testing.assert_allclose(distances, [[0, 0.2, 1, np.inf]], rtol=1e-12)


@pytest.mark.parametrize("distance", [Distance.EUCLIDEAN, Distance.SQEUCLIDEAN])
def test_a_vector_is_at_no_distance_from_itself(distance):
    vectors = _normal(30, 16)
    places, distances = search(vectors, vectors, limit=1, distance=distance)
    assert (places[:, 0].tolist(), distances.max()) == (list(range(30)), 0.0)


def test_a_vector_of_zeros_has_the_cosine_distance_1_from_all():
    zeros = np.zeros((2, 4), np.float32)
    places, distances = search(zeros[:1], np.concatenate([_EXACT[:2], zeros]), limit=4)
    assert (places.tolist(), distances.tolist()) == ([[0, 1, 2, 3]], [[1.0] * 4])
    index = np.array([[-1, 0, 0, 0], [0] * 4, [0, 1, 0, 0], [1, 1, 1, 1], [0] * 4], np.float32)
    places, distances = search(_EXACT[:1], index, limit=4)
    assert (places.tolist(), distances.tolist()) == ([[3, 1, 2, 4]], [[0.5, 1, 1, 1]])


@pytest.mark.parametrize("distance", list(Distance))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(distance, value):
    bad = _EXACT.copy()
    bad[2, 1] = value
    for queries, index in ((bad, _EXACT), (_EXACT, bad)):
        with pytest.raises(DataError, match="embeddings that are not finite.*learning rate"):
            search(queries, index, limit=2, distance=distance)


@pytest.mark.parametrize(("n_queries", "n_index"), [(0, 24), (5, 0), (0, 0)])
def test_nothing_to_search_with_or_in(n_queries, n_index):
    places, distances = search(_EXACT[:n_queries], _EXACT[:n_index], limit=3)
    assert places.shape == distances.shape == (n_queries, min(3, n_index))


def test_memory_grows_by_block(monkeypatch):
    """4000 x 4000 products would be 64 MB, and the results are 0.3 MB."""
    _set_blocks(monkeypatch, 64, 512)
    vectors = _normal(4000, 8)
    tracemalloc.start()
    try:
        search(vectors, vectors, limit=5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6

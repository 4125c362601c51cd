import tracemalloc

import numpy as np
import pytest
import torch

from finetuner import search as module
from finetuner.callback import Distance
from finetuner.config import Device
from finetuner.errors import DataError
from finetuner.inner_products import InnerProducts, multiplier, torch_product
from finetuner.search import search
from finetuner.vector_index import open_vectors

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
    # 20 of the first of three blocks, of the others what may be nearer, and a few that are as near for all
    # that 32 bit can say.
    assert 40 * 20 <= sum(n_measured) < 40 * 3 * 20


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2, 7, 61])
@pytest.mark.parametrize("distance", list(Distance))
def test_neither_threads_nor_files_show(monkeypatch, tmp_path, distance, n_threads, is_file):
    index, queries = _exact_vectors(60), _exact_vectors(25)
    own = np.arange(59, 34, -1)
    expected = search(queries, index, limit=9, distance=distance, own=own)
    _set_blocks(monkeypatch, 11, 7)
    np.save(tmp_path / "index.npy", index)
    searched = open_vectors(tmp_path / "index.npy") if is_file else index
    found = search(queries, searched, limit=9, distance=distance, own=own, n_threads=n_threads)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_threads_find_all_of_a_small_index():
    index, queries = _exact_vectors(6), _exact_vectors(5)
    own = np.array([0, 5, -1, 2, 3])
    places, distances = search(queries, index, limit=9, own=own, n_threads=4)
    expected = _plain_search(queries, index, 9, Distance.COSINE, own)
    np.testing.assert_array_equal(places, expected[0])
    np.testing.assert_allclose(distances, expected[1], rtol=1e-12)


@pytest.mark.parametrize("distance", list(Distance))
def test_an_index_that_comes_nearer_and_nearer(monkeypatch, distance):
    """All of a block is nearer than what was found before: its own k nearest are all that is measured."""
    _set_blocks(monkeypatch, 4, 64)
    direction = np.linspace(0.2, np.pi / 2, 512)
    index = np.column_stack([np.cos(direction), np.sin(direction)]).astype(np.float32)[::-1]
    queries = np.array([[1, 0], [0.9, 0], [0, 0]], dtype=np.float32)
    places, distances = search(queries, index, limit=5, distance=distance)
    if distance is Distance.COSINE:
        assert places[2].tolist() == [0, 1, 2, 3, 4]
    expected = _plain_search(queries[:2], index, 5, distance)
    np.testing.assert_array_equal(places[:2], expected[0])
    np.testing.assert_allclose(distances[:2], expected[1], rtol=1e-9)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_torch_multiplies_in_full_precision(monkeypatch, precision):
    """Where there is a GPU; the same on the CPU here."""
    used = []

    def on_cpu(left, right, device):
        used.append((device, torch.get_float32_matmul_precision()))
        return torch_product(left, right, "cpu")

    monkeypatch.setattr("finetuner.inner_products.torch_product", on_cpu)
    queries, index = _normal(30, 16), _normal(300, 16, seed=1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        places, distances = search(queries, index, limit=7, device=Device.CUDA)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(used) == {("cuda", "highest")}
    expected = search(queries, index, limit=7)
    np.testing.assert_array_equal(places, expected[0])
    np.testing.assert_array_equal(distances, expected[1])


@pytest.mark.parametrize("distance", list(Distance))
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (3, 1e-3), (1000, 1e-2), (1000, 1e-3)])
def test_the_distance_so_far_leaves_out_none_that_is_as_near(distance, offset, scale):
    """Each vector must be a candidate where the k-th so far is as far as itself."""
    vectors = (_normal(1, 16, seed=1) * offset + _normal(60, 16) * scale).astype(np.float32)
    vectors[::7] = vectors[3]
    queries, index = vectors[:10], vectors[10:]
    block = InnerProducts.create(index, distance)
    for column in range(50):
        own = np.repeat(index[column : column + 1], 10, axis=0)
        farthest = module._measure(queries, own, np.arange(10), np.arange(10), distance)
        with multiplier(Device.CPU) as multiply:
            rows, columns = block.candidates(
                queries, 50, np.full(10, -1), farthest=farthest, multiply=multiply
            )
        assert np.isin(np.arange(10), rows[columns == column]).all()


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

import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from finetuner import projection
from finetuner.callback import Distance
from finetuner.projection import has_umap, principal_plane, turned, umap_points


def _vectors(n, dim, seed=0):
    generator = np.random.default_rng(seed)
    scales = 1 / np.arange(1, dim + 1)
    return (generator.normal(size=(n, dim)) * scales + generator.normal(size=dim)).astype(
        np.float32
    )


def _reference(vectors):
    """Points and explained share by numpy's singular value decomposition."""
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    for axis in axes:
        axis *= np.sign(axis[np.argmax(np.abs(axis))])
    return centred @ axes[:2].T, (sizes[:2] ** 2).sum() / (sizes**2).sum()


@pytest.mark.parametrize(
    ("n", "dim"), [(3, 8), (8, 8), (9, 8), (200, 16), (50, 300), (5, 2), (2, 2), (2, 40)]
)
def test_the_plane_is_that_of_the_singular_value_decomposition(n, dim):
    vectors = _vectors(n, dim)
    found = principal_plane(vectors)
    points, explained = _reference(vectors)
    np.testing.assert_allclose(found.points, points, atol=1e-6)
    assert found.explained == pytest.approx(explained, abs=1e-9)


def test_variance_by_a_plain_loop():
    """The first axis has the most variance that any direction has, the share is that of the sums."""
    vectors = _vectors(40, 3)
    found = principal_plane(vectors)
    rows = [[float(value) for value in row] for row in vectors]
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    total = sum((value - mean) ** 2 for row in rows for value, mean in zip(row, means, strict=True))
    assert found.explained == pytest.approx((found.points**2).sum() / total)
    first = (found.points[:, 0] ** 2).sum()
    for a, b in itertools.product(range(40), range(20)):
        angles = math.pi * a / 20, math.pi * b / 20
        direction = (
            math.sin(angles[1]) * math.cos(angles[0]),
            math.sin(angles[1]) * math.sin(angles[0]),
            math.cos(angles[1]),
        )
        along = sum(
            sum((v - m) * d for v, m, d in zip(row, means, direction, strict=True)) ** 2
            for row in rows
        )
        assert along <= first * (1 + 1e-9)


def test_by_hand():
    """Along (1, 1) the points lie at -2√2, 0 and 2√2, across it, along (1, -1), at √2 and -√2."""
    vectors = np.array([[0, 0], [2, 2], [4, 4], [3, 1], [1, 3]], np.float32)
    found = principal_plane(vectors)
    root = math.sqrt(2)
    expected = [[-2 * root, 0], [0, 0], [2 * root, 0], [0, root], [0, -root]]
    np.testing.assert_allclose(found.points, expected, atol=1e-12)
    assert found.explained == pytest.approx(1.0)


def test_one_dimension_is_a_line():
    found = principal_plane(np.array([[3.0], [1.0], [5.0]], np.float32))
    np.testing.assert_allclose(found.points, [[0, 0], [-2, 0], [2, 0]], atol=1e-12)
    assert found.explained == 1.0


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_points(n):
    found = principal_plane(np.ones((n, 4), np.float32))
    np.testing.assert_array_equal(found.points, np.zeros((n, 2)))
    assert found.explained == 0.0


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e30])
@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
def test_equal_points_are_one_point(value, shape):
    found = principal_plane(np.full(shape, value, np.float32))
    np.testing.assert_array_equal(found.points, np.zeros((shape[0], 2)))
    assert found.explained == 0.0


def test_small_differences_far_from_the_origin_are_seen():
    """In 32 bits the covariance would be rounding errors alone."""
    vectors = (1000 + 0.001 * _vectors(100, 8)).astype(np.float32)
    found = principal_plane(vectors)
    points, explained = _reference(vectors)
    np.testing.assert_allclose(found.points, points, atol=1e-8)
    assert found.explained == pytest.approx(explained)


def test_the_signs_do_not_depend_on_the_way():
    """The same vectors, once with more dimensions than vectors and once with fewer."""
    vectors = _vectors(20, 10)
    wide = np.column_stack([vectors, np.zeros((20, 30), np.float32)])
    np.testing.assert_allclose(
        principal_plane(wide).points, principal_plane(vectors).points, atol=1e-6
    )


@pytest.mark.parametrize("mirror", [1, -1])
def test_points_are_turned_back(mirror):
    onto = principal_plane(_vectors(30, 5)).points
    angle = 2.5
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = onto @ turn * np.array([1, mirror])
    np.testing.assert_allclose(turned(points, onto), onto, atol=1e-12)


def test_nothing_turns_them_nearer():
    """Compared with each of a thousand turns, with and without a mirror; lengths stay as they are."""
    onto, points = (principal_plane(_vectors(30, 5, seed)).points for seed in (0, 1))
    found = turned(points, onto)
    np.testing.assert_allclose(np.hypot(*found.T), np.hypot(*points.T))
    least = ((found - onto) ** 2).sum()
    for step, mirror in itertools.product(range(500), (1, -1)):
        angle = 2 * math.pi * step / 500
        off = 0.0
        for (x, y), (a, b) in zip(points.tolist(), onto.tolist(), strict=True):
            y *= mirror
            off += (x * math.cos(angle) - y * math.sin(angle) - a) ** 2
            off += (x * math.sin(angle) + y * math.cos(angle) - b) ** 2
        assert least <= off + 1e-9


def test_a_turn_by_hand():
    """A quarter turn: (0, 1) and (0, -1) onto (1, 0) and (-1, 0)."""
    points, onto = np.array([[0.0, 1], [0, -1]]), np.array([[1.0, 0], [-1, 0]])
    np.testing.assert_allclose(turned(points, onto), onto, atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_points_that_are_one_are_turned_to_themselves(n):
    np.testing.assert_array_equal(turned(np.zeros((n, 2)), np.ones((n, 2))), np.zeros((n, 2)))


def test_whether_umap_is_installed(monkeypatch):
    monkeypatch.setattr(projection.importlib.util, "find_spec", lambda _name: None)
    assert not has_umap()


@pytest.mark.parametrize(
    ("distance", "metric"),
    [
        (Distance.COSINE, "cosine"),
        (Distance.EUCLIDEAN, "euclidean"),
        (Distance.SQEUCLIDEAN, "euclidean"),
    ],
)
def test_umap_is_seeded_and_centred(monkeypatch, distance, metric):
    asked = []

    class UMAP:
        def __init__(self, **options):
            asked.append(options)

        def fit_transform(self, vectors):
            return vectors[:, :2] + np.float32(3)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    vectors = _vectors(40, 6)
    points = umap_points(vectors, distance=distance, seed=7)
    np.testing.assert_allclose(points, vectors[:, :2] - vectors[:, :2].mean(axis=0), atol=1e-5)
    umap_points(vectors, distance=distance, seed=7, start=points)
    assert [options["random_state"] for options in asked] == [7, 7]
    assert [options["metric"] for options in asked] == [metric] * 2
    assert asked[0]["init"] == "spectral"
    np.testing.assert_allclose(asked[1]["init"], points, atol=1e-6)


@pytest.mark.slow
def test_umap_finds_groups_the_same_each_time():
    pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    groups = np.repeat([0, 1], 30)
    vectors = generator.normal(size=(60, 8)).astype(np.float32)
    vectors[:, 0] += 20 * groups
    first, again = (umap_points(vectors, distance=Distance.EUCLIDEAN, seed=0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    centres = [first[groups == group].mean(axis=0) for group in (0, 1)]
    nearest = [np.argmin([np.hypot(*(point - c)) for c in centres]) for point in first]
    np.testing.assert_array_equal(nearest, groups)

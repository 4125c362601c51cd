"""Vectors cut, scaled and packed, against loops and by hand."""

import math

import numpy as np
import pytest

from finetuner.errors import ConfigError
from finetuner.vectors import VectorOptions, VectorType, shape_vectors

_RAW = np.array([[3, 4, 12, 0], [0, -8, 0, 6]], dtype=np.float32)
_UNIT = (_RAW / [[13], [10]]).astype(np.float32)


def random_unit(n_texts=50, dim=384):
    vectors = np.random.default_rng(0).normal(size=(n_texts, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shape(vectors, *, is_normalized=True, **options):
    return shape_vectors(vectors, VectorOptions(**options), is_normalized=is_normalized)


def test_nothing_asked_nothing_done():
    assert shape(_UNIT) is _UNIT
    assert shape(_RAW, is_normalized=False) is _RAW


def test_normalize_by_a_loop():
    found = shape(_RAW, is_normalized=False, normalize=True)
    for row, vector in zip(found, _RAW, strict=True):
        length = math.sqrt(sum(float(x) ** 2 for x in vector))
        assert row.tolist() == pytest.approx([x / length for x in vector])
    assert found.dtype == np.float32


def test_what_is_cut_is_scaled_again_where_the_model_scales():
    np.testing.assert_allclose(shape(_UNIT, dimensions=2), [[0.6, 0.8], [0, -1]], atol=1e-7)
    np.testing.assert_array_equal(shape(_RAW, is_normalized=False, dimensions=2), [[3, 4], [0, -8]])


def test_int8_by_hand():
    # 127/12 and 127/8 times the elements: 31.75, 42.33, 127, 0 and 0, -127, 0, 95.25.
    for vectors, is_normalized in ((_UNIT, True), (_RAW, False)):
        found = shape(vectors, is_normalized=is_normalized, dtype=VectorType.INT8)
        assert found.dtype == np.int8
        assert found.tolist() == [[32, 42, 127, 0], [0, -127, 0, 95]]


def test_int8_keeps_the_angle():
    vectors = random_unit()
    found = shape(vectors, dtype=VectorType.INT8).astype(float)
    cosines = (vectors * found).sum(axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() >= 0.9999


def test_binary_by_a_loop():
    vectors = random_unit(dim=24)
    found = shape(vectors, dtype=VectorType.BINARY)
    assert (found.dtype, found.shape) == (np.uint8, (50, 3))
    for row, vector in zip(found, vectors, strict=True):
        bits = "".join("1" if x > 0 else "0" for x in vector)
        assert row.tolist() == [int(bits[i : i + 8], 2) for i in range(0, 24, 8)]


def test_float16():
    found = shape(_UNIT, dtype=VectorType.FLOAT16)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, _UNIT.astype(np.float16))


def test_zeros_stay_zeros():
    zeros = np.zeros((1, 8), dtype=np.float32)
    for dtype in VectorType:
        found = shape(zeros, is_normalized=False, normalize=True, dtype=dtype)
        assert not found.any()


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        (VectorType.FLOAT32, 8),
        (VectorType.FLOAT16, 8),
        (VectorType.INT8, 8),
        (VectorType.BINARY, 1),
    ],
)
def test_no_vectors_keep_their_width(dtype, width):
    none = np.empty((0, 16), dtype=np.float32)
    assert shape(none, dimensions=8, dtype=dtype).shape == (0, width)


@pytest.mark.parametrize("dimensions", [0, -1, 5])
def test_dimensions_that_the_model_has_not(dimensions):
    with pytest.raises(ConfigError, match=f"must be from 1 to 4 with this model, got {dimensions}"):
        shape(_UNIT, dimensions=dimensions)


def test_binary_needs_whole_bytes():
    with pytest.raises(ConfigError, match="a multiple of 8, got 4"):
        shape(_UNIT, dtype=VectorType.BINARY)


def test_what_the_model_scales_cannot_be_had_unscaled():
    with pytest.raises(ConfigError, match="this model's own vectors have length one"):
        shape(_UNIT, normalize=False)
    assert shape(_RAW, is_normalized=False, normalize=False) is _RAW

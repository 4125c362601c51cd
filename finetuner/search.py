"""Exact search: the nearest vectors of an index, in time and memory that grow block by block.

All pairs are compared in 32 bit, by one matrix multiplication a block, whose rounding error has a known
bound. What this leaves as possibly among the nearest, a few vectors more than asked for, is measured in
64 bit and sorted. So the result is that of sorting 64-bit distances, whatever the blocks and the
library that multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetuner.callback import Distance
from finetuner.errors import DataError

Vectors = NDArray[np.float32]
Positions = NDArray[np.int64]
Distances = NDArray[np.float64]

_BLOCK_QUERIES = 256
_BLOCK_INDEX = 16_384  # with 256 queries, 16 MiB of products
_BLOCK_PAIRS = 256  # measured at once, so that they stay in the cache


def search(
    query_embeddings: Vectors,
    index_embeddings: Vectors,
    *,
    limit: int,
    distance: Distance = Distance.COSINE,
    own: Positions | None = None,
) -> tuple[Positions, Distances]:
    """Return the nearest index vectors of each query, nearest first, exactly.

    Queries and index go in blocks, so memory grows with neither. Equal distances, such as those of equal
    vectors, are ordered by place in the index.

    :param query_embeddings: *Shape:* ``(n_queries, dim)`` float32.
    :param index_embeddings: *Shape:* ``(n_index, dim)`` float32.
    :param limit: Matches a query, at least 1; fewer when the index is smaller.
    :param distance: What orders the matches. The cosine distance from a vector of zeros is 1.
    :param own: *Shape:* ``(n_queries,)``; an index place to leave out for each query, -1 for none.
    :returns: Places and distances, *Shape:* ``(n_queries, min(limit, n_index))``. A query whose own
        text leaves too few others has the place -1 and an infinite distance at the end.
    :raises DataError: When an embedding is not finite.
    """
    n_queries, n_matches = len(query_embeddings), min(limit, len(index_embeddings))
    places = np.full((n_queries, n_matches), -1, dtype=np.int64)
    distances = np.full((n_queries, n_matches), np.inf)
    left_out = np.full(n_queries, -1) if own is None else own
    for first in range(0, len(index_embeddings), _BLOCK_INDEX):
        index = index_embeddings[first : first + _BLOCK_INDEX]
        products = _InnerProducts.create(index, distance)
        for start in range(0, n_queries, _BLOCK_QUERIES):
            block = slice(start, start + _BLOCK_QUERIES)
            queries = query_embeddings[block]
            rows, columns = products.candidates(queries, n_matches, left_out[block] - first)
            measured = _measure(queries, index, rows, columns, distance)
            places[block], distances[block] = _merge(
                places[block], distances[block], rows, columns + first, measured
            )
    return places, distances


@dataclass(frozen=True)
class _InnerProducts:
    """A block of the index, moved and scaled so that a query's largest inner product is its nearest.

    ``|q - x|²`` falls as ``(q - c)·(x - c) - |x - c|²/2`` grows, an inner product with one component
    more; the cosine distance of vectors of length one is half of it. The centre c makes the numbers,
    and so their rounding errors, as small as the vectors differ: a model may give all texts nearly
    the same vector. Both sides are scaled to at most length one.

    :param vectors: *Shape:* ``(n_index, dim + 1)`` float32, none longer than one.
    :param centre: *Shape:* ``(dim,)`` float64.
    :param last: What a query has as its last component.
    :param distance: What orders the matches.
    """

    vectors: Vectors
    centre: NDArray[np.float64]
    last: float
    distance: Distance

    @classmethod
    def create(cls, index: Vectors, distance: Distance) -> _InnerProducts:
        vectors = _comparable(index, distance)
        is_zero = ~vectors.any(axis=1)
        centre = vectors.mean(axis=0)
        vectors -= centre
        # Any value does; this one makes the new component no larger than the others.
        last = float(_lengths(vectors).max()) / 2
        squares = np.vecdot(vectors, vectors)
        if distance is Distance.COSINE:
            squares[is_zero] += 1  # what their length lacks
        vectors = np.column_stack([vectors, squares / (-2 * last)])
        vectors /= _lengths(vectors).max()
        return cls(vectors.astype(np.float32), centre, last, distance)

    def _reduce(self, queries: Vectors) -> Vectors:
        vectors = _comparable(queries, self.distance) - self.centre
        vectors = np.column_stack([vectors, np.full(len(queries), self.last)])
        return (vectors / _lengths(vectors)).astype(np.float32)

    def candidates(
        self, queries: Vectors, k: int, left_out: Positions
    ) -> tuple[Positions, Positions]:
        """Return rows and columns of all pairs that may be among the k nearest, sorted by row.

        A sum of n products of unit vectors, in any order, is off by at most ``n * eps / 2`` (Higham,
        Accuracy and Stability of Numerical Algorithms, 3.1), rounding the vectors by ``eps`` more.
        Of the k nearest, none then lies more than twice that below the k-th largest product.

        :param left_out: A column for each query; none where it lies outside the block.
        """
        products = self._reduce(queries) @ self.vectors.T
        n_index = products.shape[1]
        rows = np.flatnonzero((left_out >= 0) & (left_out < n_index))
        products[rows, left_out[rows]] = -np.inf
        place = max(n_index - k, 0)
        kth = np.partition(products, place, axis=1)[:, place]
        slack = (self.vectors.shape[1] + 8) * np.finfo(np.float32).eps
        # Below -1 there is only what is left out.
        floor = np.maximum(kth - slack, np.float32(-2))
        return np.divmod(np.flatnonzero(products >= floor[:, None]), n_index)


def _comparable(vectors: Vectors, distance: Distance) -> NDArray[np.float64]:
    """Return a copy in 64 bit; for the cosine distance, of length one."""
    copy = vectors.astype(np.float64)
    lengths = _lengths(copy)
    if not np.isfinite(lengths).all():
        raise DataError(
            "the model gives embeddings that are not finite, which no search can order; "
            "train with a lower learning rate"
        )
    if distance is Distance.COSINE:
        copy /= lengths
    return copy


def _lengths(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each vector's length as a column, 1 for a vector of zeros."""
    lengths = np.sqrt(np.vecdot(vectors, vectors, dtype=np.float64))[:, None]
    return np.where(lengths == 0, 1.0, lengths)


def _measure(
    queries: Vectors, index: Vectors, rows: Positions, columns: Positions, distance: Distance
) -> Distances:
    """Return the 64-bit distance of each pair, the same for equal vectors wherever they lie."""
    measured = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK_PAIRS):
        block = slice(start, start + _BLOCK_PAIRS)
        left = queries[rows[block]].astype(np.float64)
        right = index[columns[block]].astype(np.float64)
        if distance is Distance.COSINE:
            lengths = _lengths(left)[:, 0] * _lengths(right)[:, 0]
            measured[block] = 1 - np.vecdot(left, right) / lengths
        else:
            left -= right
            measured[block] = np.vecdot(left, left)
    return np.sqrt(measured) if distance is Distance.EUCLIDEAN else measured


def _merge(
    places: Positions,
    distances: Distances,
    rows: Positions,
    new_places: Positions,
    new_distances: Distances,
) -> tuple[Positions, Distances]:
    """Keep the nearest of what was found so far, *Shape:* ``(n_queries, k)``, and of new pairs."""
    n_queries, k = places.shape
    all_rows = np.concatenate([np.repeat(np.arange(n_queries), k), rows])
    all_places = np.concatenate([places.ravel(), new_places])
    all_distances = np.concatenate([distances.ravel(), new_distances])
    order = np.lexsort((all_places, all_distances, all_rows))
    starts = np.searchsorted(all_rows[order], np.arange(n_queries))
    kept = order[starts[:, None] + np.arange(k)]
    return all_places[kept], all_distances[kept]

"""Exact search: the nearest vectors of an index, in time and memory that grow block by block.

All pairs are compared in 32 bit, by one matrix multiplication a block, whose rounding error has a known
bound. What this leaves as possibly among the nearest, a few vectors more than asked for, is measured in
64 bit and sorted. So the result is that of sorting 64-bit distances, whatever the blocks, the threads
and the library that multiplies.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from finetuner.callback import Distance
from finetuner.config import Device
from finetuner.inner_products import (
    Distances,
    InnerProducts,
    Multiply,
    Positions,
    lengths_of,
    multiplier,
)
from finetuner.vector_index import ArrayIndex, VectorIndex

Found = tuple[Positions, Distances]

_BLOCK_QUERIES = 256
_BLOCK_INDEX = 16_384  # with 256 queries, 16 MiB of products
_BLOCK_PAIRS = 256  # measured at once, so that they stay in the cache


def search(
    query_embeddings: NDArray[Any],
    index_embeddings: NDArray[Any] | VectorIndex,
    *,
    limit: int,
    distance: Distance = Distance.COSINE,
    own: Positions | None = None,
    n_threads: int = 1,
    device: Device = Device.CPU,
) -> Found:
    """Return the nearest index vectors of each query, nearest first, exactly.

    Queries and index go in blocks, so memory grows with neither. Equal distances, such as those of equal
    vectors, are ordered by place in the index.

    :param query_embeddings: *Shape:* ``(n_queries, dim)`` float32.
    :param index_embeddings: *Shape:* ``(n_index, dim)`` float32; or what gives such blocks.
    :param limit: Matches a query, at least 1; fewer when the index is smaller.
    :param distance: What orders the matches. The cosine distance from a vector of zeros is 1.
    :param own: *Shape:* ``(n_queries,)``; an index place to leave out for each query, -1 for none.
    :param n_threads: Each searches a span of the index, with a block of it in memory; at least 1. With more
        than one, the multiplications of this process have a thread each meanwhile.
    :param device: Where blocks are multiplied.
    :returns: Places and distances, *Shape:* ``(n_queries, min(limit, n_index))``. A query whose own
        text leaves too few others has the place -1 and an infinite distance at the end.
    :raises DataError: When an embedding is not finite.
    """
    index = index_embeddings
    if isinstance(index, np.ndarray):
        index = ArrayIndex(index)
    left_out = np.full(len(query_embeddings), -1) if own is None else own
    n_matches = min(limit, index.n_vectors)
    with multiplier(device) as multiply:
        spans = _Spans(query_embeddings, index, n_matches, distance, left_out, multiply)
        if n_threads == 1:
            return spans.search(0, index.n_vectors)
        ends = np.linspace(0, index.n_vectors, n_threads + 1).astype(np.int64).tolist()
        # A multiplication that takes all cores itself would wait for those of the other spans.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_threads) as pool:
            found = list(pool.map(lambda span: spans.search(*span), pairwise(ends)))
    return _nearest(found)


@dataclass(frozen=True)
class _Spans:
    """What is asked of each span of the index.

    :param queries: *Shape:* ``(n_queries, dim)``.
    :param index: What is searched.
    :param n_matches: Matches a query.
    :param distance: What orders the matches.
    :param left_out: *Shape:* ``(n_queries,)``; as ``own`` of :func:`search`.
    :param multiply: What multiplies.
    """

    queries: NDArray[Any]
    index: VectorIndex
    n_matches: int
    distance: Distance
    left_out: Positions
    multiply: Multiply

    def search(self, start: int, stop: int) -> Found:
        """Return the nearest of the places from ``start`` to before ``stop``."""
        n_queries = len(self.queries)
        places = np.full((n_queries, self.n_matches), -1, dtype=np.int64)
        distances = np.full((n_queries, self.n_matches), np.inf)
        for first, vectors in self.index.blocks(start, stop, _BLOCK_INDEX):
            products = InnerProducts.create(vectors, self.distance)
            for begin in range(0, n_queries, _BLOCK_QUERIES):
                block = slice(begin, begin + _BLOCK_QUERIES)
                queries = self.queries[block]
                rows, columns = products.candidates(
                    queries,
                    self.n_matches,
                    self.left_out[block] - first,
                    farthest=distances[block, -1],
                    multiply=self.multiply,
                )
                measured = _measure(queries, vectors, rows, columns, self.distance)
                places[block], distances[block] = _merge(
                    places[block], distances[block], rows, columns + first, measured
                )
        return places, distances


def _measure(
    queries: NDArray[Any],
    index: NDArray[Any],
    rows: Positions,
    columns: Positions,
    distance: Distance,
) -> Distances:
    """Return the 64-bit distance of each pair, the same for equal vectors wherever they lie."""
    measured = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK_PAIRS):
        block = slice(start, start + _BLOCK_PAIRS)
        left = queries[rows[block]].astype(np.float64)
        right = index[columns[block]].astype(np.float64)
        if distance is Distance.COSINE:
            lengths = lengths_of(left)[:, 0] * lengths_of(right)[:, 0]
            measured[block] = 1 - np.vecdot(left, right) / lengths
        else:
            left -= right
            measured[block] = np.vecdot(left, left)
    return np.sqrt(measured) if distance is Distance.EUCLIDEAN else measured


def _nearest(found: list[Found]) -> Found:
    """Return the nearest of what several spans gave."""
    (places, distances), *others = found
    for more_places, more_distances in others:
        rows, columns = np.nonzero(more_places >= 0)
        new = more_places[rows, columns], more_distances[rows, columns]
        places, distances = _merge(places, distances, rows, *new)
    return places, distances


def _merge(
    places: Positions,
    distances: Distances,
    rows: Positions,
    new_places: Positions,
    new_distances: Distances,
) -> Found:
    """Keep the nearest of what was found so far, *Shape:* ``(n_queries, k)``, and of new pairs."""
    n_queries, k = places.shape
    all_rows = np.concatenate([np.repeat(np.arange(n_queries), k), rows])
    all_places = np.concatenate([places.ravel(), new_places])
    all_distances = np.concatenate([distances.ravel(), new_distances])
    order = np.lexsort((all_places, all_distances, all_rows))
    starts = np.searchsorted(all_rows[order], np.arange(n_queries))
    kept = order[starts[:, None] + np.arange(k)]
    return all_places[kept], all_distances[kept]

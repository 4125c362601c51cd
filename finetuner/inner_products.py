"""All pairs of queries and a block of an index, compared by one matrix multiplication in 32 bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetuner.callback import Distance
from finetuner.config import Device
from finetuner.errors import DataError

Vectors = NDArray[np.float32]
Positions = NDArray[np.int64]
Distances = NDArray[np.float64]
Multiply = Callable[[Vectors, Vectors], Vectors]

# A query with more candidates than so many times k has its floor raised by the block's own k-th.
_CROWD = 4


@contextmanager
def multiplier(device: Device) -> Iterator[Multiply]:
    """Give what multiplies each row of one matrix with each row of another.

    :param device: Where; the result is copied back.
    """
    if device is Device.CPU:
        yield lambda left, right: np.asarray(left @ right.T)
        return
    import torch

    # Training lets matrices be multiplied in fewer bits, which would break the bound on the error.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield lambda left, right: torch_product(left, right, device.value)
    finally:
        torch.set_float32_matmul_precision(before)


def torch_product(left: Vectors, right: Vectors, device: str) -> Vectors:
    """Return the products of all rows, by torch.

    :param left: *Shape:* ``(n, dim)``.
    :param right: *Shape:* ``(m, dim)``.
    :param device: Where torch computes them.
    :returns: *Shape:* ``(n, m)``.
    """
    import torch

    product = torch.from_numpy(left).to(device) @ torch.from_numpy(right).to(device).T
    return np.asarray(product.cpu().numpy())


@dataclass(frozen=True)
class InnerProducts:
    """A block of the index, moved and scaled so that a query's largest inner product is its nearest.

    ``|q - x|²`` falls as ``(q - c)·(x - c) - |x - c|²/2`` grows, an inner product with one component
    more; the cosine distance of vectors of length one is half of it. The centre c makes the numbers,
    and so their rounding errors, as small as the vectors differ: a model may give all texts nearly
    the same vector. Both sides are scaled to at most length one.

    :param vectors: *Shape:* ``(n_index, dim + 1)`` float32, none longer than one.
    :param centre: *Shape:* ``(dim,)`` float64.
    :param last: What a query has as its last component.
    :param longest: What the vectors were divided by.
    :param distance: What orders the matches.
    """

    vectors: Vectors
    centre: NDArray[np.float64]
    last: float
    longest: float
    distance: Distance

    @classmethod
    def create(cls, index: NDArray[np.floating], distance: Distance) -> InnerProducts:
        """Move and scale a block.

        :param index: *Shape:* ``(n_index, dim)``.
        :raises DataError: When a vector is not finite.
        """
        vectors = _comparable(index, distance)
        is_zero = ~vectors.any(axis=1)
        centre = vectors.mean(axis=0)
        vectors -= centre
        # Any value does; this one makes the new component no larger than the others.
        last = float(lengths_of(vectors).max()) / 2
        squares = np.vecdot(vectors, vectors)
        if distance is Distance.COSINE:
            squares[is_zero] += 1  # what their length lacks
        vectors = np.column_stack([vectors, squares / (-2 * last)])
        longest = float(lengths_of(vectors).max())
        vectors /= longest
        return cls(vectors.astype(np.float32), centre, last, longest, distance)

    def candidates(
        self,
        queries: NDArray[np.floating],
        k: int,
        left_out: Positions,
        *,
        farthest: Distances,
        multiply: Multiply,
    ) -> tuple[Positions, Positions]:
        """Return rows and columns of all pairs that may be among the k nearest, sorted by row.

        A sum of n products of unit vectors, in any order, is off by at most ``n * eps / 2`` (Higham,
        Accuracy and Stability of Numerical Algorithms, 3.1), rounding the vectors by ``eps`` more.
        Of the k nearest, none then lies more than twice that below the k-th largest product.

        :param left_out: A column for each query; none where it lies outside the block.
        :param farthest: The distance of each query's k-th nearest so far; infinite where there are fewer.
        """
        moved = _comparable(queries, self.distance) - self.centre
        moved = np.column_stack([moved, np.full(len(queries), self.last)])
        lengths = lengths_of(moved)
        products = multiply((moved / lengths).astype(np.float32), self.vectors)
        n_index = products.shape[1]
        rows = np.flatnonzero((left_out >= 0) & (left_out < n_index))
        products[rows, left_out[rows]] = -np.inf
        floor = self._floor(moved, lengths[:, 0], farthest)
        self._raise(floor, products, np.flatnonzero(np.isinf(farthest)), k)
        found = np.flatnonzero(products >= floor[:, None])
        counts = np.bincount(found // n_index, minlength=len(queries))
        crowded = np.flatnonzero(counts > _CROWD * k)
        if len(crowded):
            self._raise(floor, products, crowded, k)
            found = np.flatnonzero(products >= floor[:, None])
        return np.divmod(found, n_index)

    @property
    def _slack(self) -> float:
        n = self.vectors.shape[1] + 8
        return float(n * np.finfo(np.float32).eps)

    def _floor(
        self,
        moved: NDArray[np.float64],
        lengths: NDArray[np.float64],
        farthest: Distances,
    ) -> Vectors:
        """Return the least product that a vector no farther than the k-th so far can have."""
        squares = np.vecdot(moved[:, :-1], moved[:, :-1])
        # As great as the errors of measured distances can be, twice over; they are of 64 bit.
        error = 4 * (self.vectors.shape[1] + 8) * np.finfo(np.float64).eps
        if self.distance is Distance.COSINE:
            reach = 2 * farthest + 2 * error
        else:
            reach = farthest if self.distance is Distance.SQEUCLIDEAN else farthest**2
        floor = (squares * (1 - error) - reach * (1 + error)) / (2 * lengths * self.longest)
        # Below -1 there is only what is left out.
        return np.asarray(np.maximum(floor - self._slack, -2), dtype=np.float32)

    def _raise(self, floor: Vectors, products: Vectors, rows: Positions, k: int) -> None:
        """Raise the floor of some queries to what the block's own k-th nearest allows."""
        place = max(products.shape[1] - k, 0)
        kth = np.partition(products[rows], place, axis=1)[:, place]
        floor[rows] = np.maximum(floor[rows], kth - np.float32(self._slack))


def _comparable(vectors: NDArray[np.floating], distance: Distance) -> NDArray[np.float64]:
    """Return a copy in 64 bit; for the cosine distance, of length one."""
    copy = vectors.astype(np.float64)
    lengths = lengths_of(copy)
    if not np.isfinite(lengths).all():
        raise DataError(
            "the model gives embeddings that are not finite, which no search can order; "
            "train with a lower learning rate"
        )
    if distance is Distance.COSINE:
        copy /= lengths
    return copy


def lengths_of(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each vector's length as a column, 1 for a vector of zeros."""
    lengths = np.sqrt(np.vecdot(vectors, vectors, dtype=np.float64))[:, None]
    return np.where(lengths == 0, 1.0, lengths)

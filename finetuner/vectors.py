"""Vectors as a request wants them: cut, scaled to length one, in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetuner.errors import ConfigError

_BITS = 8
_INT8_MAX = 127


class VectorType(StrEnum):
    """How a vector's elements are written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


@dataclass(frozen=True)
class VectorOptions:
    """What is to be done with vectors.

    :param normalize: Scale them to length one; as the model does when None.
    :param dimensions: How many elements to keep, from the first; all when None.
    :param dtype: How to write them.
    """

    normalize: bool | None = None
    dimensions: int | None = None
    dtype: VectorType = VectorType.FLOAT32

    def check(self, dim: int, *, is_normalized: bool) -> None:
        """Refuse what a model's vectors cannot be made into; worth asking before they are computed.

        :param dim: Elements of the model's vectors.
        :param is_normalized: Whether they have length one.
        :raises ConfigError: When ``dimensions`` is not from 1 to ``dim``, or no multiple of 8 with
            ``binary``; or when ``normalize`` is false and the vectors have length one already.
        """
        kept = dim if self.dimensions is None else self.dimensions
        if not 1 <= kept <= dim:
            raise ConfigError(f"dimensions must be from 1 to {dim} with this model, got {kept}")
        if self.dtype is VectorType.BINARY and kept % _BITS:
            raise ConfigError(
                f"dtype=binary packs 8 elements a byte: dimensions must be a multiple of 8, got {kept}"
            )
        if self.normalize is False and is_normalized:
            raise ConfigError(
                "normalize=false cannot be had: this model's own vectors have length one; train it with "
                "model_options={'normalize': False}"
            )


def shape_vectors(
    vectors: NDArray[np.float32], options: VectorOptions, *, is_normalized: bool
) -> NDArray[Any]:
    """Return vectors in another form; what is cut is scaled to length one again.

    int8: each vector times 127 over its largest element, rounded; its length is lost and its direction
    stays, to a cosine of .9999, so compare by cosine and not by product. binary: 1 for an element above
    0, eight to a byte, the first element in the highest bit.

    :param vectors: *Shape:* ``(n_texts, dim)`` float32; none give none of the same width.
    :param options: What to do; with the defaults the same array is returned.
    :param is_normalized: Whether the model gives vectors of length one.
    :returns: *Shape:* ``(n_texts, dimensions)``, or an eighth of that in uint8 for ``binary``. A vector of
        zeros stays one.
    :raises ConfigError: As :meth:`VectorOptions.check`.
    """
    width = vectors.shape[1]
    options.check(width, is_normalized=is_normalized)
    kept = width if options.dimensions is None else options.dimensions
    is_wanted = is_normalized if options.normalize is None else options.normalize
    if kept < width:
        vectors = vectors[:, :kept]
    if is_wanted and (kept < width or not is_normalized):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, np.where(lengths > 0, lengths, 1), dtype=np.float32)
    written: NDArray[Any] = _WRITERS[options.dtype](vectors)
    return written


def _as_int8(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    scale = np.where(largest > 0, _INT8_MAX / np.where(largest > 0, largest, 1), 0)
    return np.rint(vectors * scale).astype(np.int8)


def _as_binary(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=1)


_WRITERS = {
    VectorType.FLOAT32: lambda vectors: np.ascontiguousarray(vectors, dtype=np.float32),
    VectorType.FLOAT16: lambda vectors: vectors.astype(np.float16),
    VectorType.INT8: _as_int8,
    VectorType.BINARY: _as_binary,
}

"""Vectors as points of a plane, so that people can look at them: by principal components, or by UMAP."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetuner.callback import Distance

Vectors = NDArray[np.float32]
Points = NDArray[np.float64]

_N_NEIGHBOURS = 15
# Below that a graph of neighbours has no structure that could be laid out.
MIN_UMAP_TEXTS = 2 * _N_NEIGHBOURS
_SIGN_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Plane:
    """Points, and how much they tell.

    :param points: *Shape:* ``(n, 2)``, their mean at 0.
    :param explained: Share of the vectors' variance that the points have, 0 to 1; 0 for equal vectors.
    """

    points: Points
    explained: float


def principal_plane(vectors: Vectors) -> Plane:
    """Return vectors in the plane of their largest variance, the first axis having more of it.

    That of ``numpy.linalg.svd`` of the centred vectors, computed from their covariance where there are more
    vectors than dimensions. Each axis points to where its largest component is positive.

    :param vectors: *Shape:* ``(n, dim)``, finite; one of one dimension lies on a line.
    """
    n, dim = vectors.shape
    points = np.zeros((n, 2))
    if n < 2:
        return Plane(points, 0.0)
    # The first vector is taken off before the mean, so that equal vectors are zeros and no rounding errors.
    centred = np.subtract(vectors, vectors[0], dtype=np.float64)
    centred -= centred.mean(axis=0)
    total = float(np.vdot(centred, centred))
    if total == 0:
        return Plane(points, 0.0)
    axes = _axes(centred)
    points[:, : axes.shape[1]] = centred @ axes
    return Plane(points, min(1.0, float(np.vdot(points, points)) / total))


def _axes(centred: Points) -> Points:
    """Return the two first principal axes as columns; one where there is but one dimension."""
    import scipy.linalg  # a third of a second

    n, dim = centred.shape
    if n <= dim:
        axes = scipy.linalg.svd(centred, full_matrices=False)[2][:2].T
    else:
        first = max(0, dim - 2)
        covariance = centred.T @ centred
        axes = scipy.linalg.eigh(covariance, subset_by_index=(first, dim - 1))[1][:, ::-1]
    sizes = np.abs(axes)
    # Of components that are as large but for rounding, the first.
    places = np.argmax(sizes >= (1 - _SIGN_TOLERANCE) * sizes.max(axis=0), axis=0)
    signs = np.sign(axes[places, np.arange(axes.shape[1])])
    return np.asarray(axes * signs)


def turned(points: Points, onto: Points) -> Points:
    """Return points turned, and mirrored if need be, so that they come as near to others as they can.

    The orthogonal Procrustes problem, by ``scipy.linalg.orthogonal_procrustes``; nothing is scaled.

    :param points: *Shape:* ``(n, 2)``, their mean at 0.
    :param onto: The same texts elsewhere, in the same order.
    """
    import scipy.linalg

    rotation, _ = scipy.linalg.orthogonal_procrustes(points, onto)
    return np.asarray(points @ rotation)


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def umap_points(
    vectors: Vectors, *, distance: Distance, seed: int, start: Points | None = None
) -> Points:
    """Return vectors laid out by UMAP: near ones near, in groups; distances between groups mean little.

    :param vectors: *Shape:* ``(n, dim)``; at least :data:`MIN_UMAP_TEXTS`.
    :param distance: What is near.
    :param seed: Decides the layout.
    :param start: Where the points begin, so that two layouts can be compared; a spectral one when None.
    :returns: *Shape:* ``(n, 2)``, their mean at 0.
    """
    import umap  # it compiles for seconds

    metric = "cosine" if distance is Distance.COSINE else "euclidean"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layout = umap.UMAP(
            n_neighbors=_N_NEIGHBOURS,
            metric=metric,
            init="spectral" if start is None else start.astype(np.float32),
            random_state=seed,
            n_jobs=1,  # more would not be the same each time
        ).fit_transform(vectors)
    points = np.asarray(layout, dtype=np.float64)
    return np.asarray(points - points.mean(axis=0))

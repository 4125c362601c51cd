"""A run's map: where the texts of its evaluations lie for the model, before training and after.

The vectors are those that the evaluations make anyway. What is drawn goes into ``map.json``; the vectors
themselves are kept, beside the checkpoints, only where UMAP is installed, which needs them at the end.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from finetuner.callback import Distance
from finetuner.evaluation import Evaluation, EvaluationSet
from finetuner.files import make_folder, read_json, replacing
from finetuner.projection import (
    MIN_UMAP_TEXTS,
    Plane,
    Points,
    Vectors,
    has_umap,
    principal_plane,
    turned,
    umap_points,
)
from finetuner.runs import CHECKPOINTS, MAP_FILE, Run

logger = logging.getLogger(__name__)
MAX_TEXTS = 20_000
MAX_CHARACTERS = 200
_N_DIGITS = 5

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Shown:
    """Which texts of an evaluation are drawn.

    :param queries: Their places.
    :param index: Places of index texts; none that is a query too.
    :param n_texts: How many there are, drawn or not.
    """

    queries: Positions
    index: Positions
    n_texts: int

    @classmethod
    def choose(cls, data: EvaluationSet, *, seed: int) -> Shown:
        """Draw at most :data:`MAX_TEXTS`, queries first.

        :param data: The evaluation's texts.
        :param seed: Of the run.
        """
        queries = set(data.queries.texts)
        others = [i for i, text in enumerate(data.index.texts) if text not in queries]
        generator = np.random.default_rng(seed)
        n_queries = len(data.queries)
        chosen = _draw(np.arange(n_queries), MAX_TEXTS, generator)
        rest = _draw(np.array(others, dtype=np.int64), MAX_TEXTS - len(chosen), generator)
        return cls(chosen, rest, n_queries + len(others))

    def vectors(self, found: Evaluation) -> Vectors:
        """Return the vectors of what is drawn, queries first."""
        queries = found.query_embeddings[self.queries]
        return np.concatenate([queries, found.index_embeddings[self.index]])

    def describe(self, data: EvaluationSet) -> dict[str, Any]:
        """Return what is drawn: texts, labels, roles and numbers."""
        queries, index = data.queries.subset(self.queries), data.index.subset(self.index)
        return {
            "texts": [text[:MAX_CHARACTERS] for text in (*queries.texts, *index.texts)],
            "labels": [*queries.labels, *index.labels],
            "roles": ["query"] * len(queries) + ["index"] * len(index),
            "n_texts": self.n_texts,
            "n_shown": len(queries) + len(index),
        }


def _draw(places: Positions, size: int, generator: np.random.Generator) -> Positions:
    if len(places) <= size:
        return places
    return np.sort(generator.choice(places, size, replace=False))


class RunMap:
    """Draws a run's map, evaluation by evaluation; a run that goes on, goes on with what is in the file.

    :param run: The run.
    :param seed: Its seed.
    """

    def __init__(self, run: Run, *, seed: int) -> None:
        self._path = run.folder / MAP_FILE
        self._vectors_folder = run.folder / CHECKPOINTS
        self._seed = seed
        self._keeps_vectors = has_umap()
        self._shown: dict[str, Shown] = {}
        self._evaluations: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            return dict(read_json(self._path)["evaluations"])
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as exc:
            logger.warning("The run's map is damaged (%s); later epochs are not drawn", exc)
            return {}

    def see(self, caption: str, data: EvaluationSet, found: Evaluation, *, is_before: bool) -> None:
        """Take up an evaluation: the first, or that of an epoch.

        :param caption: The evaluation's.
        :param data: Its texts.
        :param found: Their vectors.
        :param is_before: Whether the model is untuned.
        """
        if caption not in self._shown:
            self._shown[caption] = Shown.choose(data, seed=self._seed)
        shown = self._shown[caption]
        vectors = shown.vectors(found)
        try:
            plane = principal_plane(vectors)
        except np.linalg.LinAlgError as exc:  # a library's iteration did not come to its end
            logger.warning("The map of evaluation `%s` cannot be drawn: %s", caption, exc)
            return
        if is_before:
            self._evaluations[caption] = {
                **shown.describe(data),
                "methods": {"pca": _first(plane)},
            }
        elif not self._add(caption, plane):
            return
        self._keep(vectors, self._vectors_path(caption, is_before=is_before))

    def _add(self, caption: str, plane: Plane) -> bool:
        """Add an epoch; return whether there is what it can be compared with."""
        drawn = self._evaluations.get(caption)
        if drawn is None or drawn["n_shown"] != len(plane.points):
            return False
        pca = drawn["methods"]["pca"]
        pca["after"] = _rounded(turned(plane.points, np.array(pca["before"])))
        pca["explained"]["after"] = round(plane.explained, _N_DIGITS)
        return True

    def write(self) -> None:
        """Write the map down: whole, or as it was."""
        if not self._evaluations:
            return
        content = {"evaluations": self._evaluations}
        with replacing(self._path) as file:
            file.write(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))

    def _vectors_path(self, caption: str, *, is_before: bool) -> Path:
        # By number: a caption may be no name of a file.
        number = list(self._evaluations).index(caption)
        return self._vectors_folder / f"map-{number}-{'before' if is_before else 'after'}.npy"

    def _keep(self, vectors: Vectors, path: Path) -> None:
        if not self._keeps_vectors or len(vectors) < MIN_UMAP_TEXTS:
            return
        make_folder(self._vectors_folder)
        with replacing(path) as file:
            np.save(file, vectors)

    def conclude(self, distances: Mapping[str, Distance]) -> None:
        """Add a layout by UMAP, before and after, where it is installed; that is for the end.

        :param distances: What is near, by caption.
        """
        for caption in self._evaluations:
            paths = [
                self._vectors_path(caption, is_before=is_before) for is_before in (True, False)
            ]
            if not self._keeps_vectors or not paths[0].exists():
                continue
            vectors = [np.load(path) for path in paths if path.exists()]
            started_at = time.monotonic()
            try:
                points = self._lay_out(vectors, distances[caption])
            except (
                Exception
            ):  # compiled on the spot, of a library that is optional; the run has its result
                logger.warning("UMAP of evaluation `%s` failed", caption, exc_info=True)
                continue
            logger.info(
                "Map by UMAP of %d texts (%s): %.1f s",
                *(len(vectors[0]), caption, time.monotonic() - started_at),
            )
            before, after = points[0], points[1] if len(points) > 1 else None
            self._evaluations[caption]["methods"]["umap"] = {"before": before, "after": after}
            self.write()

    def _lay_out(self, vectors: list[Vectors], distance: Distance) -> list[Points]:
        before = umap_points(vectors[0], distance=distance, seed=self._seed)
        points = [_rounded(before)]
        for later in vectors[1:]:
            after = umap_points(later, distance=distance, seed=self._seed, start=before)
            points.append(_rounded(turned(after, before)))
        return points


def _first(plane: Plane) -> dict[str, Any]:
    explained = {"before": round(plane.explained, _N_DIGITS), "after": None}
    return {"before": _rounded(plane.points), "after": None, "explained": explained}


def _rounded(points: Points) -> Points:
    """Return points with so many digits as an eye can use, by the size of the whole."""
    size = float(np.abs(points).max(initial=0.0))
    n_decimals = _N_DIGITS - math.ceil(math.log10(size)) if size > 0 else _N_DIGITS
    return np.round(points, n_decimals)

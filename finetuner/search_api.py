"""What the EncoderExecutor answers when somebody searches by hand with a run's model, or the one before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuner.batcher import Batcher
from finetuner.config import DEFAULT_EXPERIMENT
from finetuner.data import check_text
from finetuner.datastore import DataStore
from finetuner.encoder_cache import EncoderCache, Served
from finetuner.errors import ArtifactNotFound, ConfigError, DataError
from finetuner.run_store import RunStore
from finetuner.runs import TRAIN_FILE, Run, evaluation_file
from finetuner.schema import documented
from finetuner.search import search
from finetuner.text_index import Building, IndexTexts, TextIndex, TextIndexes, read_index_texts

_MOST_RESULTS = 1000


@dataclass(frozen=True)
class SearchParameters:
    """Parameters of ``/search``.

    :raises ConfigError: When the limit is out of range, or two indexes are named.
    """

    artifact: str | None = documented(
        "alias, run name, `experiment/run` or artifact id; the server's own when left out",
        default=None,
    )
    untuned: bool = documented("search with the model that the run began with", default=False)
    index_run: str | None = documented(
        "search the texts of this run's first evaluation, or its training texts: run name or "
        "`experiment/run`; the artifact's own run when left out",
        default=None,
    )
    index_data: str | None = documented("search these stored data in their place", default=None)
    limit: int = documented(f"how many texts to return, 1 to {_MOST_RESULTS}", default=10)
    client: str = documented("who asks; clients take turns", default="")

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= _MOST_RESULTS:
            raise ConfigError(
                f"parameters.limit must be from 1 to {_MOST_RESULTS}, got {self.limit}"
            )
        if self.index_run is not None and self.index_data is not None:
            raise ConfigError("give index_run or index_data, not both")


@contextmanager
def _deleted_meanwhile() -> Iterator[None]:
    """Name what has happened to a file that was there a moment ago."""
    try:
        yield
    except FileNotFoundError as exc:
        raise ArtifactNotFound("the run or the data to search were deleted meanwhile") from exc


def _read(source: Path) -> IndexTexts:
    with _deleted_meanwhile():
        return read_index_texts(source)


class SearchAPI:
    """Searches texts of a run or stored ones.

    :param workspace: The volume.
    :param cache: Gives the models.
    :param batcher: Embeds.
    :param find: From an artifact's name, or None, and who asks to where it is.
    """

    def __init__(
        self,
        workspace: Path,
        *,
        cache: EncoderCache,
        batcher: Batcher,
        find: Callable[[str | None, str], Path],
    ) -> None:
        self._cache, self._batcher, self._find = cache, batcher, find
        self._runs, self._data = RunStore(workspace), DataStore(workspace)
        self._indexes = TextIndexes(batcher)

    async def search(self, texts: Sequence[str], parameters: SearchParameters) -> dict[str, Any]:
        """Return the texts nearest to a query, or how far their index is.

        :param texts: The query, alone.
        :param parameters: Of the request.
        :raises DataError: When there is not one text, or the stored data are no texts.
        :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
        :raises RunNotFoundError, DataNotFoundError: When there is nothing to search.
        :raises OverloadedError: When too much is waiting.
        """
        if len(texts) != 1:
            raise DataError(f"a search takes one query, got {len(texts)} texts")
        check_text(texts[0], "the query")
        path, building = await asyncio.to_thread(self._begun, parameters)
        if building.index is None:
            return {"ready": False, "n_done": building.n_done, "n_texts": building.n_texts}
        return await self._answer(texts[0], parameters, path, building.index)

    def close(self) -> None:
        """Give up what is in work; before the batcher is closed."""
        self._indexes.close()

    async def _answer(
        self, query: str, parameters: SearchParameters, path: Path, index: TextIndex
    ) -> dict[str, Any]:
        served = await asyncio.to_thread(self._load, path, parameters)
        encoder, started_at = served.encoder, time.perf_counter()
        # In a thread, since a text may be as long as a body.
        token_ids = await asyncio.to_thread(encoder.tokenizer.tokenize, [query])
        job = self._batcher.submit(encoder, token_ids, client=parameters.client)
        vectors = await asyncio.wrap_future(job.future)
        encoded_at = time.perf_counter()
        places, distances = await asyncio.to_thread(
            search, vectors, index.vectors, limit=parameters.limit
        )
        content = index.content
        return {
            "ready": True,
            "artifact": path.stem,
            "untuned": parameters.untuned,
            "n_texts": len(content.texts),
            "results": [
                {
                    "text": content.texts[place],
                    "label": content.labels[place],
                    "score": 1 - distance,
                }
                for place, distance in zip(places[0].tolist(), distances[0].tolist(), strict=True)
            ],
            "encode_s": encoded_at - started_at,
            "search_s": time.perf_counter() - encoded_at,
        }

    def _load(self, path: Path, parameters: SearchParameters) -> Served:
        with _deleted_meanwhile():
            return self._cache.load(path, untuned=parameters.untuned)

    def _begun(self, parameters: SearchParameters) -> tuple[Path, Building]:
        """Return where the artifact is, and the index, begun when it is new."""
        path = self._find(parameters.artifact, parameters.client)
        source = self._source(path, parameters)
        # A run made again, or data pushed again, is another file.
        with _deleted_meanwhile():
            versions = tuple((one, one.stat().st_mtime_ns) for one in (path, source))
        building = self._indexes.get(
            (versions, parameters.untuned),
            lambda: self._load(path, parameters),
            lambda: _read(source),
        )
        return path, building

    def _source(self, artifact: Path, parameters: SearchParameters) -> Path:
        """Return the file with the texts to search."""
        if parameters.index_data is not None:
            return self._data.texts_path(parameters.index_data)
        if parameters.index_run is not None:
            experiment, _, name = parameters.index_run.rpartition("/")
            run = self._runs.get(name, experiment or DEFAULT_EXPERIMENT)
        else:
            run = Run(artifact.parent)
        folder = run.folder / "data"
        for name in (evaluation_file(0, "index"), evaluation_file(0, "query"), TRAIN_FILE):
            if (folder / name).is_file():
                return folder / name
        raise DataError(
            f"run `{run.name}` has no texts on this server to search: name others with "
            "parameters.index_run or parameters.index_data"
        )

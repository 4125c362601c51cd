"""Artifacts of a store on a machine that has no share in the volume: each is fetched once, and stays.

fetched/
  {digest}-{artifact_id}/{experiment}/{run_name}/
    {run_name}.zip   as the run has made it
    spec.json        as much of the run's as the store has
  names/             what the store last said of a name, for when it is away
  .{digest}-….lock   held by the one who fetches

A name is asked for anew every :data:`FRESH_S`, behind the requests: who has an answer does not wait, and when
the store is away what was fetched is served on.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import orjson

from finetuner import lock
from finetuner.aliases import Alias, choose
from finetuner.artifact_store import ArtifactStore, Published, entry_names, read_entry
from finetuner.errors import (
    ArtifactNotFound,
    ConfigError,
    CorruptedArtifact,
    FinetunerError,
    UnavailableError,
)
from finetuner.files import make_folder, replacing, sync_folder, sync_tree, write_json
from finetuner.names import check_name
from finetuner.runs import Run
from finetuner.schema import read

logger = logging.getLogger(__name__)

FRESH_S = 10.0
# A store that hangs is not asked by each request anew.
_AWAY_S = 10.0
_REFUSED_S = 60.0
_MAX_NAMES = 10_000
_POLL_S = 0.05


@dataclass(frozen=True)
class _Answer:
    """What the store said: the object's content, or that there is none."""

    content: bytes | None
    at: float


class FetchedArtifacts:
    """The artifacts of a store, fetched when they are asked for; safe to share between threads.

    Several processes and machines may have one workspace: one of them fetches, the others wait for it.

    :param workspace: Its folder ``fetched`` is made when needed.
    :param store: Where they come from.
    """

    def __init__(self, workspace: Path, store: ArtifactStore) -> None:
        self._folder, self._store = workspace / "fetched", store
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._asking: set[str] = set()
        self._refused: dict[str, tuple[str, float]] = {}
        self._away_until, self._away_because = float("-inf"), ""
        self._lock = threading.Lock()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="artifact-names")

    def find(self, name: str, client: str = "") -> Path:
        """Return an artifact, fetched when it is not here yet.

        :param name: A run's name, ``experiment/run``, an artifact id or an alias.
        :param client: Who asks, where an alias is split.
        :raises ArtifactNotFound: When the store has none of that name.
        :raises CorruptedArtifact: When its files are not those that the run has made.
        :raises UnavailableError: When the store is away, and what it has said before does not help.
        """
        try:
            meant = self._meant(name, client)
        except UnavailableError:  # a run of that name may be known, and then there is no such alias
            meant = name
        published = self._published(meant)
        if published is None:
            raise ArtifactNotFound(
                f"no run, artifact or alias `{name[:200]}`, neither here nor in `{self._store.url}`"
            )
        return self._fetch(published)

    def known(self, name: str, client: str = "") -> Path | None:
        """Return an artifact that is here, without a wait; None when :meth:`find` must be asked."""
        published = self._published(self._meant(name, client, waits=False), waits=False)
        path = published and self._path(published)
        return path if path and path.exists() else None

    def holds(self, path: Path) -> bool:
        """Whether a path is that of a fetched artifact."""
        return path.is_relative_to(self._folder)

    def runs(self) -> list[Run]:
        """Return what was fetched, by its folders, oldest run first."""
        runs = [Run(path.parent) for path in self._folder.glob("*/*/*/spec.json")]
        return sorted(runs, key=lambda run: str(run.spec()["created_at"]))

    def close(self) -> None:
        """Stop asking."""
        self._background.shutdown(cancel_futures=True)

    def _meant(self, name: str, client: str, *, waits: bool = True) -> str:
        """Return what an alias stands for, as an artifact id; another name as it is."""
        try:
            content = self._ask(f"aliases/{check_name(name, 'alias')}.json", waits=waits)
        except ConfigError:  # `experiment/run`
            return name
        if content is None:
            return name
        return choose(_read_alias(content, name), client or None).artifact_id

    def _published(self, artifact: str, *, waits: bool = True) -> Published | None:
        for name in entry_names(artifact):
            if (content := self._ask(name, waits=waits)) is not None:
                return read_entry(content, name)
        return None

    def _ask(self, name: str, *, waits: bool) -> bytes | None:
        """Return what the store says, or has said before; None when it has no such object, or not yet said.

        :param name: The object's.
        :param waits: Whether to wait for an answer where there is none, or only that there was nothing.
        """
        with self._lock:
            known = self._answers.get(name)
        is_fresh = known is not None and time.monotonic() - known.at < FRESH_S
        content = None if known is None else known.content
        if waits and content is None and not is_fresh:
            return self._ask_now(name)
        if known is not None and not is_fresh and name not in self._asking:
            self._asking.add(name)
            self._background.submit(self._refresh, name)
        return content

    def _refresh(self, name: str) -> None:
        try:
            self._ask_now(name)
        except FinetunerError as exc:
            logger.warning("what is known of `%s` is served on: %s", name, exc)
        finally:
            self._asking.discard(name)

    def _ask_now(self, name: str) -> bytes | None:
        kept = self._folder / "names" / name
        try:
            content = self._asked_store(name)
        except UnavailableError:
            if not kept.is_file():
                raise
            content = kept.read_bytes()
        else:
            _keep(kept, content)
        with self._lock:
            self._answers[name] = _Answer(content, time.monotonic())
            self._answers.move_to_end(name)
            if len(self._answers) > _MAX_NAMES:
                self._answers.popitem(last=False)
        return content

    def _asked_store(self, name: str) -> bytes | None:
        if time.monotonic() < self._away_until:
            raise UnavailableError(self._away_because)
        try:
            return self._store.read(name)
        except UnavailableError as exc:
            self._away_until, self._away_because = time.monotonic() + _AWAY_S, str(exc)
            raise

    def _path(self, published: Published) -> Path:
        top, run_name = self._folder / _folder_name(published), published.run_name
        return top / published.experiment_name / run_name / f"{run_name}.zip"

    def _fetch(self, published: Published) -> Path:
        path = self._path(published)
        if path.exists():
            return path
        make_folder(self._folder, parents=True)
        name = _folder_name(published)
        while True:
            # As long as it takes: the lock is free when the one who fetches is done, or dead.
            with lock.hold(self._folder / f".{name}.lock") as is_free:
                if path.exists():
                    return path
                if is_free:
                    self._check_not_refused(name)
                    self._fetch_whole(published, path)
                    return path
            time.sleep(_POLL_S)

    def _check_not_refused(self, name: str) -> None:
        """Refuse again what was refused a moment ago, or each request would fetch it anew."""
        message, at = self._refused.get(name, ("", float("-inf")))
        if time.monotonic() - at < _REFUSED_S:
            raise CorruptedArtifact(message)

    def _fetch_whole(self, published: Published, path: Path) -> None:
        """Write an artifact under another name, and rename it when all of it is there and right."""
        logger.info("fetching `%s` from %s", published.run_name, self._store.url)
        name = _folder_name(published)
        for left in self._folder.glob(f".new-{name}-*"):  # by one that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=f".new-{name}-") as temporary:
            new = Path(temporary) / name
            folder = new / published.experiment_name / published.run_name
            folder.mkdir(parents=True)
            try:
                self._store.fetch(published, folder / path.name)
            except CorruptedArtifact as exc:
                self._refused[name] = (str(exc), time.monotonic())
                raise
            spec = {
                "artifact_id": published.artifact_id,
                "created_at": published.created_at,
                "description": "",
                "config": published.config,
            }
            write_json(folder / "spec.json", spec)
            sync_tree(new)
            new.rename(self._folder / name)
            sync_folder(self._folder)


@lru_cache(1024)
def _read_alias(content: bytes, name: str) -> Alias:
    try:
        alias: Alias = read(Alias, orjson.loads(content), name)
    except ValueError as exc:  # no JSON, or not of this form
        raise CorruptedArtifact(f"alias `{name}` of the store cannot be read: {exc}") from exc
    return alias


def fetched(url: str, workspace: Path) -> Path:
    """Return an artifact of a store, fetched when it is not here yet.

    :param url: The store's and a name, ``s3://bucket/prefix/NAME``: a run of the default experiment, an
        artifact id or an alias.
    :param workspace: The folder that it is fetched into.
    :raises ArtifactNotFound, CorruptedArtifact, UnavailableError: As :meth:`FetchedArtifacts.find`.
    :raises ConfigError: When the URL cannot be opened.
    """
    store, _, name = url.rstrip("/").rpartition("/")
    artifacts = FetchedArtifacts(workspace, ArtifactStore(store))
    try:
        return artifacts.find(name)
    finally:
        artifacts.close()


def _folder_name(published: Published) -> str:
    return f"{published.digest}-{published.artifact_id}"


def _keep(path: Path, content: bytes | None) -> None:
    """Remember what the store said, for a start while it is away."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    if path.is_file() and path.read_bytes() == content:
        return
    make_folder(path.parent, parents=True)
    with replacing(path) as file:
        file.write(content)

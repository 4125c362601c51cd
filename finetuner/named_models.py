"""Which model answers to a name: a run's artifact, or whichever target an alias chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from finetuner.alias_store import AliasStore
from finetuner.aliases import Alias, Target, choose
from finetuner.encoder_cache import EncoderCache, Served


class NamedModels:
    """The models of a volume, by the names that requests give.

    :param aliases: The names that point to runs.
    :param cache: Loads what is not loaded.
    """

    def __init__(self, aliases: AliasStore, cache: EncoderCache) -> None:
        self._aliases, self._cache = aliases, cache
        self._loads: dict[Hashable, asyncio.Future[Served]] = {}

    def locate(self, name: str | None, client: str) -> Path:
        """Return where an artifact, an alias's choice for a client, or the default is.

        :param name: As in :meth:`EncoderCache.get`, or an alias's; None for the default.
        :param client: Who asks; empty when that is not known.
        :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
        """
        alias = None if name is None else self._aliases.find(name)
        return self._cache.find(name, client) if alias is None else self._chosen(alias, client)

    async def find(self, name: str | None, client: str = "") -> Served:
        """Return the model of a name; a replica that has not loaded it does so now.

        :param name: As of :meth:`locate`.
        :param client: As there.
        :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
        """
        alias = None if name is None else self._aliases.find(name)
        if alias is not None:
            path = self._chosen(alias, client)
            if (served := self._cache.loaded_from(path)) is not None:
                return served
            return await self._once(path, lambda: self._cache.load(path))
        if (served := self._cache.loaded(name, client)) is not None:
            return served
        return await self._once((name, client), lambda: self._cache.get(name, client))

    async def _once(self, key: Hashable, load: Callable[[], Served]) -> Served:
        """Load in one thread for all who wait for it: those who wait for minutes leave room for others."""
        task = self._loads.get(key)
        if task is None:
            task = self._loads[key] = asyncio.ensure_future(asyncio.to_thread(load))
            task.add_done_callback(lambda done: self._loaded(key, done))
        return await asyncio.shield(task)

    def _loaded(self, key: Hashable, done: asyncio.Future[Served]) -> None:
        del self._loads[key]
        if not done.cancelled():
            done.exception()  # perhaps nobody waits any more

    def _chosen(self, alias: Alias, client: str) -> Path:
        return self._aliases.locate(choose(alias, client or None), alias=alias.name)

    def warm(self, target: Target) -> None:
        """Load what an alias shall point to, and run it once."""
        self._cache.load(self._aliases.locate(target)).encoder.encode(["warm-up"])

    def list(self) -> list[dict[str, Any]]:
        """Return the finished runs and the aliases of the volume, and what is known of those loaded."""
        runs = self._cache.list()
        by_id = {row["artifact_id"]: row for row in runs}
        aliases = [alias for alias in self._aliases.list() if alias.target.artifact_id in by_id]
        named = [
            {**by_id[alias.target.artifact_id], "id": alias.name, "kind": "alias"}
            for alias in aliases
        ]
        return [*runs, *named]

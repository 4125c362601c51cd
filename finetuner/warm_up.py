"""The models that aliases point to, loaded when the encoder starts: their first callers need not wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

from finetuner.alias_store import AliasStore
from finetuner.aliases import Target
from finetuner.encoder_cache import EncoderCache

logger = logging.getLogger(__name__)
# The process ends its own start first.
_PAUSE_S = 1.0
# A graph is loaded twice where a lone text takes all cores; which one, is known once it is loaded.
_MOST_COPIES = 2


class WarmUp:
    """Loads what aliases point to, one after the other in a thread of its own; nothing waits for it.

    The alias that was set last comes first. What does not fit into the memory beside what is loaded is left
    to its first caller, and so is what cannot be loaded.

    :param aliases: The names.
    :param cache: Where their models are kept.
    :param warm: Loads what an alias points to.
    :param max_bytes: What the models may take together.
    :param pause_s: Before the first.
    """

    def __init__(
        self,
        aliases: AliasStore,
        cache: EncoderCache,
        *,
        warm: Callable[[Target], None],
        max_bytes: int,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._aliases, self._cache, self._warm = aliases, cache, warm
        self._max_bytes, self._pause_s = max_bytes, pause_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="warm-up", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until all that fits is loaded.

        :param timeout_s: At most; None for as long as it takes.
        """
        self._thread.join(timeout_s)

    def close(self) -> None:
        """Stop behind the model that is being loaded."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        if self._is_over.wait(self._pause_s):
            return
        try:
            for name, target in self._targets():
                if self._is_over.is_set():
                    return
                self._load(name, target)
        except Exception:  # requests say what is wrong with an alias; the encoder goes on
            logger.exception("cannot read the aliases, whose models are loaded when they are asked")

    def _targets(self) -> Iterator[tuple[str, Target]]:
        newest_first = sorted(
            self._aliases.list(), key=lambda alias: alias.changed_at, reverse=True
        )
        return ((alias.name, target) for alias in newest_first for target in alias.targets)

    def _load(self, name: str, target: Target) -> None:
        try:
            path = self._aliases.locate(target, alias=name)
            if self._cache.loaded_from(path) is not None:
                return
            loaded_bytes = sum(self._cache.sizes().values())
            if loaded_bytes + _MOST_COPIES * path.stat().st_size > self._max_bytes:
                logger.info("alias `%s` is loaded when it is asked: there is no room now", name)
                return
            self._warm(target)
            logger.info("loaded run `%s` for alias `%s`", target.run, name)
        except Exception as exc:  # a request for it will say so, and the other aliases are served
            logger.warning("alias `%s` cannot be loaded: %s", name, exc)

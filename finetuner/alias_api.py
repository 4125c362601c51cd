"""What the EncoderExecutor answers about aliases: each method takes parameters and gives JSON values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from finetuner.alias_store import AliasStore, Warm
from finetuner.aliases import Alias
from finetuner.schema import documented, read
from finetuner.targets import Promotion


@dataclass(frozen=True)
class AliasFilter:
    """Asks for aliases."""

    name: str | None = documented("all aliases when left out", default=None)


@dataclass(frozen=True)
class AliasName:
    """Names one alias."""

    name: str = documented("the alias")


@dataclass(frozen=True)
class SplitRequest:
    """A second run, and how much of the traffic it gets."""

    run: str = documented("run name, `experiment/run` or artifact id")
    weight: float = documented("its share of the requests, 0 to 1")


@dataclass(frozen=True)
class AliasBody:
    """What an alias shall point to."""

    run: str = documented("a finished run: run name, `experiment/run` or artifact id")
    force: bool = documented(
        "take a run that has no verdict `improved`, or one `REGRESSED`", default=False
    )
    split: SplitRequest | None = documented(
        "a second run that answers a share of the requests; a split before ends when left out",
        default=None,
    )
    shadow: str | None = documented(
        "a run that is asked too, and whose answers nobody gets; a shadow before ends when left out",
        default=None,
    )


@dataclass(frozen=True)
class AliasRequest(AliasBody, AliasName):
    """Sets one alias."""


class AliasAPI:
    """Answers requests about aliases.

    :param store: Where they are.
    :param warm: Loads what an alias shall point to, before it does: no request waits for it then. When
        it raises, the alias stays as it is.
    """

    def __init__(self, store: AliasStore, *, warm: Warm) -> None:
        self._store = store
        self._warm = warm

    def _record(self, alias: Alias) -> dict[str, Any]:
        return {
            **asdict(alias),
            "shares": [{"run": target.run, "weight": share} for target, share in alias.shares],
            "missing": [t.run for t in alias.targets if not self._store.is_there(t)],
        }

    def aliases(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """List aliases by name, or show one."""
        name = read(AliasFilter, parameters, "parameters").name
        found = self._store.list() if name is None else (self._store.get(name),)
        return {"items": [self._record(alias) for alias in found]}

    def set(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Let an alias point to a run, loaded before; make the alias when it is new."""
        request = read(AliasRequest, parameters, "parameters")
        split = request.split
        alias = self._store.set(
            request.name,
            request.run,
            require=Promotion.ANY if request.force else Promotion.IMPROVED,
            split=None if split is None else split.run,
            weight=None if split is None else split.weight,
            shadow=request.shadow,
            warm=self._warm,
        )
        return self._record(alias)

    def rollback(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Let an alias point to the run before, loaded first."""
        name = read(AliasName, parameters, "parameters").name
        return self._record(self._store.rollback(name, warm=self._warm))

    def delete(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Remove an alias; the runs stay."""
        name = read(AliasName, parameters, "parameters").name
        self._store.delete(name)
        return {"name": name}

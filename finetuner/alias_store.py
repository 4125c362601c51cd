"""The aliases of a volume: set, rolled back, deleted, and found at every request.

aliases/
  {name}.json    what the name points to, and pointed to before; replaced as a whole
  .lock          held while one of them is changed

Nothing else keeps them, so all replicas on a volume serve the same, also after a restart.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from finetuner import lock
from finetuner.aliases import Alias, Split, Target
from finetuner.errors import (
    AliasNotFoundError,
    ConfigError,
    ConflictError,
    FinetunerServerError,
    RunNotFoundError,
)
from finetuner.file_cache import FileCache
from finetuner.files import make_folder, read_json, sync_folder, write_json
from finetuner.names import check_name
from finetuner.run_store import RunStore
from finetuner.schema import nearest, read
from finetuner.targets import Promotion, Targets

Warm = Callable[[Target], None]
_ARTIFACT_ID = re.compile(r"[0-9a-fA-F]{24}")


def _no_warm_up(_target: Target) -> None:
    pass


class AliasStore:
    """The aliases of one volume; safe to share between threads, processes and machines.

    :param workspace: The volume; its folder ``aliases`` is made when needed.
    """

    def __init__(self, workspace: Path) -> None:
        self._folder = workspace / "aliases"
        self._runs = RunStore(workspace)
        self._targets = Targets(workspace)
        self._aliases = FileCache(_read_alias)
        # Asked at each request; pathlib takes longer than the question itself.
        self._path = lru_cache(1024)(self._checked_path)

    def find(self, name: str) -> Alias | None:
        """Return an alias, or None when there is none; quick enough to ask at each request.

        :param name: Any text; one that cannot be a name is none.
        :raises FinetunerServerError: When its file is damaged.
        """
        try:
            return self._aliases.get(self._path(name))
        except (ConfigError, FileNotFoundError):
            return None

    def get(self, name: str) -> Alias:
        """Return an alias.

        :raises AliasNotFoundError: When there is none of that name.
        :raises ConfigError: When it cannot be a name.
        :raises FinetunerServerError: When its file is damaged.
        """
        alias = self.find(check_name(name, "alias"))
        if alias is None:
            raise self._not_found(name)
        return alias

    def _checked_path(self, name: str) -> Path:
        return self._folder / f"{check_name(name, 'alias')}.json"

    def _names(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in self._folder.glob("*.json")))

    def _not_found(self, name: str) -> AliasNotFoundError:
        known = self._names()
        return AliasNotFoundError(
            f"no alias `{name}`{nearest(name, known)} known: {', '.join(known) or 'none'}"
        )

    def locate(self, target: Target, *, alias: str | None = None) -> Path:
        """Return the artifact of a target, as :meth:`finetuner.targets.Targets.locate` does."""
        return self._targets.locate(target, alias=alias)

    def is_there(self, target: Target) -> bool:
        """Whether a target can be served."""
        return self._targets.is_there(target)

    def set(
        self,
        name: str,
        run: str,
        *,
        require: Promotion = Promotion.IMPROVED,
        split: str | None = None,
        weight: float | None = None,
        shadow: str | None = None,
        warm: Warm = _no_warm_up,
    ) -> Alias:
        """Let a name point to a run; what it pointed to before is kept for :meth:`rollback`.

        A split or a shadow that is left out ends.

        :param name: The alias; made when it is new.
        :param run: A finished run: its name, ``experiment/run`` or its artifact id.
        :param require: What the run must have shown, and the second run of a split too. A shadow may be
            any, for nobody gets its answers.
        :param split: A second run, named in the same forms.
        :param weight: Its share, 0 to 1.
        :param shadow: A run that is asked too, named in the same forms.
        :param warm: Called with each target before anything is written; when it raises, nothing changes.
        :raises PromotionRefusedError: When a run does not meet the rule.
        :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
        :raises ConfigError: When the name is not allowed, or the split makes no sense.
        :raises ConflictError: When a new name already means a run or an artifact.
        """
        if self.find(check_name(name, "alias")) is None:
            self._check_free(name)
        if (split is None) != (weight is None):
            raise ConfigError("a split is a second run and its weight, 0 to 1: give both or none")
        new = Alias(name, self._targets.resolve(run, require, alias=name))
        if split is not None and weight is not None:
            second = self._targets.resolve(split, require, alias=name)
            new = replace(new, split=Split(second, weight))
        if shadow is not None:
            new = replace(new, shadow=self._targets.resolve(shadow, Promotion.ANY, alias=name))
        if new.target in new.targets[1:]:
            raise ConfigError(
                f"run `{new.target.run}` cannot be split with itself, nor be its own shadow"
            )
        # Outside the lock: loading takes seconds, and others may change other aliases meanwhile.
        for target in new.targets:
            warm(target)
        with self._changing():
            old = self.find(name)
            if old is not None:
                history = old.history if old.target == new.target else old.past
                new = replace(new, history=history, revision=old.revision + 1)
            return self._write(new)

    def _check_free(self, name: str) -> None:
        """Refuse a name that means something else where an artifact is named."""
        advice = "an alias needs a name that means nothing else; choose another"
        if _ARTIFACT_ID.fullmatch(name):
            raise ConflictError(f"`{name}` looks like an artifact id; {advice}")
        with contextlib.suppress(RunNotFoundError):
            run = self._runs.get(name)
            raise ConflictError(
                f"`{name}` is a run of experiment `{run.experiment_name}`; {advice}"
            )

    def rollback(self, name: str, *, warm: Warm = _no_warm_up) -> Alias:
        """Let a name point to the target before, alone: a split or a shadow ends.

        Targets whose run was deleted are passed over.

        :param name: The alias.
        :param warm: As in :meth:`set`.
        :raises AliasNotFoundError: When there is none of that name.
        :raises ConflictError: When there is no target before, or the alias was changed meanwhile.
        """
        old = self.get(name)
        there = [i for i, target in enumerate(old.history) if self.is_there(target)]
        if not there:
            raise ConflictError(
                f"alias `{name}` has no target before `{old.target.run}` that is still there; set it to "
                "the run that it shall serve"
            )
        target = old.history[there[-1]]
        warm(target)
        with self._changing():
            found = self.get(name)
            if found != old:
                raise ConflictError(
                    f"alias `{name}` was changed meanwhile and points to `{found.target.run}`; look "
                    "whether it shall still be rolled back"
                )
            new = Alias(name, target, history=old.history[: there[-1]], revision=old.revision + 1)
            return self._write(new)

    def delete(self, name: str) -> None:
        """Remove an alias, also one whose file is damaged; the runs stay.

        :raises AliasNotFoundError: When there is none of that name.
        """
        path = self._path(name)
        with self._changing():
            try:
                path.unlink()
            except FileNotFoundError as exc:
                raise self._not_found(name) from exc
            sync_folder(self._folder)

    def list(self) -> tuple[Alias, ...]:
        """Return all aliases by name.

        :raises FinetunerServerError: When the file of one is damaged.
        """
        found = (self.find(name) for name in self._names())
        return tuple(alias for alias in found if alias is not None)  # one may be deleted meanwhile

    def artifacts(self) -> tuple[Path, ...]:
        """Return the artifacts that aliases point to and that are there."""
        targets = [target for alias in self.list() for target in alias.targets]
        return tuple(self.locate(target) for target in targets if self.is_there(target))

    def _write(self, alias: Alias) -> Alias:
        """Write an alias whose targets are all there still; the lock is held."""
        for target in alias.targets:
            self.locate(target, alias=alias.name)
        changed_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        alias = replace(alias, changed_at=changed_at)
        write_json(self._path(alias.name), asdict(alias))
        return alias

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock of all who change aliases, in this process or another.

        :raises ConflictError: When it is not free in time.
        """
        make_folder(self._folder, parents=True)
        with lock.wait_for(self._folder / ".lock", doing="changing aliases"):
            yield


def _read_alias(path: Path) -> Alias:
    try:
        return read(Alias, read_json(path), path.name)
    except ValueError as exc:  # no JSON, or not of this form
        raise FinetunerServerError(
            f"The file of alias `{path.stem}` is damaged; delete the alias and set it again",
            str(exc),
        ) from exc

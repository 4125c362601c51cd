"""The runs of a volume: created as a whole, found by name or artifact id, listed, deleted."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetuner.config import DEFAULT_EXPERIMENT, RunConfig
from finetuner.data import HasRows, write_jsonl
from finetuner.errors import (
    ArtifactNotFound,
    ConfigError,
    ConflictError,
    ExperimentNotFoundError,
    RunExistsError,
    RunNotFoundError,
    UnavailableError,
)
from finetuner.files import make_folder, remove_folder, sync_folder, sync_tree, write_json
from finetuner.identity import data_digests
from finetuner.names import check_name
from finetuner.run_index import index_of
from finetuner.run_keys import KEYS, RunKeys
from finetuner.runs import SUBMITTED, Run
from finetuner.states import State, Status

# What a file system says of a folder in the place of another, or with something in it.
_NAME_IS_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


class RunStore:
    """The runs of one volume.

    :param workspace: The volume; its folder ``runs`` is made when needed.
    """

    def __init__(self, workspace: Path) -> None:
        self._root = workspace / "runs"
        self._index = index_of(self._root)
        self._is_expected = False

    def expect(self) -> None:
        """Make the folder of the runs, and from now on take its absence for that of the volume.

        A volume that is away leaves an empty folder in its place, where no run seems to be.
        """
        self._is_expected = True
        with contextlib.suppress(OSError):  # it is away already
            self._root.mkdir(parents=True, exist_ok=True)

    def check_there(self) -> None:
        """Pass unless the volume is expected and away.

        :raises UnavailableError: When it is.
        """
        if self._is_expected and not self._root.is_dir():
            raise UnavailableError(
                f"the volume is away: there is no `{self._root.name}` in the workspace; runs are there "
                "again when it is"
            )

    def create(self, config: RunConfig, data: Mapping[str, HasRows]) -> Run:
        """Write a new run's folder; it appears as a whole.

        :param config: The settings; ``train_data`` says where the data came from, for people.
        :param data: The texts, by file name within ``data/``.
        :raises RunExistsError: When the experiment has a run of that name.
        """
        experiment = self.create_experiment(config.experiment_name)
        folder = experiment / config.run_name
        if folder.exists():
            raise self._exists(config)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".new-") as temporary:
            new = Path(temporary) / config.run_name
            (new / "data").mkdir(parents=True)
            for name, texts in data.items():
                write_jsonl(texts, new / "data" / name)
            created_at = datetime.now(UTC).isoformat(timespec="microseconds")
            spec = {
                "artifact_id": secrets.token_hex(12),
                "created_at": created_at,
                "description": config.description,
                "config": asdict(config),
                "data_digest": data_digests(data),
            }
            write_json(new / "spec.json", spec)
            (new / "states").mkdir()
            created = asdict(State(Status.CREATED, SUBMITTED, at=created_at))
            del created["number"]
            write_json(new / "states" / "000000.json", created)
            sync_tree(new)
            try:
                new.rename(folder)
            except OSError as exc:
                if exc.errno not in _NAME_IS_TAKEN:
                    raise
                raise self._exists(config) from exc  # by another request meanwhile
        sync_folder(experiment)
        run = Run(folder)
        self._index.add(run, spec)
        return run

    def _exists(self, config: RunConfig) -> RunExistsError:
        return RunExistsError(
            f"experiment `{config.experiment_name}` already has a run `{config.run_name}`; choose "
            "another run_name, or delete that run first"
        )

    def get(self, run_name: str, experiment_name: str = DEFAULT_EXPERIMENT) -> Run:
        """Return a run.

        :raises RunNotFoundError: When the experiment has none of that name.
        :raises UnavailableError: When the volume is away.
        """
        self.check_there()
        check_name(run_name, "run name")
        folder = self._root / check_name(experiment_name, "experiment name") / run_name
        if not Run(folder).exists():
            raise RunNotFoundError(f"no run `{run_name}` in experiment `{experiment_name}`")
        return Run(folder)

    def list(self, experiment_name: str | None = None) -> list[Run]:
        """Return the runs of one experiment, or of all, oldest first; those that are damaged are left out.

        :raises ExperimentNotFoundError: When the experiment does not exist.
        :raises UnavailableError: When the volume is away.
        """
        self.check_there()
        if experiment_name is not None:
            self.get_experiment(experiment_name)
        return self._index.runs(experiment_name)

    def delete(self, run: Run) -> None:
        """Remove a run's folder; the run must have ended, so that nobody starts it meanwhile.

        :raises RunNotFoundError: When it was deleted meanwhile.
        """
        # Its key first: a request that comes in between shall not be given a run that is going.
        if (key := run.spec()["config"].get("idempotency_key")) is not None:
            RunKeys(run.folder.parent).forget(key, run.name)
        try:
            remove_folder(run.folder, by_way_of=self._root)
        except FileNotFoundError as exc:
            raise RunNotFoundError(
                f"no run `{run.name}` in experiment `{run.experiment_name}`"
            ) from exc
        finally:
            self._index.remove(run)

    def find_artifact(self, artifact: str) -> Path:
        """Return the artifact of a finished run.

        :param artifact: A run's name, ``experiment/run``, or an artifact id.
        :raises ArtifactNotFound: When no run has that name or id.
        :raises RunInProgressError, RunFailedError, RunCancelledError: When the run has no artifact yet, or
            never will.
        """
        run = self._find_by_name(artifact) or self._index.find(artifact)
        if run is None:
            raise ArtifactNotFound(f"no run and no artifact `{artifact}`"[:200])
        run.check_finished()
        return run.artifact_path

    def _find_by_name(self, artifact: str) -> Run | None:
        experiment, _, name = artifact.rpartition("/")
        try:
            return self.get(name, experiment or DEFAULT_EXPERIMENT)
        except (RunNotFoundError, ConfigError):
            return None

    def create_experiment(self, name: str) -> Path:
        """Return an experiment's folder, made when it is new."""
        return make_folder(self.experiment_folder(name), parents=True)

    def experiment_folder(self, name: str) -> Path:
        """Return where an experiment lies, or would.

        :raises ConfigError: When the name is not allowed.
        """
        return self._root / check_name(name, "experiment name")

    def get_experiment(self, name: str) -> dict[str, Any]:
        """Return what the API shows of an experiment.

        :raises ExperimentNotFoundError: When there is none of that name.
        """
        folder = self._root / check_name(name, "experiment name")
        if not folder.is_dir():
            if name == DEFAULT_EXPERIMENT:
                folder = self.create_experiment(name)
            else:
                raise ExperimentNotFoundError(f"no experiment `{name}`")
        created = datetime.fromtimestamp(folder.stat().st_ctime, UTC)
        return {
            "name": name,
            "status": "ACTIVE",
            "created_at": created.isoformat(timespec="seconds"),
        }

    def list_experiments(self) -> Sequence[dict[str, Any]]:
        """Return all experiments by name."""
        return [self.get_experiment(name) for name in self._experiment_names()]

    def _experiment_names(self) -> Sequence[str]:
        """Return the names by order; folders of runs that are being made or deleted are none."""
        if not self._root.is_dir():
            return []
        return sorted(f.name for f in self._root.iterdir() if f.name[0] != "." and f.is_dir())

    def delete_experiment(self, name: str) -> None:
        """Remove an experiment; its runs must have been deleted.

        :raises ExperimentNotFoundError: When there is none of that name.
        :raises ConflictError: When it holds a run, perhaps one that was created a moment ago.
        """
        self.get_experiment(name)
        keys = self._root / name / KEYS
        if not self._index.runs(name):
            shutil.rmtree(keys, ignore_errors=True)
        try:
            (self._root / name).rmdir()  # unlike rmtree, it takes no run with it
        except OSError as exc:
            if exc.errno not in _NAME_IS_TAKEN:
                raise
            raise ConflictError(f"experiment `{name}` holds a run; delete its runs first") from exc
        sync_folder(self._root)

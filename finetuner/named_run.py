"""Runs as the command line names them, ``name`` or ``experiment/name``, and what a shell completes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from finetuner.client import Client, run_path
from finetuner.config import DEFAULT_EXPERIMENT, workspace_dir
from finetuner.errors import ConfigError, FinetunerError
from finetuner.run import Run

_COMPLETION_TIMEOUT_S = 0.5
_N_COMPLETED = 100


@dataclass(frozen=True)
class NamedRun:
    """One run of the server.

    :param name: Its name.
    :param experiment_name: Its experiment.
    :param client: The server.
    """

    name: str
    experiment_name: str
    client: Client = field(default_factory=Client, compare=False)

    @property
    def shown(self) -> str:
        """As a person would name it."""
        return shown_name(self.name, self.experiment_name)

    @property
    def path(self) -> str:
        """Its path on the server."""
        return run_path(self.name)

    def record(self) -> dict[str, Any]:
        """Return what the server says of it.

        :raises RunNotFoundError: When there is none of that name.
        """
        return dict(self.client.get(self.path, experiment_name=self.experiment_name))

    def run(self) -> Run:
        """Return its verbs; asks the server for it.

        :raises RunNotFoundError: When there is none of that name.
        """
        return Run(self.client, self.record())


def named(text: str) -> NamedRun:
    """Return the run that a word of the command line names.

    :param text: ``name`` or ``experiment/name``.
    :raises ConfigError: When it is neither.
    """
    experiment, slash, name = text.rpartition("/")
    if not name or (slash and not experiment) or "/" in experiment:
        raise ConfigError(f"a run is named `name` or `experiment/name`; got `{text}`")
    return NamedRun(name, experiment or DEFAULT_EXPERIMENT)


def local_artifact(text: str) -> Path:
    """Return the artifact on this machine that a word of the command line names.

    :param text: A file or folder; a URL in an artifact store, fetched once; else a run of this machine's
        workspace.
    :raises ArtifactNotFound: When it is none of these.
    """
    # Late: the store takes its time to load, which other verbs need not wait for.
    from finetuner.fetched_artifacts import fetched
    from finetuner.run_store import RunStore

    if "://" in text:
        return fetched(text, workspace_dir())
    path = Path(text).expanduser()
    return path if path.exists() else RunStore(workspace_dir()).find_artifact(text)


def shown_name(name: str, experiment_name: str) -> str:
    """Return a run's name, with its experiment where that is not the default one."""
    return name if experiment_name == DEFAULT_EXPERIMENT else f"{experiment_name}/{name}"


def _asked(path: str, **parameters: Any) -> list[dict[str, Any]]:
    """Return the items of a list; none where the server does not answer at once."""
    with contextlib.suppress(FinetunerError, KeyError, TypeError, ValueError):
        return list(Client(timeout_s=_COMPLETION_TIMEOUT_S).get(path, **parameters)["items"])
    return []


def complete_runs(incomplete: str) -> list[str]:
    """Return the runs whose names begin so, for a shell; an empty list where no server answers quickly.

    :param incomplete: What is typed so far.
    """
    names = [
        shown_name(row["name"], row["experiment_name"])
        for row in _asked("/runs", size=_N_COMPLETED)
    ]
    return [name for name in names if name.startswith(incomplete)]


def complete_aliases(incomplete: str) -> list[str]:
    """Return the aliases whose names begin so, as :func:`complete_runs`."""
    names = [row["name"] for row in _asked("/aliases")]
    return [name for name in names if name.startswith(incomplete)]


def complete_served(incomplete: str) -> list[str]:
    """Return the aliases and runs whose names begin so, as :func:`complete_runs`."""
    return [*complete_aliases(incomplete), *complete_runs(incomplete)]


RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run: NAME, or EXPERIMENT/NAME.", autocompletion=complete_runs
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]

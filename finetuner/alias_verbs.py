"""The verbs of served names: which run `prod` is."""

from __future__ import annotations

from typing import Any

from finetuner.client import Client, alias_path
from finetuner.errors import ConfigError
from finetuner.run import Run

_client = Client()


def list_aliases() -> list[dict[str, Any]]:
    """Return all aliases by name, each as :func:`get_alias` does."""
    return list(_client.get("/aliases")["items"])


def get_alias(name: str) -> dict[str, Any]:
    """Return what an alias points to: ``target``, ``shares``, ``shadow``, ``history`` and more.

    :raises AliasNotFoundError: When there is none of that name.
    """
    return dict(_client.get(alias_path(name)))


def set_alias(
    name: str,
    run: str | Run,
    force: bool = False,
    *,
    split: str | Run | None = None,
    weight: float | None = None,
    shadow: str | Run | None = None,
) -> dict[str, Any]:
    """Let a name point to a finished run, on all replicas; the server loads its model first.

    The name is then what ``artifact`` means in calls of ``/encode``. A split or a shadow that is left
    out ends.

    :param name: The alias, such as ``prod``; made when it is new.
    :param run: The run, its name, ``experiment/run``, or an artifact id.
    :param force: Take a run that no evaluation found improved, or that one found regressed.
    :param split: A second run that answers a share of the requests; the same client always gets the
        same run.
    :param weight: That share, 0 to 1.
    :param shadow: A run that is asked too; nobody gets its answers.
    :returns: The alias, as :func:`get_alias` does.
    :raises PromotionRefusedError: When a run is not better than what it began with; with its verdicts.
    :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
    :raises ConfigError: When the name is not allowed, or the split makes no sense.
    :raises ConflictError: When a run in the default experiment has that name.
    """
    if (split is None) != (weight is None):
        raise ConfigError("split and weight go together: a second run and its share, 0 to 1")
    body = {"run": _name_of(run), "force": force}
    if split is not None:
        body["split"] = {"run": _name_of(split), "weight": weight}
    if shadow is not None:
        body["shadow"] = _name_of(shadow)
    return dict(_client.put(alias_path(name), body))


def _name_of(run: str | Run) -> str:
    return f"{run.experiment_name}/{run.name}" if isinstance(run, Run) else run


def rollback_alias(name: str) -> dict[str, Any]:
    """Let an alias point to its run before, alone, and return it.

    :raises AliasNotFoundError: When there is none of that name.
    :raises ConflictError: When there is no run before, or the alias was changed meanwhile.
    """
    return dict(_client.post(alias_path(name, "/rollback"), {}))


def delete_alias(name: str) -> None:
    """Delete an alias; the runs stay.

    :raises AliasNotFoundError: When there is none of that name.
    """
    _client.delete(alias_path(name))

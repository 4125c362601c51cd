"""A request that comes twice makes one run: known again by its run's name, or by its idempotency key."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from finetuner.config import RunConfig
from finetuner.data import HasRows
from finetuner.errors import RunExistsError, RunNotFoundError
from finetuner.identity import differences
from finetuner.run_keys import RunKeys
from finetuner.run_store import RunStore
from finetuner.runs import Run

_N_SHOWN = 5


@dataclass(frozen=True)
class Submitted:
    """The run that a request asked for.

    :param run: It.
    :param is_new: Whether this request has made it.
    """

    run: Run
    is_new: bool


def create_once(
    store: RunStore,
    config: RunConfig,
    data: Mapping[str, HasRows],
    *,
    is_named: bool,
    check_space: Callable[[], None],
) -> Submitted:
    """Create a run, or return the one that the same request has made.

    :param store: The runs of the volume.
    :param config: The settings, with their data described.
    :param data: The texts, by file name within ``data/``.
    :param is_named: Whether the client gave the run's name.
    :param check_space: Called before a run is made; what it raises is raised.
    :raises RunExistsError: When name or key stand for another run; the message says in what it differs.
    """
    config = _named_by_key(store, config, is_named=is_named)
    if found := _identical(store, config, data):
        return Submitted(found, is_new=False)
    check_space()
    try:
        return Submitted(store.create(config, data), is_new=True)
    except RunExistsError:  # another request was quicker; perhaps the same one
        if found := _identical(store, config, data):
            return Submitted(found, is_new=False)
        raise


def find_made(
    store: RunStore, config: RunConfig, data: Mapping[str, HasRows], *, is_named: bool
) -> Run | None:
    """Return the run that :func:`create_once` would return for a request, or None; write nothing.

    :param store: The runs of the volume.
    :param config: The settings, with their data described.
    :param data: The texts, by file name within ``data/``.
    :param is_named: Whether the client gave the run's name.
    :raises RunExistsError: When name or key stand for another run.
    """
    if config.idempotency_key is not None and not (
        is_named and _find(store, config, config.run_name)
    ):
        keys = RunKeys(store.experiment_folder(config.experiment_name))
        name = keys.find(config.idempotency_key)
        if name not in (None, config.run_name):
            config = _named_as_before(store, config, name, is_named=is_named) or config
    return _identical(store, config, data)


def _find(store: RunStore, config: RunConfig, run_name: str) -> Run | None:
    with contextlib.suppress(RunNotFoundError):
        return store.get(run_name, config.experiment_name)
    return None


def _named_by_key(store: RunStore, config: RunConfig, *, is_named: bool) -> RunConfig:
    """Give a request the name that its key stands for."""
    key = config.idempotency_key
    if key is None or (is_named and _find(store, config, config.run_name)):
        return config
    keys = RunKeys(store.create_experiment(config.experiment_name))
    name = keys.claim(key, config.run_name)
    if name == config.run_name:
        return config
    named = _named_as_before(store, config, name, is_named=is_named)
    if named is None:
        keys.replace(key, config.run_name)
        return config
    return named


def _named_as_before(
    store: RunStore, config: RunConfig, name: str, *, is_named: bool
) -> RunConfig | None:
    """Give a request the name that its key stands for; None when that is nobody's any more.

    :raises RunExistsError: When the key's run has another name than the request gives.
    """
    run = _find(store, config, name)
    if run is None and not is_named:  # the same request is making it now, or died before it had
        return replace(config, run_name=name)
    if run is None or run.config().idempotency_key != config.idempotency_key:
        return None  # the run that had the key was deleted
    if is_named:
        raise RunExistsError(
            f"the idempotency key `{config.idempotency_key}` was used for run `{name}` of experiment "
            f"`{config.experiment_name}`, and this request names its run otherwise:\n"
            f"  run_name: {name} → {config.run_name}\n"
            "use a new key for another run"
        )
    return replace(config, run_name=name)


def _identical(store: RunStore, config: RunConfig, data: Mapping[str, HasRows]) -> Run | None:
    """Return the run of that name, or None without one.

    :raises RunExistsError: When it was made by another request.
    """
    run = _find(store, config, config.run_name)
    if run is None:
        return None
    try:
        found = differences(run, config, data)
    except RunNotFoundError:  # deleted meanwhile
        return None
    if not found:
        return run
    shown = found[:_N_SHOWN]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more")
    raise RunExistsError(
        f"experiment `{config.experiment_name}` already has a run `{config.run_name}`, of another "
        "request:\n"
        + "".join(f"  {line}\n" for line in shown)
        + "choose another run_name (or idempotency key), or delete that run first"
    )

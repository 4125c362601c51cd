"""Waiting for a run on a terminal: a bar with what is left and the loss, until it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from finetuner.errors import (
    OverloadedError,
    RunCancelledError,
    RunFailedError,
    RunNotFoundError,
    UnavailableError,
)
from finetuner.follow import Patience
from finetuner.named_run import NamedRun
from finetuner.run_tables import duration

POLL_INTERVAL_S = 1.0
_ENDED = {"FAILED": RunFailedError, "CANCELLED": RunCancelledError}


def wait(named_run: NamedRun, artifact_id: str, *, interval_s: float = POLL_INTERVAL_S) -> None:
    """Show how far a run is until it is finished; on standard error, since it is no result.

    A server that starts again is waited for.

    :param named_run: The run.
    :param artifact_id: Tells it from a later run of its name.
    :param interval_s: Between two looks.
    :raises RunFailedError, RunCancelledError: When it ends otherwise; with its details.
    :raises RunNotFoundError: When it is deleted.
    :raises UnavailableError: When the server is away for a minute.
    """
    console = Console(stderr=True, highlight=False)
    show = _bar(console) if console.is_terminal else _lines(console)
    with show as update:
        for record in _records(named_run, artifact_id, interval_s):
            update(record)
            check_not_lost(named_run.shown, record)


def check_not_lost(shown: str, status: Mapping[str, str]) -> None:
    """Pass unless a run has ended without an artifact.

    :param shown: The run, for the message.
    :param status: Its ``status`` and ``details``.
    :raises RunFailedError, RunCancelledError: When it has.
    """
    if (error := _ENDED.get(status["status"])) is not None:
        raise error(f"run `{shown}`: {status['details']}")


def _records(named_run: NamedRun, artifact_id: str, interval_s: float) -> Iterator[dict[str, Any]]:
    """Yield what the server says of a run, now and then, until it is finished."""
    patience = Patience()
    while True:
        try:
            record = named_run.record()
        except (UnavailableError, OverloadedError) as error:
            patience.failed(error)
            patience.wait()
            continue
        patience.answered()
        if record["artifact_id"] != artifact_id:
            raise RunNotFoundError(
                f"run `{named_run.shown}` was deleted, and another one has its name"
            )
        yield record
        if record["status"] == "FINISHED":
            return
        time.sleep(interval_s)


Update = Callable[[Mapping[str, Any]], None]


@contextmanager
def _bar(console: Console) -> Iterator[Update]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
    )
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task("", total=None, note="")
        yield lambda record: _draw(bar, task, record)


def _draw(bar: Progress, task: TaskID, record: Mapping[str, Any]) -> None:
    progress = record.get("progress")
    if not progress:
        bar.update(task, description=record["status"], note=escape(record["details"]))
        return
    bar.update(
        task,
        description=f"epoch {progress['epoch']}/{progress['n_epochs']}",
        completed=progress["n_steps_done"],
        total=progress["n_steps_total"] or None,
        note=" ".join(_notes(progress)),
    )


def _notes(progress: Mapping[str, Any]) -> Iterator[str]:
    loss, eta_s = progress.get("loss"), progress.get("eta_s")
    if loss is not None:
        yield f"loss {loss:.4f}"
    if eta_s is not None:
        yield f"{duration(eta_s)} left"


@contextmanager
def _lines(console: Console) -> Iterator[Update]:
    """Print a line for each state and each epoch: what a log of a job wants to hold."""
    last: tuple[Any, ...] = ()

    def update(record: Mapping[str, Any]) -> None:
        nonlocal last
        progress = record.get("progress") or {}
        key = (record["status"], progress.get("epoch"))
        if key == last:
            return
        last = key
        told = ", ".join([f"epoch {progress['epoch']}", *_notes(progress)]) if progress else ""
        console.print(f"{record['status']}  {escape(told or record['details'])}", soft_wrap=True)

    yield update


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Give what :meth:`finetuner.run.Run.save_artifact` can be watched with: a bar on standard error.

    :param name: What is downloaded.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(name), total=None)
        yield lambda n_bytes, expected: bar.update(task, completed=n_bytes, total=expected)

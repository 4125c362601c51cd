"""The log of a run, in the form that the old service's logs had: 120 columns, rich."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_WIDTH = 120
_BAR_WIDTH = 40


@contextmanager
def open_log(path: Path) -> Iterator[Console]:
    """Send the package's log records to a file and give the console that writes there.

    :param path: The file; what is in it stays.
    """
    with path.open("a", encoding="utf-8", buffering=1) as file:
        console = Console(file=file, width=_WIDTH, force_terminal=False, color_system=None)
        handler = RichHandler(
            console=console, rich_tracebacks=False, markup=False, log_time_format="[%X]"
        )
        root = logging.getLogger("finetuner")
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        root.propagate = False
        try:
            yield console
        finally:
            root.removeHandler(handler)


class EpochLine:
    """The progress of one epoch, written as one line when it ends.

    :param epoch: From 1.
    :param n_epochs: Of the run.
    :param n_steps: Batches of the epoch.
    """

    def __init__(self, epoch: int, *, n_epochs: int, n_steps: int) -> None:
        self._values: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[values]}"),
            disable=True,
        )
        self._task = self._progress.add_task(
            f"Training [{epoch}/{n_epochs}]", total=n_steps, values=""
        )

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Note how far the epoch is.

        :param step: Batches done.
        :param values: What to show behind the bar, by name.
        """
        self._progress.update(self._task, completed=step)
        self.add(values)

    def add(self, values: Mapping[str, float]) -> None:
        """Show more values behind the bar, or newer ones."""
        self._values |= values
        shown = " ".join(f"• {name}: {value:.3f}" for name, value in self._values.items())
        self._progress.update(self._task, values=shown)

    def write(self, console: Console) -> None:
        """Write the line."""
        console.print(self._progress.get_renderable())

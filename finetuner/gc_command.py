"""The command ``finetuner gc``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from finetuner.command_errors import reported
from finetuner.config import workspace_dir
from finetuner.errors import ConfigError
from finetuner.exit_codes import ExitCode

if TYPE_CHECKING:
    from finetuner.retention import Removal

_AGE = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[smhdw])")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def gc(
    workspace: Annotated[
        Path | None,
        typer.Option(help="The folder of data, runs and models. Default: FINETUNER_WORKSPACE."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only shown.")] = False,
    runs_older_than: Annotated[
        str | None, typer.Option(help="Also whole runs that ended so long ago, such as 30d.")
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also whole runs, and of them the failed ones alone.")
    ] = False,
    keep_last: Annotated[
        int | None,
        typer.Option(help="Also whole runs, but not the newest N of each experiment.", min=0),
    ] = None,
    grace: Annotated[
        str, typer.Option(help="Leave temporaries that are younger, such as 90m, 24h.")
    ] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show, and with --yes remove, what the workspace does not need.

    That is: checkpoints of runs that have ended, the worker's output of
    finished ones, and what killed processes left behind. Whole runs go
    only when an option asks for them, and then those alone that meet all
    options given. Never touched: a run that has not ended, or that an
    alias points to or would roll back to, or that another one waits to
    go on from. No server is needed, and one that runs is not disturbed.

    \b
    finetuner gc                              what would go
    finetuner gc --yes                        let it go
    finetuner gc --runs-older-than 30d --yes  and all runs that ended before
    finetuner gc --failed --keep-last 3       and failed runs but the last 3
    """
    # Late: it takes what reads runs and aliases, which the other commands need not wait for.
    from finetuner.retention import Retention, carry_out, plan

    folder = workspace_dir(workspace)
    with reported():
        if not folder.is_dir():
            raise ConfigError(
                f"there is no workspace `{folder}`; name it with --workspace or FINETUNER_WORKSPACE"
            )
        retention = Retention(
            grace_s=_seconds(grace, "--grace"),
            runs_older_than_s=(
                None if runs_older_than is None else _seconds(runs_older_than, "--runs-older-than")
            ),
            is_failed_only=failed,
            n_kept=keep_last,
        )
        rows = plan(folder, retention)
        outcomes = carry_out(folder, rows) if yes else ((row, "") for row in rows)
        found = [_row(removal, left_for, folder) for removal, left_for in outcomes]
    _report(found, is_dry_run=not yes, as_json=as_json)
    if any(row["left_for"] for row in found):
        raise typer.Exit(ExitCode.FAILED)


def _seconds(age: str, option: str) -> float:
    """Return an age in seconds.

    :raises ConfigError: When it has no unit, or is no age at all.
    """
    match = _AGE.fullmatch(age)
    if match is None:
        raise ConfigError(
            f"{option} must be a number with a unit ({', '.join(_UNITS_S)}), such as 30d or 12h; "
            f"got `{age}`"
        )
    return float(match["number"]) * _UNITS_S[match["unit"]]


def _row(removal: Removal, left_for: str, workspace: Path) -> dict[str, Any]:
    return {
        "path": removal.path.relative_to(workspace).as_posix(),
        "size_bytes": removal.size_bytes,
        "reason": removal.reason.value,
        "left_for": left_for,
    }


def _report(rows: list[dict[str, Any]], *, is_dry_run: bool, as_json: bool) -> None:
    size_bytes = sum(row["size_bytes"] for row in rows if not row["left_for"])
    if as_json:
        answer = {"items": rows, "size_bytes": size_bytes, "is_dry_run": is_dry_run}
        typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2))
        return
    console = Console(highlight=False)
    if not rows:
        console.print("There is nothing to remove.")
        return
    table = Table("path", "size", "why", *(() if is_dry_run else ("left, because",)))
    for row in rows:
        cells = [escape(row["path"]), decimal(row["size_bytes"]), row["reason"]]
        table.add_row(*cells, *(() if is_dry_run else (escape(row["left_for"]),)))
    console.print(table)
    told = "would go; add --yes to remove it" if is_dry_run else "removed"
    console.print(f"{decimal(size_bytes)} {told}.")

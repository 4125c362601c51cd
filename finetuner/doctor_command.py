"""The command ``finetuner doctor``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetuner.checkup import CheckState, Finding, carry_out
from finetuner.config import workspace_dir
from finetuner.exit_codes import ExitCode
from finetuner.machine_checks import machine_checks
from finetuner.named_run import AsJSON
from finetuner.run_command import echo_json
from finetuner.service_checks import service_checks

_COLOURS = {CheckState.OK: "green", CheckState.WARNING: "yellow", CheckState.PROBLEM: "red"}


def doctor(
    workspace: Annotated[
        Path | None,
        typer.Option(help="The folder of data, runs and models. Default: FINETUNER_WORKSPACE."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Look at this machine, and say what would keep the service from working well.

    It changes nothing, and needs no server. It ends with 1 when there is
    a problem; warnings alone do not count.

    \b
    finetuner doctor
    finetuner doctor --workspace /mnt/shared    the volume of a service
    finetuner doctor --json | jq '.[] | select(.state != "ok")'
    """
    checks = [*machine_checks(), *service_checks(workspace_dir(workspace))]
    findings = carry_out(checks)
    if as_json:
        echo_json([dataclasses.asdict(finding) for finding in findings])
    else:
        Console(highlight=False).print(_table(findings))
    if any(finding.state is CheckState.PROBLEM for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def _table(findings: list[Finding]) -> Table:
    table = Table("check", "state", "found", "what to do")
    for finding in findings:
        colour = _COLOURS[finding.state]
        table.add_row(
            escape(finding.name),
            f"[{colour}]{finding.state}[/{colour}]",
            escape(finding.found),
            escape(finding.advice),
        )
    return table

"""The commands about runs: ``finetuner runs``, ``status``, ``logs``, ``metrics`` and the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from finetuner.client import Client
from finetuner.command_errors import reported
from finetuner.errors import ConfigError
from finetuner.named_run import AsJSON, RunArgument, named
from finetuner.run_tables import coloured, epochs_table, models_table, runs_table, show_metrics
from finetuner.run_wait import POLL_INTERVAL_S, check_not_lost, download_bar


def register(app: typer.Typer) -> None:
    """Add the commands about runs.

    :param app: Gets them.
    """
    for command in (runs, status, logs, metrics, cancel, delete, save, models):
        app.command()(command)


def echo_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def runs(
    experiment: Annotated[
        str | None, typer.Option(help="Of this experiment alone; of all when left out.")
    ] = None,
    page: Annotated[int, typer.Option(min=1, help="From 1.")] = 1,
    size: Annotated[int, typer.Option(min=1, max=100, help="Runs a page.")] = 50,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
    as_json: AsJSON = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show them anew each second, until Ctrl-C.")
    ] = False,
) -> None:
    """List runs: how far they are, and how good.

    \b
    finetuner runs                        all, oldest first
    finetuner runs --newest --size 10     the last ten
    finetuner runs --experiment quora     of one experiment
    finetuner runs --watch                as they go on
    """
    with reported():
        if watch and as_json:
            raise ConfigError("--watch draws a table; leave --json out")
        client = Client()

        def fetch() -> dict[str, Any]:
            order = "newest" if newest else None
            found = client.get(
                "/runs", experiment_name=experiment, page=page, size=size, order=order
            )
            return dict(found)

        found = fetch()
        console = Console(highlight=False)
        if as_json:
            echo_json(found)
        elif watch:
            _watch(fetch, found, console)
        elif found["items"]:
            console.print(runs_table(found["items"]))
            if found["total"] > len(found["items"]):
                console.print(f"Page {page}: {len(found['items'])} of {found['total']} runs.")
        else:
            console.print(
                "There is no run here; start one with: finetuner fit --model ... --data ..."
            )


def _watch(fetch: Callable[[], dict[str, Any]], found: dict[str, Any], console: Console) -> None:
    with Live(runs_table(found["items"]), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(POLL_INTERVAL_S)
            live.update(runs_table(fetch()["items"]), refresh=True)


def status(run: RunArgument, as_json: AsJSON = False) -> None:
    """Show where a run is.

    \b
    finetuner status my-run
    finetuner status quora/my-run --json
    """
    with reported():
        found = named(run).run().status()
    if as_json:
        echo_json(found)
        return
    console = Console(highlight=False)
    console.print(f"{coloured(found['status'])}  {escape(found['details'])}", soft_wrap=True)


def logs(
    run: RunArgument,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until it ends; with 4 when it did not finish."),
    ] = False,
) -> None:
    """Print a run's log.

    \b
    finetuner logs my-run                 what there is
    finetuner logs -f my-run              and what comes, also when the server starts again
    finetuner logs my-run | tail -5
    """
    with reported():
        found = named(run).run()
        if not follow:
            typer.echo(found.logs(), nl=False)
            return
        for line in found.stream_logs():
            typer.echo(line)
        check_not_lost(run, found.status())


def metrics(
    run: RunArgument,
    epochs: Annotated[bool, typer.Option("--epochs", help="Every evaluation by itself.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Show a run's metrics before, in the best epoch, and after; also while it trains.

    \b
    finetuner metrics my-run
    finetuner metrics my-run --epochs
    finetuner metrics my-run --json | jq .after.average_precision
    """
    with reported():
        found_run = named(run)
        found = found_run.client.get(
            f"{found_run.path}/metrics", experiment_name=found_run.experiment_name
        )
    console = Console(highlight=False)
    if as_json:
        echo_json(found)
    elif epochs and found["epochs"]:
        console.print(epochs_table(found["epochs"]))
    else:
        show_metrics(console, found)


def cancel(run: RunArgument) -> None:
    """End a run for good; its log stays.

    \b
    finetuner cancel my-run
    finetuner cancel quora/my-run
    """
    with reported():
        named(run).run().cancel()
    Console(highlight=False).print(f"Run `{escape(run)}` is cancelled.")


def delete(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a run with its artifact; one that trains is stopped.

    \b
    finetuner delete my-run               asks first
    finetuner delete my-run --yes         for scripts
    """
    with reported():
        found = named(run)
        if not (yes or _is_terminal()):
            raise ConfigError(f"nobody can be asked here: finetuner delete {run} --yes deletes it")
        if not yes and not typer.confirm(f"Delete run {run} and its artifact for good?"):
            typer.echo("It stays.")
            return
        found.client.delete(found.path, experiment_name=found.experiment_name)
    Console(highlight=False).print(f"Run `{escape(run)}` is deleted.")


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def save(
    run: RunArgument,
    directory: Annotated[
        str, typer.Argument(metavar="[DIR]", help="Where to; made when it is not there.")
    ] = "artifacts",
) -> None:
    """Download a finished run's artifact, a zip, and print its path.

    \b
    finetuner save my-run                 artifacts/my-run.zip
    finetuner save quora/my-run /tmp
    """
    with reported(), download_bar(run) as watch:
        path = named(run).run().save_artifact(directory, watch=watch)
    typer.echo(path)


def models(as_json: AsJSON = False) -> None:
    """List what can be served: finished runs and aliases.

    \b
    finetuner models
    finetuner models --json
    """
    with reported():
        found = Client().get("/models")["models"]
    console = Console(highlight=False)
    if as_json:
        echo_json(found)
    elif found:
        console.print(models_table(found))
    else:
        console.print("No run is finished yet.")

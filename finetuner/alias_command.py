"""The command ``finetuner alias``."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetuner.alias_verbs import delete_alias, get_alias, list_aliases, rollback_alias, set_alias
from finetuner.command_errors import reported
from finetuner.errors import ConfigError
from finetuner.named_run import complete_aliases, complete_runs


def alias(
    name: Annotated[
        str | None,
        typer.Argument(help="The alias, such as prod.", autocompletion=complete_aliases),
    ] = None,
    run: Annotated[
        str | None,
        typer.Argument(
            help="What it shall point to: a run, EXPERIMENT/RUN or an artifact id.",
            autocompletion=complete_runs,
        ),
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Back to the run before.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; the runs stay.")] = False,
    split: Annotated[
        str | None, typer.Option(help="A second run that answers a share of the requests.")
    ] = None,
    weight: Annotated[float | None, typer.Option(help="That share, 0 to 1.")] = None,
    shadow: Annotated[
        str | None, typer.Option(help="A run that is asked too; nobody gets its answers.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take a run that did not improve its model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show or set what a served name points to.

    A client that asks for `prod` gets the run that prod points to.
    Setting it restarts nothing: all replicas change over, and the new
    model is loaded before. Its run must have improved by its own
    evaluations, unless --force is given.

    \b
    finetuner alias                     list all
    finetuner alias prod                show one, with its runs before
    finetuner alias prod my-run         point prod to my-run
    finetuner alias prod my-run --split new-run --weight 0.1
                                        new-run answers one request in ten
    finetuner alias prod my-run         ... and the split ends
    finetuner alias prod --rollback     back to the run before
    finetuner alias prod --delete
    """
    changes = {"split": split, "weight": weight, "shadow": shadow, "force": force or None}
    given = {option: value for option, value in changes.items() if value is not None}
    with reported():
        _check(name, run, n_removals=rollback + delete, n_options=len(given))
        found = _act(name, run, rollback=rollback, delete=delete, given=given)
    console = Console(highlight=False)
    if as_json:
        shown = found if name is None else found[0]
        typer.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2))
    elif delete:
        console.print(f"Alias `{name}` is deleted.")
    elif found:
        console.print(_table(found, n_before=1 if name is None else None))
    else:
        console.print("There is no alias yet; make one with: finetuner alias prod RUN")


def _check(name: str | None, run: str | None, *, n_removals: int, n_options: int) -> None:
    """Refuse arguments that do not go together.

    :raises ConfigError: When they do not.
    """
    rules = (
        (
            name is None and n_removals + n_options > 0,
            "name the alias: finetuner alias NAME ..., such as finetuner alias prod --rollback",
        ),
        (
            n_removals > 0 and (run is not None or n_removals + n_options > 1),
            "--rollback and --delete take the alias alone: finetuner alias NAME --rollback",
        ),
        (
            n_removals == 0 and run is None and n_options > 0,
            f"name the run that `{name}` shall point to: finetuner alias {name} RUN ...",
        ),
    )
    for is_broken, sentence in rules:
        if is_broken:
            raise ConfigError(sentence)


def _act(
    name: str | None, run: str | None, *, rollback: bool, delete: bool, given: dict[str, Any]
) -> list[dict[str, Any]]:
    """Do what the arguments say, and return the aliases to show."""
    if name is None:
        return list_aliases()
    if delete:
        delete_alias(name)
        return [{"name": name}]
    if rollback:
        return [rollback_alias(name)]
    return [get_alias(name) if run is None else set_alias(name, run, **given)]


def _table(aliases: list[dict[str, Any]], *, n_before: int | None) -> Table:
    """Return a table of aliases, one line a run.

    :param aliases: At least one.
    :param n_before: Earlier runs shown of each, the newest first; None for all.
    """
    table = Table("alias", "run", "share", "shadow", "before", "revision", "changed")
    for alias in aliases:
        runs = [_shown(share["run"], alias) for share in alias["shares"]]
        before = [escape(target["run"]) for target in reversed(alias["history"])]
        table.add_row(
            escape(alias["name"]),
            "\n".join(runs),
            "\n".join(f"{share['weight']:.4g}" for share in alias["shares"]),
            _shown(alias["shadow"]["run"], alias) if alias["shadow"] else "",
            "\n".join(before[:n_before]),
            str(alias["revision"]),
            alias["changed_at"],
        )
    return table


def _shown(run: str, alias: dict[str, Any]) -> str:
    return f"[red]{escape(run)} (deleted)[/red]" if run in alias["missing"] else escape(run)

"""The command ``finetuner token``: works on the volume, with or without a running server."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetuner.access import Scope, TokenStore
from finetuner.audit import Action, AuditLog, Deed
from finetuner.command_errors import reported
from finetuner.config import workspace_dir

token_app = typer.Typer(
    help="Tokens of who may use the service. A running one sees what changes at once.",
    no_args_is_help=True,
)
_ADDRESS = "command line"
_DONE = 200
Workspace = Annotated[
    Path | None,
    typer.Option(help="The folder of data, runs and models. Default: FINETUNER_WORKSPACE."),
]
Name = Annotated[str, typer.Argument(help="Who holds it, such as laptop.")]


@token_app.command()
def create(
    name: Name,
    scope: Annotated[
        list[Scope],
        typer.Option(help="read, encode, fit (and read), or admin (all); may be given twice."),
    ],
    workspace: Workspace = None,
) -> None:
    """Make a token and print it, this once.

    \b
    read     runs, logs, metrics, models, stored data, artifacts
    encode   vectors, similarities, tokens, and the list of models
    fit      read, and: start and delete runs, push and delete data
    admin    all, and: aliases
    """
    folder = workspace_dir(workspace)
    with _recorded(folder, Action.CREATED_TOKEN, name):
        secret = TokenStore(folder).create(name, scope)
    # The token alone on standard output, for `TOKEN=$(finetuner token create ...)`.
    typer.echo(secret)
    Console(stderr=True, highlight=False).print(
        "It is shown this once. A client sends it as FINETUNER_TOKEN, or as the header "
        "`Authorization: Bearer TOKEN`. From now on every request needs a token, on this machine too.",
        soft_wrap=True,
    )


@token_app.command("list")
def list_tokens(workspace: Workspace = None) -> None:
    """Show the names and scopes of all tokens."""
    console = Console(highlight=False)
    with reported():
        tokens = TokenStore(workspace_dir(workspace)).list()
    if not tokens:
        console.print(
            "There is no token: on this machine nobody needs one, and no other gets in. "
            "Make one with: finetuner token create laptop --scope admin",
            soft_wrap=True,
        )
        return
    table = Table("token", "scopes", "created")
    for token in tokens:
        table.add_row(escape(token.name), ", ".join(token.scopes), token.created_at)
    console.print(table)


@token_app.command()
def revoke(name: Name, workspace: Workspace = None) -> None:
    """Make a token worthless, at once, in every running server of the folder."""
    folder = workspace_dir(workspace)
    store = TokenStore(folder)
    with _recorded(folder, Action.REVOKED_TOKEN, name):
        store.revoke(name)
    console = Console(highlight=False)
    console.print(f"The token `{escape(name)}` is revoked.")
    if not store.list():
        console.print(
            "It was the last one: on this machine nobody needs a token now, and no other gets in.",
            soft_wrap=True,
        )


@contextmanager
def _recorded(workspace: Path, action: Action, name: str) -> Iterator[None]:
    """Write down what the block does, when it has done it."""
    with reported():
        yield
    AuditLog(workspace).append(Deed(_user(), _ADDRESS, action, name, _DONE))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return f"uid {os.getuid()}"

"""The command ``finetuner data``: stored data, and a look at a CSV before it is one of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from finetuner.command_errors import reported
from finetuner.csv_file import CSVOptions, write_csv
from finetuner.data_report import data_report, trouble_of
from finetuner.data_verbs import delete_data, list_data, pull_data, push_data, texts_of
from finetuner.exit_codes import ExitCode
from finetuner.files import replacing
from finetuner.pairs import read_documents

data_app = typer.Typer(
    help="Stored data, which runs are given by name, and a look at a CSV.", no_args_is_help=True
)
_BAR_LENGTH = 40
_N_SHOWN = 5
_LONGEST_SHOWN = 70
Name = Annotated[str, typer.Argument(help="Of the stored data, such as quora/train.")]
CSV = Annotated[Path, typer.Argument(help="A CSV file, best with a header.")]
IsLabelled = Annotated[
    bool, typer.Option("--labelled", help="Two columns without a header are text and label.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@data_app.command("list")
def list_stored(as_json: AsJSON = False) -> None:
    """Show what is stored."""
    with reported():
        entries = list_data()
    if as_json:
        _echo_json(entries)
        return
    console = Console(highlight=False)
    if not entries:
        console.print("Nothing is stored yet; store a CSV with: finetuner data push NAME FILE.csv")
        return
    table = Table("name", "documents", "size", "stored")
    for entry in entries:
        table.add_row(
            escape(entry["name"]),
            str(entry["n_documents"]),
            decimal(entry["size_bytes"]),
            entry["created_at"],
        )
    console.print(table)


@data_app.command()
def push(name: Name, file: CSV, labelled: IsLabelled = False) -> None:
    """Store a CSV under a name, in place of what has it."""
    with reported():
        entry = push_data(name, str(file), CSVOptions(is_labeled=labelled))
    Console(highlight=False).print(
        f"Stored as `{escape(entry['name'])}`: {entry['n_documents']} documents, "
        f"{decimal(entry['size_bytes'])}.",
        soft_wrap=True,
    )


@data_app.command()
def pull(
    name: Name,
    file: Annotated[
        Path | None, typer.Argument(help="Where to write a CSV; printed when left out.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Fetch stored texts as a CSV."""
    with reported():
        texts = read_documents(pull_data(name))
        content = orjson.dumps(list(texts.rows()), option=orjson.OPT_INDENT_2)
        if not as_json:
            buffer = io.StringIO(newline="")
            write_csv(texts, buffer)
            content = buffer.getvalue().encode()
        if file is None:
            typer.echo(content, nl=as_json)
            return
        with replacing(file) as written:
            written.write(content)
    console = Console(highlight=False)
    console.print(f"{len(texts)} rows are in {escape(str(file))}.", soft_wrap=True)


@data_app.command()
def delete(name: Name) -> None:
    """Delete stored data; runs keep their texts."""
    with reported():
        delete_data(name)
    Console(highlight=False).print(f"`{escape(name)}` is deleted.")


@data_app.command()
def check(file: CSV, labelled: IsLabelled = False, as_json: AsJSON = False) -> None:
    """Show what a CSV holds, and end with 1 when it cannot be trained on.

    No server is asked.
    """
    with reported():
        texts = texts_of(str(file), CSVOptions(is_labeled=labelled))
        report, trouble = data_report(texts).answer(), trouble_of(texts)
    problems = [{"field": "train_data", "message": trouble}] if trouble else []
    if as_json:
        _echo_json({"problems": problems, "train_data": report})
    else:
        _show(report, problems)
    if problems:
        raise typer.Exit(ExitCode.FAILED)


def _show(report: dict[str, Any], problems: list[dict[str, str]]) -> None:
    console = Console(highlight=False)
    lengths = report["lengths"]
    kind = "groups" if report["form"] == "pairs" else "labels"
    grouped = f", {report['n_labels']} {kind}" if report["class_sizes"] else ""
    console.print(
        f"{report['n_rows']} rows of {report['form']}: {report['n_texts']} different texts{grouped}\n"
        f"characters: half have up to {lengths['p50']}, 99 % up to {lengths['p99']}, all up to "
        f"{lengths['max']}",
        soft_wrap=True,
    )
    if report["class_sizes"]:
        console.print(_histogram(report["class_sizes"], kind))
    if report["n_alone"]:
        console.print(f"{kind} of one text alone, to which nothing is drawn: {report['n_alone']}")
    for title, count, lines in (
        ("repeated", report["n_repeated"], map(_repeated_line, report["repeated"])),
        ("contradictory", report["n_ambiguous"], map(_ambiguous_line, report["ambiguous"])),
    ):
        if count:
            console.print(f"[yellow]{count} {title}, which are left out:[/yellow]")
        for line, _ in zip(lines, range(_N_SHOWN), strict=False):
            console.print(f"  {escape(line)}", soft_wrap=True)
    for problem in problems:
        console.print(f"[red]Problem:[/red] {escape(problem['message'])}", soft_wrap=True)
    if not problems:
        console.print("[green]It can be trained on.[/green]")


def _histogram(bins: list[dict[str, int]], kind: str) -> Table:
    """Return how many labels have so many texts, with a bar for each number.

    :param bins: As a report has them, with one label at least.
    :param kind: What the labels are called.
    """
    most = max(one["n_labels"] for one in bins)
    table = Table("texts", kind, "", box=None)
    for one in bins:
        size = str(one["from"]) if one["from"] == one["to"] else f"{one['from']} to {one['to']}"
        table.add_row(size, str(one["n_labels"]), "█" * -(-_BAR_LENGTH * one["n_labels"] // most))
    return table


def _repeated_line(row: dict[str, Any]) -> str:
    return f"{row['n']} times: {_cut(row['text'])} ({_cut(row['label'])})"


def _ambiguous_line(row: dict[str, Any]) -> str:
    return f"{_cut(row['text'])} ({', '.join(map(_cut, row['labels']))})"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_SHOWN else f"{line[: _LONGEST_SHOWN - 1]}…"


def _echo_json(value: Any) -> None:
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))

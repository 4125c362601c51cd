"""The command ``finetuner evaluate-vectors``: vectors and labels in, metrics out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from finetuner.callback import Distance
from finetuner.command_errors import reported
from finetuner.config import Device
from finetuner.evaluation import skipped_line


def evaluate_vectors(
    query: Annotated[Path, typer.Argument(help="A file .npy or .parquet, or a folder of Parquet.")],
    index: Annotated[Path, typer.Argument(help="The same, of any size.")],
    query_labels: Annotated[Path, typer.Option(help="A file with a label a line, in order.")],
    index_labels: Annotated[Path, typer.Option(help="The same for the index.")],
    limit: Annotated[int, typer.Option(min=1, help="Matches a query.")] = 20,
    distance: Annotated[Distance, typer.Option()] = Distance.COSINE,
    threads: Annotated[
        int | None, typer.Option(min=1, help="The number of cores when left out.")
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="cuda where there is one when left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Score vectors that are there already, by an exact search.

    The index is read in blocks and need not fit into memory. What
    encode and encode-corpus write can be read; the n-th label is the
    n-th vector's.

    \b
    finetuner evaluate-vectors query.npy vectors/ \\
        --query-labels query-labels.txt --index-labels index-labels.txt
    finetuner evaluate-vectors query.npy index.npy --json \\
        --query-labels query-labels.txt --index-labels index-labels.txt
    """
    # Late: torch takes seconds to load, and --help needs none of it.
    from finetuner.inference import evaluate_vectors as evaluate

    with reported():
        found = evaluate(
            query,
            index,
            query_labels=_lines(query_labels),
            index_labels=_lines(index_labels),
            limit=limit,
            distance=distance,
            n_threads=threads,
            device=device and device.value,
        )
    if found.n_skipped:
        Console(stderr=True, highlight=False).print(skipped_line(found.n_skipped))
    if as_json:
        typer.echo(orjson.dumps(found.metrics, option=orjson.OPT_INDENT_2))
        return
    for name, value in found.metrics.items():
        typer.echo(f"{name:<18} {value:.5f}")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")

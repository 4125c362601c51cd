"""The command ``finetuner encode-corpus``: files of texts in, Parquet with vectors out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Protocol

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from finetuner.backends import Backend, EncoderPrecision
from finetuner.command_errors import reported
from finetuner.config import Device
from finetuner.corpus_files import CorpusFormat
from finetuner.errors import ConfigError
from finetuner.exit_codes import ExitCode
from finetuner.named_run import complete_served, local_artifact
from finetuner.vectors import VectorType

if TYPE_CHECKING:
    from finetuner.corpus import Corpus, PartDone

_LINE_INTERVAL_S = 30.0


def encode_corpus(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Files, folders, 'globs' or URLs of Parquet, JSON lines, CSV, text."),
    ],
    output: Annotated[str, typer.Argument(help="A folder, new or begun by the same command.")],
    artifact: Annotated[
        str,
        typer.Option(
            help="A run of this machine's workspace, a zip, or a URL in an artifact store.",
            autocompletion=complete_served,
        ),
    ],
    format_: Annotated[
        CorpusFormat | None, typer.Option("--format", help="By the suffix when left out.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Or the key, in JSON.")] = "text",
    id_column: Annotated[
        str | None, typer.Option(help="FILE:ROW is the id when left out; rows count from 1.")
    ] = None,
    dtype: Annotated[VectorType, typer.Option(help="Of the vectors.")] = VectorType.FLOAT32,
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Cut vectors to this length.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Put before each text.")] = "",
    backend: Annotated[Backend, typer.Option()] = Backend.AUTO,
    device: Annotated[
        Device | None, typer.Option(help="cuda where there is one when left out.")
    ] = None,
    precision: Annotated[EncoderPrecision, typer.Option()] = EncoderPrecision.FP32,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts embedded at once at most.")] = 64,
    rows_per_part: Annotated[int, typer.Option(min=1, help="Rows of a file of OUTPUT.")] = 16_384,
    ray: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a Ray cluster; auto for this machine's; or local."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="With --ray: each holds the model.")] = 2,
    cpus_per_worker: Annotated[int, typer.Option(min=1, help="With --ray.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="With --ray.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Embed a corpus of any size, in constant memory, here or on a cluster.

    OUTPUT gets part-*.parquet, with the columns id and embedding, and
    _skipped-*.jsonl with the rows that have no text, and why. Whatever
    stops it, the same command goes on with the part it was at, and each
    row is there exactly once. URLs such as s3://bucket/texts/*.jsonl
    are read and written by fsspec.

    \b
    finetuner encode-corpus texts.csv vectors --artifact my-run
    finetuner encode-corpus 'shards/*.parquet' vectors --artifact my-run.zip \\
        --text-column body --id-column url --dtype float16
    finetuner encode-corpus '/mnt/texts/*.jsonl' /mnt/vectors --artifact /mnt/my-run.zip \\
        --ray head:6379 --workers 8 --device cuda --gpus-per-worker 1
    """
    # Late: torch takes seconds to load, and --help needs none of it.
    from finetuner.corpus import Corpus, CorpusOptions
    from finetuner.corpus_parts import Columns
    from finetuner.corpus_ray import RayOptions, encode_on_ray
    from finetuner.inference import choose_device
    from finetuner.vectors import VectorOptions

    errors = Console(stderr=True, highlight=False)
    with reported():
        _check_pyarrow()
        options = CorpusOptions(
            columns=Columns(text_column, id_column),
            format=format_,
            rows_per_part=rows_per_part,
            batch_size=batch_size,
            vectors=VectorOptions(dimensions=dimensions, dtype=dtype),
            prompt=prompt,
            backend=backend,
            device=choose_device(device and device.value),
            precision=precision,
        )
        where = ray and RayOptions(ray, workers, cpus_per_worker, gpus_per_worker)
        corpus = Corpus(inputs, output, artifact=local_artifact(artifact), options=options)
        _encode(corpus, encode_on_ray(corpus, where) if where else corpus.encode(), errors)
        summary = corpus.finish()
    if as_json:
        typer.echo(orjson.dumps(asdict(summary), option=orjson.OPT_INDENT_2))
        return
    n_vectors = summary.n_rows - summary.n_skipped
    errors.print(f"{n_vectors:,} vectors in `{output}`, {summary.n_parts:,} parts", soft_wrap=True)
    if summary.n_skipped:
        errors.print(f"{summary.n_skipped:,} rows skipped: see {output}/_skipped-*.jsonl")


def _check_pyarrow() -> None:
    """Say what is missing before a model is loaded."""
    if find_spec("pyarrow") is None:
        raise ConfigError("Parquet needs pyarrow: `pip install 'finetuner-flow[corpus]'`")


def _encode(corpus: Corpus, parts: Iterator[PartDone], console: Console) -> None:
    n_before = corpus.n_rows - sum(part.n_rows for part in corpus.waiting)
    if n_before:
        console.print(f"{n_before:,} of {corpus.n_rows:,} rows are there already")
    with _shown(corpus.n_rows, n_before, console) as report:
        try:
            for done in parts:
                report.add(done)
        except KeyboardInterrupt:
            console.print("Stopped. What is written stays: the same command goes on from there.")
            raise typer.Exit(ExitCode.INTERRUPTED) from None


class _Report(Protocol):
    def add(self, done: PartDone) -> None: ...


@contextmanager
def _shown(n_rows: int, n_before: int, console: Console) -> Iterator[_Report]:
    """Show how far it is: a bar on a terminal, else a line now and then."""
    if not console.is_terminal:
        yield _Lines(n_rows, n_before, console)
        return
    columns = (
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
        TextColumn("{task.fields[rate]:,.0f} rows/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, n_rows, n_before)


class _Bar:
    def __init__(self, progress: Progress, n_rows: int, n_before: int) -> None:
        self._progress, self._n_new, self._began_at = progress, 0, time.monotonic()
        self._task = progress.add_task("", total=n_rows, completed=n_before, rate=0.0)

    def add(self, done: PartDone) -> None:
        self._n_new += done.n_rows
        rate = self._n_new / (time.monotonic() - self._began_at)
        self._progress.update(self._task, advance=done.n_rows, rate=rate)


class _Lines:
    def __init__(self, n_rows: int, n_before: int, console: Console) -> None:
        self._n_rows, self._n_before, self._console = n_rows, n_before, console
        self._n_new, self._began_at = 0, time.monotonic()
        self._told_at = self._began_at

    def add(self, done: PartDone) -> None:
        self._n_new += done.n_rows
        now = time.monotonic()
        if now - self._told_at < _LINE_INTERVAL_S:
            return
        self._told_at = now
        rate = self._n_new / (now - self._began_at)
        n_done = self._n_before + self._n_new
        left_s = (self._n_rows - n_done) / rate
        self._console.print(
            f"{n_done:,} of {self._n_rows:,} rows, {rate:,.0f} rows/s, {left_s:,.0f} s left"
        )

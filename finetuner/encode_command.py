"""The command ``finetuner encode``: texts in, a line each, vectors out, in constant memory."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from finetuner.client import Client
from finetuner.command_errors import reported
from finetuner.config import Device
from finetuner.errors import ConfigError, DataError, OverloadedError, UnavailableError
from finetuner.follow import Patience
from finetuner.named_run import complete_served, local_artifact
from finetuner.vector_files import Format, Vectors, opened

_BOM = b"\xef\xbb\xbf"
# From a list of texts to vectors, *Shape:* (n_texts, dim) float32; (0, dim) of none.
Encode = Callable[[list[str]], Vectors]


def encode(
    model: Annotated[
        str,
        typer.Option(
            help="A run, EXPERIMENT/RUN, an alias or an artifact id; a zip or folder with --local.",
            autocompletion=complete_served,
        ),
    ],
    texts: Annotated[
        Path | None, typer.Argument(help="UTF-8, a text a line; standard input when left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Standard output when left out.")
    ] = None,
    format_: Annotated[
        Format,
        typer.Option("--format", help="npy; jsonl (with the texts) and csv come line by line."),
    ] = Format.NPY,
    batch_size: Annotated[
        int, typer.Option(min=1, max=10_000, help="Texts in memory at once.")
    ] = 256,
    prompt: Annotated[str | None, typer.Option(help="Put before each text.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="One of the prompts kept with the run.")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Cut vectors to this length; by the server.")
    ] = None,
    keep_empty: Annotated[
        bool, typer.Option("--keep-empty", help="Embed empty lines, which are refused otherwise.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Encode on this machine, without a server.")
    ] = False,
    device: Annotated[
        Device | None, typer.Option(help="With --local; cuda where there is one when left out.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="With --local: fp32, auto, bf16, fp16, int8, weight_int8.")
    ] = "fp32",
) -> None:
    """Embed texts, one a line: as many as you like, in constant memory.

    Row n of the vectors is line n of the texts, float32. A line without
    text is refused, with its number, or embedded with --keep-empty.

    \b
    finetuner encode --model prod < texts.txt > vectors.npy
    finetuner encode --model my-run texts.txt -o vectors.npy
    zcat big.gz | finetuner encode --model my-run --format jsonl | head -3
    finetuner encode --local --model artifacts/my-run.zip texts.txt -o vectors.npy
    """
    with reported():
        if output is None and format_ is Format.NPY and sys.stdout.isatty():
            raise ConfigError(
                "NumPy's format is not for a terminal: name --output, or --format jsonl"
            )
        if prompt is not None and prompt_name is not None:
            raise ConfigError("give --prompt or --prompt-name, not both")
        if local:
            if dimensions is not None:
                raise ConfigError("--dimensions is for the server; leave it or --local out")
            embed = _local(model, device, precision=precision, prompt=prompt, name=prompt_name)
        else:
            names = {"prompt": prompt, "prompt_name": prompt_name, "dimensions": dimensions}
            embed = _remote(model, {k: v for k, v in names.items() if v is not None})
        stdout = typer.get_binary_stream("stdout")
        with _input(texts) as file, opened(output, format_, stdout) as writer:
            dim = None
            for batch in _batches(file, batch_size, keep_empty=keep_empty):
                vectors = embed(batch)
                dim = vectors.shape[1]
                writer.write(batch, vectors)
            writer.close(embed([]).shape[1] if dim is None else dim)


@contextmanager
def _input(path: Path | None) -> Iterator[Iterable[bytes]]:
    """Give the lines of a file or of standard input, with a bar on standard error."""
    console = Console(stderr=True, highlight=False)
    if path is None:
        yield _counted(typer.get_binary_stream("stdin"), console)
        return
    with path.open("rb") as file:
        yield _counted(file, console)


def _counted(file: IO[bytes], console: Console) -> Iterator[bytes]:
    columns = (BarColumn(), TextColumn("{task.fields[n_texts]} texts"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=_size_bytes(file), n_texts=0)
        for number, line in enumerate(file):
            yield line
            bar.update(task, advance=len(line), n_texts=number + 1)


def _size_bytes(file: IO[bytes]) -> int | None:
    """Return how much there is to read; None of a pipe."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):  # no file of the system
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _batches(lines: Iterable[bytes], batch_size: int, *, keep_empty: bool) -> Iterator[list[str]]:
    """Yield texts, so many at once.

    :raises DataError: When a line is no UTF-8, or has no text and must have one.
    """
    texts = (_text(line, n, keep_empty=keep_empty) for n, line in enumerate(lines, start=1))
    while batch := list(islice(texts, batch_size)):
        yield batch


def _text(line: bytes, number: int, *, keep_empty: bool) -> str:
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    if number == 1:
        line = line.removeprefix(_BOM)
    try:
        text = line.decode()
    except UnicodeDecodeError as exc:
        raise DataError(
            f"line {number} is no UTF-8 ({exc.reason}); convert it, as by iconv"
        ) from exc
    if not text.strip() and not keep_empty:
        raise DataError(
            f"line {number} is empty; take such lines out, or embed them with --keep-empty, so that "
            "row n of the vectors stays line n of the texts"
        )
    return text


def _remote(model: str, options: dict[str, Any]) -> Encode:
    """Return what asks the server, and asks again while that is busy or away, once it has answered."""
    if model.endswith(".zip") or model.startswith((".", "/", "~")):
        raise ConfigError(f"`{model}` is on this machine, not on the server: add --local")
    client, patience = Client(), Patience()
    body = {"parameters": {"artifact": model, **options}}
    has_answered = False

    def ask(texts: list[str]) -> Any:
        nonlocal has_answered
        while True:
            try:
                answer = client.post("/encode", {**body, "data": [{"text": t} for t in texts]})
            except (OverloadedError, UnavailableError) as error:
                if isinstance(error, UnavailableError) and not has_answered:
                    raise
                patience.failed(error)
                patience.wait()
                continue
            patience.answered()
            has_answered = True
            return answer

    def embed(texts: list[str]) -> Vectors:
        answer = ask(texts)
        vectors = np.asarray([row["embedding"] for row in answer["data"]], dtype=np.float32)
        return vectors.reshape(len(texts), answer["dim"])

    return embed


def _local(
    model: str, device: Device | None, *, precision: str, prompt: str | None, name: str | None
) -> Encode:
    """Return what encodes here.

    :raises ArtifactNotFound: When the model is neither a file nor a run of this machine's workspace.
    """
    # Late: torch takes a second to load, which the server's clients need not wait for.
    from finetuner.inference import get_model

    path = str(local_artifact(model))
    encoder = get_model(path, device=device and device.value, precision=precision)
    if name is not None:
        if name not in encoder.prompts:
            there = ", ".join(encoder.prompts) or "none"
            raise ConfigError(f"`{encoder.name}` has no prompt `{name}`; it has: {there}")
        prompt = encoder.prompts[name]
    return lambda texts: encoder.encode([f"{prompt or ''}{text}" for text in texts])

"""How the verbs of the command tell errors: as a sentence, and by the code that they end with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from finetuner.errors import FinetunerError
from finetuner.exit_codes import ExitCode, exit_code_of


def _print(sentence: str) -> None:
    errors = Console(stderr=True, highlight=False)
    errors.print(f"[red]Error:[/red] {escape(sentence)}", soft_wrap=True)


@contextmanager
def reported(tell: Callable[[str], None] = _print) -> Iterator[None]:
    """End the command with the sentence of an error, or quietly after Ctrl-C.

    :param tell: Gets the sentence.
    """
    try:
        yield
    except BrokenPipeError:  # the reader has enough, as `head` does; typer ends without a word
        raise
    except (FinetunerError, OSError) as error:
        tell(str(error))
        raise typer.Exit(exit_code_of(error)) from error
    except KeyboardInterrupt as interruption:
        raise typer.Exit(ExitCode.INTERRUPTED) from interruption

"""The command ``finetuner``."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from finetuner import __version__
from finetuner.alias_command import alias
from finetuner.client import NO_TOKEN, server_url, token
from finetuner.corpus_command import encode_corpus
from finetuner.data_command import data_app
from finetuner.doctor_command import doctor
from finetuner.encode_command import encode
from finetuner.fit_command import fit
from finetuner.gc_command import gc
from finetuner.log_format import set_up_fresh_process
from finetuner.run_command import register
from finetuner.serve_command import serve
from finetuner.token_command import token_app
from finetuner.vectors_command import evaluate_vectors

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"finetuner-flow {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Fine-tune, evaluate and serve text embedding models on your own machine.

    FINETUNER_HOST names the server, FINETUNER_TOKEN is sent to it.

    \b
    finetuner doctor                  is this machine fit for it?
    finetuner serve                   start the service
    finetuner fit --model all-minilm-l6-v2 --data train.csv --hold-out 0.2 --follow
    finetuner encode --model my-run < texts.txt > vectors.npy
    """


@app.command()
def env() -> None:
    """Print the variables that point the client and docarray's push and pull to the server.

    \b
    eval "$(finetuner env)"
    FINETUNER_HOST=http://gpu-box:51001 finetuner env
    """
    variables = {
        "FINETUNER_HOST": server_url(),
        "JINA_HUBBLE_REGISTRY": server_url(),
        "JINA_AUTH_TOKEN": token() or NO_TOKEN,
    }
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


app.command()(serve)
app.command()(fit)
register(app)
app.command()(encode)
app.command()(encode_corpus)
app.command()(evaluate_vectors)
app.command()(alias)
app.command()(doctor)
app.command()(gc)
app.add_typer(data_app, name="data")
app.add_typer(token_app, name="token")
set_up_fresh_process()


if __name__ == "__main__":
    app()

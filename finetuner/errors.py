"""The one tree of errors; each leaf is also a builtin, so ``except ValueError`` works too.

FinetunerError
├─ MalformedRequestError (ValueError)         400  the body is no JSON object
├─ AuthenticationRequiredError (PermissionError) 401
│  └─ InvalidTokenError                            there is a token, and it is none of the server's
├─ ForbiddenError (PermissionError)           403  the token has not the scope that this needs
├─ NotFoundError (LookupError)                404
│  ├─ EndpointNotFoundError                        no executor of the Flow has the endpoint
│  ├─ RunNotFoundError, ExperimentNotFoundError, DataNotFoundError
│  └─ ModelNotFoundError, ArtifactNotFound, AliasNotFoundError
├─ SlowRequestError (TimeoutError)            408  the client sends its request too slowly
├─ ConflictError (RuntimeError)               409
│  ├─ RunExistsError                               the name is taken, by a run of another request
│  ├─ RunPreparingError, RunInProgressError, RunFailedError, RunCancelledError
│  ├─ ImpossibleStepError                          a run cannot come from its state to that one
│  ├─ RunChangedError                              another process has made the step
│  ├─ DigestMismatchError                          the artifact served is not the one that was pinned
│  └─ PromotionRefusedError                        an alias may not point there
├─ TooLargeError (ValueError)                 413
├─ ConfigError (ValueError)                   422  unknown field, wrong type, out of range
├─ DataError (ValueError)                     422  the data cannot train or evaluate
├─ CorruptedArtifact (ValueError)             422
├─ KeysMismatchError (ValueError)             422  two sets of weights are not of one model
├─ OverloadedError (RuntimeError)             429  more is waiting than can be answered in time
│  └─ TooManyFailedLoginsError                     of one address
├─ UnavailableError (ConnectionError)         503  a server or an executor does not answer
│  └─ StartingError                                it has not come so far yet
├─ DeadlineExceededError (TimeoutError)       504  not answered within the time that the client gave
├─ InsufficientSpaceError (OSError)           507  what was asked for does not fit the disk or quota
├─ NotInstalledError (ImportError)            500  a machine cannot load what the work needs
├─ TrainingError (RuntimeError)               500  training cannot go on
└─ FinetunerServerError (RuntimeError)        500  anything the server did not foresee

``http_status`` is what the gateway answers when an executor raises the error.
"""

from __future__ import annotations

import re
from typing import ClassVar


class FinetunerError(Exception):
    """Base of every error that this package raises on purpose."""

    http_status: ClassVar[int] = 500


class MalformedRequestError(FinetunerError, ValueError):
    """The request could not be read at all."""

    http_status = 400


class AuthenticationRequiredError(FinetunerError, PermissionError):
    """The server asks for a token and got none, or a wrong one."""

    http_status = 401


class InvalidTokenError(AuthenticationRequiredError):
    """The request has a token that is none of the server's, or is one no more."""


class ForbiddenError(FinetunerError, PermissionError):
    """Who asks is known, or need not be, and may not do this."""

    http_status = 403


class NotFoundError(FinetunerError, LookupError):
    """What was named does not exist."""

    http_status = 404


class EndpointNotFoundError(NotFoundError):
    """No executor of this Flow serves the endpoint."""


class RunNotFoundError(NotFoundError):
    """No run of that name in the experiment."""


class ExperimentNotFoundError(NotFoundError):
    """No experiment of that name."""


class DataNotFoundError(NotFoundError):
    """No stored data of that name."""


class ModelNotFoundError(NotFoundError):
    """The backbone was found in none of the places searched."""


class ArtifactNotFound(NotFoundError):  # the name that clients of the old API catch
    """No artifact under that path, id or run name."""


class AliasNotFoundError(NotFoundError):
    """No alias of that name."""


class SlowRequestError(FinetunerError, TimeoutError):
    """The request did not arrive in time."""

    http_status = 408


class ConflictError(FinetunerError, RuntimeError):
    """The request is well formed and does not fit the present state."""

    http_status = 409


class RunExistsError(ConflictError):
    """The experiment holds a run of that name, or of that key, which another request has made."""


class RunPreparingError(ConflictError):
    """The run has not started, so there is no log yet."""


class RunInProgressError(ConflictError):
    """The run has not finished, so there is no artifact yet."""


class RunFailedError(ConflictError):
    """The run failed, so there will be no artifact."""


class RunCancelledError(ConflictError):
    """The run was cancelled, so there will be no artifact."""


class ImpossibleStepError(ConflictError):
    """A run cannot come from the state that it is in to that one."""


class RunChangedError(ConflictError):
    """The run has gone on to another state meanwhile, by another process."""


class DigestMismatchError(ConflictError):
    """The artifact served is not the one that the client pinned."""


class PromotionRefusedError(ConflictError):
    """The rule of an alias does not let it point to that run."""


class TooLargeError(FinetunerError, ValueError):
    """The request is larger than the server takes."""

    http_status = 413


class ConfigError(FinetunerError, ValueError):
    """A setting is unknown, of a wrong type or out of range."""

    http_status = 422


class DataError(FinetunerError, ValueError):
    """The data cannot be used for what was asked."""

    http_status = 422


class CorruptedArtifact(FinetunerError, ValueError):  # as above
    """An artifact is no zip, lacks files, or its files have changed."""

    http_status = 422


class KeysMismatchError(FinetunerError, ValueError):
    """Two sets of weights do not have the same names and shapes, so they cannot be combined."""

    http_status = 422


class OverloadedError(FinetunerError, RuntimeError):
    """More is waiting than can be answered in time; the sentence ends with ``retry in N s``."""

    http_status = 429

    @property
    def retry_after_s(self) -> int:
        """When to come back, at least 1; read from the sentence, all that travels between processes."""
        found = re.search(r"retry in (\d+) s$", str(self))
        return max(1, int(found[1])) if found else 1


class TooManyFailedLoginsError(OverloadedError):
    """One address has sent too many tokens that are none of the server's."""


class UnavailableError(FinetunerError, ConnectionError):
    """A server or an executor does not answer."""

    http_status = 503


class StartingError(UnavailableError):
    """The service starts, and answers when all its parts do."""


class DeadlineExceededError(FinetunerError, TimeoutError):
    """The request was not answered within the time that the client gave."""

    http_status = 504


class InsufficientSpaceError(FinetunerError, OSError):
    """What was asked for does not fit on the volume, or into its quota."""

    http_status = 507


class NotInstalledError(FinetunerError, ImportError):
    """A machine cannot load what the work on it needs."""


class TrainingError(FinetunerError, RuntimeError):
    """Training cannot go on."""


class FinetunerServerError(FinetunerError, RuntimeError):
    """The server failed in a way that it did not foresee.

    :param message: What went wrong.
    :param details: What the server said about it.
    :param code: The HTTP status, or -1 without one.
    """

    def __init__(
        self, message: str = "An unknown error occurred", details: str = "", code: int = -1
    ) -> None:
        super().__init__(message, details, code)
        self.message, self.details, self.code = message, details, code

    def __str__(self) -> str:
        return f"{self.message} ({self.code}): {self.details}"


def error_class(name: str) -> type[FinetunerError] | None:
    """Return the class of this tree with that name, or None.

    :param name: A class name as it travels between processes.
    """
    pending: list[type[FinetunerError]] = [FinetunerError]
    while pending:
        candidate = pending.pop()
        if candidate.__name__ == name:
            return candidate
        pending.extend(candidate.__subclasses__())
    return None

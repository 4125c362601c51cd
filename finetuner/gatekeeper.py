"""Who asks, whether they may, and what is written down of it: the same for HTTP and gRPC."""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetuner.access import ALL_SCOPES, Scope, Token, TokenStore
from finetuner.audit import Action, AuditLog, Deed
from finetuner.errors import (
    AuthenticationRequiredError,
    ConfigError,
    ForbiddenError,
    InvalidTokenError,
    TooManyFailedLoginsError,
)
from finetuner.failed_logins import FailedLogins
from finetuner.permissions import Permission

_ANONYMOUS = "anonymous"
# `token` is what docarray's client writes.
_SCHEMES = ("bearer", "token")


@dataclass(frozen=True)
class Caller:
    """Who asks.

    :param name: Of the token, or ``anonymous``.
    :param address: Where from.
    :param scopes: What is open to them.
    :param token: None where none is needed.
    """

    name: str
    address: str
    scopes: frozenset[Scope]
    token: Token | None = None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen at."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, workspace: Path) -> None:
    """Refuse an address that others can reach, unless there is a token.

    :param host: Where to listen.
    :param workspace: The volume.
    :raises ConfigError: When there is none; with the command that makes one.
    :raises UnavailableError: When the tokens cannot be read.
    """
    if not is_loopback(host) and not TokenStore(workspace).list():
        raise ConfigError(
            f"others can reach {host}, and this service has no token to know them by. Make one with "
            f"`finetuner token create laptop --scope admin --workspace {workspace}`, or listen at "
            "127.0.0.1, where none is needed"
        )


class Gatekeeper:
    """Lets callers in, or not.

    :param workspace: The volume.
    :param host: Where the service listens.
    :raises ConfigError: As :func:`check_host`.
    """

    def __init__(self, workspace: Path, *, host: str = "127.0.0.1") -> None:
        check_host(host, workspace)
        self._is_local = is_loopback(host)
        self.tokens = TokenStore(workspace)
        self._audit = AuditLog(workspace)
        self._failures = FailedLogins()

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a token: there is none, and only this machine can ask.

        :raises UnavailableError: When the tokens cannot be read.
        """
        return self._is_local and not self.tokens.list()

    async def identify(self, authorization: str | None, address: str) -> Caller:
        """Return who asks.

        :param authorization: ``Bearer TOKEN`` or ``token TOKEN``; None when nothing was sent.
        :param address: Where from.
        :raises AuthenticationRequiredError: When a token is needed and there is none.
        :raises InvalidTokenError: When it is none of ours.
        :raises TooManyFailedLoginsError: When that has happened too often.
        :raises UnavailableError: When the tokens cannot be read.
        """
        if self.is_open:
            return Caller(_ANONYMOUS, address, ALL_SCOPES)
        scheme, _, secret = (authorization or "").partition(" ")
        if not authorization:
            raise AuthenticationRequiredError(
                "this needs a token: send the header `Authorization: Bearer TOKEN`; "
                "`finetuner token create NAME --scope SCOPE` on the server makes one"
            )
        return await self.admit(lambda: self._holder(scheme, secret.strip()), address)

    async def admit(self, find: Callable[[], Token], address: str) -> Caller:
        """Return who holds a token that is sought, and count and write down a failure.

        :param find: Returns it, or raises InvalidTokenError.
        :param address: Where from.
        :raises InvalidTokenError: When it does.
        :raises TooManyFailedLoginsError: When that has happened too often.
        """
        try:
            token = find()
        except InvalidTokenError as error:
            wait_s = self._failures.count(address)
            if wait_s:
                raise TooManyFailedLoginsError(
                    f"too many wrong tokens from {address}; retry in {math.ceil(wait_s)} s"
                ) from error
            stranger = Caller(_ANONYMOUS, address, frozenset())
            await self.record(stranger, Action.FAILED_LOGIN, target="", status=error.http_status)
            raise
        return Caller(token.name, address, token.granted, token)

    def _holder(self, scheme: str, secret: str) -> Token:
        token = self.tokens.find(secret) if scheme.lower() in _SCHEMES else None
        if token is None:
            raise InvalidTokenError(
                "this token is none of the server's, or was revoked; `finetuner token list` on the "
                "server shows the names of those there are"
            )
        return token

    def check(self, caller: Caller, permission: Permission, what: str) -> None:
        """Pass when a caller may do something.

        :param what: The route or endpoint, for the message.
        :raises ForbiddenError: When not.
        """
        if permission.scopes & caller.scopes or permission.is_public:
            return
        needed = " or ".join(scope for scope in Scope if scope in permission.scopes)
        if not needed:
            raise ForbiddenError(f"{what} is closed to all on this server")
        raise ForbiddenError(
            f"{what} needs a token with the scope {needed}; `{caller.name}` has "
            f"{', '.join(scope for scope in Scope if scope in caller.scopes)}. A token with more is made "
            "on the server by `finetuner token create NAME --scope SCOPE`"
        )

    async def record(self, caller: Caller, action: Action, *, target: str, status: int) -> None:
        """Write down what was done.

        :param caller: Who.
        :param action: What.
        :param target: To what.
        :param status: How it ended, as a status of HTTP.
        """
        deed = Deed(caller.name, caller.address, action, target, status)
        # In a thread: a slow volume must not stop all that the gateway does.
        await asyncio.to_thread(self._audit.append, deed)

"""Who may do what: tokens with names and scopes, kept on the volume as hashes.

access/
  tokens.json    name, scopes and hash of each token; mode 0600, replaced as a whole
  .lock          held while it is changed

A token is 256 random bits. Nobody can guess such a number or find it by trying, so one round of SHA-256
hides it as well as the slow hashes that passwords need, and costs a request microseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import orjson

from finetuner import lock
from finetuner.errors import ConfigError, ConflictError, NotFoundError, UnavailableError
from finetuner.file_cache import FileCache
from finetuner.files import read_json, write_json
from finetuner.names import check_name
from finetuner.schema import documented, nearest, read

logger = logging.getLogger(__name__)
# So that people and scanners of source code know one when they see it.
_PREFIX = "ft_"
_N_RANDOM_BYTES = 32


class Scope(StrEnum):
    """What a token is for."""

    READ = "read"
    ENCODE = "encode"
    FIT = "fit"
    ADMIN = "admin"


# What each scope stands for; `encode` alone lets a web page search and shows it no training data.
_INCLUDED = {
    Scope.READ: {Scope.READ},
    Scope.ENCODE: {Scope.ENCODE},
    Scope.FIT: {Scope.FIT, Scope.READ},
    Scope.ADMIN: set(Scope),
}
ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True)
class Token:
    """One token, without its secret.

    :raises ConfigError: When it has no scope.
    """

    name: str = documented("who holds it")
    scopes: tuple[Scope, ...] = documented("what it is for, one or more")
    digest: str = documented("SHA-256 of the secret, in hexadecimal digits")
    created_at: str = documented("ISO 8601, UTC")

    def __post_init__(self) -> None:
        if not self.scopes:
            raise ConfigError(f"a token needs a scope, one or more of: {', '.join(Scope)}")

    @property
    def granted(self) -> frozenset[Scope]:
        """Its scopes, and those that they include."""
        return frozenset().union(*(_INCLUDED[scope] for scope in self.scopes))


class TokenStore:
    """The tokens of one volume; what changes is seen at the next question, in every process.

    :param workspace: The volume; its folder ``access`` is made when needed.
    """

    def __init__(self, workspace: Path) -> None:
        self._folder = workspace / "access"
        self._path = self._folder / "tokens.json"
        self._tokens = FileCache(_read_tokens)
        self._was_there = False

    def list(self) -> tuple[Token, ...]:
        """Return all tokens by name; none where none was ever made.

        :raises UnavailableError: When the file cannot be read, is damaged, or was there and is gone: a
            volume that is lost must not open what it had closed.
        """
        try:
            tokens = self._tokens.get(self._path)
        except FileNotFoundError as exc:
            if self._was_there:
                raise _unreadable(self._path) from exc
            return ()
        except (OSError, ValueError) as exc:
            raise _unreadable(self._path) from exc
        self._was_there = True
        return tokens

    def find(self, secret: str) -> Token | None:
        """Return the token of a secret, or None; takes as long for one as for another.

        :param secret: What a client sent.
        :raises UnavailableError: As :meth:`list`.
        """
        digest, found = _digest(secret), None
        for token in self.list():
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def get(self, name: str) -> Token:
        """Return a token.

        :raises NotFoundError: When there is none of that name.
        :raises UnavailableError: As :meth:`list`.
        """
        tokens = {token.name: token for token in self.list()}
        if name not in tokens:
            raise NotFoundError(
                f"no token `{name[:128]}`{nearest(name, tokens)} there are: "
                f"{', '.join(tokens) or 'none'}"
            )
        return tokens[name]

    def create(self, name: str, scopes: Sequence[Scope]) -> str:
        """Make a token and return its secret, which nobody can be told again.

        :param name: Who holds it.
        :param scopes: What it is for.
        :raises ConfigError: When the name is not allowed, or there is no scope.
        :raises ConflictError: When the name is taken, or another process changes the tokens now.
        """
        secret = _PREFIX + secrets.token_urlsafe(_N_RANDOM_BYTES)
        token = Token(
            name=check_name(name, "token name"),
            scopes=tuple(sorted(set(scopes), key=list(Scope).index)),
            digest=_digest(secret),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with lock.hold(self._folder / ".lock") as is_free:
            tokens = self._changeable(is_free)
            if any(other.name == name for other in tokens):
                raise ConflictError(
                    f"there is a token `{name}`: revoke it first, or choose another name"
                )
            self._write([*tokens, token])
        return secret

    def revoke(self, name: str) -> None:
        """Make a token worthless, at once.

        :raises NotFoundError: When there is none of that name.
        :raises ConflictError: When another process changes the tokens now.
        """
        self.get(name)
        with lock.hold(self._folder / ".lock") as is_free:
            self._write([token for token in self._changeable(is_free) if token.name != name])

    def _changeable(self, is_free: bool) -> tuple[Token, ...]:
        if not is_free:
            raise ConflictError("another process changes the tokens now: try it again")
        return self.list()

    def _write(self, tokens: Sequence[Token]) -> None:
        rows = [asdict(token) for token in sorted(tokens, key=lambda token: token.name)]
        write_json(self._path, {"tokens": rows}, mode=0o600)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _read_tokens(path: Path) -> tuple[Token, ...]:
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("tokens"), list):
        raise orjson.JSONDecodeError("no list of tokens", "", 0)
    return tuple(read(Token, row, "token") for row in value["tokens"])


def _unreadable(path: Path) -> UnavailableError:
    # The log, not the client, is told where the server keeps its files.
    logger.error("%s cannot be read", path, exc_info=True)
    return UnavailableError("the server cannot read its tokens; its log has the cause")

"""Talks to a Flow over HTTP; the only module of the client side that knows the network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any
from urllib.parse import quote

import orjson
import requests

from finetuner.config import DEFAULT_HOST
from finetuner.errors import (
    AuthenticationRequiredError,
    ConfigError,
    FinetunerServerError,
    InvalidTokenError,
    UnavailableError,
    error_class,
)
from finetuner.files import replacing

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 300.0
_SILENCE_TIMEOUT_S = 60.0
_CHUNK_BYTES = 2**20
# docarray asks for a login when it has nothing to send.
NO_TOKEN = "none"
# Is told how many bytes have come, of how many.
Watch = Callable[[int, int | None], None]
_TOKEN = re.compile(r"[A-Za-z0-9_\-.~+/=]+")


def server_url() -> str:
    """Return the address of the server: ``FINETUNER_HOST``, else this machine's port 51001."""
    url = os.environ.get("FINETUNER_HOST") or DEFAULT_HOST
    return url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"


def token() -> str:
    """Return the token that calls carry: ``FINETUNER_TOKEN``, or an empty string."""
    return os.environ.get("FINETUNER_TOKEN", "")


def use_token(value: str) -> None:
    """Let all calls from now on carry a token; docarray's too, and those of processes started from here.

    :param value: The token.
    :raises ConfigError: When it has spaces or other signs that no token has.
    """
    if not _TOKEN.fullmatch(value):
        raise ConfigError(
            "a token is one word of letters, digits, `_` and `-`, as `finetuner token create` prints it"
        )
    os.environ["FINETUNER_TOKEN"] = value
    point_docarray_here()


def point_docarray_here() -> None:
    """Let ``DocumentArray.push`` and ``pull`` talk to our server, unless they are told otherwise."""
    os.environ.setdefault("JINA_HUBBLE_REGISTRY", server_url())
    # Where the registry is another's, so is its token.
    if os.environ["JINA_HUBBLE_REGISTRY"].rstrip("/") == server_url():
        os.environ["JINA_AUTH_TOKEN"] = token() or os.environ.get("JINA_AUTH_TOKEN") or NO_TOKEN


class Client:
    """One server.

    :param url: Its HTTP address; when None, :func:`server_url` at each call.
    :param timeout_s: Within which it must begin to answer; 5 s to be reached, and 300 s, when None.
    """

    def __init__(self, url: str | None = None, *, timeout_s: float | None = None) -> None:
        self._url = url
        self._timeout_s = (
            (_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S) if timeout_s is None else (timeout_s, timeout_s)
        )
        self._session = requests.Session()

    @property
    def url(self) -> str:
        """The server's address."""
        return self._url or server_url()

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON answer of a GET."""
        return self._json("GET", path, params=_without_none(parameters))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON answer of a POST."""
        return self._json("POST", path, data=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))

    def act(self, path: str, **parameters: Any) -> Any:
        """Return the JSON answer of a POST without a body."""
        return self._json("POST", path, params=_without_none(parameters))

    def put(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON answer of a PUT, with or without a body."""
        return self._json("PUT", path, data=None if body is None else orjson.dumps(body))

    def upload(self, path: str, content: bytes, *, media_type: str) -> Any:
        """Return the JSON answer of a PUT of anything."""
        return self._json("PUT", path, data=content, headers={"Content-Type": media_type})

    def delete(self, path: str, **parameters: Any) -> Any:
        """Return the JSON answer of a DELETE."""
        return self._json("DELETE", path, params=_without_none(parameters))

    def text(self, path: str, **parameters: Any) -> str:
        """Return the text answer of a GET."""
        with self._request("GET", path, params=_without_none(parameters)) as response:
            response.encoding = "utf-8"
            return response.text

    @contextmanager
    def stream(self, path: str, **parameters: Any) -> Iterator[requests.Response]:
        """Give an answer whose body comes bit by bit.

        :raises UnavailableError: When the connection breaks, also while the body is read, or nothing
            comes for a minute: the other end may be gone.
        """
        with (
            self._request(
                "GET",
                path,
                params=_without_none(parameters),
                stream=True,
                timeout=(_CONNECT_TIMEOUT_S, _SILENCE_TIMEOUT_S),
                # A proxy that compresses would hold lines back.
                headers={"Accept-Encoding": "identity"},
            ) as response,
            _translated(self.url),
        ):
            yield response

    def download(
        self, path: str, destination: Path, *, watch: Watch | None = None, **parameters: Any
    ) -> None:
        """Write an answer to a file, which appears whole or not at all.

        :param watch: Called with the bytes got so far and, where that is known, all that will come.
        """
        with (
            self._request("GET", path, params=_without_none(parameters), stream=True) as response,
            replacing(destination) as file,
            _translated(self.url),
        ):
            _copy(response, file, watch)

    def _json(self, method: str, path: str, **kwargs: Any) -> Any:
        with self._request(method, path, **kwargs) as response:
            return orjson.loads(response.content)

    def _request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        timeout: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> requests.Response:
        headers = {"Content-Type": "application/json", **headers}
        if token():
            headers["Authorization"] = f"Bearer {token()}"
        with _translated(self.url):
            response = self._session.request(
                method,
                self.url + path,
                headers=headers,
                timeout=timeout or self._timeout_s,
                **kwargs,
            )
        if not response.ok:
            with response:
                raise _error_of(response)
        return response


def _without_none(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _copy(response: requests.Response, file: IO[bytes], watch: Watch | None) -> None:
    length = response.headers.get("Content-Length")
    expected = None if length is None else int(length)
    n_bytes = 0
    for chunk in response.iter_content(_CHUNK_BYTES):
        n_bytes += file.write(chunk)
        if watch is not None:
            watch(n_bytes, expected)
    if expected is not None and n_bytes != expected:
        raise FinetunerServerError("The download was cut short", f"{n_bytes} of {expected} bytes")


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn the network library's errors into ours, where they enter."""
    try:
        yield
    except (requests.ConnectionError, requests.Timeout) as exc:
        raise UnavailableError(
            f"no Finetuner server answers at {url}; start one with `finetuner serve`, or set "
            "FINETUNER_HOST to the address of a running one"
        ) from exc
    except requests.exceptions.ChunkedEncodingError as exc:
        raise UnavailableError(f"the connection to {url} broke: {exc}") from exc
    except requests.RequestException as exc:
        raise FinetunerServerError(f"The call to {url} failed", str(exc)) from exc


def _error_of(response: requests.Response) -> Exception:
    if response.status_code == 401:
        if token():
            return InvalidTokenError(
                "this server does not know the token in FINETUNER_TOKEN: it was revoked, or is another "
                "server's; `finetuner token create NAME --scope SCOPE` on the server makes a new one"
            )
        return AuthenticationRequiredError(
            "this server asks for a token: set FINETUNER_TOKEN to yours, or call "
            "finetuner.login(token='...')"
        )
    try:
        content = orjson.loads(response.content)
        name, detail = content["error"], str(content["detail"])
    except (ValueError, KeyError, TypeError):
        name, detail = "", response.text[:500]
    cls = error_class(name)
    if cls is None or issubclass(cls, FinetunerServerError):
        return FinetunerServerError("The server failed", detail, response.status_code)
    return cls(detail)


def run_path(run_name: str, view: str = "") -> str:
    """Return the path of a run on the server."""
    return f"/runs/{quote(run_name, safe='')}{view}"


def experiment_path(name: str) -> str:
    """Return the path of an experiment on the server."""
    return f"/experiments/{quote(name, safe='')}"


def alias_path(name: str, view: str = "") -> str:
    """Return the path of an alias on the server."""
    return f"/aliases/{quote(name, safe='')}{view}"


def data_path(name: str) -> str:
    """Return the path of stored data on the server."""
    return f"/data/{quote(name)}"

"""Files by URL, on a disk or in an object store; each error of a store is said in our words, here alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from finetuner.errors import ConfigError, NotFoundError, UnavailableError
from finetuner.files import make_folder, replacing

CHUNK_BYTES = 2**20
# Where S3 is not Amazon's; the first that is set.
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_CONNECT_TIMEOUT_S = 5
_REQUEST_TIMEOUT_S = 30
_N_ATTEMPTS = 3


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    :param url: A path, or a URL; ``s3://`` goes through pyarrow, and s3fs only where that is missing.
    :raises ConfigError: When its protocol is unknown, needs a package that is missing, or the URL holds
        credentials.
    """
    protocol, separator, rest = url.partition("://")
    if separator and protocol == "s3":
        _check_no_credentials(url)
        if (system := _s3_file_system()) is not None:
            return system, rest.rstrip("/")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as exc:
        raise ConfigError(f"`{protocol}://` cannot be read: {exc}") from exc
    return system, path


def is_local(system: Any) -> bool:
    """Whether a file system of fsspec is this machine's own."""
    return isinstance(system, LocalFileSystem)


def _check_no_credentials(url: str) -> None:
    """Refuse what would come into logs and answers with the URL."""
    parts = urlsplit(url)
    if "@" in parts.netloc or "?" in url:
        raise ConfigError(
            f"a `{parts.scheme}://` URL is bucket and prefix alone; credentials stand in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws/credentials"
        )


def _s3_file_system() -> Any:
    """Return S3 by pyarrow, which corpora have anyway; None where that is not installed."""
    try:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem
    except ImportError:
        return None
    endpoint = next((os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), "")
    options: dict[str, Any] = {"endpoint_override": endpoint} if endpoint else {}
    system = S3FileSystem(
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_N_ATTEMPTS),
        **options,
    )
    return ArrowFSWrapper(system)


class ObjectStore:
    """Objects below a URL; safe to share between threads and processes.

    :param url: Such as ``s3://bucket/prefix``.
    :raises ConfigError: As of :func:`file_system`.
    """

    def __init__(self, url: str) -> None:
        if "://" not in url:
            raise ConfigError(f"an artifact store is a URL such as s3://bucket/prefix, got `{url}`")
        self.url = url.rstrip("/")
        _check_no_credentials(self.url)
        self._system, self._root = file_system(self.url)
        self._root = self._root.rstrip("/")
        self._is_local = is_local(self._system)

    def size_bytes(self, name: str) -> int | None:
        """Return the size of an object; None when there is none.

        :param name: Its path below the URL.
        :raises UnavailableError: When the store does not answer, or lets nobody in.
        """
        try:
            with self._translated():
                self._system.invalidate_cache()
                return int(self._system.info(self._path(name))["size"] or 0)
        except NotFoundError:
            return None

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return what a small object holds.

        :param name: Its path below the URL.
        :param max_bytes: Of a larger one only so many are read.
        :raises NotFoundError: When there is none.
        :raises UnavailableError: As of :meth:`size_bytes`.
        """
        with self._translated(), self._system.open(self._path(name), "rb") as file:
            return bytes(file.read(max_bytes))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield what an object holds, a part at a time.

        :param name: Its path below the URL.
        :raises NotFoundError, UnavailableError: As of :meth:`read`.
        """
        with self._translated(), self._system.open(self._path(name), "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield bytes(chunk)

    def write(self, name: str, chunks: Iterator[bytes]) -> None:
        """Write an object; another process sees it whole, or, when this one is cut off, perhaps a part.

        :param name: Its path below the URL.
        :param chunks: What it shall hold; an error of theirs goes through as it is.
        :raises UnavailableError: As of :meth:`size_bytes`.
        """
        path = self._path(name)
        first = next(chunks, b"")  # an error there leaves nothing behind
        with self._opened(path) as file:
            while first:
                with self._translated():
                    file.write(first)
                first = next(chunks, b"")

    @contextmanager
    def _opened(self, path: str) -> Iterator[IO[bytes]]:
        if self._is_local:
            with self._translated():
                make_folder(Path(path).parent, parents=True)
            with replacing(Path(path)) as file:
                yield file
            return
        with self._translated():
            if self._system.protocol != "s3":  # which has no folders
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            opened = self._system.open(path, "wb")
        try:
            yield opened
        finally:
            with self._translated():
                opened.close()

    def remove(self, name: str) -> None:
        """Remove an object, if it is there.

        :param name: Its path below the URL.
        :raises UnavailableError: As of :meth:`size_bytes`.
        """
        if self.size_bytes(name) is not None:
            with self._translated():
                self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Say in words what a store has against a request.

        :raises NotFoundError: When there is no such object.
        :raises UnavailableError: For all else.
        """
        try:
            yield
        except FileNotFoundError as exc:
            raise NotFoundError(f"there is no such object in `{self.url}`") from exc
        except Exception as exc:  # each store's library has errors of its own
            raise UnavailableError(f"the store `{self.url}` {_reason(exc)}") from exc


# What pyarrow's message holds, and what that means.
_REASONS = (
    ("NoSuchBucket", "has no such bucket: make it, or mend the URL"),
    ("NO_SUCH_BUCKET", "has no such bucket: make it, or mend the URL"),
    ("NETWORK_CONNECTION", "does not answer: see that AWS_ENDPOINT_URL names it and that it runs"),
    *(
        (code, "lets nobody in with these credentials: see AWS_ACCESS_KEY_ID and ~/.aws")
        for code in ("ACCESS_DENIED", "SIGNATURE", "ACCESS_KEY", "TOKEN", "403", "401")
    ),
)


def _reason(error: BaseException) -> str:
    text = str(error)
    for part, reason in _REASONS:
        if part in text:
            return reason
    # Not the store's own words: they may quote the request.
    return f"cannot be used now ({type(error).__name__}); ask again when it can"

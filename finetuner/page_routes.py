"""The page: its files out of the package, with headers that keep out what is not its own."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from finetuner import __version__
from finetuner.file_cache import FileCache
from finetuner.http_messages import json_response

PAGE = Path(__file__).parent / "page"
_INDEX = "index.html"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_STRICT = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Their names carry a hash of what they hold.
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_EACH_TIME = "no-cache"
# Not Python's table, which asks the machine's: with `nosniff` a wrong type is a blank page.
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".woff2": "font/woff2",
}
_PACKED = frozenset({".png", ".woff2"})
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The page for a browser, else what this is",
        "content": {"text/html": {}, "application/json": {}},
    }
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page.

    :param content: What it holds.
    :param zipped: The same by gzip; None where that is no shorter.
    :param media_type: What a browser should take it for.
    :param etag: Of the content, in quotes.
    """

    content: bytes
    zipped: bytes | None
    media_type: str
    etag: str


def read_page_file(path: Path) -> PageFile:
    """Return what a file of the page holds.

    :param path: Of the file.
    :raises FileNotFoundError: When there is none.
    """
    content = path.read_bytes()
    zipped = None if path.suffix in _PACKED else gzip.compress(content, mtime=0)
    if zipped is not None and len(zipped) >= len(content):
        zipped = None
    return PageFile(
        content,
        zipped,
        _MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
        f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )


def add_page_routes(app: FastAPI, folder: Path = PAGE) -> None:
    """Serve the page, and at the same path what this is to all but browsers.

    :param app: Gets the routes.
    :param folder: Holds ``index.html`` and ``assets/``.
    """
    files = FileCache(read_page_file)

    async def root(request: Request) -> Response:
        if _accepts(request, "accept", "text/html"):
            file = await asyncio.to_thread(files.get, folder / _INDEX)
            return _answer(request, file, cache=_ASK_EACH_TIME, vary="Accept, Accept-Encoding")
        what = {"name": "finetuner-flow", "version": __version__, "docs": "/docs"}
        return json_response(what, headers={"Vary": "Accept"})

    async def asset(file: str, request: Request) -> Response:
        path = folder / "assets" / file
        if not (_NAME.fullmatch(file) and path.is_file()):
            raise HTTPException(404)
        found = await asyncio.to_thread(files.get, path)
        return _answer(request, found, cache=_FOR_EVER, vary="Accept-Encoding")

    summary = "The page, for a browser; else what this is"
    app.get("/", tags=["service"], summary=summary, responses=_ANSWERS)(root)
    app.get("/assets/{file}", tags=["service"], summary="A file of the page")(asset)
    for path, route in (("/", root), ("/assets/{file}", asset)):
        app.head(path, include_in_schema=False)(route)


def _answer(request: Request, file: PageFile, *, cache: str, vary: str) -> Response:
    headers = {**_STRICT, "Cache-Control": cache, "ETag": file.etag, "Vary": vary}
    if file.etag in _items(request, "if-none-match"):
        return Response(status_code=304, headers=headers)
    content = file.content
    if file.zipped is not None and _accepts(request, "accept-encoding", "gzip"):
        content = file.zipped
        headers["Content-Encoding"] = "gzip"
    headers["Content-Length"] = str(len(content))
    body = b"" if request.method == "HEAD" else content
    return Response(body, headers=headers, media_type=file.media_type)


def _items(request: Request, header: str) -> list[str]:
    """Return what a header lists; `W/` before an ETag says less than is known."""
    return [item.strip().removeprefix("W/") for item in request.headers.get(header, "").split(",")]


def _accepts(request: Request, header: str, what: str) -> bool:
    """Return whether a header names something itself, as browsers do, and not only `*/*`."""
    for item in _items(request, header):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name == what:
            return not any(re.fullmatch(r"q=0(\.0*)?", part) for part in parameters)
    return False

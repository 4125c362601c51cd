"""The few routes of Jina's hub that docarray's own client calls, so that
``DocumentArray.push('quora_train.da')``, ``.pull(…)``, ``cloud_list`` and ``cloud_delete`` work
against this server with ``JINA_HUBBLE_REGISTRY`` pointing here (``finetuner env`` prints that).
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile

from finetuner.datastore import DataStore, summary_of
from finetuner.errors import (
    ConfigError,
    FinetunerError,
    MalformedRequestError,
    TooLargeError,
)
from finetuner.http_messages import note
from finetuner.signed_links import sign
from finetuner.space import Space, full_disk_named

MAX_UPLOAD_BYTES = 4 * 2**30  # docarray's own limit
_MAX_FIELD_BYTES = 2**24
# Beside the documents, which come compressed, lie their texts, which do not.
_STORED_SHARE = 4
_MAX_FIELDS = 20
# Of a form without a file.
_MAX_FORM_BYTES = 2**20


def add_hub_routes(app: FastAPI, space: Space) -> None:
    """Serve stored data the way that docarray asks for them.

    :param app: Gets the routes.
    :param space: The volume, and the room there.
    """
    store = DataStore(space.workspace)
    _add_reading(app, store)
    _add_writing(app, store, space)

    @app.post("/v2/rpc/user.identity.whoami", include_in_schema=False)
    async def whoami(request: Request) -> Response:
        user = dict.fromkeys(("_id", "name", "nickname"), request.state.caller.name)
        return JSONResponse({"code": 200, "data": user})


def _add_reading(app: FastAPI, store: DataStore) -> None:
    @app.get("/v2/rpc/artifact.getDownloadUrl", include_in_schema=False)
    async def download_url(name: str, request: Request) -> Response:
        try:
            store.get(name)
        except FinetunerError as error:
            return _hub_error(error)
        token = request.state.caller.token
        link = f"{request.base_url}data/{quote(name)}"
        link += f"?{sign(f'/data/{name}', token)}" if token else ""
        return JSONResponse({"data": {"download": link}})

    @app.post("/v2/rpc/artifact.list", include_in_schema=False)
    async def list_for_docarray() -> Response:
        entries = [summary_of(entry) for entry in await asyncio.to_thread(store.list)]
        return JSONResponse({"data": entries, "meta": {"total": len(entries)}})


def _add_writing(app: FastAPI, store: DataStore, space: Space) -> None:
    @app.post("/v2/rpc/artifact.upload", include_in_schema=False)
    async def upload(request: Request) -> Response:
        try:
            form = await _form(request, max_bytes=MAX_UPLOAD_BYTES)
            file, name = form.get("file"), form.get("name")
            if not isinstance(file, UploadFile) or not isinstance(name, str):
                raise ConfigError("an upload needs the fields file and name")
            note(request, name=name)
            purpose = f"the upload `{name[:80]}`"
            await asyncio.to_thread(space.require, _STORED_SHARE * (file.size or 0), purpose)
            with full_disk_named(purpose):
                entry = await asyncio.to_thread(store.put, name, file.file)
        except FinetunerError as error:
            return _hub_error(error)
        return JSONResponse({"data": {"_id": entry.name, **asdict(entry)}})

    @app.post("/v2/rpc/artifact.delete", include_in_schema=False)
    async def delete(request: Request) -> Response:
        form = await _form(request, max_bytes=_MAX_FORM_BYTES)
        name = str(form.get("name", form.get("id", "")))
        note(request, name=name)
        try:
            store.delete(name)
        except FinetunerError as error:
            return _hub_error(error)
        return JSONResponse({"data": {}})


def _hub_error(error: FinetunerError) -> Response:
    """Answer in the form whose sentence docarray's client shows."""
    message = str(error)
    content = {"message": message, "readableMessage": message, "error": type(error).__name__}
    return JSONResponse({**content, "detail": message}, status_code=error.http_status)


async def _form(request: Request, *, max_bytes: int) -> FormData:
    # starlette 0.50 bounds neither fields nor parts of the other kind of form, and keeps it in memory.
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        max_bytes = min(max_bytes, _MAX_FORM_BYTES)
    try:
        return await _limited(request, max_bytes).form(
            max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        )
    except FormParserError as exc:
        raise MalformedRequestError(f"the body is no form: {exc}") from exc


def _limited(request: Request, max_bytes: int) -> Request:
    """Return the request with a bound on its body, which may come without a stated length."""
    n_bytes = 0

    async def receive() -> MutableMapping[str, Any]:
        nonlocal n_bytes
        message = await request.receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > max_bytes:
            raise TooLargeError(f"the body is longer than the {max_bytes} bytes that are allowed")
        return message

    return Request(request.scope, receive)

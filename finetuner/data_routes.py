"""The HTTP routes of stored data: list them, store a CSV, fetch and delete."""

from __future__ import annotations

import asyncio
import io
from dataclasses import asdict
from tempfile import SpooledTemporaryFile
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

from finetuner.csv_file import CSVOptions, read_csv
from finetuner.datastore import DataStore, StoredData
from finetuner.errors import ConfigError, DataError, TooLargeError
from finetuner.http_messages import flag, json_response, query
from finetuner.names import check_data_name
from finetuner.openapi import ERROR
from finetuner.pairs import Texts
from finetuner.signed_links import LINK_FIELDS
from finetuner.space import Space, full_disk_named, rows_bytes

CSV_TYPE = "text/csv"
# Read as a whole: a text takes up to four times its bytes in memory, and a short row a hundred times.
MAX_CSV_BYTES = 256 * 2**20
MAX_CSV_ROWS = 1_000_000
# A small body is kept in memory.
_SPOOLED_BYTES = 2**20
# Beside its texts a stored document has ids, tags and the frame of its gzip.
_DOCUMENT_BYTES = 512
_TEXT = {"type": "string"}
_STORED = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "n_documents": {"type": "integer"},
        "size_bytes": {"type": "integer"},
        "created_at": _TEXT,
    },
}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


STORED = _answer("What has the name", _STORED)
ALL_STORED = _answer(
    "Stored data by name",
    {"type": "object", "properties": {"items": {"type": "array", "items": _STORED}}},
)
READ_AS = (
    "A header of known names says what the columns are. Without one, `?is_labeled=true` says that two "
    "columns are text and label, `false` that they are two texts that mean the same; when it is left out, "
    "what stands in them decides, and a first row of other names is passed over."
)
CSV_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            CSV_TYPE: {"schema": _TEXT, "example": "text,label\nHow do I boil an egg?,1\n"}
        },
    }
}


def add_data_routes(app: FastAPI, space: Space) -> None:
    """Serve stored data.

    :param app: Gets the routes.
    :param space: The volume, and the room there.
    """
    store = DataStore(space.workspace)
    _add_reading(app, store)
    _add_changing(app, store, space)


def _add_reading(app: FastAPI, store: DataStore) -> None:
    @app.get("/data", tags=["data"], summary="List stored data", responses={200: ALL_STORED})
    async def list_data(request: Request) -> Response:
        query(request)
        entries = await asyncio.to_thread(store.list)
        return json_response({"items": [asdict(entry) for entry in entries]})

    @app.get(
        "/data/{name:path}",
        tags=["data"],
        summary="The documents, as docarray's `pull` reads them",
        responses={404: ERROR},
    )
    async def documents(name: str, request: Request) -> Response:
        query(request, *LINK_FIELDS)
        return FileResponse(store.documents_path(name), media_type="application/octet-stream")


def _add_changing(app: FastAPI, store: DataStore, space: Space) -> None:
    @app.put(
        "/data/{name:path}",
        status_code=201,
        tags=["data"],
        summary="Store the texts of a CSV in UTF-8, in place of what has the name",
        description=READ_AS,
        openapi_extra=CSV_BODY,
        responses={201: STORED, 413: ERROR, 422: ERROR, 507: ERROR},
    )
    async def put_data(name: str, request: Request) -> Response:
        parameters = query(request, "is_labeled")
        is_labeled = flag(parameters, "is_labeled") if "is_labeled" in parameters else None
        check_data_name(name)
        _check_type(request)
        with SpooledTemporaryFile(_SPOOLED_BYTES) as file:
            await _receive(request, file)
            texts = await asyncio.to_thread(_texts_of, file, is_labeled=is_labeled)
        entry = await asyncio.to_thread(_store, name, texts, store, space)
        return json_response(asdict(entry), 201)

    @app.delete(
        "/data/{name:path}",
        tags=["data"],
        summary="Delete what has the name; runs keep their texts",
        responses={200: STORED, 404: ERROR},
    )
    async def delete_data(name: str, request: Request) -> Response:
        query(request)
        return json_response(asdict(await asyncio.to_thread(store.delete, name)))


def _check_type(request: Request) -> None:
    """Refuse a body that does not say it is a CSV in UTF-8.

    :raises ConfigError: When its Content-Type is another.
    """
    given = request.headers.get("content-type", "")
    kind, *parameters = given.lower().replace(" ", "").split(";")
    charsets = [p.partition("=")[2].strip('"') for p in parameters if p.startswith("charset=")]
    if kind != CSV_TYPE or charsets not in ([], ["utf-8"]):
        raise ConfigError(
            f"the header Content-Type must be {CSV_TYPE}, in UTF-8, got `{given[:80] or 'none'}`"
        )


async def _receive(request: Request, file: SpooledTemporaryFile[bytes]) -> None:
    """Keep a body in a file.

    :raises TooLargeError: When it is longer than a CSV may be.
    """
    n_bytes = 0
    async for chunk in request.stream():
        n_bytes += len(chunk)
        if n_bytes > MAX_CSV_BYTES:
            raise TooLargeError(
                f"the CSV is longer than the {MAX_CSV_BYTES} bytes that are allowed; store it in parts, or "
                "with docarray's `DocumentArray.push`"
            )
        await asyncio.to_thread(file.write, chunk)


def _texts_of(file: SpooledTemporaryFile[bytes], *, is_labeled: bool | None) -> Texts:
    """Read a CSV.

    :raises DataError: When it is no UTF-8, or no CSV of texts.
    """
    file.seek(0)
    try:
        content = io.TextIOWrapper(file, encoding="utf-8", newline="")
        return read_csv(content, CSVOptions(is_labeled=is_labeled), max_rows=MAX_CSV_ROWS)
    except UnicodeDecodeError as exc:
        raise DataError(f"the CSV is no UTF-8: {exc}") from exc


def _store(name: str, texts: Texts, store: DataStore, space: Space) -> StoredData:
    """Store texts.

    :raises InsufficientSpaceError: When the volume has no room for them.
    """
    purpose = f"the upload `{name}`"
    # Its texts lie there twice.
    needed_bytes = 2 * rows_bytes({name: texts}) + _DOCUMENT_BYTES * len(texts)
    space.require(needed_bytes, purpose)
    with full_disk_named(purpose):
        return store.put_texts(name, texts)

"""The HTTP route that searches the texts of a run by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response

from finetuner.encode_routes import Call, asker, encode_row, given_list, given_parameters
from finetuner.http_messages import json_response, query, read_body
from finetuner.openapi import ERROR, SEARCH_BODY, SEARCH_IN_WORK, SEARCH_RESULT, described
from finetuner.wire import pack_request, read_json_document, request_document

_RESPONSES: Mapping[int | str, dict[str, Any]] = {
    200: SEARCH_RESULT,
    202: SEARCH_IN_WORK,
    **dict.fromkeys((400, 404, 409, 413, 422, 429), ERROR),
}


def add_search_routes(app: FastAPI, call: Call) -> None:
    """Serve ``/search``.

    :param app: Gets the route.
    :param call: Asks an executor.
    """

    @app.post(
        "/search",
        tags=["encode"],
        summary="The texts of a run nearest to a query; 202 while their index is made",
        openapi_extra=described(SEARCH_BODY),
        responses=dict(_RESPONSES),
    )
    async def search(request: Request) -> Response:
        query(request)
        body = await read_body(request, ("data", "parameters"))
        texts = [encode_row(row, i)[1] for i, row in enumerate(given_list(body.get("data")))]
        asked = {"client": asker(request), **given_parameters(body)}
        docs = request_document(pack_request(texts, asked))
        answer = read_json_document(await call("/search", docs, {}))
        return json_response(answer, 200 if answer["ready"] else 202)

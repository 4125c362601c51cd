"""The HTTP side of the gateway: JSON that a person can write by hand, answered with true status codes.

Every route but downloads and streams asks an executor, through the same endpoints that gRPC clients
call, so the two cannot give different answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

from finetuner import __version__
from finetuner.alias_routes import add_alias_routes
from finetuner.availability import Availability, DrainingApp
from finetuner.config import DEFAULT_EXPERIMENT
from finetuner.data_routes import add_data_routes
from finetuner.encode_routes import Call, Encode, add_encode_routes, encoding_by
from finetuner.gatekeeper import Gatekeeper
from finetuner.http_access import add_access, add_cors
from finetuner.http_messages import (
    add_error_handlers,
    json_response,
    keyed,
    note,
    query,
    read_body,
)
from finetuner.http_metrics import add_metrics
from finetuner.hub_routes import add_hub_routes
from finetuner.log_tail import Tails
from finetuner.openai_routes import add_openai_routes
from finetuner.openapi import CHECKED, ERROR, FIT_BODY, MAP, RUN, RUN_BEFORE, described
from finetuner.overload import OverloadGate
from finetuner.page_routes import add_page_routes
from finetuner.request_log import add_request_log
from finetuner.run_store import RunStore
from finetuner.search_routes import add_search_routes
from finetuner.space import Space
from finetuner.stream_routes import add_stream_routes
from finetuner.wire import JSON, json_document, read_json_document

_RUN_FIELDS = ("run_name", "experiment_name")


def build_app(
    call: Call,
    workspace: Path,
    availability: Availability | None = None,
    *,
    encode: Encode | None = None,
    quota_bytes: int | None = None,
    gatekeeper: Gatekeeper | None = None,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """Return the application.

    :param call: Sends documents and parameters to an executor's endpoint and gives its documents;
        raises the error that the executor raised.
    :param workspace: The volume, for downloads and stored data.
    :param availability: Shared with the server that serves the application; one of its own when None.
    :param encode: Asks the encoder for vectors; through ``call`` when None.
    :param quota_bytes: What may lie on the volume in all; None for what it holds.
    :param gatekeeper: Shared with the gRPC side; one of its own, for loopback, when None.
    :param cors_origins: Of pages that may read the answers in a browser, such as ``https://a.example.org``.
    :raises ConfigError: When one of them is no origin.
    """
    availability = availability or Availability(call)
    app = FastAPI(
        title="Finetuner, self-hosted",
        version=__version__,
        description="Fine-tune text embedding models, and encode with them.",
        # DELETE /runs/ (a run whose name came out empty) must not become DELETE /runs.
        redirect_slashes=False,
    )
    add_error_handlers(app)
    gate = OverloadGate(encode or encoding_by(call))
    add_access(app, gatekeeper or Gatekeeper(workspace), cors_origins=cors_origins)
    add_metrics(app, call)
    app.add_middleware(DrainingApp, availability=availability)
    add_cors(app, cors_origins)
    add_request_log(app)
    add_page_routes(app)
    _add_health(app, availability)
    add_encode_routes(app, call, gate)
    add_openai_routes(app, call, gate)
    add_search_routes(app, call)
    _add_fit(app, call)
    _add_run_views(app, call)
    add_stream_routes(app, call, workspace, Tails(lambda: availability.is_stopping))
    _add_artifact(app, workspace)
    _add_experiments(app, call)
    add_alias_routes(app, call)
    space = Space(workspace, quota_bytes)
    add_data_routes(app, space)
    add_hub_routes(app, space)
    return app


def _add_health(app: FastAPI, availability: Availability) -> None:
    @app.get("/whoami", tags=["service"], summary="Whom the token names, and what it opens")
    async def whoami(request: Request) -> Response:
        caller = request.state.caller
        return json_response({"name": caller.name, "scopes": sorted(caller.scopes)})

    @app.get("/livez", tags=["service"], summary="Whether the gateway itself answers")
    async def live() -> Response:
        return json_response({"alive": True})

    @app.get(
        "/readyz",
        tags=["service"],
        summary="Whether all parts answer, no model is stuck, and the service is not stopping",
        responses={503: ERROR},
    )
    async def ready() -> Response:
        await availability.check()
        return json_response({"ready": True})


def _add_fit(app: FastAPI, call: Call) -> None:
    @app.post(
        "/fit",
        status_code=201,
        tags=["runs"],
        summary="Start a run",
        openapi_extra=described(FIT_BODY),
        responses={
            **{200: RUN_BEFORE, 201: RUN},
            **dict.fromkeys((400, 404, 409, 413, 422, 507), ERROR),
        },
    )
    async def fit(request: Request) -> Response:
        query(request)
        body = keyed(await read_body(request), request)
        note(request, **{field: body[field] for field in _RUN_FIELDS if field in body})
        record = read_json_document(await call("/fit", json_document(body), {}))
        note(request, run_name=record["name"], experiment_name=record["experiment_name"])
        return json_response(record, 201 if record.pop("is_new") else 200)

    @app.post(
        "/check",
        tags=["runs"],
        summary="What `/fit` would refuse of a request, and what its data hold; nothing is written",
        openapi_extra=described(FIT_BODY),
        responses={200: CHECKED, 400: ERROR, 413: ERROR},
    )
    async def check(request: Request) -> Response:
        query(request)
        body = keyed(await read_body(request), request)
        return json_response(read_json_document(await call("/check", json_document(body), {})))


def _parameters(request: Request, run_name: str, *known: str) -> dict[str, Any]:
    given = query(request, "experiment_name", *known)
    return {"experiment_name": DEFAULT_EXPERIMENT, **given, "run_name": run_name}


def _add_run_views(app: FastAPI, call: Call) -> None:
    @app.get("/runs", tags=["runs"], summary="List runs, `?order=newest` first or oldest")
    async def list_runs(request: Request) -> Response:
        parameters = query(request, "experiment_name", "page", "size", "order")
        return json_response(read_json_document(await call("/runs", None, parameters)))

    @app.delete("/runs", tags=["runs"], summary="Delete all runs of an experiment, or of all")
    async def delete_runs(request: Request) -> Response:
        parameters = query(request, "experiment_name")
        return json_response(read_json_document(await call("/delete", None, parameters)))

    @app.delete("/runs/{run_name}", tags=["runs"], summary="Delete a run", responses={404: ERROR})
    async def delete_run(run_name: str, request: Request) -> Response:
        answer = await call("/delete", None, _parameters(request, run_name))
        return json_response(read_json_document(answer))

    @app.post(
        "/runs/{run_name}/cancel",
        tags=["runs"],
        summary="End a run for good; its log stays",
        responses={404: ERROR, 409: ERROR},
    )
    async def cancel_run(run_name: str, request: Request) -> Response:
        answer = await call("/cancel", None, _parameters(request, run_name))
        return json_response(read_json_document(answer))

    def add_view(path: str, endpoint: str, summary: str) -> None:
        @app.get(
            path, tags=["runs"], summary=summary, name=endpoint, responses={404: ERROR, 409: ERROR}
        )
        async def view(run_name: str, request: Request) -> Response:
            answer = await call(endpoint, None, _parameters(request, run_name))
            return json_response(read_json_document(answer))

    add_view("/runs/{run_name}", "/run", "A run: settings, state, artifact id")
    add_view("/runs/{run_name}/status", "/status", "Its state")
    add_view("/runs/{run_name}/metrics", "/metrics", "Its metrics so far: before, after, by epoch")
    add_view("/runs/{run_name}/examples", "/examples", "Matches of some queries before and after")
    _add_map(app, call)


def _add_map(app: FastAPI, call: Call) -> None:
    @app.get(
        "/runs/{run_name}/map",
        tags=["runs"],
        summary="Where the texts of its evaluations lie for the model, before and after",
        responses={200: MAP, 404: ERROR},
    )
    async def run_map(run_name: str, request: Request) -> Response:
        answer = await call("/map", None, _parameters(request, run_name))
        # As it is: to read and write megabytes again would keep all other requests waiting.
        return Response(answer[0].text, media_type=JSON)


def _add_artifact(app: FastAPI, workspace: Path) -> None:
    @app.get(
        "/runs/{run_name}/artifact",
        tags=["runs"],
        summary="Its artifact, a zip",
        responses={404: ERROR, 409: ERROR},
    )
    async def artifact(run_name: str, request: Request) -> Response:
        parameters = _parameters(request, run_name)
        run = RunStore(workspace).get(run_name, parameters["experiment_name"])
        run.check_finished()
        return FileResponse(
            run.artifact_path, filename=f"{run_name}.zip", media_type="application/zip"
        )


def _add_experiments(app: FastAPI, call: Call) -> None:
    async def ask(request: Request, endpoint: str, **parameters: Any) -> Response:
        query(request)
        return json_response(read_json_document(await call(endpoint, None, parameters)))

    @app.get("/experiments", tags=["experiments"], summary="List experiments")
    async def list_experiments(request: Request) -> Response:
        return await ask(request, "/experiments")

    @app.get("/experiments/{name}", tags=["experiments"], summary="An experiment")
    async def get_experiment(name: str, request: Request) -> Response:
        return await ask(request, "/experiment", experiment_name=name)

    @app.put(
        "/experiments/{name}", tags=["experiments"], summary="Create an experiment, or find it"
    )
    async def create_experiment(name: str, request: Request) -> Response:
        return await ask(request, "/experiment/create", experiment_name=name)

    @app.delete("/experiments/{name}", tags=["experiments"], summary="Delete it and its runs")
    async def delete_experiment(name: str, request: Request) -> Response:
        return await ask(request, "/experiment/delete", experiment_name=name)

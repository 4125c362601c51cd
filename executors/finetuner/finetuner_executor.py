"""FinetunerExecutor: takes fit requests, keeps the queue of runs, and tells how they are."""

import asyncio
from collections.abc import Callable
from typing import Any

from docarray import DocumentArray
from jina import Executor, requests

from finetuner.artifact_store import ArtifactStore, artifact_store_of
from finetuner.config import workspace_dir as resolve_workspace
from finetuner.errors import MalformedRequestError, NotFoundError
from finetuner.files import volume_trouble
from finetuner.hardening import harden_docarray
from finetuner.launcher import LauncherOptions
from finetuner.log_format import set_up_logs
from finetuner.publication import Publication
from finetuner.run_api import RunAPI
from finetuner.schema import read
from finetuner.space import quota_of
from finetuner.supervisor import Supervisor
from finetuner.wire import (
    JSON,
    holds,
    json_document,
    own_parameters,
    read_json_document,
    unknown_arguments,
)


def _endpoint(path: str, method: Callable[[RunAPI, dict[str, Any]], Any]) -> Any:
    """Return an endpoint that answers parameters with one JSON document.

    :param path: Of the endpoint.
    :param method: Makes the JSON value; gives the endpoint its name and docstring.
    """

    async def answer(
        self: "FinetunerExecutor", parameters: dict[str, Any], **_: Any
    ) -> DocumentArray:
        return await self._answer(method, parameters)

    answer.__name__, answer.__doc__ = method.__name__, method.__doc__
    return requests(answer, on=path)


class FinetunerExecutor(Executor):
    """Fine-tunes; each endpoint answers with one document whose text is JSON.

    :param workspace_dir: The volume shared with the gateway and the encoders; when None,
        ``FINETUNER_WORKSPACE``, else the user's data folder.
    :param max_parallel_runs: Runs that train at once on this machine; others wait.
    :param max_interruptions: A run whose worker is gone so often is given up.
    :param hang_timeout_s: A worker that gets on with nothing for so long is ended, and its run goes on.
    :param worker: The module that works on a run, ``python -m WORKER RUN_DIR``; see
        :func:`finetuner.worker.main`.
    :param launcher: ``local``, this machine, or ``ray``, a cluster that has the same volume.
    :param ray_address: ``auto`` or ``HOST:PORT`` of a cluster that this machine is a node of;
        ``ray://HOST:PORT``, Ray's client, where it is none.
    :param ray_n_cpus: Cores for each process of a run there, above 0.
    :param ray_n_gpus: GPUs for each process of a run with ``device='cuda'`` there.
    :param ray_memory_bytes: Memory for each process of a run there; 0 for any.
    :param allow_cpu_fallback: Whether a run that asks for a GPU may train on the CPU, with a warning,
        where there is none; else it is refused.
    :param artifact_store: A URL such as ``s3://bucket/prefix``, where each finished artifact is put too,
        for encoders that do not share the volume; when None, ``FINETUNER_ARTIFACT_STORE``; empty for none.
    :param quota_bytes: What may lie on the volume in all; what would go beyond is refused. When None,
        ``FINETUNER_QUOTA_BYTES``, which the gateway reads too, for uploads; else what the disk holds.
    """

    def __init__(
        self,
        workspace_dir: str | None = None,
        max_parallel_runs: int = 1,
        max_interruptions: int = 5,
        hang_timeout_s: float = 3600.0,
        worker: str = "finetuner.worker",
        launcher: str = "local",
        ray_address: str = "auto",
        ray_n_cpus: float = 1.0,
        ray_n_gpus: float = 1.0,
        ray_memory_bytes: int = 0,
        allow_cpu_fallback: bool = True,
        artifact_store: str | None = None,
        quota_bytes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        set_up_logs()
        harden_docarray()
        unknown_arguments(self, kwargs)
        workspace = resolve_workspace(workspace_dir)
        settings = {
            "launcher": launcher,
            "ray_address": ray_address,
            "ray_n_cpus": ray_n_cpus,
            "ray_n_gpus": ray_n_gpus,
            "ray_memory_bytes": ray_memory_bytes,
        }
        options = read(LauncherOptions, settings, "FinetunerExecutor")
        url = artifact_store_of(artifact_store)
        self._publication = Publication(workspace, ArtifactStore(url)) if url else None
        self._supervisor = Supervisor(
            workspace,
            max_parallel_runs=max_parallel_runs,
            max_interruptions=max_interruptions,
            hang_timeout_s=hang_timeout_s,
            launcher=options.launcher_of(worker),
            quota_bytes=quota_of(quota_bytes),
        )
        self._api = RunAPI(
            workspace,
            self._supervisor,
            allow_cpu_fallback=allow_cpu_fallback or options.gives_gpus,
            quota_bytes=quota_of(quota_bytes),
        )
        self._supervisor.start()
        if self._publication is not None:
            self._publication.start()

    @requests(on="/fit")
    async def fit(self, docs: DocumentArray, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Start a run.

        :param docs: Labelled training documents, or the whole request as one JSON document.
        :param parameters: The fields of ``finetuner.fit``, beside labelled documents.
        """
        return await self._answer(RunAPI.fit, self._request(docs, parameters))

    @requests(on="/check")
    async def check(
        self, docs: DocumentArray, parameters: dict[str, Any], **_: Any
    ) -> DocumentArray:
        """Find what `/fit` would refuse, and start nothing.

        :param docs: As of ``/fit``.
        :param parameters: As of ``/fit``.
        """
        return await self._answer(RunAPI.check, self._request(docs, parameters))

    def _request(self, docs: DocumentArray, parameters: dict[str, Any]) -> dict[str, Any]:
        if not holds(docs, JSON):
            return self._api.request_of(docs, own_parameters(parameters))
        request = read_json_document(docs)
        if not isinstance(request, dict):
            raise MalformedRequestError("the document's text must be a JSON object")
        return request

    async def _answer(
        self, method: Callable[[RunAPI, dict[str, Any]], Any], parameters: dict[str, Any]
    ) -> DocumentArray:
        # In a thread: a slow volume must not stop the health check, which shares this loop.
        parameters = own_parameters(parameters)
        try:
            return json_document(await asyncio.to_thread(method, self._api, parameters))
        except NotFoundError:
            self._api.check_there()  # a volume that has just gone away takes all that is asked for with it
            raise
        except OSError as exc:
            trouble = volume_trouble(exc)
            if trouble is None:
                raise
            raise trouble from exc

    runs = _endpoint("/runs", RunAPI.runs)
    run = _endpoint("/run", RunAPI.run)
    status = _endpoint("/status", RunAPI.status)
    cancel = _endpoint("/cancel", RunAPI.cancel)
    logs = _endpoint("/logs", RunAPI.logs)
    metrics = _endpoint("/metrics", RunAPI.metrics)
    epochs = _endpoint("/epochs", RunAPI.epochs)
    steps = _endpoint("/steps", RunAPI.steps)
    examples = _endpoint("/examples", RunAPI.examples)
    map = _endpoint("/map", RunAPI.map)
    delete = _endpoint("/delete", RunAPI.delete)
    experiments = _endpoint("/experiments", RunAPI.experiments)
    experiment = _endpoint("/experiment", RunAPI.experiment)
    create_experiment = _endpoint("/experiment/create", RunAPI.create_experiment)
    delete_experiment = _endpoint("/experiment/delete", RunAPI.delete_experiment)

    def close(self) -> None:
        """End the workers; their runs go on with the next service."""
        if self._publication is not None:
            self._publication.close()
        self._supervisor.close()
        super().close()

"""FinetunerExecutor: takes fit requests, keeps the queue of runs, and tells how they are."""

import asyncio
from collections.abc import Callable
from typing import Any

from docarray import DocumentArray
from jina import Executor, requests

from finetuner.config import workspace_dir as resolve_workspace
from finetuner.errors import MalformedRequestError
from finetuner.run_api import RunAPI
from finetuner.supervisor import Supervisor
from finetuner.wire import (
    JSON,
    holds,
    json_document,
    own_parameters,
    read_json_document,
    unknown_arguments,
)


class FinetunerExecutor(Executor):
    """Fine-tunes; each endpoint answers with one document whose text is JSON.

    :param workspace_dir: The volume shared with the gateway and the encoders; when None,
        ``FINETUNER_WORKSPACE``, else the user's data folder.
    :param max_parallel_runs: Runs that train at once; others wait.
    :param allow_cpu_fallback: Whether a run that asks for a GPU may train on the CPU, with a warning,
        where there is none; else it is refused.
    """

    def __init__(
        self,
        workspace_dir: str | None = None,
        max_parallel_runs: int = 1,
        allow_cpu_fallback: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        unknown_arguments(self, kwargs)
        workspace = resolve_workspace(workspace_dir)
        self._supervisor = Supervisor(workspace, max_parallel_runs=max_parallel_runs)
        self._api = RunAPI(workspace, self._supervisor, allow_cpu_fallback=allow_cpu_fallback)
        self._supervisor.start()

    @requests(on="/fit")
    async def fit(self, docs: DocumentArray, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Start a run.

        :param docs: Labelled training documents, or the whole request as one JSON document.
        :param parameters: The fields of ``finetuner.fit``, beside labelled documents.
        """
        if holds(docs, JSON):
            request = read_json_document(docs)
            if not isinstance(request, dict):
                raise MalformedRequestError("the document's text must be a JSON object")
        else:
            request = self._api.request_of(docs, own_parameters(parameters))
        return await self._answer(self._api.fit, request)

    async def _answer(
        self, function: Callable[[dict[str, Any]], Any], parameters: dict[str, Any]
    ) -> DocumentArray:
        # In a thread: a slow volume must not stop the health check, which shares this loop.
        return json_document(await asyncio.to_thread(function, own_parameters(parameters)))

    @requests(on="/runs")
    async def runs(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """List runs."""
        return await self._answer(self._api.runs, parameters)

    @requests(on="/run")
    async def run(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Show one run."""
        return await self._answer(self._api.run, parameters)

    @requests(on="/status")
    async def status(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Give a run's state."""
        return await self._answer(self._api.status, parameters)

    @requests(on="/logs")
    async def logs(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Give a run's log from an offset on."""
        return await self._answer(self._api.logs, parameters)

    @requests(on="/metrics")
    async def metrics(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Give a finished run's metrics."""
        return await self._answer(self._api.metrics, parameters)

    @requests(on="/examples")
    async def examples(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Give the matches of some queries before and after."""
        return await self._answer(self._api.examples, parameters)

    @requests(on="/delete")
    async def delete(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Delete one run, the runs of an experiment, or all."""
        return await self._answer(self._api.delete, parameters)

    @requests(on="/experiments")
    async def experiments(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """List experiments."""
        return await self._answer(self._api.experiments, parameters)

    @requests(on="/experiment")
    async def experiment(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Show one experiment."""
        return await self._answer(self._api.experiment, parameters)

    @requests(on="/experiment/create")
    async def create_experiment(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Create an experiment, or find it."""
        return await self._answer(self._api.create_experiment, parameters)

    @requests(on="/experiment/delete")
    async def delete_experiment(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Delete an experiment and its runs."""
        return await self._answer(self._api.delete_experiment, parameters)

    def close(self) -> None:
        """End the workers; their runs start again with the next service."""
        self._supervisor.close()
        super().close()

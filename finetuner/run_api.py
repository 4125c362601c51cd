"""What the FinetunerExecutor answers: each method takes a request's parameters and gives JSON values."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuner.config import RunConfig
from finetuner.errors import (
    ConfigError,
    FinetunerServerError,
    RunInProgressError,
    RunNotFoundError,
    UnavailableError,
)
from finetuner.json_lines import read_page
from finetuner.pairs import read_documents
from finetuner.run_metrics import METRICS_FILE
from finetuner.run_parameters import (
    ExperimentName,
    LinesRequest,
    LogRequest,
    Order,
    RunName,
    RunPage,
)
from finetuner.run_store import RunStore
from finetuner.run_summary import Record, RunRecords
from finetuner.runs import STEPS_FILE, Run
from finetuner.schema import read
from finetuner.space import Space
from finetuner.states import Actor, Status, check_step
from finetuner.supervisor import Supervisor

if TYPE_CHECKING:
    from docarray import DocumentArray

logger = logging.getLogger(__name__)


class RunAPI:
    """Answers requests about runs.

    :param workspace: The volume.
    :param supervisor: Starts and ends workers.
    :param allow_cpu_fallback: Whether a run that asks for a GPU may train on the CPU.
    :param quota_bytes: What may lie on the volume in all; None for what it holds.
    """

    def __init__(
        self,
        workspace: Path,
        supervisor: Supervisor,
        *,
        allow_cpu_fallback: bool = True,
        quota_bytes: int | None = None,
    ) -> None:
        self._space = Space(workspace, quota_bytes)
        self._store = RunStore(workspace)
        self._store.expect()
        self._records = RunRecords()
        self._supervisor = supervisor
        self._allow_cpu_fallback = allow_cpu_fallback
        self._loading, self._is_loaded = threading.Lock(), False
        # What needs no torch is answered meanwhile.
        threading.Thread(target=self._load, name="loading", daemon=True).start()

    def _load(self) -> None:
        """Import what looks at a fit request, which takes seconds, or wait until that is done.

        One thread at a time: where modules import each other, two would see them half made.
        """
        with self._loading:
            if self._is_loaded:
                return
            import finetuner.request_check  # noqa: F401
            from finetuner.training import check_training

            # The first optimizer that a process makes imports a second's worth of torch.
            check_training(RunConfig(model=""))
            self._is_loaded = True

    def request_of(self, docs: DocumentArray, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the fit request of documents with parameters, as gRPC clients send it."""
        if not len(docs):
            return dict(parameters)
        if "train_data" in parameters:
            raise ConfigError("give the training data as documents or as train_data, not both")
        return {**parameters, "train_data": list(read_documents(docs).rows())}

    def fit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Create a run and put it into the queue, or find the one that this request has made before."""
        self._store.check_there()  # or the run would lie where the volume comes back over it
        self._load()
        from finetuner.submission import submit_once

        submitted = submit_once(request, self._space, allow_cpu_fallback=self._allow_cpu_fallback)
        self._supervisor.wake()
        return {**self._record(submitted.run), "is_new": submitted.is_new}

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Find all that a fit request would be refused for, and what its data hold; write nothing."""
        self._store.check_there()
        self._load()
        from finetuner.request_check import check_request

        return check_request(request, self._space, allow_cpu_fallback=self._allow_cpu_fallback)

    def _find(self, parameters: dict[str, Any]) -> Run:
        name = read(RunName, parameters, "parameters")
        return self._store.get(name.run_name, name.experiment_name)

    def runs(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """List runs, oldest first or newest."""
        parameters = {k: str(int(v)) if isinstance(v, float) else v for k, v in parameters.items()}
        request = read(RunPage, parameters, "parameters")
        page, size = request.bounds
        runs = self._store.list(request.experiment_name)
        if request.order is Order.NEWEST:
            runs = runs[::-1]
        shown = runs[(page - 1) * size : page * size]
        return {
            "items": list(self._shown(shown)),
            "total": len(runs),
            "page": page,
            "size": size,
        }

    def run(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Show one run."""
        return self._record(self._find(parameters))

    def _record(self, run: Run) -> Record:
        record = self._records.get(run)
        if Status(record["status"]).is_waiting:
            record["position"] = self._supervisor.position(run)
        if url := run.published_url():
            record["artifact_url"] = url
        return record

    def _shown(self, runs: Iterable[Run]) -> Iterator[Record]:
        for run in runs:
            try:
                yield self._record(run)
            except RunNotFoundError:  # deleted since they were listed
                continue
            except FinetunerServerError as exc:  # the others are shown all the same
                logger.error("%s", exc)

    def status(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give a run's state. Of one that waits, what for."""
        run = self._find(parameters)
        answer = run.state().answer()
        if reason := self._supervisor.waits_for(run):
            answer["details"] += f"; {reason}"
        return dict(answer)

    def cancel(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """End a run for good; what its log and checkpoints hold of it stays until it is deleted.

        :raises ImpossibleStepError: When it has ended otherwise.
        """
        run = self._find(parameters)
        status = run.state().status
        if status is not Status.CANCELLED:
            check_step(status, Status.CANCELLED, Actor.SERVICE)
            self._supervisor.cancel(run)
        return self._record(run)

    def logs(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give a run's log from an offset on, and whether more can come."""
        request = read(LogRequest, parameters, "parameters")
        run = self._store.get(request.run_name, request.experiment_name)
        # The state first: what is written between the two is then in the text, or comes with the next.
        ended = run.has_ended()
        text, offset = run.read_log(request.offset)
        return {"text": text, "offset": offset, "ended": ended}

    def metrics(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give a run's metrics so far."""
        return self._find(parameters).metrics()

    def epochs(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give a run's evaluations from one on."""
        return self._page(parameters, METRICS_FILE)

    def steps(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give a run's steps from one on."""
        return self._page(parameters, STEPS_FILE)

    def _page(self, parameters: dict[str, Any], file_name: str) -> dict[str, Any]:
        request = read(LinesRequest, parameters, "parameters")
        run = self._store.get(request.run_name, request.experiment_name)
        ended = run.has_ended()  # first, as for logs
        items, offset = read_page(run.folder / file_name, request.offset, limit=request.limit)
        return {"items": items, "offset": offset, "ended": ended}

    def examples(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give the matches of some queries before and after."""
        return self._find(parameters).examples()

    def map(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give where the texts of a run's evaluations lie, before and after."""
        return self._find(parameters).map()

    def delete(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Delete one run, the runs of an experiment, or all; give what they were."""
        if "run_name" in parameters:
            runs = [self._find(parameters)]
        else:
            runs = self._store.list(read(RunPage, parameters, "parameters").experiment_name)
        records = list(self._shown(runs))
        for run in runs:
            try:
                self._delete(run)
            except RunNotFoundError:  # another request was quicker, unless the volume went away
                self._check_gone(run)
        return {"items": records}

    def _delete(self, run: Run) -> None:
        if not self._supervisor.cancel(run).status.is_terminal:
            raise RunInProgressError(
                f"run `{run.name}` has a worker on another machine, which ends it within seconds: "
                "delete it again then"
            )
        self._store.delete(run)

    def _check_gone(self, run: Run) -> None:
        """Pass when a run is no more.

        :raises UnavailableError: When the volume is away, or was for a moment and the run is back.
        """
        self.check_there()
        if run.exists():
            raise UnavailableError(
                f"the volume was away for a moment, and run `{run.name}` is still there: delete it again"
            )

    def check_there(self) -> None:
        """Pass unless the volume is away, where nothing can be found.

        :raises UnavailableError: When it is.
        """
        self._store.check_there()

    def experiments(self, _parameters: dict[str, Any]) -> dict[str, Any]:
        """List experiments."""
        self._store.check_there()
        return {"items": self._store.list_experiments()}

    def _experiment_name(self, parameters: dict[str, Any]) -> str:
        self._store.check_there()
        return read(ExperimentName, parameters, "parameters").experiment_name

    def experiment(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Show one experiment."""
        return self._store.get_experiment(self._experiment_name(parameters))

    def create_experiment(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Create an experiment, or find it."""
        name = self._experiment_name(parameters)
        self._store.create_experiment(name)
        return self._store.get_experiment(name)

    def delete_experiment(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Delete an experiment and its runs; give what it was."""
        name = self._experiment_name(parameters)
        experiment = self._store.get_experiment(name)
        self.delete({"experiment_name": name})
        self._store.delete_experiment(name)
        return experiment

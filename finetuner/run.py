"""A run, as its user holds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from finetuner.client import Client, Watch, run_path
from finetuner.errors import RunCancelledError, RunFailedError, RunInProgressError
from finetuner.follow import LONGEST_PAUSE_S, JSONLines, Reader, TextLines, follow

T = TypeVar("T")


class Run:
    """One training run on the server.

    :param client: The server.
    :param record: What the server said of the run.
    """

    def __init__(self, client: Client, record: dict[str, Any]) -> None:
        self._client = client
        self._record = record

    def __repr__(self) -> str:
        return f"Run(name={self.name!r}, experiment_name={self.experiment_name!r})"

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self._record["name"])

    @property
    def experiment_name(self) -> str:
        """The experiment that it belongs to."""
        return str(self._record["experiment_name"])

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings."""
        return dict(self._record["config"])

    @property
    def artifact_id(self) -> str:
        """The id of the run's artifact: 24 hexadecimal digits.

        :raises RunInProgressError: When the run is created or started.
        :raises RunFailedError, RunCancelledError: When it failed, or was cancelled.
        """
        self._check_finished()
        return str(self._record["artifact_id"])

    def _get(self, view: str, **parameters: Any) -> Any:
        path = run_path(self.name, view)
        return self._client.get(path, experiment_name=self.experiment_name, **parameters)

    def _check_finished(self) -> None:
        status = self.status()["status"]
        if status == "FAILED":
            raise RunFailedError(
                "The run failed, please check the `logs` for detailed information."
            )
        if status == "CANCELLED":
            raise RunCancelledError("The run was cancelled; it has no artifact.")
        if status != "FINISHED":
            raise RunInProgressError("The run needs to be finished in order to save the artifact.")

    def cancel(self) -> None:
        """End the run for good; its log stays.

        :raises ImpossibleStepError: When it has ended otherwise.
        """
        self._client.act(run_path(self.name, "/cancel"), experiment_name=self.experiment_name)

    def status(self) -> dict[str, str]:
        """Return ``{'status': …, 'details': …}``: one of :class:`finetuner.states.Status`, and more words."""
        return dict(self._get("/status"))

    def logs(self) -> str:
        """Return the log so far.

        :raises RunPreparingError: When the run has not started.
        """
        return self._client.text(run_path(self.name, "/logs"), experiment_name=self.experiment_name)

    def stream_logs(self, interval: float = LONGEST_PAUSE_S) -> Iterator[str]:
        """Yield the log's lines as they are written, until the run ends; each once.

        It waits for the start, goes on when the server starts again or the run does, and gives up when
        the server has not answered for a minute.

        :param interval: The longest pause between two attempts to reach the server, in seconds.
        :raises UnavailableError: When the server is away for longer.
        :raises RunNotFoundError: When the run was deleted.
        """
        return self._follow("/logs", TextLines(), longest_pause_s=interval)

    def _follow(self, view: str, reader: Reader[T], **options: Any) -> Iterator[T]:
        return follow(
            self._client,
            run_path(self.name, view),
            reader,
            run_id=str(self._record["artifact_id"]),
            experiment_name=self.experiment_name,
            **options,
        )

    def epochs(self) -> list[dict[str, Any]]:
        """Return every evaluation so far: ``{'epoch': …, 'metrics': {…}}``, epoch 0 before training.

        One within an epoch has its ``step`` too; a run without an EvaluationCallback has none.
        """
        return list(self._lines("/epochs"))

    def steps(self, offset: int = 0) -> list[dict[str, Any]]:
        """Return every step so far, with ``loss``, ``active`` and ``learning_rate``.

        :param offset: How many to leave out.
        """
        return list(self._lines("/steps", offset))

    def _lines(self, view: str, offset: int = 0) -> Iterator[dict[str, Any]]:
        while True:
            page = self._get(view, offset=offset)
            yield from page["items"]
            if page["offset"] == offset:
                return
            offset = page["offset"]

    def stream_epochs(self) -> Iterator[dict[str, Any]]:
        """Yield evaluations as they are made, until the run ends. Goes on as :meth:`stream_logs`."""
        return self._follow("/epochs", JSONLines())

    def stream_steps(self, offset: int = 0) -> Iterator[dict[str, Any]]:
        """Yield steps as they are done, until the run ends. Goes on as :meth:`stream_logs`.

        :param offset: How many to leave out.
        """
        return self._follow("/steps", JSONLines(offset))

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics ``{'before': {…}, 'after': {…}}``; empty without an EvaluationCallback.

        :raises RunInProgressError: When the run is created or started; :meth:`epochs` has what is there.
        :raises RunFailedError: When it failed.
        """
        found = self._finished_metrics()
        return {"before": found["before"], "after": found["after"]}

    def _finished_metrics(self) -> dict[str, Any]:
        self._check_finished()
        return dict(self._get("/metrics"))

    def verdicts(self) -> dict[str, Any]:
        """Return whether fine-tuning made the model better, by evaluation (``model`` without a caption).

        :returns: ``outcome`` (improved, unchanged or REGRESSED) and, for each metric judged, its mean
            before and after and the standard error of the difference. Raises as :meth:`metrics`.
        """
        return dict(self._finished_metrics()["verdicts"])

    def example_results(self) -> dict[str, Any]:
        """Return the matches of some queries, ``{'before': …, 'after': …}``, by evaluation.

        Empty unless the EvaluationCallback had ``gather_examples=True``. Raises as :meth:`metrics`.
        """
        return dict(self._get("/examples"))

    def map(self) -> dict[str, Any]:
        """Return where the texts of the evaluations lie for the model, before and after, on a plane.

        :returns: ``{'evaluations': {…}}``, by evaluation (``model`` without a caption): at most 20,000
            ``texts`` with ``labels`` and ``roles``, and by method (``pca``, and ``umap`` where the server
            has it) ``before`` and ``after``, *Shape:* ``(n_shown, 2)``. Empty until there is an evaluation.
        """
        return dict(self._get("/map"))

    def display_metrics(self) -> None:
        """Print the metrics before and after fine-tuning. Raises as :meth:`metrics`."""
        for stage, metrics in self.metrics().items():
            table = Table(
                "Retrieval Metric", "Value", title=f"Retrieval metrics {stage} fine-tuning:"
            )
            for name, value in metrics.items():
                table.add_row(name, f"{value:.5f}")
            Console().print(table)

    def display_examples(self, k: int = 5) -> None:
        """Print the nearest matches of some queries before and after.

        :param k: Matches a query. Raises as :meth:`metrics`.
        """
        for stage, evaluations in self.example_results().items():
            table = Table("Query", "Match", "Same label", title=f"Results {stage} fine-tuning:")
            for examples in evaluations.values():
                for example in examples:
                    for place, match in enumerate(example["results"][:k]):
                        same = "✓" if match["label"] == example["label"] else ""
                        table.add_row(example["query"] if not place else "", match["text"], same)
            Console().print(table)

    def save_artifact(self, directory: str = "artifacts/", *, watch: Watch | None = None) -> str:
        """Download the artifact.

        :param directory: Made when it does not exist.
        :param watch: Called with the bytes got so far and, where that is known, all that will come.
        :returns: The zip's path, which ``finetuner.get_model`` takes.
        :raises RunInProgressError: When the run is created or started.
        :raises RunFailedError: When it failed.
        """
        self._check_finished()
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        destination = folder / f"{self.name}.zip"
        self._client.download(
            run_path(self.name, "/artifact"),
            destination,
            watch=watch,
            experiment_name=self.experiment_name,
        )
        return str(destination)

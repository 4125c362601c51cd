"""An experiment: a named set of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetuner.client import Client, experiment_path, run_path
from finetuner.csv_file import CSVOptions, read_csv
from finetuner.errors import ConfigError
from finetuner.pairs import are_documents, read_documents
from finetuner.run import Run

# What data may be: a stored name, a CSV path or open file, a DocumentArray, or rows.
Data = Any


class Experiment:
    """One experiment on the server.

    :param client: The server.
    :param record: What the server said of the experiment.
    """

    def __init__(self, client: Client, record: dict[str, Any]) -> None:
        self._client = client
        self._record = record

    def __repr__(self) -> str:
        return f"Experiment(name={self.name!r})"

    @property
    def name(self) -> str:
        """Its name."""
        return str(self._record["name"])

    @property
    def status(self) -> str:
        """Its state; there is only ``ACTIVE``."""
        return str(self._record["status"])

    def get_run(self, name: str) -> Run:
        """Return a run.

        :raises RunNotFoundError: When there is none of that name.
        """
        return Run(self._client, self._client.get(run_path(name), experiment_name=self.name))

    def list_runs(self, page: int = 1, size: int = 50) -> list[Run]:
        """Return a page of runs, oldest first.

        :param page: From 1.
        :param size: 1 to 100.
        """
        found = self._client.get("/runs", experiment_name=self.name, page=page, size=size)
        return [Run(self._client, record) for record in found["items"]]

    def delete_run(self, name: str) -> None:
        """Delete a run; one that trains is stopped.

        :raises RunNotFoundError: When there is none of that name.
        """
        self._client.delete(run_path(name), experiment_name=self.name)

    def delete_runs(self) -> None:
        """Delete all runs of the experiment."""
        self._client.delete("/runs", experiment_name=self.name)

    def create_training_run(
        self, model: str, train_data: Data, run_name: str | None = None, **settings: Any
    ) -> Run:
        """Start a run.

        :param settings: The other arguments of ``finetuner.fit``.
        :raises ConfigError, DataError: As ``finetuner.fit``.
        """
        body = self._request(model, train_data, run_name=run_name, **settings)
        return Run(self._client, self._client.post("/fit", body))

    def check_training_run(
        self, model: str, train_data: Data, run_name: str | None = None, **settings: Any
    ) -> dict[str, Any]:
        """Ask what a run would be refused for, and start none.

        :param settings: The other arguments of ``finetuner.fit``.
        :returns: As ``finetuner.check``.
        """
        body = self._request(model, train_data, run_name=run_name, **settings)
        return dict(self._client.post("/check", body))

    def _request(
        self,
        model: str,
        train_data: Data,
        *,
        run_name: str | None,
        eval_data: Data = None,
        csv_options: CSVOptions | None = None,
        callbacks: Sequence[Any] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Return the arguments of ``finetuner.fit`` as they travel."""
        return {
            "model": model,
            "train_data": wire_data(train_data, csv_options),
            "eval_data": None if eval_data is None else wire_data(eval_data, csv_options),
            "run_name": run_name or "",
            "experiment_name": self.name,
            "callbacks": [_wire_callback(callback, csv_options) for callback in callbacks or ()],
            **{name: value for name, value in settings.items() if value is not None},
        }


def wire_data(data: Data, csv_options: CSVOptions | None) -> Any:
    """Return data as they travel: a stored name as it is, anything else as rows.

    :param data: A stored name, a CSV path or open file, a DocumentArray, or rows.
    :param csv_options: How a CSV is read.
    :raises DataError: When a CSV or a DocumentArray cannot be used.
    :raises ConfigError: When it is none of these.
    """
    if are_documents(data):
        return list(read_documents(data).rows())
    if isinstance(data, str) and not Path(data).is_file():
        return data
    if isinstance(data, str | Path) or hasattr(data, "read"):
        return list(read_csv(data, csv_options).rows())
    if isinstance(data, Sequence):
        return [list(row) if isinstance(row, tuple) else row for row in data]
    raise ConfigError(
        "data must be a stored name, a CSV path or file, a DocumentArray, or a list of "
        f"(text, label); got {type(data).__name__}"
    )


def _wire_callback(callback: Any, csv_options: CSVOptions | None) -> dict[str, Any]:
    if not dataclasses.is_dataclass(callback) or isinstance(callback, type):
        raise ConfigError(f"a callback of finetuner.callback is needed, got `{callback!r}`"[:200])
    options = {field.name: getattr(callback, field.name) for field in dataclasses.fields(callback)}
    for name in ("query_data", "index_data"):
        if options.get(name) is not None:
            options[name] = wire_data(options[name], csv_options)
    return {"name": type(callback).__name__, "options": options}


def create_experiment(client: Client, name: str) -> Experiment:
    """Create an experiment, or find it."""
    return Experiment(client, client.put(experiment_path(name)))

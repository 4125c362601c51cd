"""A run's evaluations: the model before training, after each epoch, and what changed in between."""

from __future__ import annotations

import functools
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from finetuner.callback import EvaluationCallback
from finetuner.config import RunConfig
from finetuner.data import read_jsonl
from finetuner.encoder import torch_encoder
from finetuner.evaluation import EvaluationSet, evaluate, skipped_line
from finetuner.files import write_json
from finetuner.json_lines import count_lines, keep_lines
from finetuner.models import LoadedModel
from finetuner.run_map import RunMap
from finetuner.run_metrics import METRICS_FILE, VERDICT_FILE, append_metrics
from finetuner.runs import Run, evaluation_file
from finetuner.verdict import JUDGED_METRICS, Outcome, Verdict, judge

logger = logging.getLogger(__name__)
PerQuery = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


@dataclass
class RunEvaluations:
    """The evaluations that a run's callbacks ask for.

    :param run: Where data are read and results written.
    :param sets: Each callback with its data.
    :param map: Where the texts lie.
    :param examples: By stage and caption, matches of some queries.
    :param before: By caption, the judged metrics of each query of the untuned model.
    :param after: The same after the last evaluation.
    """

    run: Run
    sets: list[tuple[EvaluationCallback, EvaluationSet]]
    map: RunMap
    examples: dict[str, dict[str, Any]] = field(default_factory=lambda: {"before": {}, "after": {}})
    before: dict[str, PerQuery] = field(default_factory=dict)
    after: dict[str, PerQuery] = field(default_factory=dict)

    @classmethod
    def read(cls, run: Run, config: RunConfig) -> RunEvaluations:
        """Read the data of a run's evaluations.

        :param run: The run.
        :param config: Its settings.
        """
        sets = []
        for number, callback in enumerate(config.callbacks_of(EvaluationCallback)):
            folder = run.folder / "data"
            index_path = folder / evaluation_file(number, "index")
            data = EvaluationSet.create(
                read_jsonl(folder / evaluation_file(number, "query")),
                read_jsonl(index_path) if index_path.exists() else None,
                callback=callback,
            )
            if callback.hold_out is not None:
                logger.info(_split_line(callback.hold_out, data, is_same=not index_path.exists()))
            if data.n_skipped:
                logger.warning(skipped_line(data.n_skipped))
            sets.append((callback, data))
        return cls(run, sets, RunMap(run, seed=config.seed))

    def is_due(self, step: int) -> bool:
        """Whether a callback asks for an evaluation after so many batches of an epoch."""
        return any(c.steps_per_interval and step % c.steps_per_interval == 0 for c, _ in self.sets)

    def evaluate(
        self, loaded: LoadedModel, epoch: int, *, step: int | None = None
    ) -> dict[str, float]:
        """Evaluate a model with every callback, and write the metrics down.

        :param loaded: In evaluation mode.
        :param epoch: 0 before training.
        :param step: Batches of the epoch done, within one.
        :returns: The metrics by name, a caption before it where there is one; empty without callbacks.
        """
        encoder = torch_encoder(loaded)
        metrics: dict[str, float] = {}
        for callback, data in self.sets:
            embed = functools.partial(encoder.encode, batch_size=callback.batch_size)
            found = evaluate(embed, data, callback=callback)
            for name, value in found.metrics.items():
                logger.debug("Metric: '%smodel_%s' Value: %.5f", callback.prefix, name, value)
                metrics[callback.prefix + name] = value
            caption = callback.caption or "model"
            judged = {name: found.per_query[name] for name in JUDGED_METRICS}
            (self.after if epoch else self.before)[caption] = judged
            if found.examples:
                self.examples["after" if epoch else "before"][caption] = found.examples
            if step is None:
                self.map.see(caption, data, found, is_before=epoch == 0)
        append_metrics(self.run.folder, epoch, metrics, step=step)
        if step is None:
            self.map.write()
        return metrics

    def conclude(self) -> dict[str, Verdict]:
        """Compare the last evaluation with the first, log what changed, and write it down.

        :returns: A verdict for each callback's caption (``model`` without one); empty when there was no
            evaluation, or no epoch.
        """
        if any(self.examples.values()):
            write_json(self.run.folder / "examples.json", self.examples)
        verdicts = {
            caption: judge(self.before[caption], after) for caption, after in self.after.items()
        }
        for caption, verdict in verdicts.items():
            is_worse = verdict.outcome is Outcome.REGRESSED
            logger.log(
                logging.WARNING if is_worse else logging.INFO, "Verdict (%s): %s", caption, verdict
            )
        if verdicts:
            write_json(
                self.run.folder / VERDICT_FILE,
                {caption: asdict(verdict) for caption, verdict in verdicts.items()},
            )
        return verdicts

    def finish_map(self) -> None:
        """Add to the map what takes long."""
        self.map.conclude({c.caption or "model": c.distance for c, _ in self.sets})

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of it."""
        return {
            "n_metrics": count_lines(self.run.folder / METRICS_FILE),
            "examples": self.examples,
            "before": _to_tensors(self.before),
            "after": _to_tensors(self.after),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave; later lines of the metrics are cut off."""
        keep_lines(self.run.folder / METRICS_FILE, state["n_metrics"])
        self.examples = state["examples"]
        self.before, self.after = _to_arrays(state["before"]), _to_arrays(state["after"])


def _split_line(share: float, data: EvaluationSet, *, is_same: bool) -> str:
    """Return how the training data were split, for the log."""
    n_labels = len(set(data.queries.labels))
    searched = "themselves" if is_same else f"{len(data.index)} others"
    return (
        f"Held out: {len(data.queries)} queries of {n_labels} labels, searched among {searched} "
        f"(hold_out={share:g})"
    )


def _to_tensors(found: dict[str, PerQuery]) -> dict[str, dict[str, torch.Tensor]]:
    return {
        caption: {name: torch.from_numpy(values) for name, values in metrics.items()}
        for caption, metrics in found.items()
    }


def _to_arrays(found: dict[str, dict[str, torch.Tensor]]) -> dict[str, PerQuery]:
    return {
        caption: {name: values.numpy() for name, values in metrics.items()}
        for caption, metrics in found.items()
    }

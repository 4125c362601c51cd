"""What a run's evaluations gave: each metric before training and after each epoch, and what changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from finetuner.files import read_json
from finetuner.json_lines import read_page
from finetuner.verdict import WORST_FIRST, Outcome

METRICS_FILE = "metrics.jsonl"
VERDICT_FILE = "verdict.json"
_SHOWN_METRIC = "average_precision"


def append_metrics(
    folder: Path, epoch: int, metrics: dict[str, float], *, step: int | None = None
) -> None:
    """Add one evaluation to ``metrics.jsonl``.

    :param folder: The run's.
    :param epoch: 0 is before training.
    :param metrics: By name.
    :param step: Batches of the epoch done, where it is evaluated within one.
    """
    with (folder / METRICS_FILE).open("ab") as file:
        line = {"epoch": epoch, **({} if step is None else {"step": step}), "metrics": metrics}
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        os.fsync(file.fileno())


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return ``{"before", "after", "epochs", "verdicts"}``; empty ones without evaluation."""
    verdicts = folder / VERDICT_FILE
    lines, _ = read_page(folder / METRICS_FILE)
    return {
        "before": next((line["metrics"] for line in lines if line["epoch"] == 0), {}),
        "after": lines[-1]["metrics"] if lines and lines[-1]["epoch"] > 0 else {},
        "epochs": lines,
        "verdicts": dict(read_json(verdicts)) if verdicts.exists() else {},
    }


def summarise_metric(folder: Path) -> dict[str, Any] | None:
    """Return what a list of runs shows of the metrics: the average precision of the first evaluation.

    :param folder: The run's.
    :returns: ``{"name", "before", "after", "best", "best_epoch"}``; after the newest epoch, the best of the
        epochs, and that of the untuned model until there is one. None when nothing is evaluated yet, or
        the file is damaged.
    """
    lines, _ = read_page(folder / METRICS_FILE)
    try:
        # The callbacks' metrics stand one after the other; a caption goes before the name.
        key = next(name for name in lines[0]["metrics"] if name.endswith(_SHOWN_METRIC))
        values = [(line["metrics"][key], line["epoch"]) for line in lines]
        before = next(value for value, epoch in values if epoch == 0)
        tuned = [(value, epoch) for value, epoch in values if epoch > 0]
        best, best_epoch = max(tuned, key=lambda found: found[0], default=(before, 0))
    except (IndexError, KeyError, StopIteration, TypeError):
        return None
    return {
        "name": _SHOWN_METRIC,
        "before": before,
        "after": tuned[-1][0] if tuned else before,
        "best": best,
        "best_epoch": best_epoch,
    }


def worst_outcome(folder: Path) -> str | None:
    """Return the worst verdict of a run's evaluations; None when there is none, or the file is damaged.

    :param folder: The run's.
    """
    try:
        outcomes = {
            Outcome(found["outcome"]) for found in read_json(folder / VERDICT_FILE).values()
        }
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return next((one.value for one in WORST_FIRST if one in outcomes), None)

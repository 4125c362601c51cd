"""Runs, their metrics and what can be served, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetuner.named_run import shown_name

_BAR_LENGTH = 12
_COLOURS = {
    **{"FINISHED": "green", "STARTED": "cyan", "FAILED": "red", "INTERRUPTED": "yellow"},
    **{"improved": "green", "unchanged": "yellow", "REGRESSED": "red"},
}
_HOUR_S, _MINUTE_S = 3600, 60
_NONE = "-"


def coloured(word: str) -> str:
    """Return a state or a verdict as markup."""
    colour = _COLOURS.get(word)
    return f"[{colour}]{escape(word)}[/{colour}]" if colour else escape(word)


def duration(seconds: float) -> str:
    """Return a time as ``h:mm:ss``, or ``m:ss`` below an hour.

    :param seconds: At least 0.
    """
    whole = round(seconds)
    hours, minutes = whole // _HOUR_S, whole % _HOUR_S // _MINUTE_S
    rest = f"{whole % _MINUTE_S:02d}"
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"


def share_done(progress: Mapping[str, Any]) -> float:
    """Return which part of its steps a run has done, 0 to 1."""
    n_steps = progress.get("n_steps_total") or 0
    return min(1.0, (progress.get("n_steps_done") or 0) / n_steps) if n_steps else 0.0


def runs_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table of runs, one line each.

    :param records: As ``GET /runs`` has them; a server may leave progress, metric and verdict out.
    """
    table = Table("run", "state", "progress", "ETA", "metric", "verdict")
    for record in records:
        progress = record.get("progress") or {}
        eta_s = progress.get("eta_s")
        table.add_row(
            escape(shown_name(record["name"], record["experiment_name"])),
            coloured(record["status"]),
            _progress_cell(record, progress),
            _NONE if eta_s is None else duration(eta_s),
            _metric_cell(record.get("metric")),
            coloured(record.get("verdict") or _NONE),
        )
    return table


def _progress_cell(record: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    if progress:
        share = share_done(progress)
        n_full = int(share * _BAR_LENGTH)
        return f"{'█' * n_full}{'░' * (_BAR_LENGTH - n_full)} {share:4.0%}"
    if (position := record.get("position")) is not None:
        return f"{position}. in the queue"
    return ""


def _metric_cell(metric: Mapping[str, Any] | None) -> str:
    if not metric:
        return _NONE
    before, best = _number(metric.get("before")), _number(metric.get("best"))
    return f"{escape(metric['name'])} {before} → {best}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.5f}"


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Return the metrics before, in the best epoch, and after; of the best its epoch too.

    :param metrics: As ``GET /runs/{name}/metrics`` gives them, with at least one evaluation.
    """
    table = Table("metric", "before", "best (epoch)", "after", "change")
    epochs = [line for line in metrics["epochs"] if line["epoch"] > 0]
    for name, before in metrics["before"].items():
        found = [(line["metrics"][name], line["epoch"]) for line in epochs]
        # Of equal ones the first: what came later was no better.
        best = max(found, key=lambda pair: pair[0], default=None)
        after = metrics["after"].get(name)
        table.add_row(
            escape(name),
            _number(before),
            _NONE if best is None else f"{best[0]:.5f} ({best[1]})",
            _number(after),
            _NONE if after is None else f"{after - before:+.5f}",
        )
    return table


def epochs_table(epochs: Sequence[Mapping[str, Any]]) -> Table:
    """Return every evaluation of a run: a line each, a column a metric.

    :param epochs: As ``GET /runs/{name}/metrics`` has them, at least one.
    """
    names = list(epochs[0]["metrics"])
    table = Table("epoch", *map(escape, names))
    for line in epochs:
        step = f", step {line['step']}" if "step" in line else ""
        table.add_row(
            f"{line['epoch']}{step}", *(_number(line["metrics"].get(name)) for name in names)
        )
    return table


def models_table(models: Iterable[Mapping[str, Any]]) -> Table:
    """Return what can be served, one line each.

    :param models: As ``GET /models`` has them.
    """
    table = Table("name", "kind", "loaded", "dim", "artifact id")
    for model in models:
        table.add_row(
            escape(model["id"]),
            model["kind"],
            "yes" if model["is_loaded"] else "",
            str(model["dim"] or _NONE),
            model["artifact_id"],
        )
    return table


def show_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    """Print what a run has come to: its verdicts, and its metrics before and after.

    :param console: Where to.
    :param metrics: As ``GET /runs/{name}/metrics`` gives them.
    """
    if not metrics["before"]:
        console.print("The run was not evaluated: give fit --hold-out 0.2 or --eval-query.")
        return
    for caption, verdict in metrics["verdicts"].items():
        console.print(f"{escape(caption)}: {coloured(verdict['outcome'])}{_grounds(verdict)}")
    console.print(metrics_table(metrics))


def _grounds(verdict: Mapping[str, Any]) -> str:
    """Return what a verdict rests on, a line each; less of one that an earlier version wrote."""
    n_queries = verdict.get("n_queries")
    over = (
        ""
        if n_queries is None
        else f", over {n_queries:,} {'query' if n_queries == 1 else 'queries'}"
    )
    figures = (
        f"\n  {name.replace('_', ' ')} {change['after'] - change['before']:+.4f}, "
        f"standard error {change['standard_error']:.4f}"
        for name, change in (verdict.get("changes") or {}).items()
    )
    return over + escape("".join(figures))

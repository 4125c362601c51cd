"""What must be true of every run when the storm of chaos.py is over."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from itertools import pairwise

from chaos_ledger import Ledger, Plan
from workers.chaos_worker import (
    EVENTS_FILE,
    RESULT_FILE,
    Kind,
    final_hash,
    read_lines,
)

from finetuner.errors import RunNotFoundError, RunPreparingError
from finetuner.run_store import RunStore
from finetuner.runs import STEPS_FILE, Run
from finetuner.states import STEPS, State, Status

_POSSIBLE = {(step.before, step.after) for step in STEPS}
# The only causes for which a run of ours may fail.
_CAUSES = {Kind.FAIL: "ValueError: made to fail", Kind.MEMORY: "Out of memory"}


def check_runs(store: RunStore, ledger: Ledger, torn: set[str]) -> Iterator[str]:
    """Yield what is wrong with the runs that clients were promised, each with the run's name.

    :param store: The volume's runs.
    :param ledger: What was promised.
    :param torn: Runs of which a checkpoint was damaged.
    """
    for name, planned in ledger.accepted.items():
        try:
            run = store.get(name)
            history = run.history()
        except RunNotFoundError:
            if name not in ledger.asked_to_delete:
                yield f"{name}: was promised, and is not there"
            continue
        if name in ledger.deleted:
            yield f"{name}: was deleted, and is there"
        problems = [
            *_check_end(planned, history[-1], ledger),
            *_check_history(history),
            *_check_work(run, planned, history[-1], is_torn=name in torn),
            *_check_log(run, ledger.followed.get(name, "")),
        ]
        yield from (f"{name}: {problem}" for problem in problems)


def _check_end(planned: Plan, end: State, ledger: Ledger) -> Iterator[str]:
    possible = {Status.FAILED if planned.kind in _CAUSES else Status.FINISHED}
    if planned.name in ledger.asked_to_cancel | ledger.asked_to_delete:
        possible.add(Status.CANCELLED)
    if planned.name in ledger.cancelled:
        possible = {Status.CANCELLED}
    if end.status not in possible:
        yield f"is {end.status}, not {' or '.join(sorted(possible))}: {end.details}"
    elif end.status is Status.FAILED and not end.details.startswith(_CAUSES[planned.kind]):
        yield f"failed by no fault of its own: {end.details}"
    elif not end.details:
        yield "its state has no cause"


def _check_history(history: list[State]) -> Iterator[str]:
    if history[0].status is not Status.CREATED:
        yield f"began as {history[0].status}"
    for before, after in pairwise(history):
        if (before.status, after.status) not in _POSSIBLE:
            yield f"went from {before.status} to {after.status}"
        if after.at < before.at:
            yield f"step {after.number} is older than the one before"
        if after.n_starts != before.n_starts + (after.status is Status.STARTED):
            yield f"step {after.number} counts {after.n_starts} starts after {before.n_starts}"


def _check_work(run: Run, planned: Plan, end: State, *, is_torn: bool) -> Iterator[str]:
    steps = read_lines(run.folder / STEPS_FILE)
    is_real = planned.kind is Kind.REAL
    done = [(step.get("epoch", 1), step["step"]) for step in steps]
    # A real run has one batch an epoch.
    count = range(1, len(done) + 1)
    if done != [(number, 1) if is_real else (1, number) for number in count]:
        yield f"steps missing, twice or out of order: {done}"
    yield from _check_resumes(read_lines(run.folder / EVENTS_FILE), is_torn=is_torn)
    if end.status is Status.FINISHED:
        if len(done) != planned.n_steps:
            yield f"finished after {len(done)} of {planned.n_steps} steps"
        if not is_real:
            yield from _check_result(run, planned)


def _check_result(run: Run, planned: Plan) -> Iterator[str]:
    try:
        with zipfile.ZipFile(run.artifact_path) as archive:
            found = archive.read(f"{run.name}/{RESULT_FILE}").decode()
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        yield f"finished without a whole artifact: {exc!r}"
    else:
        if found != final_hash(run.name, planned.n_steps):
            yield "came to another hash than a run without interruptions"


def _check_resumes(events: list[dict[str, int]], *, is_torn: bool) -> Iterator[str]:
    saved = [0]
    for event in events:
        if "saved" in event:
            saved.append(event["saved"])
        elif is_torn:
            if event["begun_at"] not in saved and event["begun_at"] < max(saved):
                yield f"began at step {event['begun_at']}, where no checkpoint was"
        elif event["begun_at"] < saved[-1]:
            yield f"began at step {event['begun_at']}, with a checkpoint of step {saved[-1]}"


def _check_log(run: Run, followed: str) -> Iterator[str]:
    try:
        text, _ = run.read_log()
    except RunPreparingError:
        text = ""
    if not text.startswith(followed):
        yield "a client that followed the log was told what is not in it"


def n_resumes(store: RunStore) -> tuple[int, int]:
    """Return how often a run went on from a checkpoint, and how often one was begun."""
    starts = [
        event["begun_at"]
        for run in store.list()
        for event in read_lines(run.folder / EVENTS_FILE)
        if "begun_at" in event
    ]
    return sum(step > 0 for step in starts), len(starts)

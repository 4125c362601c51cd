"""A worker for chaos.py whose work can be checked: a chain of hashes, with checkpoints as training has them.

The run's description says what it should do, ``KIND`` or ``KIND:STEP``; the number of steps is ``epochs``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

import orjson
from rich.console import Console

from finetuner import worker
from finetuner.artifact import Manifest, pack
from finetuner.errors import NotFoundError
from finetuner.exits import Exit
from finetuner.files import sync_file, write_json
from finetuner.json_lines import count_lines, keep_lines
from finetuner.lock import hold
from finetuner.runs import CHECKPOINTS, STEPS_FILE, Run
from finetuner.stopping import StopSignal

EVENTS_FILE = "events.jsonl"
RESULT_FILE = "chain.txt"
TWO_AT_ONCE = "two workers at once"
_STEP_S = 0.05
_SAVE_EVERY = 5
_N_KEPT = 2


class Kind(StrEnum):
    """What a run does."""

    PLAIN = "plain"
    FAIL = "fail"
    MEMORY = "memory"
    HANG = "hang"
    REAL = "real"
    """Training itself, by finetuner.worker."""


def kind_of(description: str) -> tuple[Kind, int]:
    """Return what a run does, and the step at which it does it."""
    kind, _, step = description.partition(":")
    return Kind(kind), int(step or 0)


def final_hash(name: str, n_steps: int) -> str:
    """Return what the chain of a run must come to, however often it was interrupted."""
    state = name
    for step in range(1, n_steps + 1):
        state = _next(state, step)
    return state


def _next(state: str, step: int) -> str:
    return hashlib.sha256(f"{state} {step}".encode()).hexdigest()


def read_lines(path: Path) -> list[dict[str, int]]:
    """Return the whole lines of a file; what a full disk has torn is left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return found


def _note(run: Run, **values: int) -> None:
    """Note an event, for good."""
    with (run.folder / EVENTS_FILE).open("ab") as file:
        # The newline first: what was torn before stays a line of its own.
        file.write(b"\n" + orjson.dumps(values))
        file.flush()
        os.fsync(file.fileno())


def _add_step(run: Run, step: int, n_starts: int) -> None:
    with (run.folder / STEPS_FILE).open("ab") as file:
        file.write(orjson.dumps({"step": step, "n_starts": n_starts}) + b"\n")


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run's folder, the newest last."""
    return sorted((folder / CHECKPOINTS).glob("step-*.pt"))


def _save(run: Run, step: int, state: str) -> None:
    folder = run.folder / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    steps = run.folder / STEPS_FILE
    sync_file(steps)
    content = {"step": step, "state": state, "n_lines": count_lines(steps)}
    digest = hashlib.sha256(repr(content).encode()).hexdigest()
    write_json(folder / f"step-{step:09}.pt", {**content, "digest": digest})
    _note(run, saved=step)
    for old in checkpoints(run.folder)[:-_N_KEPT]:
        old.unlink()


def _newest(run: Run) -> tuple[int, str]:
    """Return step and state of the newest whole checkpoint; torn ones are removed."""
    for path in reversed(checkpoints(run.folder)):
        try:
            content = orjson.loads(path.read_bytes())
            digest = content.pop("digest")
            is_whole = digest == hashlib.sha256(repr(content).encode()).hexdigest()
        except (ValueError, KeyError, AttributeError):
            is_whole = False
        if is_whole:
            keep_lines(run.folder / STEPS_FILE, content["n_lines"])
            return content["step"], content["state"]
        path.unlink()
    keep_lines(run.folder / STEPS_FILE, 0)
    return 0, run.name


def _disturb(run: Run, step: int, n_starts: int) -> None:
    kind, at = kind_of(str(run.spec()["description"]))
    if step != at:
        return
    if kind is Kind.FAIL:
        raise ValueError("made to fail")
    if kind is Kind.MEMORY:
        raise MemoryError("made to want memory")
    while kind is Kind.HANG and n_starts == 1:
        time.sleep(1)


def work(run: Run, console: Console, stop: StopSignal, say: worker.Say) -> str:
    """Go through the chain, and publish what it comes to."""
    with hold(run.folder / "at-work.lock") as is_alone:
        if not is_alone:
            raise RuntimeError(TWO_AT_ONCE)
        n_starts = run.state().n_starts
        with stop.deferred():
            begun_at, state = _newest(run)
            _note(run, begun_at=begun_at)
            console.print(f"start {n_starts} from step {begun_at}")
            for step in _steps(range(begun_at + 1, run.config().epochs + 1), stop):
                _disturb(run, step, n_starts)
                state = _next(state, step)
                _add_step(run, step, n_starts)
                say(f"step {step}")
                if step % _SAVE_EVERY == 0 or stop.is_set():
                    _save(run, step, state)
                    console.print(f"saved step {step}")
        sync_file(run.folder / STEPS_FILE)
        _publish(run, state)
    return "Run finished"


def _steps(numbers: Iterable[int], stop: StopSignal) -> Iterable[int]:
    for number in numbers:
        if stop.is_set():
            return
        yield number
        time.sleep(_STEP_S)


def _publish(run: Run, state: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / RESULT_FILE).write_text(state)
        manifest = Manifest(
            run_name=run.name,
            model="none",
            dim=1,
            pooler="mean",
            normalize=True,
            max_length=1,
            input_names=(),
            metrics={},
            has_onnx=False,
            created_at="",
        )
        pack(Path(folder), run.artifact_path, manifest=manifest)


def main(run_dir: str) -> int:
    """Work on one run and return the exit code."""
    try:
        kind, _ = kind_of(str(Run(Path(run_dir)).spec()["description"]))
    except (NotFoundError, OSError):  # the volume is away
        return Exit.VOLUME
    return worker.main(run_dir, None if kind is Kind.REAL else work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""One training run: ``python -m finetuner.worker RUN_DIR``.

The run's folder lies at ``{workspace}/runs/{experiment}/{run_name}`` and holds all that is needed. The
worker claims the run, says by heartbeats that it lives, and writes the state that the run ends in. It ends
itself when its claim has passed to another, as after a pause that was taken for its death.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from finetuner.errors import ConflictError, NotFoundError, RunNotFoundError
from finetuner.exits import Exit
from finetuner.files import is_volume_error
from finetuner.heartbeat import Heartbeat, Say
from finetuner.runs import CANCELLED, HEARTBEAT_FILE, STOPPED, Run
from finetuner.states import Actor, State, Status
from finetuner.stopping import Stopped, StopSignal
from finetuner.worklog import open_log

logger = logging.getLogger("finetuner.worker")  # __name__ is __main__ here

Work = Callable[[Run, Console, StopSignal, Say], str]


class _OtherLost(Exception):
    """Another process of the run is gone; this one can neither go on nor say that the run has failed."""


_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")
# For the first process, which claims the run before it loads what takes seconds.
_CLAIM_TIMEOUT_S = 30.0
_MEMORY_ADVICE = "take a smaller batch_size, gradient_cache_size or gradient_checkpointing"


def main(run_dir: str, work: Work | None = None) -> int:
    """Work on one run and return the exit code.

    Started several times by ``torchrun``, the processes train together: the first does all that is said
    here, the others only compute.

    :param run_dir: The run's folder.
    :param work: Does the work and returns the details of the end state; training when None.
    """
    run = Run(Path(run_dir).resolve())
    if os.environ.get("RANK", "0") != "0":
        return _follow(run)
    stop = StopSignal()
    signal.signal(signal.SIGTERM, stop)
    # Ctrl-C in a terminal reaches the whole group; the service says what it means for a run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        claim = run.claim()
    except (ConflictError, NotFoundError) as exc:
        logger.info("nothing to do: %s", exc)
        return Exit.TAKEN
    except OSError as exc:
        logger.error("cannot claim the run: %s", exc)
        return Exit.VOLUME
    return _hold(run, claim, stop, work or _train)


def _hold(run: Run, claim: State, stop: StopSignal, work: Work) -> int:
    def look() -> None:
        """See whether the run is still this process's and wanted; called by the heartbeat."""
        try:
            is_held = run.holds(claim)
        except RunNotFoundError:
            is_held = False
        if not is_held:
            # Whatever it would write now would go between the lines of another.
            os._exit(Exit.TAKEN)
        if run.is_to_be_cancelled() and not stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        look()
        with open_log(run.folder / "log.txt") as console:
            with Heartbeat(run.folder / HEARTBEAT_FILE, claim.number, look=look) as heartbeat:
                status, details, code = _outcome(
                    run, console, stop, lambda: work(run, console, stop, heartbeat.say)
                )
            # Behind the last heartbeat, which would take this step for another's.
            run.step(claim, status, details, actor=Actor.WORKER, **_counts(claim, code))
    except (ConflictError, NotFoundError, _OtherLost) as exc:
        return Exit.LOST if isinstance(exc, _OtherLost) else Exit.TAKEN
    except OSError:
        logger.exception("cannot write how the run ended")
        return Exit.VOLUME
    if status in (Status.FINISHED, Status.CANCELLED):
        run.clean_up()
    return code


def _counts(claim: State, code: int) -> dict[str, int]:
    return {"n_interruptions": claim.n_interruptions + 1} if code == Exit.VOLUME else {}


def _outcome(
    run: Run, console: Console, stop: StopSignal, work: Callable[[], str]
) -> tuple[Status, str, int]:
    """Do the work; return what the run comes to by that, for people why, and the exit code."""
    try:
        with stop.raising():
            details = work()
        return Status.FINISHED, details, Exit.FINISHED
    except Stopped:
        if run.is_to_be_cancelled():
            logger.info("Cancelled")
            return Status.CANCELLED, CANCELLED, Exit.STOPPED
        return Status.INTERRUPTED, STOPPED, Exit.STOPPED
    except Exception as exc:
        if (volume_error := _volume_error(exc, run)) is not None:
            cause = _sentence(volume_error)
            logger.error("The volume cannot be written: %s", cause)
            details = f"The volume cannot be written ({cause}); the run goes on when it can"
            return Status.INTERRUPTED, details, Exit.VOLUME
        cause = _sentence(exc)
        if _is_of_other_process(exc):
            logger.error("Another process of the run is gone: %s", cause)
            raise _OtherLost from exc
        if _is_out_of_memory(exc):
            cause = f"Out of memory: {_MEMORY_ADVICE} ({cause})"
        logger.error("The run failed: %s", cause)
        console.print(traceback.format_exc(), markup=False, highlight=False)
        return Status.FAILED, cause, Exit.FAILED


def _sentence(error: BaseException) -> str:
    said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return f"{said}, on `{socket.gethostname()}`" if isinstance(error, ImportError) else said


def _volume_error(error: BaseException, run: Run) -> BaseException | None:
    """Return what the volume said, when an error comes of that; None for any other error."""
    if isinstance(error, RunNotFoundError) or _has_vanished(error, run):
        return error
    found: BaseException | None = error
    while found is not None:
        rust = _RUST_OS_ERROR.search(str(found))  # safetensors and tokenizers
        if is_volume_error(OSError(int(rust[1]), "") if rust else found):
            return found
        # Torch raises an error of its own while it closes the file that could not be written.
        found = found.__cause__ or found.__context__
    return None


def _has_vanished(error: BaseException, run: Run) -> bool:
    """Whether the run's folder was away; its data stay away when somebody has removed them alone."""
    if not isinstance(error, FileNotFoundError):
        return False
    missing = Path(os.fsdecode(error.filename or ""))
    if missing.is_relative_to(run.folder / "data"):
        return missing.exists() or not run.exists()
    return missing.is_relative_to(run.folder)


def _is_out_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError is of a GPU; on a CPU torch raises a bare RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


def _is_of_other_process(error: Exception) -> bool:
    # Of NCCL it is a torch.distributed.DistError; gloo raises a bare RuntimeError.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return os.environ.get("WORLD_SIZE", "1") != "1" and (
        "DistError" in kinds or "gloo" in str(error)
    )


def _train(run: Run, console: Console, stop: StopSignal, say: Say) -> str:
    # Torch takes seconds to import; the run is claimed before that. Nothing of it is garbage, and looking for
    # that takes a tenth of the time.
    gc.disable()
    from finetuner.job import Job

    gc.freeze()
    gc.enable()
    return Job(run, console, stop, say).work()


def _follow(run: Run) -> int:
    # The first process says when to stop; one that left alone would leave it waiting.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from finetuner.job import Job

        Job(run, Console(stderr=True), StopSignal(), lambda *_: None).follow()
    except ImportError as exc:
        return _fail_for_all(run, _sentence(exc))
    return Exit.FINISHED


def _fail_for_all(run: Run, cause: str) -> int:
    """End a run that this process can never work on: without it, the first would wait, and begin again."""
    logger.error("The run failed: %s", cause)
    deadline = time.monotonic() + _CLAIM_TIMEOUT_S
    with suppress(ConflictError, NotFoundError):
        while (state := run.state()).status.is_waiting and time.monotonic() < deadline:
            time.sleep(0.1)
        run.step(state, Status.FAILED, cause, actor=Actor.WORKER)
    return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

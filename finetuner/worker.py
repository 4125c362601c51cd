"""One training run: ``python -m finetuner.worker RUN_DIR``.

The run's folder lies at ``{workspace}/runs/{experiment}/{run_name}`` and holds all that is needed.
Exit codes: 0 finished, 1 failed with the cause in state and log, 75 stopped and to be started again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from pathlib import Path

from rich.console import Console

from finetuner.runs import EXIT_STOPPED, STOPPED, Run, Status
from finetuner.stopping import Stopped, StopSignal
from finetuner.worklog import open_log

logger = logging.getLogger("finetuner.worker")  # __name__ is __main__ here


def main(run_dir: str) -> int:
    """Train one run and return the exit code.

    Started several times by ``torchrun``, the processes train together: the first does all that is said
    here, the others only compute.

    :param run_dir: The run's folder.
    """
    run = Run(Path(run_dir).resolve())
    if os.environ.get("RANK", "0") != "0":
        return _follow(run)
    stop = StopSignal()
    with run.locked(), open_log(run.folder / "log.txt") as console:
        signal.signal(signal.SIGTERM, stop)
        # Ctrl-C in a terminal reaches the whole group; the service says what it means for a run.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            run.set_state(Status.STARTED, "Loading the model", n_starts=run.state().n_starts + 1)
            # Torch takes seconds to import; the lock is held and the state is STARTED before that.
            from finetuner.job import Job

            job = Job(run, console, stop)
            details = job.work()
            # The artifact is there; a signal from now on must not make the run begin again.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        except Stopped:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            run.set_state(Status.CREATED, STOPPED)
            return EXIT_STOPPED
        except Exception as exc:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            cause = f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"
            logger.error("The run failed: %s", cause)
            console.print(traceback.format_exc(), markup=False, highlight=False)
            run.set_state(Status.FAILED, cause)
            return 1
        run.set_state(Status.FINISHED, details)
        job.clean_up()
        return 0


def _follow(run: Run) -> int:
    # The first process says when to stop; one that left alone would leave it waiting.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from finetuner.job import Job

    Job(run, Console(stderr=True), StopSignal()).follow()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

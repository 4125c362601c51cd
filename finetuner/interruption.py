"""What becomes of a run whose worker is gone without having written the state that it left the run in."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from finetuner.exits import Exit
from finetuner.runs import CANCELLED, STOPPED, Run
from finetuner.silence import Silence
from finetuner.states import State, Status

Outcome = tuple[Status | None, str, int]


@dataclass(frozen=True)
class Interruption:
    """How a worker ended.

    :param cause: For people.
    :param is_own_fault: Whether it ended by an error; one that it could write down is in the state.
    :param is_asked_for: Whether the service ended it; that is not counted.
    :param is_of_volume: Whether the volume is to blame.
    :param is_of_cluster: Whether a cluster, or a node of it, is to blame.
    """

    cause: str
    is_own_fault: bool = False
    is_asked_for: bool = False
    is_of_volume: bool = False
    is_of_cluster: bool = False

    def outcome(self, run: Run, state: State, max_interruptions: int) -> Outcome:
        """Return what a run comes to, for people why, and its count of interruptions; None for no step.

        :param run: The run.
        :param state: Where it is, as its worker left it.
        :param max_interruptions: After so many it is given up.
        """
        n = state.n_interruptions + (not self.is_asked_for)
        if run.is_to_be_cancelled():
            return Status.CANCELLED, CANCELLED, state.n_interruptions
        if state.status.is_waiting:  # the worker was gone before it had claimed the run
            is_hopeless = self.is_own_fault
            return (Status.FAILED if is_hopeless else None), self.cause, state.n_interruptions
        if n >= max_interruptions:
            return Status.FAILED, f"{self.cause}; interrupted {n} times, the run is given up", n
        if self.is_asked_for:
            return Status.INTERRUPTED, STOPPED, n
        how = "goes on from its last checkpoint" if run.has_checkpoint() else "starts again"
        return Status.INTERRUPTED, f"{self.cause}; it {how}", n


def of_exit(code: int | None, n_kernel_kills: int = 0) -> Interruption:
    """Return how a worker ended that is gone.

    :param code: Its exit code; None when it was another service's.
    :param n_kernel_kills: Processes that the kernel has ended for want of memory in its time.
    """
    known: dict[int | None, Interruption] = {
        None: Interruption("The worker was gone, perhaps with its machine"),
        Exit.LOST: Interruption("A node of the worker was lost", is_of_cluster=True),
        Exit.UNAVAILABLE: Interruption(
            "The cluster did not take the run; see worker.txt", is_of_cluster=True
        ),
        Exit.FINISHED: Interruption("The worker left without a word"),
        Exit.STOPPED: Interruption(STOPPED, is_asked_for=True),
        Exit.TAKEN: Interruption("The worker took the run for another's"),
        Exit.VOLUME: Interruption("The volume could not be written", is_of_volume=True),
    }
    if code in known:
        return known[code]
    if code is not None and code < 0:
        reason = ""
        if -code == signal.SIGKILL:
            reason = " for want of memory" if n_kernel_kills > 0 else " (by hand, or out of memory)"
        return Interruption(f"The worker was ended by {_signal_name(-code)}{reason}")
    return Interruption(
        f"The worker ended with exit code {code}; see worker.txt", is_own_fault=True
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time ones have none
        return f"signal {number}"


def of_silence(silence: Silence, expiry_s: float, hang_timeout_s: float) -> Interruption | None:
    """Return how a worker ends that is silent for too long, or None.

    :param silence: What is known of it.
    :param expiry_s: For how long it may give no sign of life.
    :param hang_timeout_s: For how long it may give no sign of progress.
    """
    if silence.beat_s > expiry_s:
        return Interruption(f"The worker gave no sign of life for {silence.beat_s:.0f} s")
    if silence.said_s > hang_timeout_s:
        return Interruption(
            f"The worker got on with nothing for {silence.said_s:.0f} s and was ended"
        )
    return None


def n_kernel_kills() -> int:
    """Return how many processes the kernel has ended for want of memory since the machine's start."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

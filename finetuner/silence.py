"""For how long a worker has not been heard of, by this process's own clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from finetuner.heartbeat import Beat
from finetuner.runs import Run
from finetuner.states import State


@dataclass(frozen=True)
class Silence:
    """How long it is that a worker gave a sign.

    :param beat_s: Of life, in seconds.
    :param said_s: Of progress, in seconds.
    """

    beat_s: float
    said_s: float


@dataclass
class _Heard:
    beat: Beat
    beat_at: float
    said_at: float


class SilenceWatch:
    """Remembers when each worker was last heard of; clocks of other machines are not asked."""

    def __init__(self) -> None:
        self._heard: dict[Path, _Heard] = {}

    def look(self, run: Run, claim: State) -> Silence:
        """Return how long the worker of a run has been silent.

        :param run: The run.
        :param claim: Its state, STARTED.
        """
        now = time.monotonic()
        heard = self._heard.get(run.folder)
        if heard is None or heard.beat.number != claim.number:
            heard = self._heard[run.folder] = _Heard(Beat(claim.number), now, now)
        # One that cannot be read says nothing, neither now nor when it can be read again.
        beat = run.beat(claim) or heard.beat
        if beat.n_beats != heard.beat.n_beats:
            heard.beat_at = now
        if beat.n_said != heard.beat.n_said:
            heard.said_at = now
        heard.beat = beat
        return Silence(now - heard.beat_at, now - heard.said_at)

    def forget_all_but(self, folders: set[Path]) -> None:
        """Keep what is known of some runs only."""
        self._heard = {folder: heard for folder, heard in self._heard.items() if folder in folders}

"""When chaos.py does what to the service: faults chosen by a seed, and undone when their time is over."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
from chaos_ledger import Weather
from chaos_service import Part, Service, workers_of
from chaos_volume import Kind, Volume

# A worker that is struck again and again before it has started gets nowhere, and no other does.
_RESPITE_S = 15.0
# A part that dies five times in a minute ends the service, as it should.
_PART_RESPITE_S = 16.0
# Of the time; the rest is for faults that need a service.
_RESTART_SHARE = 0.25


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    :param name: For people.
    :param weight: How often it is chosen, beside the others.
    :param do: Does it; None when it is not possible now.
    :param needs: The volumes that can have it.
    :param is_of_volume: One of these is at work at a time.
    :param is_long: Whether it takes longer than a short test has.
    :param is_restart: Whether the service has to be started again after it.
    """

    name: str
    weight: int
    do: Callable[[Storm], str | None]
    needs: frozenset[Kind] = frozenset(Kind)
    is_of_volume: bool = False
    is_long: bool = False
    is_restart: bool = False


class Storm:
    """Does faults, and undoes them when their time is over.

    :param service: What suffers.
    :param second: Another service on the same volume, started now and then.
    :param volume: The volume.
    :param faults: What may be done.
    :param seed: Of the choice of faults.
    :param is_short: Leaves the faults out that take long.
    """

    def __init__(
        self,
        service: Service,
        second: Service,
        volume: Volume,
        *,
        faults: Sequence[Fault],
        seed: int,
        is_short: bool,
    ) -> None:
        self.service, self.second, self.volume = service, second, volume
        self.generator = random.Random(seed)
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        self.history: list[str] = []
        self.torn: set[str] = set()
        self.broken: list[str] = []
        self._started_at = time.monotonic()
        self._restarting_s = 0.0
        self._struck_at: dict[str, float] = {}
        self.on_power_cut: Callable[[], None] = lambda: None
        self._undos: list[tuple[float, int, str, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._faults = [
            fault
            for fault in faults
            if volume.kind in fault.needs and not (is_short and fault.is_long)
        ]

    def strike(self) -> str:
        """Do one fault, and say which."""
        while True:
            fault = self.generator.choices(self._faults, [f.weight for f in self._faults])[0]
            if fault.is_of_volume and self.is_volume_ill():
                continue
            if fault.is_restart and self._restarting_s > _RESTART_SHARE * self._passed_s():
                continue
            what = fault.do(self)
            if what is not None:
                break
            self.rest(0.2)
        self.counts[fault.name] += 1
        self.note(f"{fault.name} {what}".strip())
        return self.history[-1]

    def note(self, what: str) -> None:
        """Add a line to the history."""
        self.history.append(f"{self._passed_s():6.1f} s  {what}")

    def _passed_s(self) -> float:
        return time.monotonic() - self._started_at

    def is_volume_ill(self) -> bool:
        """Whether a fault of the volume is at work."""
        return any(
            name in self.weather.faults for name in ("disk full", "read-only", "volume gone")
        )

    def last(self, name: str, seconds: float, undo: Callable[[], None]) -> None:
        """Let a fault be at work for a time.

        :param name: Of the fault.
        :param seconds: Until it is undone.
        :param undo: Undoes it.
        """
        self.weather.faults.append(name)
        entry = (time.monotonic() + seconds, next(self._numbers), name, undo)
        heapq.heappush(self._undos, entry)

    def rest(self, seconds: float) -> None:
        """Wait; undo what is due, and start the service again if it has ended."""
        until = time.monotonic() + seconds
        while True:
            while self._undos and self._undos[0][0] < time.monotonic():
                self._undo_first()
            if not self.service.is_running:
                self.restart()
            if time.monotonic() >= until:
                return
            time.sleep(0.1)

    def heal(self) -> None:
        """Undo all that is at work."""
        while self._undos:
            self._undo_first()

    def _undo_first(self) -> None:
        _, _, name, undo = heapq.heappop(self._undos)
        undo()
        self.weather.faults.remove(name)
        self.note(f"({name} is over)")

    def restart(self) -> None:
        """Start the service on a volume that is well."""
        began_at = time.monotonic()
        self.heal()
        self.service.kill()
        self.service.start()
        self.service.wait_until_ready()
        self._restarting_s += time.monotonic() - began_at
        self.note("(the service is ready)")

    def kill_part(self, part: Part) -> str | None:
        """Kill one part of the service, when it is there and has had some time in peace."""
        process, now = self.service.part(part), time.monotonic()
        if process is None or now - self._struck_at.get(part, 0.0) < _PART_RESPITE_S:
            return None
        self._struck_at[part] = now
        with suppress(psutil.Error):
            process.kill()
        return ""

    def some_worker(self) -> tuple[str, psutil.Process] | None:
        """Return one of the workers, with its run's name, that has had some time in peace."""
        now = time.monotonic()
        workers = [
            (name, process)
            for name, process in sorted(workers_of(self.volume.path).items())
            if now - self._struck_at.get(name, 0.0) > _RESPITE_S
        ]
        if not workers:
            return None
        name, process = self.generator.choice(workers)
        self._struck_at[name] = now
        return name, process

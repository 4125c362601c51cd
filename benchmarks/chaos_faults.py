"""What chaos.py does to the service, as a table: each fault with its weight, and what undoes it."""

from __future__ import annotations

import heapq
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil
from chaos_clients import Weather
from chaos_service import Part, Service, workers_of
from chaos_volume import Kind, Volume
from workers.chaos_worker import checkpoints

from finetuner.holder import EXPIRY_S

_EXIT_TIMEOUT_S = 60.0
# A worker that is struck again and again before it has started gets nowhere, and no other does.
_RESPITE_S = 15.0
# A part that dies five times in a minute ends the service, as it should.
_PART_RESPITE_S = 16.0
# Of the time; the rest is for faults that need a service.
_RESTART_SHARE = 0.25


class Storm:
    """Does faults, and undoes them when their time is over.

    :param service: What suffers.
    :param second: Another service on the same volume, started now and then.
    :param volume: The volume.
    :param seed: Of the choice of faults.
    :param is_short: Leaves the faults out that take long.
    """

    def __init__(
        self, service: Service, second: Service, volume: Volume, *, seed: int, is_short: bool
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
            for fault in FAULTS
            if volume.kind in fault.needs and not (is_short and fault.is_long)
        ]

    def strike(self) -> str:
        """Do one fault, and say which."""
        while True:
            fault = self.generator.choices(self._faults, [f.weight for f in self._faults])[0]
            if fault.is_of_volume and self._is_volume_ill():
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

    def _is_volume_ill(self) -> bool:
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


def _kill_worker(storm: Storm) -> str | None:
    if (found := storm.some_worker()) is None:
        return None
    name, process = found
    with suppress(psutil.Error):
        process.kill()
    return f"of {name}"


def _freeze_worker(storm: Storm, seconds: float) -> str | None:
    if (found := storm.some_worker()) is None:
        return None
    name, process = found
    return _freeze(storm, process, seconds) and f"of {name} for {seconds:.0f} s"


def _freeze(storm: Storm, process: psutil.Process | None, seconds: float) -> str | None:
    if process is None:
        return None

    def resume() -> None:
        with suppress(psutil.Error):
            process.resume()

    try:
        process.suspend()
    except psutil.Error:
        return None
    storm.last("a process is frozen", seconds, resume)
    return f"for {seconds:.0f} s"


def _kill_gateway(storm: Storm) -> str | None:
    if storm.kill_part(Part.GATEWAY) is None:
        return None
    until = time.monotonic() + _EXIT_TIMEOUT_S
    while storm.service.is_running:  # it ends itself, with an error
        if time.monotonic() > until:
            storm.broken.append("the service did not end when its gateway had died")
            break
        time.sleep(0.1)
    storm.restart()
    return ""


def _kill_all(storm: Storm) -> str:
    storm.service.kill()
    storm.restart()
    return ""


def _stop(storm: Storm) -> str:
    storm.heal()
    code = storm.service.stop()
    if code != 0:
        storm.broken.append(f"SIGTERM ended the service with {code}")
    storm.restart()
    return ""


def _fill(storm: Storm) -> str:
    storm.volume.fill()
    seconds = storm.generator.uniform(2, 8)
    storm.last("disk full", seconds, storm.volume.free)
    return f"for {seconds:.0f} s"


def _make_read_only(storm: Storm) -> str:
    seconds = storm.generator.uniform(2, 8)
    storm.volume.make_read_only()
    storm.last("read-only", seconds, storm.volume.uncover)
    return f"for {seconds:.0f} s"


def _take_away(storm: Storm) -> str:
    seconds = storm.generator.uniform(2, 8)

    def bring_back() -> None:
        storm.volume.uncover()
        storm.weather.is_volume_away = False

    storm.weather.is_volume_away = True
    storm.volume.take_away()
    storm.last("volume gone", seconds, bring_back)
    return f"for {seconds:.0f} s"


def _cut_power(storm: Storm) -> str:
    storm.heal()
    storm.weather.is_volume_away = True
    storm.weather.n_power_cuts += 1
    storm.on_power_cut()
    storm.volume.cut_power()
    storm.service.kill()
    storm.second.kill()
    storm.volume.mount_again()
    storm.weather.is_volume_away = False
    storm.restart()
    return ""


def _tear(storm: Storm) -> str | None:
    if (found := storm.some_worker()) is None or storm._is_volume_ill():
        return None
    name, process = found
    paths = checkpoints(storm.volume.path / "runs" / "default" / name)
    if not paths:
        return None
    with suppress(psutil.Error, FileNotFoundError):
        process.suspend()  # or the next checkpoint would take the place of the torn one
        storm.torn.add(name)
        os.truncate(paths[-1], paths[-1].stat().st_size // 2)
        process.send_signal(signal.SIGKILL)
    return f"of {name}, {paths[-1].name}"


def _start_second(storm: Storm) -> str | None:
    if storm.second.is_running or storm._is_volume_ill():
        return None
    storm.second.start()
    seconds = storm.generator.uniform(15, 40)
    storm.last("a second service", seconds, storm.second.kill)
    return f"for {seconds:.0f} s"


_ALL = frozenset(Kind)
_MOUNTED = frozenset((Kind.EXT4, Kind.TMPFS))


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
    needs: frozenset[Kind] = _ALL
    is_of_volume: bool = False
    is_long: bool = False
    is_restart: bool = False


FAULTS = (
    Fault("SIGKILL of a worker", 30, _kill_worker),
    Fault("freeze of a worker", 12, lambda s: _freeze_worker(s, s.generator.uniform(1, 5))),
    Fault(
        "freeze until it counts as gone",
        1,
        lambda s: _freeze_worker(s, EXPIRY_S + 15),
        is_long=True,
    ),
    Fault("torn checkpoint", 10, _tear),
    Fault("SIGKILL of the FinetunerExecutor", 6, lambda s: s.kill_part(Part.FINETUNER)),
    Fault(
        "freeze of the FinetunerExecutor",
        4,
        lambda s: _freeze(s, s.service.part(Part.FINETUNER), s.generator.uniform(1, 6)),
    ),
    Fault("SIGKILL of the encoder", 3, lambda s: s.kill_part(Part.ENCODER)),
    Fault("SIGKILL of the gateway", 2, _kill_gateway, is_restart=True),
    Fault("SIGKILL of all", 3, _kill_all, is_restart=True),
    Fault("SIGTERM and restart", 3, _stop, is_restart=True),
    Fault("second service", 3, _start_second),
    Fault("disk full", 9, _fill, _MOUNTED, is_of_volume=True),
    Fault("read-only", 8, _make_read_only, _MOUNTED, is_of_volume=True),
    Fault("volume gone", 6, _take_away, _MOUNTED, is_of_volume=True),
    Fault("power cut", 3, _cut_power, frozenset((Kind.EXT4,)), is_of_volume=True, is_restart=True),
)

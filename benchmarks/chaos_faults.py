"""What chaos.py does to the service, as a table: each fault with its weight, and what undoes it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil
from chaos_service import Part
from chaos_storm import Fault, Storm
from chaos_volume import Kind
from workers.chaos_worker import checkpoints

from finetuner.holder import EXPIRY_S

_EXIT_TIMEOUT_S = 60.0
_MOUNTED = frozenset((Kind.EXT4, Kind.TMPFS))


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
    if (found := storm.some_worker()) is None or storm.is_volume_ill():
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
    if storm.second.is_running or storm.is_volume_ill():
        return None
    storm.second.start()
    seconds = storm.generator.uniform(15, 40)
    storm.last("a second service", seconds, storm.second.kill)
    return f"for {seconds:.0f} s"


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

"""Torment the service at random, by a seed, and check that it keeps what it promises.

    python benchmarks/chaos.py [--seed 0] [--faults 200] [--runs 20] [--seconds 900]

The real service runs over a small file system of its own. Its workers and parts are killed and frozen, its
disk is filled, made read-only, taken away and cut off, checkpoints are torn, and a second service comes and
goes, while clients submit, cancel, delete, list and follow. Then all must be as it was promised: the README
beside this file says what. The last line on the standard output is a summary as JSON; the exit code is 1 when
a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from chaos_checks import check_runs, n_resumes
from chaos_clients import Clients
from chaos_faults import FAULTS
from chaos_ledger import Ledger
from chaos_service import Service, processes_over
from chaos_storm import Storm
from chaos_volume import Volume, enter_own_mounts
from rich.console import Console
from rich.table import Table
from tiny_model import make_tiny_model

from finetuner.run_store import RunStore

# What is left of the time is for the runs to end.
_STORM_SHARE = 0.85
_SHORT_S = 300
# A run that the volume kept from being written waits for a minute at most before it goes on.
_PATIENCE_S = 150
console = Console(stderr=True, highlight=False, width=200)


@dataclass(frozen=True)
class Settings:
    """What is asked for on the command line."""

    seed: int
    faults: int
    runs: int
    seconds: float

    @property
    def is_short(self) -> bool:
        """Whether there is no time for what takes long."""
        return self.seconds < _SHORT_S


def read_settings() -> Settings:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--runs", type=int, default=20, help="at least so many")
    parser.add_argument("--seconds", type=float, default=900, help="at most, about")
    return Settings(**vars(parser.parse_args()))


@contextmanager
def stage(settings: Settings) -> Iterator[tuple[Storm, Clients]]:
    """Give a running service with its clients; nothing of them is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        scratch = Path(name)
        volume = Volume(scratch)
        console.print(f"volume: {volume.kind}; {scratch}")
        make_tiny_model(volume.path / "models" / "tiny")
        arguments = {
            "worker": "chaos_worker",
            "max_parallel_runs": 2,
            "max_interruptions": 1_000_000,
            "hang_timeout_s": 60.0,
        }
        service, second = (
            Service(volume.path, scratch, flow=flow, arguments=arguments)
            for flow in ("all.yml", "train.yml")
        )
        storm = Storm(
            service,
            second,
            volume,
            faults=FAULTS,
            seed=settings.seed,
            is_short=settings.is_short,
        )
        clients = Clients(
            service.url,
            volume.path,
            seed=settings.seed,
            is_short=settings.is_short,
            weather=storm.weather,
        )
        storm.on_power_cut = clients.ledger.followed.clear
        try:
            storm.restart()
            yield storm, clients
        finally:
            storm.heal()
            service.kill()
            second.kill()
            volume.close()


def rage(storm: Storm, clients: Clients, settings: Settings) -> None:
    """Do all faults, as fast as the time wants it."""
    began_at = time.monotonic()
    until = began_at + settings.seconds * _STORM_SHARE
    n_told, striking_s = 0, 0.0
    for number in range(1, settings.faults + 1):
        left_s = until - time.monotonic()
        if left_s <= 0:
            break
        # Of its share of the time a fault itself takes some.
        share_s = left_s / (settings.faults - number + 1)
        pause_s = max(0.0, share_s - striking_s / number)
        storm.rest(pause_s * storm.generator.uniform(0.2, 1.4))
        struck_at = time.monotonic()
        what = storm.strike()
        striking_s += time.monotonic() - struck_at
        passed_s = time.monotonic() - began_at
        eta_s = min(passed_s / number * (settings.faults - number), until - time.monotonic())
        console.print(
            f"[{number:3}/{settings.faults}] {what}   "
            f"{len(clients.ledger.accepted)} runs, {len(clients.ledger.ended)} ended, "
            f"{max(eta_s, 0):.0f} s to go"
        )
        broken = [*storm.broken, *clients.ledger.broken]
        for problem in broken[n_told:]:
            console.print(problem, style="red", markup=False)
        n_told = len(broken)


def settle(storm: Storm, clients: Clients, settings: Settings, until: float) -> None:
    """Let all runs end: there is as much time as was meant for it, and as a run may pause for."""
    storm.heal()
    left_s = max(_PATIENCE_S, settings.seconds * (1 - _STORM_SHARE))
    until = max(until, time.monotonic() + left_s)
    while time.monotonic() < until:
        storm.rest(1)
        if len(clients.ledger.accepted) >= settings.runs:
            clients.submitting.clear()
            if not clients.ledger.unfinished():
                break
    clients.stop()


def check_end(storm: Storm, clients: Clients) -> list[str]:
    """Stop the service; return every promise that was broken."""
    ledger = clients.ledger
    code = storm.service.stop()
    if code != 0:
        storm.broken.append(f"SIGTERM ended the service with {code}")
    scratch = storm.service.temporary.parent
    # Python's resource tracker ends a moment after the process that it has tracked.
    _, left = psutil.wait_procs(processes_over(scratch), timeout=10)
    storm.broken += [f"a process is left: {p.pid} {p.cmdline()}" for p in left]
    storm.broken += [f"port {port} is still open" for port in storm.service.listening_ports()]
    store = RunStore(storm.volume.path)
    return [*storm.broken, *ledger.broken, *check_runs(store, ledger, storm.torn)]


def leftovers(volume: Volume) -> list[str]:
    """Return the temporary files on the volume, which nobody needs any more."""
    found = volume.path.glob("runs/**/.*")
    return sorted(str(path.relative_to(volume.path)) for path in found)


def report(storm: Storm, ledger: Ledger, broken: list[str], settings: Settings) -> None:
    """Print what was done and what came of it."""
    store = RunStore(storm.volume.path)
    resumed, started = n_resumes(store)
    table = Table("fault", "times", title=f"Chaos, seed {settings.seed}")
    for name, count in storm.counts.most_common():
        table.add_row(name, str(count))
    console.print(table)
    summary = {
        **asdict(settings),
        "volume": storm.volume.kind.name,
        "n_faults": storm.counts.total(),
        "n_runs": len(ledger.accepted),
        "n_cancelled": len(ledger.cancelled),
        "n_deleted": len(ledger.deleted),
        "n_starts": started,
        "n_resumes": resumed,
        "n_artifacts_seen": ledger.n_artifacts_seen,
        "n_leftovers": len(leftovers(storm.volume)),
        "n_broken": len(broken),
    }
    for name, value in (summary | dict(sorted(ledger.answers.items()))).items():
        console.print(f"  {name}: {value}")
    if broken:
        _report_broken(storm, store, broken, settings)
    print(json.dumps({**summary, "answers": ledger.answers, "faults": storm.counts}))


def _report_broken(storm: Storm, store: RunStore, broken: list[str], settings: Settings) -> None:
    console.print("\n".join(["", "Faults:", *storm.history]), markup=False)
    for name in sorted({problem.partition(":")[0] for problem in broken}):
        folder = storm.volume.path / "runs" / "default" / name
        if not folder.is_dir() or not name.startswith("r-"):
            continue
        console.print(f"\n{name}:", markup=False)
        for state in store.get(name).history():
            line = f"  {state.at} {state.status} {state.details} (starts {state.n_starts})"
            console.print(line, markup=False)
        for file in (folder / "log.txt", folder / "worker.txt"):
            if file.exists():
                console.print(file.read_text(errors="replace")[-2000:], markup=False)
    kept = Path(tempfile.mkdtemp(prefix="chaos-kept-"))
    shutil.copytree(storm.volume.path / "runs", kept / "runs", dirs_exist_ok=True)
    shutil.copy(storm.service.log, kept)
    console.print(f"\nBROKEN, with seed {settings.seed} (volume and log kept in {kept}):")
    console.print("\n".join(broken), markup=False)


def main() -> int:
    """Run the storm; return the exit code."""
    enter_own_mounts()
    settings = read_settings()
    with stage(settings) as (storm, clients):
        until = time.monotonic() + settings.seconds
        clients.start()
        rage(storm, clients, settings)
        settle(storm, clients, settings, until)
        broken = check_end(storm, clients)
        report(storm, clients.ledger, broken, settings)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

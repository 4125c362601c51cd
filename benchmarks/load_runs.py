"""Queue many runs at once over HTTP, and list them all the while.

    python benchmarks/load_runs.py [--runs 1000] [--on-disk 10000] [--parallel 3]

Eight clients submit runs whose worker does nothing but begin and end; another lists `/runs` all the time. All
must end, and each must have been begun once. After that, `/runs` is asked with many more on disk. A row on
the standard output as JSON; the exit code is 1 when a history is not CREATED, STARTED, FINISHED,
or a listing was refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import orjson
import requests
from chaos_service import Part, Service
from measurement import Row, machine, report
from tiny_model import ROWS, make_tiny_model

from finetuner.config import RunConfig
from finetuner.run_store import RunStore
from finetuner.states import State, Status

_N_CLIENTS = 8
_N_LISTS = 40
_END_TIMEOUT_S = 3600.0
_HISTORY = [Status.CREATED, Status.STARTED, Status.FINISHED]
COLUMNS = {
    "n_runs": "runs",
    "submissions_per_s": "submitted / s",
    "ends_per_s": "ended / s",
    "n_lists": "lists",
    "list_p50_ms": "`/runs` p50 ms",
    "list_p99_ms": "p99 ms",
    "executor_cpu_s": "executor CPU s",
    "n_on_disk": "runs on disk",
    "full_list_p50_ms": "`/runs` p50 ms",
    "full_list_p99_ms": "p99 ms",
}


class Lister(threading.Thread):
    """Asks for the newest page of runs, again and again.

    :param url: The service's.
    :param n_lists: So often; until it is stopped when None.
    """

    def __init__(self, url: str, n_lists: int | None = None) -> None:
        super().__init__(daemon=True)
        self._url, self._n_lists = url, n_lists
        self._stopped = threading.Event()
        self.latencies_s: list[float] = []
        self.statuses: list[int] = []

    def run(self) -> None:
        """Ask."""
        with requests.Session() as session:
            while not self._stopped.is_set() and len(self.latencies_s) != self._n_lists:
                began_at = time.perf_counter()
                answer = session.get(f"{self._url}/runs", timeout=120)
                self.latencies_s.append(time.perf_counter() - began_at)
                self.statuses.append(answer.status_code)

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        self.join()

    def percentile_ms(self, share: float) -> float:
        """Return how long the slowest answer of a share took."""
        latencies = sorted(self.latencies_s)
        return round(1e3 * latencies[min(int(len(latencies) * share), len(latencies) - 1)], 1)


def write_ended_runs(volume: Path, n_runs: int) -> None:
    """Put runs that have ended on a volume: the files that a listing reads, and not more."""
    experiment = volume / "runs" / "default"
    for number in range(n_runs):
        name = f"old-{number:06}"
        folder = experiment / name / "states"
        folder.mkdir(parents=True)
        config = asdict(RunConfig(model="tiny", run_name=name, train_data="24 rows"))
        spec = {
            "artifact_id": f"{number:024x}",
            "created_at": f"2026-01-01T00:00:00.{number:06}+00:00",
            "description": None,
            "config": config,
        }
        (folder.parent / "spec.json").write_bytes(orjson.dumps(spec))
        for place, status in enumerate(_HISTORY):
            content = asdict(State(status, "Run finished"))
            del content["number"]
            (folder / f"{place:06}.json").write_bytes(orjson.dumps(content))


def submit(url: str, names: list[str]) -> int:
    """Submit runs one after the other; return how many were refused."""
    n_refused = 0
    with requests.Session() as session:
        for name in names:
            body = {"model": "tiny", "train_data": ROWS, "run_name": name, "device": "cpu"}
            n_refused += session.post(f"{url}/fit", json=body, timeout=120).status_code != 201
    return n_refused


def wait_for_ends(store: RunStore, names: list[str]) -> None:
    """Wait until all runs have ended, and say how many have."""
    waiting = set(names)
    deadline = time.monotonic() + _END_TIMEOUT_S
    while waiting and time.monotonic() < deadline:
        ended = {name for name in waiting if store.get(name).state().status.is_terminal}
        waiting -= ended
        print(f"\r{len(names) - len(waiting)} of {len(names)} have ended ", end="", file=sys.stderr)
        time.sleep(2)
    print(file=sys.stderr)


def load(service: Service, n_runs: int) -> Row:
    """Submit runs, wait for their ends, and return the figures."""
    names = [f"r-{number:05}" for number in range(n_runs)]
    executor = service.part(Part.FINETUNER)
    assert executor is not None
    lister = Lister(service.url)
    lister.start()
    began_at = time.monotonic()
    with ThreadPoolExecutor(_N_CLIENTS) as pool:
        parts = [names[number::_N_CLIENTS] for number in range(_N_CLIENTS)]
        n_refused = sum(pool.map(lambda part: submit(service.url, part), parts))
    submitted_s = time.monotonic() - began_at
    store = RunStore(service.volume)
    wait_for_ends(store, names)
    ended_s = time.monotonic() - began_at
    used = executor.cpu_times()
    lister.stop()
    histories = [[state.status for state in store.get(name).history()] for name in names]
    return {
        "n_runs": n_runs,
        "n_refused": n_refused,
        "n_finished": sum(history[-1] is Status.FINISHED for history in histories),
        "n_with_another_history": sum(history != _HISTORY for history in histories),
        "submissions_per_s": round(n_runs / submitted_s, 1),
        "ends_per_s": round(n_runs / ended_s, 2),
        "n_lists": len(lister.latencies_s),
        "n_lists_refused": sum(status != 200 for status in lister.statuses),
        "list_p50_ms": lister.percentile_ms(0.5),
        "list_p99_ms": lister.percentile_ms(0.99),
        "executor_cpu_s": round(used.user + used.system, 1),
    }


def list_many(service: Service, n_on_disk: int) -> Row:
    """Return how long `/runs` takes beside many runs that have ended."""
    write_ended_runs(service.volume, n_on_disk)
    lister = Lister(service.url, _N_LISTS)
    lister.start()
    lister.join()
    return {
        "n_on_disk": n_on_disk,
        "full_list_p50_ms": lister.percentile_ms(0.5),
        "full_list_p99_ms": lister.percentile_ms(0.99),
    }


def main() -> int:
    """Run the load; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--on-disk", type=int, default=10_000)
    parser.add_argument("--parallel", type=int, default=3, help="workers at once")
    settings = parser.parse_args()
    arguments = {"worker": "light_worker", "max_parallel_runs": settings.parallel}
    with tempfile.TemporaryDirectory() as scratch:
        volume = Path(scratch) / "volume"
        make_tiny_model(volume / "models" / "tiny")
        service = Service(volume, Path(scratch), flow="train.yml", arguments=arguments)
        service.start()
        try:
            service.wait_until_ready()
            row = load(service, settings.runs)
            row |= list_many(service, settings.on_disk)
        finally:
            exit_code = service.stop()
    row["exit_code"] = exit_code
    report("Many runs", [row], COLUMNS, machine(["jina"]))
    is_whole = row["n_finished"] == settings.runs and not row["n_with_another_history"]
    return 0 if is_whole and not row["n_lists_refused"] else 1


if __name__ == "__main__":
    sys.exit(main())

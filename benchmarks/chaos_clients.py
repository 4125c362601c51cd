"""The clients of chaos.py: they ask all the while, and note what they were promised."""

from __future__ import annotations

import random
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from chaos_ledger import Ledger, Weather, plan

from finetuner.artifact import read_manifest
from finetuner.errors import ConflictError, FinetunerError, NotFoundError
from finetuner.run_store import RunStore
from finetuner.states import Status

_TERMINAL = {status for status in Status if status.is_terminal}
_N_UNFINISHED = 6
_TIMEOUT_S = 30.0
# What the service may say; 500 is no answer, and counted as a broken promise.
_HONEST = {200, 201, 404, 409, 503, 504, 507}


class Clients:
    """Threads that ask all the while.

    :param url: The service's.
    :param volume: Watched for artifacts.
    :param seed: Of all that they do.
    :param is_short: Leaves the kinds of runs out that take long.
    :param weather: Says which faults are at work.
    """

    def __init__(
        self,
        url: str,
        volume: Path,
        *,
        seed: int,
        is_short: bool,
        weather: Weather,
    ) -> None:
        self.ledger = Ledger()
        self.submitting = threading.Event()
        self.submitting.set()
        self._url, self._volume, self._is_short = url, volume, is_short
        self._weather = weather
        self._stopped = threading.Event()
        self._n_planned = 0
        self._whole: set[tuple[int, int]] = set()
        jobs = (self._submit, self._list, self._cancel, self._delete, self._follow, self._watch)
        self._threads = [
            threading.Thread(
                target=self._go_on,
                args=(job, random.Random(f"{seed} {job.__name__}")),
                name=job.__name__,
                daemon=True,
            )
            for job in jobs
        ]

    def start(self) -> None:
        """Let them begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let them end."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S)

    def _go_on(self, job: Callable[[random.Random], None], generator: random.Random) -> None:
        while not self._stopped.is_set():
            try:
                job(generator)
            except requests.RequestException:
                self.ledger.answers[f"{job.__name__[1:]}: no answer"] += 1
            self._stopped.wait(generator.uniform(0.1, 0.5))

    def _ask(self, method: str, path: str, *, what: str, **kwargs: Any) -> requests.Response:
        answer = requests.request(method, self._url + path, timeout=_TIMEOUT_S, **kwargs)
        self.ledger.answers[f"{what}: {answer.status_code}"] += 1
        if answer.status_code not in _HONEST:
            self.ledger.complain(
                f"{method} {path} was answered with {answer.status_code} {answer.text[:200]} "
                f"({self._weather})"
            )
        return answer

    def _submit(self, generator: random.Random) -> None:
        if not self.submitting.is_set() or len(self.ledger.unfinished()) >= _N_UNFINISHED:
            return
        planned = plan(self._n_planned, generator, is_short=self._is_short)
        self._n_planned += 1
        answer = self._insist("POST", "/fit", what="submit", json=planned.body())
        # The name is ours alone: when it is there already, an answer was lost on its way.
        if answer is not None and answer.status_code in (200, 201, 409):
            with self.ledger.lock:
                self.ledger.accepted[planned.name] = planned

    def _list(self, _generator: random.Random) -> None:
        ledger = self.ledger
        with ledger.lock:
            promised = set(ledger.accepted)
        items: list[dict[str, Any]] = []
        for page in range(1, 100):
            answer = self._ask("GET", "/runs", what="list", params={"size": 100, "page": page})
            if answer.status_code != 200:
                return
            found = answer.json()
            items += found["items"]
            if len(items) >= found["total"]:
                break
        states = {item["name"]: item["status"] for item in items}
        with ledger.lock:
            lost = promised - set(states) - ledger.asked_to_delete
            changed = {
                name: (before, states[name])
                for name, before in ledger.ended.items()
                if name in states and states[name] != before
            }
            ledger.ended |= {name: s for name, s in states.items() if s in _TERMINAL}
        if lost:
            ledger.complain(f"not listed: {sorted(lost)[:5]} ({self._weather})")
        for name, change in changed.items():
            ledger.complain(f"{name} had ended and changed: {change}")

    def _chosen(self, generator: random.Random, chance: float) -> str | None:
        names = self.ledger.unfinished()
        # Real trainings are few, and the first runs are of the kinds that shall be seen.
        names = [name for name in names if int(name[2:]) > 6]
        return generator.choice(names) if names and generator.random() < chance else None

    def _cancel(self, generator: random.Random) -> None:
        if (name := self._chosen(generator, 0.02)) is None:
            return
        self.ledger.asked_to_cancel.add(name)
        answer = self._insist("POST", f"/runs/{name}/cancel", what="cancel")
        if answer is not None and answer.status_code == 200:
            self.ledger.cancelled.add(name)

    def _delete(self, generator: random.Random) -> None:
        if (name := self._chosen(generator, 0.02)) is None:
            return
        with self.ledger.lock:
            self.ledger.asked_to_delete.add(name)
        answer = self._insist("DELETE", f"/runs/{name}", what="delete")
        # Of two answers the first may have been lost on its way.
        if answer is not None and answer.status_code in (200, 404):
            self.ledger.deleted.add(name)

    def _insist(self, method: str, path: str, **kwargs: Any) -> requests.Response | None:
        """Ask until the answer is one that lasts."""
        while not self._stopped.is_set():
            with suppress(requests.RequestException):
                answer = self._ask(method, path, **kwargs)
                if answer.status_code < 500:
                    return answer
            self._stopped.wait(0.5)
        return None

    def _follow(self, generator: random.Random) -> None:
        if (name := self._chosen(generator, 0.3)) is None:
            return
        path = f"{self._url}/runs/{name}/logs"
        text, n_power_cuts = "", self._weather.n_power_cuts
        try:
            with requests.get(
                path, params={"follow": "true"}, stream=True, timeout=_TIMEOUT_S
            ) as answer:
                self.ledger.answers[f"follow: {answer.status_code}"] += 1
                if answer.status_code == 200:
                    answer.encoding = "utf-8"
                    for chunk in answer.iter_content(None, decode_unicode=True):
                        text += chunk
                        if self._stopped.is_set():
                            break
        finally:
            # Of a log, the last lines before a power cut may be lost.
            if n_power_cuts == self._weather.n_power_cuts:
                self.ledger.followed[name] = text

    def _watch(self, _generator: random.Random) -> None:
        """Open every artifact that the store gives out, and every zip that is there."""
        try:
            store = RunStore(self._volume)
            for run in store.list():
                with suppress(NotFoundError, ConflictError, FileNotFoundError):
                    self._open(store.find_artifact(run.name))
            for path in self._volume.glob("runs/*/*/*.zip"):
                with suppress(FileNotFoundError):
                    self._open(path)
        except OSError:  # the volume is away
            time.sleep(0.5)

    def _open(self, path: Path) -> None:
        found = path.stat()
        mark = (found.st_ino, found.st_mtime_ns)
        if mark in self._whole or self._weather.is_volume_away:
            return
        try:
            read_manifest(path)
            with zipfile.ZipFile(path) as archive:
                problem = archive.testzip()
        except (FinetunerError, zipfile.BadZipFile) as exc:
            problem = str(exc)
        if self._weather.is_volume_away:
            return
        if problem and path.exists():
            self.ledger.complain(f"{path.name} is no whole artifact: {problem} ({self._weather})")
        self._whole.add(mark)
        self.ledger.n_artifacts_seen += 1

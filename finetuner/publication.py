"""Puts finished artifacts, and what aliases point to, into an object store, behind the service.

published.json in a run's folder says where its artifact is; a run without it is the next to be uploaded, so
that what failed, or was cut off, is taken up again by this service or a later one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from finetuner.artifact_store import ArtifactStore
from finetuner.errors import (
    ArtifactNotFound,
    CorruptedArtifact,
    FinetunerError,
    FinetunerServerError,
    RunNotFoundError,
)
from finetuner.file_cache import FileCache
from finetuner.files import read_json, write_json
from finetuner.run_store import RunStore
from finetuner.runs import PUBLISHED_FILE, Run
from finetuner.states import Status

logger = logging.getLogger(__name__)
_INTERVAL_S = 5.0
_LONGEST_PAUSE_S = 300.0
_STOP_TIMEOUT_S = 1.0


class _Stopping(Exception):  # it is no error
    """The service ends in the middle of an upload."""


class Publication:
    """Uploads what a volume has finished, one artifact after the other.

    :param workspace: The volume.
    :param store: Where to.
    """

    def __init__(self, workspace: Path, store: ArtifactStore) -> None:
        self._runs, self._aliases_folder = RunStore(workspace), workspace / "aliases"
        self._store = store
        self._contents = FileCache(Path.read_bytes)
        # Of those in the store what they hold, as far as that is known: one may be deleted while no
        # service runs.
        self._noted = workspace / "published-aliases.json"
        self._aliases: dict[str, bytes] = {}
        with suppress(FileNotFoundError, ValueError):
            self._aliases = dict.fromkeys(read_json(self._noted), b"")
        # Runs that need not be looked at again, by what changes when the name becomes another run's.
        self._settled: dict[Path, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._told = ""
        self._thread = threading.Thread(target=self._watch, name="publication", daemon=True)

    def start(self) -> None:
        """Begin; what an earlier service could not upload comes first."""
        self._thread.start()

    def close(self) -> None:
        """Stop; an upload that is in work is taken up by the next service."""
        self._stop.set()
        # It may wait for the store for longer; as a daemon it ends with the process.
        self._thread.join(_STOP_TIMEOUT_S)

    def _watch(self) -> None:
        pause_s = _INTERVAL_S
        while True:
            try:
                self.publish()
                pause_s = _INTERVAL_S
            except _Stopping:
                return
            # Store or volume are away for a moment; the runs go on without either of them.
            except Exception as exc:
                self._tell(exc)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if self._stop.wait(pause_s):
                return

    def publish(self) -> None:
        """Upload what is not there yet, as often as it is called.

        :raises UnavailableError: When the store does not answer; what is left is left for the next call.
        """
        for run in self._runs.list():
            self._check_going()
            with suppress(FileNotFoundError, RunNotFoundError):  # deleted meanwhile
                version = run.version()
                if self._settled.get(run.folder) != version and self._is_settled(run):
                    self._settled[run.folder] = version
        self._publish_aliases()
        self._told = ""

    def _is_settled(self, run: Run) -> bool:
        """Whether there is nothing more to upload of a run, after an upload where one was needed."""
        try:
            status = run.state().status
            if status is not Status.FINISHED or self._is_published(run):
                return status.is_terminal
            self._publish(run)
        except (ArtifactNotFound, CorruptedArtifact, FinetunerServerError) as exc:
            # The others are uploaded all the same; the next service tries this one again.
            logger.error("run `%s` cannot be uploaded: %s", run.name, exc)
        return True

    def _is_published(self, run: Run) -> bool:
        with suppress(FileNotFoundError, ValueError, KeyError):
            published = read_json(run.folder / PUBLISHED_FILE)
            return bool(published["store"] == self._store.url)
        return False

    def _publish(self, run: Run) -> None:
        published = self._store.publish(run, check=self._check_going)
        url = self._store.location(published.digest)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(run.folder / PUBLISHED_FILE, {"url": url, "store": self._store.url, "at": at})
        logger.info("run `%s` is in %s", run.name, url)

    def _publish_aliases(self) -> None:
        """Let the store have the aliases as they are on the volume now."""
        found = {}
        for path in self._aliases_folder.glob("*.json"):
            with suppress(FileNotFoundError):  # deleted meanwhile
                found[path.name] = self._contents.get(path)
        self._note(self._aliases.keys() | found.keys())
        for name, content in found.items():
            if self._aliases.get(name) != content:
                self._store.write(f"aliases/{name}", content)
                self._aliases[name] = content
        for name in self._aliases.keys() - found.keys():
            self._store.remove(f"aliases/{name}")
            del self._aliases[name]
        self._note(set(self._aliases))

    def _note(self, names: Set[str]) -> None:
        """Write down which aliases the store has, or will have in a moment."""
        with suppress(FileNotFoundError, ValueError):
            if read_json(self._noted) == sorted(names):
                return
        if names or self._noted.exists():
            write_json(self._noted, sorted(names))

    def _check_going(self) -> None:
        if self._stop.is_set():
            raise _Stopping

    def _tell(self, error: Exception) -> None:
        """Log what keeps artifacts from the store, once as long as it is the same."""
        if str(error) != self._told:
            is_known = isinstance(error, OSError | FinetunerError)
            logger.error("cannot publish artifacts: %s", error, exc_info=not is_known)
        self._told = str(error)

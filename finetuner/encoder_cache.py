"""The encoders that a server keeps loaded."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetuner.backends import Backend, EncoderPrecision
from finetuner.config import DEFAULT_EXPERIMENT, Device
from finetuner.encoder import Encoder, load_encoder
from finetuner.errors import ArtifactNotFound, ConfigError, RunNotFoundError
from finetuner.fetched_artifacts import FetchedArtifacts
from finetuner.run_store import RunStore
from finetuner.runs import Run
from finetuner.schema import nearest
from finetuner.states import Status

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Served:
    """An artifact that is loaded.

    :param encoder: What embeds.
    :param artifact_id: Of its run; empty for one that is no run's on this volume.
    :param size_bytes: Of its zip, about what it takes of the memory.
    """

    encoder: Encoder
    artifact_id: str
    size_bytes: int

    def prompt(self, name: str) -> str:
        """Return a prompt that is kept with the run.

        :raises ConfigError: When it has none of that name.
        """
        prompts = self.encoder.prompts
        if name not in prompts:
            raise ConfigError(
                f"run `{self.encoder.name}` has no prompt `{name}`{nearest(name, prompts)} it has: "
                f"{', '.join(prompts) or 'none'}"
            )
        return prompts[name]


# A file, the time of its change, for a run deleted and made again is another model, and whether it is
# what its run began with that is kept.
_Key = tuple[Path, int, bool]


class EncoderCache:
    """Loads artifacts on first use and keeps those used last; safe to share between threads.

    What is taken out stays in memory until the last request that uses it has ended.

    :param workspace: The volume, where runs are looked for by name.
    :param artifact: What is served when none is named: a path, a run's name or an artifact id; it is
        loaded at once.
    :param backend: As in :func:`finetuner.encoder.load_encoder`.
    :param device: As there.
    :param precision: As there.
    :param n_threads: As there.
    :param max_bytes: What the artifacts kept may take together; one is kept whatever its size.
    :param pinned: Gives the artifacts that are kept whatever they take.
    :param fetched: Where artifacts are looked for that are not on the volume.
    :raises ArtifactNotFound, CorruptedArtifact: When ``artifact`` cannot be loaded.
    """

    def __init__(
        self,
        workspace: Path,
        *,
        artifact: str | None = None,
        backend: Backend = Backend.AUTO,
        device: Device = Device.CPU,
        precision: EncoderPrecision = EncoderPrecision.FP32,
        n_threads: int | None = None,
        max_bytes: int = 4 * 2**30,
        pinned: Callable[[], Collection[Path]] = tuple,
        fetched: FetchedArtifacts | None = None,
    ) -> None:
        self._workspace = workspace
        self._store = RunStore(workspace)
        self._backend = backend
        self._device = device
        self._precision = precision
        self._n_threads = n_threads
        self._max_bytes = max_bytes
        self._pinned = pinned
        self._fetched = fetched
        self._served: OrderedDict[_Key, Future[Served]] = OrderedDict()
        # Where a name was found last, so that a request costs one look at the file and no search.
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._default = None if artifact is None else self._resolve_default(artifact)
        if self._default is not None:
            self.load(self._default)

    def _resolve_default(self, artifact: str) -> Path:
        # Only the one who starts the server may name a path; requests name runs.
        path = Path(artifact).expanduser()
        return path if path.exists() else self.find(artifact)

    def get(self, artifact: str | None, client: str = "") -> Served:
        """Return an artifact, loading it when needed.

        :param artifact: A run's name, ``experiment/run`` or an artifact id; None for the default.
        :param client: Who asks, where an alias of the store is split.
        :raises ConfigError: When None is given and the server has no default.
        :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
        """
        path = self.find(artifact, client)
        served = self.load(path)
        # What a name means in the store may change, and it is asked.
        is_fetched = self._fetched is not None and self._fetched.holds(path)
        if artifact is not None and not is_fetched:
            self._paths[artifact] = path
        return served

    def find(self, artifact: str | None, client: str = "") -> Path:
        """Return where an artifact is; named and refused as in :meth:`get`."""
        if artifact is None and self._default is None:
            raise ConfigError(
                "name the artifact: parameters={'artifact': '<run name or artifact id>'}; this "
                "executor was started without one"
            )
        if artifact is None:
            assert self._default is not None  # checked above
            return self._default
        try:
            return self._store.find_artifact(artifact)
        except ArtifactNotFound:
            if self._fetched is None:
                raise
            return self._fetched.find(artifact, client)

    def loaded(self, artifact: str | None, client: str = "") -> Served | None:
        """Return an artifact that is loaded and has not changed; None when :meth:`get` must be asked."""
        path = self._default if artifact is None else self._paths.get(artifact)
        if path is None and artifact is not None and self._fetched is not None:
            path = self._fetched.known(artifact, client)
        return None if path is None else self.loaded_from(path)

    def loaded_from(self, path: Path) -> Served | None:
        """Return the artifact of a path, as :meth:`loaded` does of a name."""
        try:
            key = (path, path.stat().st_mtime_ns, False)
        except OSError:  # deleted
            return None
        with self._lock:
            found = self._served.get(key)
            if found is None or not found.done():
                return None
            self._served.move_to_end(key)
            return found.result()

    def list(self) -> list[dict[str, Any]]:
        """Return what can be served, oldest run first; dim and the like are known of what is loaded."""
        with self._lock:
            done = [future.result() for future in self._served.values() if future.done()]
        by_id = {served.artifact_id: served for served in done}
        return [
            _described(run, by_id.get(run.spec()["artifact_id"]))
            for run in (*self._finished(), *(self._fetched.runs() if self._fetched else ()))
        ]

    def _finished(self) -> Iterator[Run]:
        return (run for run in self._store.list() if run.state().status is Status.FINISHED)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each model that is loaded, by its artifact's path."""
        with self._lock:
            done = [(key, f.result()) for key, f in self._served.items() if f.done()]
            return {
                f"{path} (untuned)" if is_untuned else str(path): served.size_bytes
                for (path, _, is_untuned), served in done
            }

    def load(self, path: Path, *, untuned: bool = False) -> Served:
        """Return the artifact of a path, loading it when needed.

        :param path: On the volume; or what the server was started with.
        :param untuned: The model that its run began with, in its place.
        :raises ArtifactNotFound, CorruptedArtifact: When it cannot be loaded.
        :raises ModelNotFoundError: When the model that its run began with is not there any more.
        """
        key = (path, path.stat().st_mtime_ns, untuned)
        with self._lock:
            found = self._served.get(key)
            is_first = found is None
            if found is None:
                found = self._served[key] = Future()
            self._served.move_to_end(key)
        if is_first:
            self._fill(key, found)
        return found.result()

    def _fill(self, key: _Key, future: Future[Served]) -> None:
        """Load an artifact for all who wait for it, outside the lock: others are served meanwhile."""
        try:
            path, _, is_untuned = key
            served = self._read_untuned(path) if is_untuned else self._read(path)
        except Exception as exc:  # whoever waits gets it too, and the next request tries again
            with self._lock:
                self._served.pop(key, None)
            future.set_exception(exc)
            return
        future.set_result(served)
        pinned = set(self._pinned())
        with self._lock:
            self._evict(pinned)

    def _read(self, path: Path) -> Served:
        encoder = load_encoder(
            path,
            backend=self._backend,
            device=self._device,
            precision=self._precision,
            n_threads=self._n_threads,
        )
        n_copies = 2 if encoder.embed_alone else 1
        return Served(encoder, _artifact_id(path), path.stat().st_size * n_copies)

    def _read_untuned(self, path: Path) -> Served:
        """Load what a run began with, in torch and 32 bit: it is asked now and then, to compare."""
        import torch  # late, as in finetuner.encoder: a graph is served without it

        from finetuner.device import resolve_device
        from finetuner.encoder import torch_encoder
        from finetuner.starting_model import load_starting_model

        config = Run(path.parent).config()
        if self._n_threads is not None:
            torch.set_num_threads(self._n_threads)
        loaded = load_starting_model(config, self._workspace)
        loaded.model.to(resolve_device(self._device)[0])
        size_bytes = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        return Served(torch_encoder(loaded, name=config.model), "", size_bytes)

    def _evict(self, pinned: set[Path]) -> None:
        """Take out what was used longest ago until the rest fits."""
        kept = [(key, future.result()) for key, future in self._served.items() if future.done()]
        total_bytes = sum(served.size_bytes for _, served in kept)
        for key, served in kept[:-1]:
            if total_bytes <= self._max_bytes:
                return
            if key[0] in pinned and not key[2]:
                continue
            logger.info("unloading `%s`: %d bytes are loaded", served.encoder.name, total_bytes)
            del self._served[key]
            total_bytes -= served.size_bytes


def _described(run: Run, served: Served | None) -> dict[str, Any]:
    spec, encoder = run.spec(), served and served.encoder
    is_default = run.experiment_name == DEFAULT_EXPERIMENT
    return {
        "id": run.name if is_default else f"{run.experiment_name}/{run.name}",
        "kind": "run",
        "artifact_id": spec["artifact_id"],
        "created": int(datetime.fromisoformat(spec["created_at"]).timestamp()),
        "is_loaded": encoder is not None,
        "digest": encoder and encoder.digest,
        "dim": encoder and encoder.dim,
        "max_length": encoder and encoder.tokenizer.max_length,
    }


def _artifact_id(path: Path) -> str:
    try:
        return str(Run(path.parent).spec()["artifact_id"])
    except RunNotFoundError:
        return ""

"""The encoders that a server keeps loaded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from finetuner.backends import Backend
from finetuner.config import Device
from finetuner.encoder import Encoder, load_encoder
from finetuner.errors import ConfigError
from finetuner.run_store import RunStore


class EncoderCache:
    """Loads artifacts on first use and keeps the last few; safe to share between threads.

    :param workspace: The volume, where runs are looked for by name.
    :param artifact: What is served when none is named: a path, a run's name or an artifact id; it is
        loaded at once.
    :param backend: As in :func:`finetuner.encoder.load_encoder`.
    :param device: As there.
    :param max_models: Encoders kept, at least 1.
    :raises ArtifactNotFound, CorruptedArtifact: When ``artifact`` cannot be loaded.
    """

    def __init__(
        self,
        workspace: Path,
        *,
        artifact: str | None = None,
        backend: Backend = Backend.AUTO,
        device: Device = Device.CPU,
        max_models: int = 2,
    ) -> None:
        self._store = RunStore(workspace)
        self._backend = backend
        self._device = device
        self._max_models = max_models
        self._encoders: OrderedDict[tuple[Path, int], Encoder] = OrderedDict()
        self._lock = threading.Lock()
        self._default = None if artifact is None else self._resolve_default(artifact)
        if self._default is not None:
            self._load(self._default)

    def _resolve_default(self, artifact: str) -> Path:
        # Only the one who starts the server may name a path; requests name runs.
        path = Path(artifact).expanduser()
        return path if path.exists() else self._store.find_artifact(artifact)

    def get(self, artifact: str | None) -> Encoder:
        """Return the encoder of an artifact, loading it when needed.

        :param artifact: A run's name, ``experiment/run`` or an artifact id; None for the default.
        :raises ConfigError: When None is given and the server has no default.
        :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
        """
        if artifact is None and self._default is None:
            raise ConfigError(
                "name the artifact: parameters={'artifact': '<run name or artifact id>'}; this "
                "executor was started without one"
            )
        path = self._default if artifact is None else self._store.find_artifact(artifact)
        assert path is not None  # noqa: S101 - one of the two is given
        return self._load(path)

    def _load(self, path: Path) -> Encoder:
        # The time of change is part of the key: a run deleted and made again is another model.
        key = (path, path.stat().st_mtime_ns)
        with self._lock:
            if key not in self._encoders:
                self._encoders[key] = load_encoder(path, backend=self._backend, device=self._device)
                while len(self._encoders) > self._max_models:
                    self._encoders.popitem(last=False)
            self._encoders.move_to_end(key)
            return self._encoders[key]

"""Idempotency keys: which run a key stands for, in one small file each.

runs/{experiment}/.keys/
  {sha256 of the key}   the run's name

The file is written before the run and keeps its name for it: requests with one key all go for one name,
and the run's folder, which appears by a rename, decides which of them has made the run. Whoever dies in
between leaves a name that the next request with the key takes up.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from finetuner.files import replacing, sync_folder

KEYS = ".keys"


class RunKeys:
    """The keys of one experiment.

    :param experiment: Its folder; ``.keys`` in it is made when needed.
    """

    def __init__(self, experiment: Path) -> None:
        self._folder = experiment / KEYS

    def _path(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

    def find(self, key: str) -> str | None:
        """Return the name of the run that a key stands for, or None."""
        try:
            return self._path(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def claim(self, key: str, run_name: str) -> str:
        """Let a key stand for a run, unless it stands for one.

        :param key: The key.
        :param run_name: The run's name.
        :returns: The name that it stands for.
        """
        while (name := self.find(key)) is None:  # again when it is forgotten in between
            self._folder.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".claim-") as file:
                file.write(run_name.encode())
                file.flush()
                os.fsync(file.fileno())
                try:
                    os.link(file.name, self._path(key))  # whole, and only when there is none
                except FileExistsError:
                    continue
            sync_folder(self._folder)
        return name

    def replace(self, key: str, run_name: str) -> None:
        """Let a key stand for another run."""
        with replacing(self._path(key)) as file:
            file.write(run_name.encode())

    def forget(self, key: str, run_name: str) -> None:
        """Free a key, if it stands for that run."""
        if self.find(key) == run_name:
            self._path(key).unlink(missing_ok=True)

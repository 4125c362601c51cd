"""Finished artifacts in an object store, for machines that do not share the volume.

{url}/
  artifacts/{digest}/            the files of an artifact, a complete model's folder; manifest.json comes last
  ids/{artifact_id}.json         which run an artifact is of, and its digest; comes after its files
  runs/{experiment}/{run}.json   the same, by name; replaced when a run of that name is made anew
  aliases/{name}.json            what an alias points to

The digest is the sha256 of the manifest, and that has the sha256 of every file: what was changed or cut off
on the way is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from finetuner.artifact import (
    LIMITS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    digest_of,
    parse_manifest,
    unpacked,
)
from finetuner.config import DEFAULT_EXPERIMENT
from finetuner.errors import (
    ConfigError,
    CorruptedArtifact,
    FinetunerError,
    NotFoundError,
    TooLargeError,
)
from finetuner.files import replacing
from finetuner.names import check_name
from finetuner.object_store import CHUNK_BYTES, ObjectStore
from finetuner.runs import Run
from finetuner.schema import read

STORE_VARIABLE = "FINETUNER_ARTIFACT_STORE"
FORMAT_VERSION = 1
MAX_ENTRY_BYTES = 2**20
_ARTIFACT_ID = re.compile(r"[0-9a-f]{24}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Published:
    """What the store says of an artifact.

    :param artifact_id: Of its run.
    :param run_name: Its run.
    :param experiment_name: The run's experiment.
    :param digest: Of the artifact.
    :param created_at: When the run was made, ISO 8601.
    :param config: The run's settings.
    :param format_version: Of this layout.
    """

    artifact_id: str
    run_name: str
    experiment_name: str
    digest: str
    created_at: str
    config: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(
                f"format version {self.format_version}, this package reads {FORMAT_VERSION}"
            )
        if not _DIGEST.fullmatch(self.digest) or not _ARTIFACT_ID.fullmatch(self.artifact_id):
            raise ConfigError("its digest or its artifact id is none")
        check_name(self.run_name, "run name")
        check_name(self.experiment_name, "experiment name")


def artifact_store_of(url: str | None = None) -> str | None:
    """Return the URL of the store: the one given, else ``FINETUNER_ARTIFACT_STORE``, else None.

    :param url: An empty one is none.
    """
    given = os.environ.get(STORE_VARIABLE) if url is None else url
    return given or None


def entry_names(artifact: str) -> Iterator[str]:
    """Yield the objects that may say what an artifact is; none for what cannot be a name.

    :param artifact: A run's name, ``experiment/run`` or an artifact id.
    """
    if _ARTIFACT_ID.fullmatch(artifact):
        yield f"ids/{artifact}.json"
    experiment, _, name = artifact.rpartition("/")
    try:
        check_name(name, "run name")
        check_name(experiment or DEFAULT_EXPERIMENT, "experiment name")
    except ConfigError:
        return
    yield f"runs/{experiment or DEFAULT_EXPERIMENT}/{name}.json"


@lru_cache(1024)  # read at each request
def read_entry(content: bytes, name: str) -> Published:
    """Return what an object of :func:`entry_names` holds.

    :param content: It.
    :param name: The object's, for the message.
    :raises CorruptedArtifact: When it is none of ours.
    """
    try:
        published: Published = read(Published, orjson.loads(content), name)
    except (ValueError, FinetunerError) as exc:
        raise CorruptedArtifact(f"`{name}` of the artifact store cannot be read: {exc}") from exc
    return published


class ArtifactStore:
    """The artifacts below a URL; safe to share between threads and processes.

    :param url: Such as ``s3://bucket/prefix``; anything that fsspec opens.
    :raises ConfigError: When it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._objects = ObjectStore(url)
        self.url = self._objects.url

    def location(self, digest: str) -> str:
        """Return the URL of an artifact's folder."""
        return f"{self.url}/artifacts/{digest}"

    def publish(self, run: Run, *, check: Callable[[], None] = lambda: None) -> Published:
        """Write the artifact of a finished run; what is there already is not written again.

        :param run: It.
        :param check: Called now and then; what it raises ends the upload, which can be taken up again.
        :raises ArtifactNotFound, CorruptedArtifact: When the run has no artifact, or a damaged one.
        :raises RunNotFoundError: When the run was deleted.
        :raises UnavailableError: When the store does not answer, or lets nobody in.
        """
        spec = run.spec()
        with unpacked(run.artifact_path) as (folder, manifest):
            digest = digest_of(folder)
            for path in (*sorted(manifest.files), MANIFEST):
                self._upload(folder / path, f"artifacts/{digest}/{path}", check)
        published = Published(
            artifact_id=spec["artifact_id"],
            run_name=run.name,
            experiment_name=run.experiment_name,
            digest=digest,
            created_at=spec["created_at"],
            config=spec["config"],
        )
        content = orjson.dumps(asdict(published), option=orjson.OPT_INDENT_2)
        self.write(f"ids/{published.artifact_id}.json", content)
        self.write(f"runs/{run.experiment_name}/{run.name}.json", content)
        return published

    def _upload(self, path: Path, name: str, check: Callable[[], None]) -> None:
        check()
        # Of a folder named by its content, a file of the right size is it: what is cut off is shorter.
        if self._objects.size_bytes(name) != path.stat().st_size:
            self._objects.write(name, _chunks_of(path, check))

    def read(self, name: str) -> bytes | None:
        """Return an entry or an alias; None when there is none.

        :param name: The object's.
        :raises UnavailableError: As of :meth:`publish`.
        """
        try:
            return self._objects.read(name, max_bytes=MAX_ENTRY_BYTES)
        except NotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an entry or an alias; it appears whole.

        :param name: The object's.
        :param content: JSON.
        :raises UnavailableError: As of :meth:`publish`.
        """
        self._objects.write(name, iter((content,)))

    def remove(self, name: str) -> None:
        """Remove an entry or an alias, if it is there.

        :param name: The object's.
        :raises UnavailableError: As of :meth:`publish`.
        """
        self._objects.remove(name)

    def fetch(self, published: Published, destination: Path) -> None:
        """Write an artifact's zip, each file of which is the one that the run has made.

        :param published: Which.
        :param destination: The zip; it appears whole or not at all.
        :raises CorruptedArtifact: When a file is missing or was changed, or is refused in any artifact.
        :raises TooLargeError: When it is larger than any artifact may be.
        :raises UnavailableError: As of :meth:`publish`.
        """
        folder = f"artifacts/{published.digest}"
        try:
            content = self._objects.read(f"{folder}/{MANIFEST}", max_bytes=MAX_MANIFEST_BYTES)
            if hashlib.sha256(content).hexdigest() != published.digest:
                raise self._changed(folder, MANIFEST)
            manifest = parse_manifest(content, name=published.run_name)
            with (
                replacing(destination) as target,
                zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive,
            ):
                archive.writestr(f"{published.run_name}/{MANIFEST}", content)
                self._fetch_files(folder, manifest, published.run_name, archive)
        except NotFoundError as exc:
            raise self._changed(folder, "a file") from exc

    def _fetch_files(
        self, folder: str, manifest: Manifest, run_name: str, archive: zipfile.ZipFile
    ) -> None:
        n_left_bytes = LIMITS.size_bytes
        for path, expected in manifest.files.items():
            found = hashlib.sha256()
            with archive.open(f"{run_name}/{path}", "w", force_zip64=True) as file:
                for chunk in self._objects.chunks(f"{folder}/{path}"):
                    if (n_left_bytes := n_left_bytes - len(chunk)) < 0:
                        raise TooLargeError(f"`{run_name}` has over {LIMITS.size_bytes} bytes")
                    found.update(chunk)
                    file.write(chunk)
            if found.hexdigest() != expected:
                raise self._changed(folder, path)

    def _changed(self, folder: str, path: str) -> CorruptedArtifact:
        return CorruptedArtifact(
            f"`{path}` in `{self.url}/{folder}` is missing or was changed; remove that folder, and "
            "`published.json` of the run, so that it is uploaded anew"
        )


def _chunks_of(path: Path, check: Callable[[], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            check()
            yield chunk

"""A whole corpus into vectors, part by part; what ends in the middle goes on with the part it was at."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetuner.backends import Backend, EncoderPrecision, Vectors
from finetuner.config import Device
from finetuner.corpus_files import CorpusFormat, list_files
from finetuner.corpus_output import CorpusOutput
from finetuner.corpus_parts import Columns, Part
from finetuner.corpus_rows import Rows, parts_of, read_part
from finetuner.encoder import load_encoder
from finetuner.errors import ConfigError
from finetuner.vectors import VectorOptions, shape_vectors

# Texts that one thread encodes before it looks for more: enough that those of like length meet.
_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class CorpusOptions:
    """How a corpus is encoded.

    :param columns: Where the texts are.
    :param format: Of all files; by their suffix when None.
    :param rows_per_part: What is lost at most when all stops, and written at once; at least 1.
    :param batch_size: Texts embedded at once at most, at least 1.
    :param vectors: What is done with the vectors.
    :param prompt: Put before each text.
    :param backend: ``auto`` takes the fastest.
    :param device: ``cuda`` falls back to the CPU where there is none.
    :param precision: The model's arithmetic.
    """

    columns: Columns = field(default_factory=Columns)
    format: CorpusFormat | None = None
    rows_per_part: int = 16_384
    batch_size: int = 64
    vectors: VectorOptions = field(default_factory=VectorOptions)
    prompt: str = ""
    backend: Backend = Backend.AUTO
    device: Device = Device.CPU
    precision: EncoderPrecision = EncoderPrecision.FP32

    def __post_init__(self) -> None:
        for name in ("rows_per_part", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class PartDone:
    """What came of a part.

    :param number: The part's.
    :param n_rows: Its rows, with those that were skipped.
    :param n_skipped: Its rows without a vector.
    """

    number: int
    n_rows: int
    n_skipped: int = 0


@dataclass(frozen=True)
class CorpusSummary:
    """What came of a corpus.

    :param n_rows: All rows.
    :param n_skipped: Those without a vector; ``_skipped-*.jsonl`` says why.
    :param n_parts: All parts.
    :param n_parts_before: Those that were there already.
    :param seconds: What this took, with the reading.
    """

    n_rows: int
    n_skipped: int
    n_parts: int
    n_parts_before: int
    seconds: float


class Corpus:
    """A corpus, cut into parts, and the folder that its vectors go to.

    :param inputs: As :func:`finetuner.corpus_files.list_files` takes them.
    :param output: A folder: new, or begun by the same call.
    :param artifact: The zip of a run, or the folder inside one.
    :param options: How it is encoded.
    :raises DataNotFoundError, ConfigError, DataError: When the inputs cannot be read.
    :raises ArtifactNotFound, CorruptedArtifact: When the model cannot.
    :raises ConflictError: When the folder was begun for something else.
    """

    def __init__(
        self, inputs: Sequence[str], output: str, *, artifact: Path, options: CorpusOptions
    ) -> None:
        self._began_at = time.monotonic()
        self.options, self.artifact = options, artifact
        files = list_files(inputs, options.format)
        rows_per_part = options.rows_per_part
        self.parts = list(parts_of(files, options.columns, rows_per_part=rows_per_part))
        self.output = CorpusOutput(output)
        self.encoder = PartEncoder(artifact, self.output, options)
        self.output.begin(
            {
                "version": 1,
                "model": self.encoder.digest,
                "files": [asdict(file) for file in files],
                "columns": asdict(options.columns),
                "rows_per_part": rows_per_part,
                "vectors": asdict(options.vectors),
                "precision": options.precision,
                "prompt": options.prompt,
            }
        )
        done = self.output.done()
        self.n_rows = sum(part.n_rows for part in self.parts)
        self.waiting = [part for part in self.parts if part.number not in done]

    def encode(self) -> Iterator[PartDone]:
        """Encode what is not there yet; gives each part once it is on the disk."""
        yield from self.encoder.encode(self.waiting)

    def finish(self) -> CorpusSummary:
        """Write the summary, once all parts are there, and return it."""
        summary = CorpusSummary(
            self.n_rows,
            self.output.n_skipped(),
            len(self.parts),
            len(self.parts) - len(self.waiting),
            round(time.monotonic() - self._began_at, 1),
        )
        self.output.finish(asdict(summary))
        return summary


@dataclass
class _InWork:
    part: Part
    rows: Rows
    vectors: list[Future[Vectors]]


class PartEncoder:
    """Encodes parts, with all cores of this process, and writes them.

    :param artifact: The zip of a run, or the folder inside one.
    :param output: Where to.
    :param options: How.
    :param n_threads: Of a CPU; one for each core when None.
    """

    def __init__(
        self,
        artifact: Path,
        output: CorpusOutput,
        options: CorpusOptions,
        *,
        n_threads: int | None = None,
    ) -> None:
        is_cpu = options.device is Device.CPU
        # A thread for each core, each with its own texts, is faster than one text shared by all.
        self._n_lanes = n_threads or len(os.sched_getaffinity(0)) if is_cpu else 1
        self._encoder = load_encoder(
            artifact,
            backend=options.backend,
            device=options.device,
            precision=options.precision,
            n_threads=1 if is_cpu else None,
        )
        options.vectors.check(self._encoder.dim, is_normalized=self._encoder.is_normalized)
        self._output, self._options = output, options
        self.digest = self._encoder.digest

    def encode(self, parts: Iterable[Part]) -> Iterator[PartDone]:
        """Encode parts, the next of which is read while one is encoded; gives each once it is written."""
        in_work: deque[_InWork] = deque()
        pool = ThreadPoolExecutor(self._n_lanes, thread_name_prefix="encode")
        try:
            for part in parts:
                in_work.append(self._begin(part, pool))
                if len(in_work) > 1:
                    yield self._end(in_work.popleft())
            while in_work:
                yield self._end(in_work.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, part: Part, pool: ThreadPoolExecutor) -> _InWork:
        rows = read_part(part, self._options.columns)
        prompt, step = self._options.prompt, _TEXTS_AT_ONCE
        texts = [prompt + text for text in rows.texts] if prompt else rows.texts
        chunks = [texts[start : start + step] for start in range(0, len(texts), step)]
        return _InWork(part, rows, [pool.submit(self._embed, chunk) for chunk in chunks])

    def _embed(self, texts: list[str]) -> Any:
        vectors = self._encoder.encode(texts, batch_size=self._options.batch_size)
        is_normalized = self._encoder.is_normalized
        return shape_vectors(vectors, self._options.vectors, is_normalized=is_normalized)

    def _end(self, work: _InWork) -> PartDone:
        parts = [future.result() for future in work.vectors] or [self._embed([])]
        options = self._options.vectors
        self._output.put(
            work.part.number,
            work.rows.ids,
            np.concatenate(parts),
            skipped=work.rows.skipped,
            about={"finetuner.model": self.digest, "finetuner.dtype": options.dtype},
        )
        return PartDone(work.part.number, work.part.n_rows, len(work.rows.skipped))

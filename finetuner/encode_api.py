"""What the EncoderExecutor answers: texts in, vectors out, with the name of the model that made them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from finetuner.backends import Backend, EncoderPrecision
from finetuner.batcher import Batcher, Job
from finetuner.config import Device
from finetuner.data import check_text
from finetuner.encoder import Encoder
from finetuner.encoder_cache import EncoderCache, Served
from finetuner.errors import ConfigError, DeadlineExceededError, DigestMismatchError
from finetuner.schema import documented
from finetuner.serving_metrics import EncodeMetrics
from finetuner.tokens import Truncate
from finetuner.vectors import VectorOptions, VectorType, shape_vectors

# A batch that fits a core's cache is a fifth faster than one of four times its size; a GPU wants to be full.
_BATCH_TOKENS = {Device.CPU: 256, Device.CUDA: 16_384}

# Tokenised at once, in less time than the way to a thread and back takes on a busy machine.
_FEW_CHARACTERS = 2_000

Texts = Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class TextParameters:
    """Parameters of ``/tokenize``.

    :raises ConfigError: When both prompts are given.
    """

    artifact: str | None = documented(
        "alias, run name, `experiment/run` or artifact id; the server's own when left out",
        default=None,
    )
    truncate: Truncate = documented(
        "which end of a text that is too long is cut: right or left; error refuses it",
        default=Truncate.RIGHT,
    )
    prompt: str | None = documented("put before each text", default=None)
    prompt_name: str | None = documented("one of the prompts kept with the run", default=None)

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_name is not None:
            raise ConfigError("give prompt or prompt_name, not both")
        check_text(self.prompt or "", "prompt")


@dataclass(frozen=True)
class EncodeParameters(TextParameters):
    """Parameters of ``/encode``.

    :raises ConfigError: When a number is not above 0, or both prompts are given.
    """

    digest: str | None = documented(
        "refuse when the artifact served has another digest", default=None
    )
    batch_size: int | None = documented(
        "of the old API; checked and not used, for batches go by tokens", default=None
    )
    normalize: bool | None = documented(
        "scale vectors to length one; as the model does when left out", default=None
    )
    dimensions: int | None = documented("cut vectors to this length", default=None)
    dtype: VectorType = documented(
        "float32, float16, int8 or binary (8 signs a byte)", default=VectorType.FLOAT32
    )
    timeout_s: float | None = documented("answered within so many seconds, or not", default=None)
    client: str = documented("who asks; clients take turns", default="")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"parameters.{name} must be above 0, got {value}")


@dataclass(frozen=True)
class Encoded:
    """Vectors, and what is to be said of them.

    :param vectors: *Shape:* ``(n_texts, width)`` in the type asked for.
    :param tags: Artifact, digest, backend, precision, dim, dtype, n_tokens, and where the time went.
    """

    vectors: NDArray[Any]
    tags: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A request up to its token ids.

    :param served: The model.
    :param token_ids: Of each text.
    :param tokenize_s: What that took.
    """

    served: Served
    token_ids: Sequence[Sequence[int]]
    tokenize_s: float


class EncodeAPI:
    """Encodes for many clients at once.

    :param workspace: The volume, where artifacts are looked for by name.
    :param artifact: Served when a request names none.
    :param backend: As in :func:`finetuner.encoder.load_encoder`, as are ``device`` and ``precision``.
    :param max_model_bytes: What the artifacts kept loaded may take together.
    :param max_batch_tokens: As in :class:`finetuner.batcher.Batcher`, as is ``max_queue_tokens``; 256 on a
        CPU and 16384 on a GPU when None.
    """

    def __init__(
        self,
        workspace: Path,
        *,
        artifact: str | None = None,
        backend: Backend = Backend.AUTO,
        device: Device = Device.CPU,
        precision: EncoderPrecision = EncoderPrecision.FP32,
        max_model_bytes: int = 4 * 2**30,
        max_batch_tokens: int | None = None,
        max_queue_tokens: int = 100_000,
    ) -> None:
        n_cores = len(os.sched_getaffinity(0))
        is_cpu = device is Device.CPU
        # A batch a core, each on one thread, beats one batch on all: threads that share a small matrix
        # wait for each other. A GPU takes one batch at a time, and the next is made ready meanwhile.
        self._batcher = Batcher(
            n_workers=n_cores if is_cpu else 2,
            max_batch_tokens=max_batch_tokens or _BATCH_TOKENS[device],
            max_queue_tokens=max_queue_tokens,
        )
        self._cache = EncoderCache(
            workspace,
            artifact=artifact,
            backend=backend,
            device=device,
            precision=precision,
            n_threads=1 if is_cpu else None,
            max_bytes=max_model_bytes,
        )
        self._metrics = EncodeMetrics(self._batcher, self._cache)
        self._tokenizing = ThreadPoolExecutor(n_cores, thread_name_prefix="tokenize")

    async def encode(self, texts: Texts, parameters: EncodeParameters) -> Encoded:
        """Embed texts.

        :param texts: Strings, or lists of the model's token ids; any number.
        :param parameters: Of the request.
        :returns: The vectors in the order of the texts.
        :raises ArtifactNotFound, RunInProgressError, RunFailedError: When there is no such artifact.
        :raises DigestMismatchError: When it is not the one that was pinned.
        :raises DataError: When a text or a token id is wrong, or too long with ``truncate='error'``.
        :raises ConfigError: When a parameter does not fit the model.
        :raises OverloadedError: When too much is waiting.
        :raises DeadlineExceededError: When ``timeout_s`` has passed.
        """
        try:
            encoded = await self._encode(texts, parameters)
        except (Exception, asyncio.CancelledError) as error:
            self._metrics.failed(error)
            raise
        self._metrics.ended(encoded.tags, len(texts))
        return encoded

    async def _encode(self, texts: Texts, parameters: EncodeParameters) -> Encoded:
        try:
            async with asyncio.timeout(parameters.timeout_s):
                prepared = await self._prepare(texts, parameters)
                _check_digest(prepared.served.encoder, parameters.digest)
                job = self._batcher.submit(
                    prepared.served.encoder, prepared.token_ids, client=parameters.client
                )
                # A request that is cancelled cancels the future, and leaves the queue by that.
                await asyncio.wrap_future(job.future)
        except TimeoutError as exc:
            raise DeadlineExceededError(
                f"not answered within timeout_s={parameters.timeout_s:g}"
            ) from exc
        return _shaped(prepared, job, parameters)

    async def tokenize(self, texts: Sequence[str], parameters: TextParameters) -> dict[str, Any]:
        """Return the tokens that a model sees of each text.

        :param texts: Strings; any number.
        :param parameters: Of the request.
        :raises FinetunerError: As :meth:`encode`.
        """
        served = await self._find(parameters)
        tokens = await self._in_thread(
            lambda: served.encoder.tokenizer.explain(
                _with_prompt(served, _checked(texts), parameters), truncate=parameters.truncate
            )
        )
        return {**_named(served), "tokens": [[asdict(token) for token in row] for row in tokens]}

    async def models(self) -> dict[str, Any]:
        """Return the finished runs of the volume, and what is known of those that are loaded."""
        return {"models": await asyncio.to_thread(self._cache.list)}

    def metrics(self) -> str:
        """Return counts and times, as Prometheus reads them."""
        return self._metrics.text()

    def close(self) -> None:
        """Finish what was taken, and stop."""
        self._batcher.close()
        self._tokenizing.shutdown()

    async def _find(self, parameters: TextParameters) -> Served:
        if (served := self._cache.loaded(parameters.artifact)) is not None:
            return served
        return await asyncio.to_thread(self._cache.get, parameters.artifact)

    async def _prepare(self, texts: Texts, parameters: EncodeParameters) -> Prepared:
        served = await self._find(parameters)
        started_at = time.perf_counter()
        if sum(map(len, texts)) < _FEW_CHARACTERS:
            token_ids = _token_ids(served, texts, parameters)
        else:
            token_ids = await self._in_thread(lambda: _token_ids(served, texts, parameters))
        return Prepared(served, token_ids, time.perf_counter() - started_at)

    async def _in_thread(self, function: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, function)


def _check_digest(encoder: Encoder, digest: str | None) -> None:
    if digest is not None and digest != encoder.digest:
        raise DigestMismatchError(
            f"`{encoder.name}` is served with the digest {encoder.digest}, not {digest[:80]}: its "
            "vectors do not go with those made before; encode the index anew, or name the artifact "
            "that has that digest"
        )


def _token_ids(
    served: Served, texts: Texts, parameters: EncodeParameters
) -> Sequence[Sequence[int]]:
    tokenizer = served.encoder.tokenizer
    if texts and not any(isinstance(text, str) for text in texts):
        return tokenizer.check_token_ids(texts)
    checked = _with_prompt(served, _checked(texts), parameters)
    return tokenizer.tokenize(checked, truncate=parameters.truncate)


def _checked(texts: Sequence[Any]) -> list[str]:
    return [check_text(text, f"text {number}") for number, text in enumerate(texts, start=1)]


def _with_prompt(served: Served, texts: list[str], parameters: TextParameters) -> list[str]:
    prompt = parameters.prompt
    if parameters.prompt_name is not None:
        prompt = served.prompt(parameters.prompt_name)
    return texts if prompt is None else [prompt + text for text in texts]


def _shaped(prepared: Prepared, job: Job, parameters: EncodeParameters) -> Encoded:
    served = prepared.served
    options = VectorOptions(parameters.normalize, parameters.dimensions, parameters.dtype)
    vectors = shape_vectors(job.vectors, options, is_normalized=served.encoder.is_normalized)
    tags = {
        **_named(served),
        "backend": served.encoder.backend.value,
        "precision": served.encoder.precision.value,
        "dim": parameters.dimensions or served.encoder.dim,
        "dtype": parameters.dtype.value,
        "n_tokens": sum(map(len, prepared.token_ids)),
        "tokenize_s": prepared.tokenize_s,
        **asdict(job.timing),
    }
    return Encoded(vectors, tags)


def _named(served: Served) -> Mapping[str, Any]:
    return {
        "artifact": served.encoder.name,
        "artifact_id": served.artifact_id,
        "digest": served.encoder.digest,
    }

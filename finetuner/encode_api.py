"""What the EncoderExecutor answers: many requests at once, each with its turn and its deadline."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetuner.alias_api import AliasAPI
from finetuner.alias_store import AliasStore
from finetuner.artifact_store import ArtifactStore
from finetuner.backends import Backend, EncoderPrecision
from finetuner.batcher import Batcher
from finetuner.config import Device
from finetuner.encode_parameters import EncodeParameters, TextParameters
from finetuner.encode_request import (
    Encoded,
    Prepared,
    Texts,
    check_fit,
    explain,
    shape,
    token_ids_of,
)
from finetuner.encoder_cache import EncoderCache
from finetuner.errors import DeadlineExceededError, UnavailableError
from finetuner.fetched_artifacts import FetchedArtifacts
from finetuner.named_models import NamedModels
from finetuner.search_api import SearchAPI
from finetuner.serving_metrics import EncodeMetrics
from finetuner.warm_up import WarmUp
from finetuner.watchdog import Watchdog

# A batch that fits a core's cache is a fifth faster than one of four times its size; a GPU wants to be full.
_BATCH_TOKENS = {Device.CPU: 256, Device.CUDA: 16_384}

# Tokenised at once, in less time than the way to a thread and back takes on a busy machine.
_FEW_CHARACTERS = 2_000
# Beyond so many that wait, a shadow is not asked: it must not slow down those who are answered.
_FEW_TOKENS = 2_000
_SHADOW = "shadow"


@dataclass
class Progress:
    """How far a request has come, for the figures when it ends early.

    :param artifact: Empty until it was found.
    """

    artifact: str = ""


class EncodeAPI:
    """Encodes for many clients at once.

    :param workspace: The volume, where artifacts are looked for by name.
    :param artifact: Served when a request names none.
    :param backend: As in :func:`finetuner.encoder.load_encoder`, as are ``device`` and ``precision``.
    :param max_model_bytes: What the artifacts kept loaded may take together.
    :param max_batch_tokens: As in :class:`finetuner.batcher.Batcher`, as is ``max_queue_tokens``; 256 on a
        CPU and 16384 on a GPU when None.
    :param artifact_store: The URL of a store with artifacts that are not on the volume.
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
        artifact_store: str | None = None,
    ) -> None:
        self._aliases = AliasStore(workspace)
        self._fetched = None
        if artifact_store is not None:
            self._fetched = FetchedArtifacts(workspace, ArtifactStore(artifact_store))
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
            pinned=self._aliases.artifacts,
            max_bytes=max_model_bytes,
            fetched=self._fetched,
        )
        self._models = NamedModels(self._aliases, self._cache)
        self.aliases = AliasAPI(self._aliases, warm=self._models.warm)
        self._warm_up = WarmUp(
            self._aliases, self._cache, warm=self._models.warm, max_bytes=max_model_bytes
        )
        self.search = SearchAPI(
            workspace, cache=self._cache, batcher=self._batcher, find=self._models.locate
        )
        self._metrics = EncodeMetrics(self._batcher, self._cache)
        self._shadows: set[asyncio.Future[None]] = set()
        self._watchdog = Watchdog(lambda: self._batcher.overdue_s)
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
        progress = Progress()
        try:
            encoded = await self._encode(texts, parameters, progress)
        except (Exception, asyncio.CancelledError) as error:
            self._metrics.failed(error, artifact=progress.artifact)
            raise
        self._metrics.ended(encoded.tags, len(texts))
        self._shadow(texts, parameters)
        return encoded

    def _shadow(self, texts: Texts, parameters: EncodeParameters) -> None:
        """Ask the shadow of an alias the same, where little waits; only the figures show the answer."""
        alias = parameters.artifact and self._aliases.find(parameters.artifact)
        if not alias or alias.shadow is None or self._batcher.n_queued_tokens > _FEW_TOKENS:
            return
        asked = replace(
            parameters,
            artifact=alias.shadow.artifact_id,
            client=_SHADOW,
            digest=None,
            timeout_s=None,
        )
        task = asyncio.ensure_future(self._ask_shadow(texts, asked))
        self._shadows.add(task)  # the loop alone would let go of it
        task.add_done_callback(self._shadows.discard)

    async def _ask_shadow(self, texts: Texts, parameters: EncodeParameters) -> None:
        progress = Progress()
        try:
            encoded = await self._encode(texts, parameters, progress)
        except Exception as error:  # nobody waits for it: it shows in the figures
            self._metrics.failed(error, artifact=progress.artifact, role=_SHADOW)
        else:
            self._metrics.ended(encoded.tags, len(texts), role=_SHADOW)

    async def _encode(
        self, texts: Texts, parameters: EncodeParameters, progress: Progress
    ) -> Encoded:
        try:
            async with asyncio.timeout(parameters.timeout_s):
                prepared = await self._prepare(texts, parameters, progress)
                check_fit(prepared.served.encoder, parameters)
                job = self._batcher.submit(
                    prepared.served.encoder, prepared.token_ids, client=parameters.client
                )
                # A request that is cancelled cancels the future, and leaves the queue by that.
                await asyncio.wrap_future(job.future)
        except TimeoutError as exc:
            raise DeadlineExceededError(
                f"not answered within timeout_s={parameters.timeout_s:g}"
            ) from exc
        return shape(prepared, job, parameters)

    async def tokenize(self, texts: Sequence[str], parameters: TextParameters) -> dict[str, Any]:
        """Return the tokens that a model sees of each text.

        :param texts: Strings; any number.
        :param parameters: Of the request.
        :raises FinetunerError: As :meth:`encode`.
        """
        served = await self._models.find(parameters.artifact)
        tokens: dict[str, Any] = await self._in_thread(lambda: explain(served, texts, parameters))
        return tokens

    def ready(self) -> dict[str, Any]:
        """Answer when no model is stuck.

        :raises UnavailableError: When a batch takes far longer than it should.
        """
        if overdue_s := self._batcher.overdue_s:
            raise UnavailableError(f"a batch of texts is {overdue_s:.0f} s late: the model hangs")
        return {"ready": True}

    async def models(self) -> dict[str, Any]:
        """Return the finished runs and the aliases of the volume, and what is known of those loaded."""
        return {"models": await asyncio.to_thread(self._models.list)}

    def metrics(self) -> str:
        """Return counts and times, as Prometheus reads them."""
        return self._metrics.text()

    def show_metrics_in(self, registry: Any) -> None:
        """Tell counts and times in a registry of Prometheus too.

        :param registry: Jina's, where an executor has a port for them.
        """
        self._metrics.show_in(registry)

    def close(self) -> None:
        """Finish what was taken, and stop."""
        self._warm_up.close()
        self.search.close()
        self._batcher.close()
        self._watchdog.close()
        self._tokenizing.shutdown()
        if self._fetched is not None:
            self._fetched.close()

    async def _prepare(
        self, texts: Texts, parameters: EncodeParameters, progress: Progress
    ) -> Prepared:
        served = await self._models.find(parameters.artifact, parameters.client)
        progress.artifact = served.encoder.name
        started_at = time.perf_counter()
        if sum(len(text) for text in texts if isinstance(text, str | list)) < _FEW_CHARACTERS:
            token_ids = token_ids_of(served, texts, parameters)
        else:
            token_ids = await self._in_thread(lambda: token_ids_of(served, texts, parameters))
        return Prepared(served, token_ids, time.perf_counter() - started_at)

    async def _in_thread(self, function: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, function)

"""EncoderExecutor: embeds texts with the artifact of any finished run on the volume."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from docarray import DocumentArray
from jina import Executor, requests

from finetuner.backends import Backend
from finetuner.config import Device
from finetuner.config import workspace_dir as resolve_workspace
from finetuner.encoder_cache import EncoderCache
from finetuner.schema import convert, documented, read
from finetuner.wire import (
    PACKED_TEXTS,
    holds,
    own_parameters,
    packed_vectors,
    read_texts,
    unknown_arguments,
)


@dataclass(frozen=True)
class EncodeParameters:
    """Parameters of ``/encode``."""

    artifact: str | None = documented("run name, `experiment/run` or artifact id", default=None)
    batch_size: int | None = documented("texts embedded at once", default=None)


class EncoderExecutor(Executor):
    """Embeds texts.

    :param artifact: Served when a request names none: a path, or a run's name or artifact id.
    :param backend: ``auto``, ``torch`` or ``onnx``.
    :param device: ``cpu`` or ``cuda``.
    :param batch_size: Texts embedded at once where a request does not say.
    :param max_models: Artifacts kept loaded; the one used longest ago goes first.
    :param workspace_dir: The volume; when None, ``FINETUNER_WORKSPACE``, else the user's data folder.
    """

    def __init__(
        self,
        artifact: str | None = None,
        backend: str = "auto",
        device: str = "cpu",
        batch_size: int = 32,
        max_models: int = 2,
        workspace_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        unknown_arguments(self, kwargs)
        self._batch_size = batch_size
        self._cache = EncoderCache(
            resolve_workspace(workspace_dir),
            artifact=artifact,
            backend=convert(Backend, backend, "EncoderExecutor.backend"),
            device=convert(Device, device, "EncoderExecutor.device"),
            max_models=max_models,
        )
        # One thread: a second batch beside the first would only share its cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    @requests(on="/encode")
    async def encode(
        self, docs: DocumentArray, parameters: dict[str, Any], **_: Any
    ) -> DocumentArray:
        """Fill in the documents' embeddings.

        :param docs: Documents with text; or one packed document of the gateway, answered by one with
            the vectors as its tensor, *Shape:* ``(n_texts, dim)`` float32.
        :param parameters: ``artifact`` and ``batch_size``, both optional.
        """
        request = read(EncodeParameters, own_parameters(parameters), "parameters")
        loop = asyncio.get_running_loop()
        encoder = await asyncio.to_thread(self._cache.get, request.artifact)
        batch_size = self._batch_size if request.batch_size is None else request.batch_size
        texts = read_texts(docs)
        vectors = await loop.run_in_executor(
            self._thread, lambda: encoder.encode(texts, batch_size=batch_size)
        )
        if holds(docs, PACKED_TEXTS):
            tags = {"artifact": encoder.name, "backend": encoder.backend.value}
            return packed_vectors(vectors, tags)
        if len(docs):
            docs.embeddings = vectors
        return docs

    def close(self) -> None:
        """Let the batch in work end."""
        self._thread.shutdown()
        super().close()

"""EncoderExecutor: embeds texts with the artifact of any finished run on the volume."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from docarray import Document, DocumentArray
from jina import Executor, requests

from finetuner.artifact_store import artifact_store_of
from finetuner.backends import Backend, EncoderPrecision
from finetuner.config import Device
from finetuner.config import workspace_dir as resolve_workspace
from finetuner.direct import DirectServer, socket_name, sockets_folder
from finetuner.encode_api import EncodeAPI
from finetuner.encode_parameters import EncodeParameters, TextParameters
from finetuner.hardening import harden_docarray
from finetuner.log_format import set_up_logs
from finetuner.schema import convert, read
from finetuner.search_api import SearchParameters
from finetuner.wire import (
    PACKED_TEXTS,
    holds,
    json_document,
    own_parameters,
    pack_vectors,
    read_request,
    read_texts,
    unknown_arguments,
    unpack_request,
)


class EncoderExecutor(Executor):
    """Embeds texts.

    :param artifact: Served when a request names none: a path, or a run's name or artifact id.
    :param backend: ``auto``, ``torch`` or ``onnx``.
    :param device: ``cpu`` or ``cuda``.
    :param precision: ``fp32``, ``bf16``, ``fp16``, ``int8``, ``weight_int8``, or ``auto`` for the fastest of
        the first three.
    :param max_batch_tokens: Texts of a batch times the longest of them; 256 on a CPU, 16384 on a GPU when
        None.
    :param max_queue_tokens: Tokens that may wait; beyond that, requests are refused with 429.
    :param max_model_bytes: What the artifacts kept loaded may take together; the one used longest ago
        goes first.
    :param workspace_dir: The volume; when None, ``FINETUNER_WORKSPACE``, else the user's data folder.
    :param artifact_store: A URL such as ``s3://bucket/prefix``: artifacts that are not on the volume are
        fetched from there, once; when None, ``FINETUNER_ARTIFACT_STORE``; empty for none.
    """

    def __init__(
        self,
        artifact: str | None = None,
        backend: str = "auto",
        device: str = "cpu",
        precision: str = "fp32",
        max_batch_tokens: int | None = None,
        max_queue_tokens: int = 100_000,
        max_model_bytes: int = 4 * 2**30,
        workspace_dir: str | None = None,
        artifact_store: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        set_up_logs()
        harden_docarray()
        unknown_arguments(self, kwargs)
        # A request has few texts: to spread them over threads costs more than it gains.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._api = EncodeAPI(
            resolve_workspace(workspace_dir),
            artifact=artifact,
            backend=convert(Backend, backend, "EncoderExecutor.backend"),
            device=convert(Device, device, "EncoderExecutor.device"),
            precision=convert(EncoderPrecision, precision, "EncoderExecutor.precision"),
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            max_model_bytes=max_model_bytes,
            artifact_store=artifact_store_of(artifact_store),
        )
        registry = getattr(self.runtime_args, "metrics_registry", None)
        if (
            registry is not None
        ):  # `--monitoring`: the figures of this replica, at a port of its own
            self._api.show_metrics_in(registry)
        self._direct = self._listen_directly()

    def _listen_directly(self) -> DirectServer | None:
        """Listen for a gateway on the same machine, when this is a part of a Flow that has begun to run."""
        folder, name = sockets_folder(), getattr(self.runtime_args, "name", None)
        # A trace would lose sight of what goes past Jina.
        if folder is None or name is None or self.tracer is not None:
            return None
        server = DirectServer(folder / socket_name(name), self._answer)
        self._starting = asyncio.get_running_loop().create_task(server.start())
        return server

    @requests(on="/encode")
    async def encode(
        self, docs: DocumentArray, parameters: dict[str, Any], **_: Any
    ) -> DocumentArray:
        """Fill in the documents' embeddings.

        :param docs: Documents with text; or one packed document of the gateway, answered by another, as
            :mod:`finetuner.wire` packs them.
        :param parameters: Those of :class:`finetuner.encode_parameters.EncodeParameters`.
        """
        if holds(docs, PACKED_TEXTS):
            return DocumentArray([Document(blob=await self._answer(docs[0].blob))])
        asked = read(EncodeParameters, own_parameters(parameters), "parameters")
        encoded = await self._api.encode(read_texts(docs), asked)
        if len(docs):
            docs.embeddings = encoded.vectors
        return docs

    async def _answer(self, request: bytes) -> bytes:
        """Answer a packed request with packed vectors."""
        texts, given = unpack_request(request)
        encoded = await self._api.encode(texts, read(EncodeParameters, given, "parameters"))
        return pack_vectors(encoded.vectors, encoded.tags)

    @requests(on="/tokenize")
    async def tokenize(
        self, docs: DocumentArray, parameters: dict[str, Any], **_: Any
    ) -> DocumentArray:
        """Return the tokens of each text, as one JSON document.

        :param docs: As :meth:`encode` takes them.
        :param parameters: Those of :class:`finetuner.encode_parameters.TextParameters`.
        """
        texts, given = read_request(docs, parameters)
        asked = read(TextParameters, given, "parameters")
        return json_document(await self._api.tokenize(texts, asked))

    @requests(on="/search")
    async def search(
        self, docs: DocumentArray, parameters: dict[str, Any], **_: Any
    ) -> DocumentArray:
        """Return the texts of an index nearest to a query, or how far the index is, as one JSON document.

        :param docs: One text, as :meth:`encode` takes it.
        :param parameters: Those of :class:`finetuner.search_api.SearchParameters`.
        """
        texts, given = read_request(docs, parameters)
        asked = read(SearchParameters, given, "parameters")
        return json_document(await self._api.search.search(texts, asked))

    @requests(on="/ready")
    async def ready(self, **_: Any) -> DocumentArray:
        """Answer, or say that a model is stuck."""
        return json_document(self._api.ready())

    @requests(on="/models")
    async def models(self, **_: Any) -> DocumentArray:
        """Return what can be served, as one JSON document."""
        return json_document(await self._api.models())

    @requests(on="/aliases")
    async def aliases(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """List aliases."""
        return await self._ask(self._api.aliases.aliases, parameters)

    @requests(on="/alias/set")
    async def set_alias(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Let an alias point to a run."""
        return await self._ask(self._api.aliases.set, parameters)

    @requests(on="/alias/rollback")
    async def roll_back_alias(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Let an alias point to the run before."""
        return await self._ask(self._api.aliases.rollback, parameters)

    @requests(on="/alias/delete")
    async def delete_alias(self, parameters: dict[str, Any], **_: Any) -> DocumentArray:
        """Remove an alias."""
        return await self._ask(self._api.aliases.delete, parameters)

    @staticmethod
    async def _ask(answer: Callable[[dict[str, Any]], Any], parameters: Any) -> DocumentArray:
        return json_document(await asyncio.to_thread(answer, own_parameters(parameters)))

    @requests(on="/metrics/encoder")
    async def metrics(self, **_: Any) -> DocumentArray:
        """Return counts and times in the text format of Prometheus, as one JSON document."""
        return json_document({"text": self._api.metrics()})

    def close(self) -> None:
        """Finish what was taken."""
        if self._direct is not None:
            self._direct.stop_listening()
        self._api.close()
        super().close()

"""One request to the encoder: from its texts to token ids, and from their vectors to the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from finetuner.data import check_text
from finetuner.encode_parameters import EncodeParameters, TextParameters
from finetuner.encoder import Encoder
from finetuner.encoder_cache import Served
from finetuner.errors import DigestMismatchError
from finetuner.text_queue import Job
from finetuner.vectors import shape_vectors

Texts = Sequence[str] | Sequence[Sequence[int]]


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


def check_fit(encoder: Encoder, parameters: EncodeParameters) -> None:
    """Refuse what this model cannot answer, before anything is computed.

    :param encoder: The model.
    :param parameters: Of the request.
    :raises ConfigError: When the vectors cannot have the form asked for.
    :raises DigestMismatchError: When the model is not the one that was pinned.
    """
    parameters.vector_options.check(encoder.dim, is_normalized=encoder.is_normalized)
    digest = parameters.digest
    if digest is not None and digest != encoder.digest:
        raise DigestMismatchError(
            f"`{encoder.name}` is served with the digest {encoder.digest}, not {digest[:80]}: its "
            "vectors do not go with those made before; encode the index anew, or name the artifact "
            "that has that digest"
        )


def token_ids_of(
    served: Served, texts: Texts, parameters: EncodeParameters
) -> Sequence[Sequence[int]]:
    """Return the token ids of texts, with the prompt asked for before each.

    :param served: The model.
    :param texts: Strings, or lists of token ids, which are checked and taken as they are.
    :param parameters: Of the request.
    :raises DataError: When a text or a token id is wrong, or too long with ``truncate='error'``.
    :raises ConfigError: When the model has no such prompt.
    """
    tokenizer = served.encoder.tokenizer
    if texts and not any(isinstance(text, str) for text in texts):
        return tokenizer.check_token_ids(texts)
    checked = _with_prompt(served, _checked(texts), parameters)
    return tokenizer.tokenize(checked, truncate=parameters.truncate)


def explain(served: Served, texts: Sequence[str], parameters: TextParameters) -> dict[str, Any]:
    """Return the tokens that a model sees of each text, with the model's name.

    :param served: The model.
    :param texts: Strings; any number.
    :param parameters: Of the request.
    :raises DataError, ConfigError: As :func:`token_ids_of`.
    """
    tokens = served.encoder.tokenizer.explain(
        _with_prompt(served, _checked(texts), parameters), truncate=parameters.truncate
    )
    return {**_named(served), "tokens": [[asdict(token) for token in row] for row in tokens]}


def _checked(texts: Sequence[Any]) -> list[str]:
    return [check_text(text, f"text {number}") for number, text in enumerate(texts, start=1)]


def _with_prompt(served: Served, texts: list[str], parameters: TextParameters) -> list[str]:
    prompt = parameters.prompt
    if parameters.prompt_name is not None:
        prompt = served.prompt(parameters.prompt_name)
    return texts if prompt is None else [prompt + text for text in texts]


def shape(prepared: Prepared, job: Job, parameters: EncodeParameters) -> Encoded:
    """Return a request's vectors in the form asked for, with the name of the model that made them.

    :param prepared: The request.
    :param job: Its vectors.
    :param parameters: Of the request.
    """
    served = prepared.served
    vectors = shape_vectors(
        job.vectors, parameters.vector_options, is_normalized=served.encoder.is_normalized
    )
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

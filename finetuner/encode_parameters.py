"""What a request to embed or to tokenise may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from finetuner.data import check_text
from finetuner.errors import ConfigError
from finetuner.schema import documented
from finetuner.tokens import Truncate
from finetuner.vectors import VectorOptions, VectorType


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
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"parameters.batch_size must be at least 1, got {self.batch_size}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ConfigError(f"parameters.timeout_s must be above 0, got {self.timeout_s}")

    @property
    def vector_options(self) -> VectorOptions:
        """What is to be done with the vectors."""
        return VectorOptions(self.normalize, self.dimensions, self.dtype)

"""The projection head: a linear layer after pooling, that gives vectors another length."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetuner.errors import ConfigError, ModelNotFoundError
from finetuner.files import write_json
from finetuner.model_folder import read_settings, read_stages
from finetuner.schema import convert


class Activation(StrEnum):
    """What follows the linear layer, under the name that sentence-transformers writes."""

    IDENTITY = "torch.nn.modules.linear.Identity"
    TANH = "torch.nn.modules.activation.Tanh"


_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    Activation.IDENTITY: nn.Identity,
    Activation.TANH: nn.Tanh,
}
# Settings of newer releases that change what is computed, and the only value known here.
_PLAIN_SETTINGS = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}


@dataclass(frozen=True)
class HeadSettings:
    """The shape of a head: its ``config.json``.

    :param in_features: Length of the pooled vectors.
    :param out_features: Length of what comes out.
    :param bias: Whether something is added.
    :param activation_function: What follows.
    """

    in_features: int
    out_features: int
    bias: bool = True
    activation_function: Activation = Activation.IDENTITY


class Head(nn.Module):
    """A linear layer and its activation; the weights' names are those of sentence-transformers.

    :param settings: Its shape.
    """

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        self.settings = settings
        self.linear = nn.Linear(settings.in_features, settings.out_features, bias=settings.bias)
        self.activation = _ACTIVATIONS[settings.activation_function]()

    def forward(self, pooled: Tensor) -> Tensor:
        """Project text vectors.

        :param pooled: *Shape:* ``(batch, in_features)`` float32.
        :returns: *Shape:* ``(batch, out_features)`` float32.
        """
        return self.activation(self.linear(pooled))  # type: ignore[no-any-return]  # a module's call is Any


def new_head(width: int, output_dim: int, *, seed: int) -> Head:
    """Make a head that changes what is near what as little as an untrained one can.

    The weight is a random matrix with orthonormal rows, or columns when it widens (Saxe et al. 2014,
    arXiv 1312.6120), and the bias zero. As wide or wider, it keeps every angle. Narrower, it kept of
    the ten nearest neighbours of all-MiniLM-L6-v2 (384) at 128 as many as the first 128 components
    did, 82 against 81 in 100 on examples/quora_style_*.csv, where torch's own initialisation kept
    77. The first components alone were not taken for two reasons: padded with zeros to widen, the
    added ones get no gradient from a cosine and stay zero, and some backbones have a few components
    far larger than the others.

    :param width: Length of the pooled vectors.
    :param output_dim: Length of what comes out.
    :param seed: Of the matrix; the same one gives the same head.
    """
    with torch.device("meta"):  # torch's own initialisation would draw from the global generator
        head = Head(HeadSettings(width, output_dim))
    head.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    nn.init.orthogonal_(head.linear.weight, generator=generator)
    nn.init.zeros_(head.linear.bias)
    return head


def read_head_settings(folder: Path) -> HeadSettings | None:
    """Return the shape of a folder's head, or None when it has none; no weights are read.

    :param folder: The model's.
    :raises ModelNotFoundError: When the settings are missing or cannot be read.
    :raises ConfigError: When the head does something that this package does not know.
    """
    stages = read_stages(folder)
    if "Dense" not in stages:
        return None
    name = (Path(stages["Dense"]) / "config.json").as_posix()
    content = read_settings(folder, name, dict)
    for key, known in _PLAIN_SETTINGS.items():
        if content.get(key, known) not in (known, None):
            raise ConfigError(
                f"the head of `{folder.name}` has {key}={content[key]!r}; known: {known!r}"
            )
    # Left out, sentence-transformers takes Tanh.
    activation = content.get("activation_function", Activation.TANH.value)
    if activation not in list(Activation):
        raise ConfigError(
            f"the head of `{folder.name}` has the activation `{activation}`; known: "
            f"{', '.join(Activation)}"
        )
    return HeadSettings(
        _read_size(content, "in_features", f"{folder.name}/{name}"),
        _read_size(content, "out_features", f"{folder.name}/{name}"),
        bool(content.get("bias", True)),
        Activation(activation),
    )


def _read_size(content: dict[str, Any], key: str, where: str) -> int:
    try:
        size: int = convert(int, content.get(key), key)
    except ConfigError as exc:
        raise ModelNotFoundError(f"`{where}` cannot be read: {exc}") from exc
    if size < 1:
        raise ModelNotFoundError(f"`{where}` cannot be read: {key} must be at least 1, got {size}")
    return size


def read_head(folder: Path) -> Head | None:
    """Return a folder's head in float32, or None when it has none.

    :param folder: The model's.
    :raises ModelNotFoundError: When a file is missing, cannot be read or has other sizes.
    :raises ConfigError: As :func:`read_head_settings`.
    """
    settings = read_head_settings(folder)
    if settings is None:
        return None
    name = (Path(read_stages(folder)["Dense"]) / "model.safetensors").as_posix()
    try:
        state = load_file(folder / name)
        with torch.device(
            "meta"
        ):  # the sizes stated are not allocated before the file confirms them
            head = Head(settings)
        head.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    except (OSError, RuntimeError, SafetensorError) as exc:
        raise ModelNotFoundError(
            f"`{name}` of `{folder.name}` cannot be read: {exc} (weights in other formats, such as "
            "pytorch_model.bin, are never loaded)"
        ) from exc
    return head


def write_head(folder: Path, head: Head) -> None:
    """Write a head's settings and weights.

    :param folder: The stage's; it is made.
    :param head: Its weights are written in float32.
    """
    folder.mkdir()
    write_json(folder / "config.json", asdict(head.settings))
    state = {key: value.float().contiguous() for key, value in head.state_dict().items()}
    save_file(state, folder / "model.safetensors")

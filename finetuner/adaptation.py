"""What of a model is trained, at what rate, and how weights from before and after are combined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from finetuner.errors import ConfigError, KeysMismatchError
from finetuner.models import EmbeddingModel
from finetuner.schema import convert, documented


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training changes, in the order in which the model names them."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _layers(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the list of a transformer's layers, and its name.

    It is the longest of those that lie in no other: T5 keeps a list inside each layer too.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in backbone.named_modules():
        is_inner = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not is_inner:
            lists[name] = module
    if not lists:
        raise ConfigError(f"a {type(backbone).__name__} has no list of layers to tell apart")
    return max(lists.items(), key=lambda item: len(item[1]))


def parameter_depths(model: EmbeddingModel) -> list[tuple[nn.Parameter, int]]:
    """Return every parameter with its depth below the top.

    0 is the top layer and all that follows it: pooler, last normalisation, projection head. The
    layers below it are 1, 2, and so on; the embeddings' depth is the number of layers. Embeddings are
    the tables outside the layers and whatever a model defines before these.

    :param model: Its backbone must have its layers in a list.
    :raises ConfigError: When it does not.
    """
    prefix, layers = _layers(model.backbone)
    tables = [m for m in model.backbone.modules() if isinstance(m, nn.Embedding)]
    in_tables = {id(parameter) for table in tables for parameter in table.parameters()}
    depths = []
    depth_outside = len(layers)
    for name, parameter in model.backbone.named_parameters():
        if name.startswith(f"{prefix}."):
            number = int(name.removeprefix(f"{prefix}.").partition(".")[0])
            depths.append((parameter, len(layers) - 1 - number))
            depth_outside = 0
        else:
            depth = len(layers) if id(parameter) in in_tables else depth_outside
            depths.append((parameter, depth))
    head = model.head.parameters() if model.head is not None else ()
    return depths + [(parameter, 0) for parameter in head]


def freeze_backbone(model: EmbeddingModel, n_layers: int | None = None, *, seed: int = 0) -> None:
    """Keep the transformer, or its lowest part, as it is; dropout stays off there from now on.

    With all of it frozen only the projection head is trained; a model without one gets a head of its
    own length, as the old service did.

    :param model: Changed in place, and left in evaluation mode.
    :param n_layers: Freeze the embeddings and this many of the lowest layers, 0 for the embeddings
        alone and at most all layers but one; None for all of the transformer.
    :param seed: Of the weights of an added head.
    :raises ConfigError: When there are not that many layers, or LoRA has frozen the model already.
    """
    _refuse_adapted(model)
    if n_layers is None:
        model.backbone.requires_grad_(False)
        if model.head is None:
            model.add_head(model.width, seed=seed)
    else:
        n_all = len(_layers(model.backbone)[1])
        check_frozen_layers(n_layers, n_all)
        for parameter, depth in parameter_depths(model):
            if depth >= n_all - n_layers:
                parameter.requires_grad_(False)
    model.frozen = tuple(module for module in model.backbone.modules() if _is_frozen(module))
    model.eval()


def check_frozen_layers(n_frozen: int, n_layers: int) -> None:
    """Refuse to freeze layers that a model does not have, or all of them.

    :param n_frozen: To freeze.
    :param n_layers: That there are.
    :raises ConfigError: When that cannot be done.
    """
    if not 0 <= n_frozen < n_layers:
        raise ConfigError(
            f"from 0 to {n_layers - 1} of the model's {n_layers} layers can be frozen, got {n_frozen}; "
            "freeze=True freezes all of them and trains a projection head"
        )


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


@dataclass(frozen=True)
class LoRAOptions:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): train W + alpha/rank · B·A with W fixed.

    :raises ConfigError: When a number is out of its range, or ``target_modules`` is empty.
    """

    rank: int = documented("rows of A and columns of B, 1 to 1024", default=8)
    alpha: float = documented("the product is scaled by alpha / rank; above 0", default=16.0)
    dropout: float = documented("share of a layer's input dropped, 0 up to below 1", default=0.0)
    target_modules: tuple[str, ...] | None = documented(
        "ends of the names of what is adapted, such as `query`; when left out, every linear layer "
        "of attention and feed-forward",
        default=None,
    )

    def __post_init__(self) -> None:
        for name, is_allowed, allowed in (
            ("rank", 1 <= self.rank <= 1024, "from 1 to 1024"),
            ("alpha", self.alpha > 0, "above 0"),
            ("dropout", 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("target_modules", self.target_modules != (), "left out, or name a module"),
        ):
            if not is_allowed:
                raise ConfigError(f"lora.{name} must be {allowed}, got {getattr(self, name)}")


def check_lora_available() -> None:
    """Find out without loading anything whether peft is installed.

    :raises ConfigError: When it is not.
    """
    if find_spec("peft") is None:
        raise ConfigError(
            "LoRA needs the package peft on the server: pip install 'finetuner-flow[lora]'"
        )


def add_lora(model: EmbeddingModel, options: LoRAOptions, *, seed: int = 0) -> None:
    """Add trainable low-rank products to a transformer's linear layers and freeze all else of it.

    B begins as zeros, so the vectors are at first those of before. A projection head stays trainable.

    :param model: Changed in place; still on the CPU.
    :param options: Where and how large.
    :param seed: Of A; the same one gives the same products.
    :raises ConfigError: When peft is missing, the model has LoRA or is frozen already, or a target is
        not in the model or cannot be adapted.
    """
    check_lora_available()
    _refuse_adapted(model)
    if model.frozen:
        raise ConfigError("LoRA keeps the model frozen by itself; leave `freeze` out")
    import peft

    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.target_modules or _layer_linears(model.backbone)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, model.backbone)
        except (ValueError, TypeError) as exc:
            raise ConfigError(f"lora.target_modules does not fit the model: {exc}") from exc
    model.train(model.training)  # what was added begins with its dropout on


def _layer_linears(backbone: nn.Module) -> list[str]:
    prefix, layers = _layers(backbone)
    return [
        name
        for name, module in layers.named_modules(prefix=prefix)
        if isinstance(module, nn.Linear)
    ]


def _refuse_adapted(model: EmbeddingModel) -> None:
    if hasattr(model.backbone, "peft_config"):
        raise ConfigError("the model has LoRA already; merge it first")


def merge_lora(model: EmbeddingModel) -> None:
    """Add the low-rank products to the weights they belong to; what is left is a plain model.

    :param model: Changed in place, all of it trainable; untouched when it has no LoRA.
    """
    if not hasattr(model.backbone, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.backbone.set_submodule(name, module.get_base_layer())
    del model.backbone.peft_config
    model.backbone.requires_grad_(True)


def check_layer_wise_lr_decay(decay: object) -> float:
    """Return ``optimizer_options.layer_wise_lr_decay`` as a number.

    :param decay: What was given.
    :raises ConfigError: When it is none, or not above 0 and at most 1.
    """
    value: float = convert(float, decay, "optimizer_options.layer_wise_lr_decay")
    if not 0 < value <= 1:
        raise ConfigError(
            f"optimizer_options.layer_wise_lr_decay must be above 0 and at most 1, got {value}"
        )
    return value


def parameter_groups(
    model: EmbeddingModel, *, learning_rate: float, layer_wise_lr_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return the trainable parameters as the groups that an optimizer of torch takes.

    Without a decay that is one group: the optimizer does what it would with ``model.parameters()``.
    With one, a parameter's rate is ``learning_rate * layer_wise_lr_decay ** depth`` with the depth of
    :func:`parameter_depths` (Zhang et al. 2020, arXiv 2006.05987, section 3; the old service's
    option), and biases and the weights of normalisations, which have one dimension, get no weight
    decay. Everything else keeps the optimizer's own, so a decay of 1 differs in that alone.

    :param model: What is frozen in it is left out.
    :param learning_rate: Of the top layer and the head, above 0.
    :param layer_wise_lr_decay: Above 0, at most 1.
    :returns: From the top to the embeddings; no group is empty.
    :raises ConfigError: When the decay is out of range, or the model has no list of layers.
    """
    if layer_wise_lr_decay is None:
        return [{"params": trainable_parameters(model), "lr": learning_rate}]
    decay = check_layer_wise_lr_decay(layer_wise_lr_decay)
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter, depth in parameter_depths(model):
        if parameter.requires_grad:
            members[depth, parameter.ndim < 2].append(parameter)
    groups: list[dict[str, Any]] = []
    for (depth, is_vector), parameters in sorted(members.items(), key=lambda item: item[0]):
        group = {"params": parameters, "lr": learning_rate * decay**depth}
        groups.append(group | ({"weight_decay": 0.0} if is_vector else {}))
    return groups


def interpolate(
    pretrained: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Average two sets of weights: ``(1 - alpha) * pretrained + alpha * tuned``.

    Known as WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, equation 1).

    :param pretrained: The state before training.
    :param tuned: The state after it, of the same model.
    :param alpha: 0 for the first, 1 for the second.
    :returns: New tensors in float32, on the devices of ``tuned``; whole numbers, such as counters, are
        those of ``tuned``. Empty for two empty states.
    :raises ConfigError: When ``alpha`` is not from 0 to 1.
    :raises KeysMismatchError: When names or shapes differ.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must be from 0 to 1, got {alpha}")
    if differing := sorted(pretrained.keys() ^ tuned.keys()):
        raise KeysMismatchError(
            f"only one of the two models has {', '.join(differing[:5])}; {len(differing)} names differ"
        )
    combined = {}
    for name, after in tuned.items():
        before = pretrained[name].to(after.device)
        if before.shape != after.shape:
            raise KeysMismatchError(
                f"`{name}` has the shape {tuple(before.shape)} in one model and "
                f"{tuple(after.shape)} in the other"
            )
        is_whole = not after.is_floating_point()
        combined[name] = after.clone() if is_whole else before.float().lerp(after.float(), alpha)
    return combined

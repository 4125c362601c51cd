"""Optimizers and schedules by name, with options that are checked first."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from finetuner.config import DEFAULT_LOSS_LEARNING_RATE, RunConfig
from finetuner.errors import ConfigError
from finetuner.losses import build, check_name

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: getattr(torch.optim, name)
    for name in (
        "ASGD",
        "Adadelta",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    )
}
# These two follow a measured value, which a step does not have.
_METRIC_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")
# transformers takes no options for these, and drops them without a word.
_PLAIN_SCHEDULERS = ("constant", "constant_with_warmup")
_CONSTANT = "constant"


def build_optimizer(
    name: str, parameters: Any, *, learning_rate: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Build an optimizer, fused where torch has that: ten times less CPU time for AdamW.

    :param name: A key of ``OPTIMIZERS``.
    :param parameters: What to optimize: parameters, or groups of them.
    :param learning_rate: Above 0; takes the place of ``options['lr']``.
    :param options: The optimizer's other arguments.
    :raises ConfigError: When the name or an option is unknown, or a value is refused.
    """
    check_name("optimizer", name, OPTIMIZERS)
    cls = OPTIMIZERS[name]
    arguments = {**options, "params": parameters, "lr": learning_rate}
    is_other = options.get("foreach") or options.get("differentiable")
    if "fused" in inspect.signature(cls).parameters and not is_other:
        arguments.setdefault("fused", True)
    return build("optimizer", name, cls, arguments)  # type: ignore[no-any-return]  # Any of a class


def build_loss_optimizer(
    config: RunConfig, objective: torch.nn.Module
) -> torch.optim.Optimizer | None:
    """Build the optimizer of a loss's own weights, such as class centres.

    :param config: ``loss_optimizer`` and its options; by default that of the model, with a rate of 0.01.
    :param objective: The loss.
    :returns: None when the loss has no weights.
    :raises ConfigError: As :func:`build_optimizer`.
    """
    parameters = list(objective.parameters())
    if not parameters:
        if config.loss_optimizer or config.loss_optimizer_options:
            raise ConfigError(
                f"{config.loss} has no weights of its own to optimize, as ArcFaceLoss and its kin have: "
                "leave loss_optimizer and loss_optimizer_options out"
            )
        return None
    options = dict(config.loss_optimizer_options)
    rate = options.pop("lr", DEFAULT_LOSS_LEARNING_RATE)
    name = config.loss_optimizer or config.optimizer
    return build_optimizer(name, parameters, learning_rate=rate, options=options)


def build_scheduler(
    config: RunConfig, optimizer: torch.optim.Optimizer, *, n_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build a learning-rate schedule of transformers; constant when none is named.

    :param config: ``scheduler`` and ``scheduler_options``. ``num_warmup_steps`` below 1 is a share of all
        steps; ``scheduler_step`` is ``batch`` or ``epoch``.
    :param optimizer: Whose rate it changes.
    :param n_steps: Steps of the scheduler in the whole run.
    :raises ConfigError: When the name or an option is unknown, or a value is refused.
    """
    if config.scheduler is None and not config.scheduler_options:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    # With these come all of peft, where that is installed.
    from transformers import SchedulerType, get_scheduler

    name = config.scheduler or _CONSTANT
    known = [member.value for member in SchedulerType if member.value not in _METRIC_SCHEDULERS]
    check_name("scheduler", name, known)
    options = dict(config.scheduler_options)
    step = options.pop("scheduler_step", "batch")
    if step not in ("batch", "epoch"):
        raise ConfigError(f"scheduler_options.scheduler_step must be batch or epoch, got `{step}`")
    n_warmup = _warmup_steps(options.pop("num_warmup_steps", 0), n_steps)
    if options.pop("num_training_steps", "auto") != "auto":
        raise ConfigError(
            "scheduler_options.num_training_steps follows from the data; leave it out"
        )
    if options and name in _PLAIN_SCHEDULERS:
        raise ConfigError(f"scheduler {name} takes no option `{next(iter(options))}`")
    try:
        scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=n_warmup,
            num_training_steps=n_steps,
            scheduler_specific_kwargs=options,
        )
        return scheduler
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"scheduler {name} refuses its options: {exc}") from exc


def _warmup_steps(asked: Any, n_steps: int) -> int:
    if isinstance(asked, bool) or not isinstance(asked, int | float) or asked < 0:
        raise ConfigError(
            "scheduler_options.num_warmup_steps must be a number of steps, or a share of all steps "
            f"below 1; got `{asked!r}`"
        )
    return int(asked) if asked >= 1 else round(asked * n_steps)

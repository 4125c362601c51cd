"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import SchedulerType, get_scheduler

from finetuner.batching import BatchPlan
from finetuner.config import RunConfig
from finetuner.data import TrainingData
from finetuner.device import autocast
from finetuner.errors import ConfigError, TrainingError
from finetuner.losses import MetricLoss, build_loss, build_optimizer
from finetuner.models import LoadedModel
from finetuner.schema import nearest

_MAX_GRADIENT_NORM = 1.0
# These two follow a measured value, which a step does not have.
_METRIC_SCHEDULERS = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
# transformers takes no options for these, and drops them without a word.
_PLAIN_SCHEDULERS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    :param epoch: From 1.
    :param step: Batches of this epoch done.
    :param n_steps: Batches of this epoch.
    :param loss: Mean over the epoch so far.
    """

    epoch: int
    step: int
    n_steps: int
    loss: float


@dataclass(frozen=True)
class TrainingHooks:
    """What to do beside training.

    :param on_step: Called after each batch.
    :param on_epoch_end: Called after each epoch with its number from 1; may put the model in
        evaluation mode.
    """

    on_step: Callable[[Progress], None]
    on_epoch_end: Callable[[int], None]


def check_training(config: RunConfig) -> None:
    """Refuse now what would stop :func:`train` later, by one step on a handful of numbers.

    :raises ConfigError: When a loss, miner, optimizer or scheduler, or one of its options, is unknown
        or has a value that it cannot work with.
    """
    loss_function = _build_loss(config)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.Parameter(torch.randn(8, 4, generator=generator))
    optimizer = _build_optimizer(config, [embeddings, *loss_function.parameters()])
    scheduler = _build_scheduler(config, optimizer, n_steps=1)
    try:
        loss_function(embeddings, torch.arange(8) // 2).backward()
        optimizer.step()
        scheduler.step()
    except Exception as exc:  # a library may raise anything for a value of the wrong kind
        raise ConfigError(
            f"{config.loss}, {config.miner or 'no miner'} and {config.optimizer} cannot make a step "
            f"with these options: {exc}"
        ) from exc


def _build_loss(config: RunConfig) -> MetricLoss:
    return build_loss(
        config.loss, config.loss_options, miner=config.miner, miner_options=config.miner_options
    )


def _build_optimizer(
    config: RunConfig, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    return build_optimizer(
        config.optimizer,
        parameters,
        learning_rate=config.resolved_learning_rate,
        options=config.optimizer_options,
    )


def train(
    loaded: LoadedModel,
    data: TrainingData,
    *,
    config: RunConfig,
    device: torch.device,
    hooks: TrainingHooks,
) -> None:
    """Fine-tune a model in place.

    :param loaded: The model, moved to the device and left there in evaluation mode.
    :param data: Cleaned training data.
    :param config: The run's settings; its seed decides batches and dropout.
    :param device: Where to train.
    :param hooks: What to do beside training.
    :raises TrainingError: When the loss is no longer a number.
    """
    torch.manual_seed(config.seed)
    model = loaded.model.to(device)
    token_ids = loaded.tokenizer.tokenize(data.texts)
    plan = BatchPlan.create(
        data.classes,
        np.array([len(ids) for ids in token_ids], dtype=np.int64),
        batch_size=config.batch_size,
        num_items_per_class=config.num_items_per_class,
        sampler=config.sampler,
        seed=config.seed,
    )
    loss_function = _build_loss(config).to(device)
    # A loss may have parameters of its own, such as a learnt margin.
    optimizer = _build_optimizer(config, [*model.parameters(), *loss_function.parameters()])
    scheduler = _build_scheduler(config, optimizer, n_steps=config.epochs * len(plan.epoch(0)))
    for epoch in range(1, config.epochs + 1):
        model.train()
        batches = plan.epoch(epoch - 1)
        total = 0.0
        for step, positions in enumerate(batches, start=1):
            inputs = loaded.tokenizer.pad([token_ids[i] for i in positions])
            tensors = [torch.from_numpy(array).to(device) for array in inputs.values()]
            with autocast(config.precision, device):
                _, embeddings = model(*tensors)
            classes = torch.from_numpy(data.classes[positions]).to(device)
            loss = loss_function(embeddings, classes)
            _step(loss, model, optimizer)
            scheduler.step()
            total += _finite(loss.item(), epoch, step)
            hooks.on_step(Progress(epoch, step, len(batches), total / step))
        model.eval()
        hooks.on_epoch_end(epoch)


def _step(loss: torch.Tensor, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
    optimizer.step()


def _finite(loss: float, epoch: int, step: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in step {step} of epoch {epoch}; lower the learning rate, "
            "or train with precision='fp32'"
        )
    return loss


def _build_scheduler(
    config: RunConfig, optimizer: torch.optim.Optimizer, *, n_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    name = config.scheduler or "constant"
    known = [member.value for member in SchedulerType if member not in _METRIC_SCHEDULERS]
    if name not in known:
        raise ConfigError(
            f"unknown scheduler `{name}`{nearest(name, known)} known: {', '.join(known)}"
        )
    options = dict(config.scheduler_options)
    n_warmup = options.pop("num_warmup_steps", 0)
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

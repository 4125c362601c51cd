"""Training: what is tried before a run exists, and the run of the loop itself."""

from __future__ import annotations

import logging
from typing import Any

import torch

from finetuner.adaptation import check_layer_wise_lr_decay
from finetuner.checkpoint import CheckpointStore
from finetuner.clean_pairs import PairData
from finetuner.config import RunConfig
from finetuner.data import TrainingData
from finetuner.errors import ConfigError
from finetuner.models import LoadedModel
from finetuner.objective import build_objective
from finetuner.optimization import build_loss_optimizer, build_optimizer, build_scheduler
from finetuner.pair_losses import Targets
from finetuner.trainer import Trainer, TrainingHooks
from finetuner.training_set import create_set

logger = logging.getLogger(__name__)
# What :func:`check_training` looks at, in groups that can be right or wrong each by itself.
TRAINING_GROUPS = (
    (
        "loss",
        "loss_options",
        "loss_optimizer",
        "loss_optimizer_options",
        "dimensions",
        "batch_size",
    ),
    ("miner", "miner_options"),
    ("optimizer", "optimizer_options", "learning_rate"),
    ("scheduler", "scheduler_options"),
)
TRAINING_FIELDS = tuple(field for group in TRAINING_GROUPS for field in group)


def check_training(config: RunConfig) -> None:
    """Refuse now what would stop :func:`train` later, by one step on a handful of numbers.

    :raises ConfigError: When a loss, miner, optimizer or scheduler, or one of its options, is unknown
        or has a value that it cannot work with.
    """
    dim = max(config.dimensions, default=4)
    objective = build_objective(config, n_classes=4, dim=dim)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.Parameter(torch.randn(8, dim, generator=generator))
    options = dict(config.optimizer_options)
    if "layer_wise_lr_decay" in options:
        check_layer_wise_lr_decay(options.pop("layer_wise_lr_decay"))
    optimizer = build_optimizer(
        config.optimizer, [embeddings], learning_rate=config.resolved_learning_rate, options=options
    )
    loss_optimizer = build_loss_optimizer(config, objective)
    scheduler = build_scheduler(config, optimizer, n_steps=1)
    targets = Targets(torch.arange(8) % 4, n_pairs=4, scores=torch.linspace(0, 1, 4))
    try:
        objective(embeddings, targets).backward()
        for one in filter(None, (optimizer, loss_optimizer)):
            one.step()
        scheduler.step()
    except Exception as exc:  # a library may raise anything for a value of the wrong kind
        raise ConfigError(
            f"{config.loss}, {config.miner or 'no miner'} and {config.optimizer} cannot make a step "
            f"with these options: {exc}"
        ) from exc


def train(
    loaded: LoadedModel,
    data: TrainingData | PairData,
    *,
    config: RunConfig,
    device: torch.device,
    hooks: TrainingHooks,
    validation_data: TrainingData | PairData | None = None,
    checkpoints: CheckpointStore | None = None,
    resume_from: dict[str, Any] | None = None,
) -> bool:
    """Fine-tune a model in place.

    :param loaded: The model, moved to the device and left there in evaluation mode.
    :param data: Cleaned training data.
    :param config: The run's settings; its seed decides batches and dropout.
    :param device: Where to train.
    :param hooks: What to do beside training.
    :param validation_data: What a validation loss is computed on after each epoch.
    :param checkpoints: Where to write to, after each epoch and in between.
    :param resume_from: A checkpoint to go on from; the weights then end as those of a training that was
        never interrupted.
    :returns: Whether it went to its end, and was not asked to stop.
    :raises TrainingError: When the loss is no longer a number, or the model collapses.
    """
    torch.manual_seed(config.seed)
    training_set = create_set(data, loaded.tokenizer, config=config)
    for note in training_set.notes():
        logger.info(note)
    validation_set = (
        None
        if validation_data is None
        else create_set(validation_data, loaded.tokenizer, config=config)
    )
    trainer = Trainer(loaded, training_set, config=config, device=device, hooks=hooks)
    return trainer.run(validation_set, checkpoints, resume_from=resume_from)

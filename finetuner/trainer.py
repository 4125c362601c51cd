"""The training loop, and all that it changes while it runs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from finetuner.adaptation import parameter_groups
from finetuner.checkpoint import CheckpointStore
from finetuner.collapse import CollapseWatch, Verdict
from finetuner.config import RunConfig
from finetuner.device import build_accelerator, keep_freed_memory
from finetuner.dropout import use_byte_dropout
from finetuner.errors import TrainingError
from finetuner.gradients import BatchResult, GradientComputer
from finetuner.hard_negatives import mine
from finetuner.models import LoadedModel
from finetuner.objective import build_objective
from finetuner.optimization import build_loss_optimizer, build_optimizer, build_scheduler
from finetuner.training_set import Batch, TrainingSet

logger = logging.getLogger(__name__)
# An epoch's end is a good place for a checkpoint, since evaluation need not be done again, but writing one
# takes a second for a small model, and small data make an epoch of a few.
_EPOCH_END_SHARE = 0.1


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    :param epoch: From 1.
    :param step: Batches of this epoch done.
    :param n_steps: Batches of this epoch.
    :param loss: Mean over the epoch so far.
    :param batch_loss: Of the batch just done.
    :param active: Share of that batch's texts that the loss moved, 0 to 1.
    :param learning_rate: Of the next step.
    :param n_steps_done: Batches of the whole run done.
    :param n_texts: Of the batch just done.
    """

    epoch: int
    step: int
    n_steps: int
    loss: float
    batch_loss: float = 0.0
    active: float = 1.0
    learning_rate: float = 0.0
    n_steps_done: int = 0
    n_texts: int = 0


@dataclass(frozen=True)
class EpochEnd:
    """What an epoch gave.

    :param epoch: From 1.
    :param train_loss: Mean over its batches.
    :param val_loss: Mean over the validation data, or None without any.
    """

    epoch: int
    train_loss: float
    val_loss: float | None = None


@dataclass(frozen=True)
class TrainingHooks:
    """What to do beside training; only the first process calls them.

    :param on_step: Called after each batch.
    :param on_epoch_end: Called after each epoch, with the model in evaluation mode; a true answer ends
        the training.
    :param is_stopping: Asked after each step; a true answer ends the training with a checkpoint.
    :param state: What a checkpoint should hold for the hooks: plain values and tensors.
    :param restore: Called with that when a training goes on from a checkpoint.
    """

    on_step: Callable[[Progress], None]
    on_epoch_end: Callable[[EpochEnd], bool | None]
    is_stopping: Callable[[], bool] = lambda: False
    state: Callable[[], dict[str, Any]] = dict
    restore: Callable[[dict[str, Any]], None] = lambda _state: None


@dataclass
class _Position:
    """Where the loop is; part of a checkpoint."""

    epoch: int = 1
    step: int = 0
    total_loss: float = 0.0
    n_steps_done: int = 0
    is_over: bool = False
    watch: CollapseWatch = field(default_factory=CollapseWatch)


class Trainer:
    """One training, with all that it changes while it runs.

    :param loaded: The model.
    :param training_set: Its data.
    :param config: The run's settings.
    :param device: Where to train.
    :param hooks: What to do beside training.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        training_set: TrainingSet,
        *,
        config: RunConfig,
        device: torch.device,
        hooks: TrainingHooks,
    ) -> None:
        self._config, self._hooks, self._set = config, hooks, training_set
        self._accelerator = build_accelerator(config.precision, device)
        self._model = loaded.model.to(self._accelerator.device)
        if self._accelerator.device.type == "cpu":
            use_byte_dropout(self._model)
            keep_freed_memory()
        self._objective = build_objective(
            config, n_classes=int(training_set.classes.max()) + 1, dim=loaded.model.dim
        ).to(self._accelerator.device)
        options = dict(config.optimizer_options)
        groups = parameter_groups(
            self._model,
            learning_rate=config.resolved_learning_rate,
            layer_wise_lr_decay=options.pop("layer_wise_lr_decay", None),
        )
        self._optimizer = self._accelerator.prepare_optimizer(
            build_optimizer(
                config.optimizer,
                groups,
                learning_rate=config.resolved_learning_rate,
                options=options,
            )
        )
        self._loss_optimizer = build_loss_optimizer(config, self._objective)
        self._scheduler = build_scheduler(
            config, self._optimizer.optimizer, n_steps=self._n_scheduler_steps()
        )
        self._gradients = self._computer(training_set)
        self._rivals: np.ndarray[Any, np.dtype[np.int64]] | None = None
        self._at = _Position()
        self._saved_at = time.monotonic()

    def _computer(self, data: TrainingSet) -> GradientComputer:
        return GradientComputer(
            self._model,
            self._objective,
            data.tokens,
            self._accelerator,
            self._config.gradient_cache_size,
        )

    def _n_scheduler_steps(self) -> int:
        if self._steps_by_epoch:
            return self._config.epochs
        n_batches = len(self._set.epoch(0))
        return self._config.epochs * math.ceil(n_batches / self._config.accumulation_steps)

    @property
    def _steps_by_epoch(self) -> bool:
        return self._config.scheduler_options.get("scheduler_step") == "epoch"

    def run(
        self,
        validation_set: TrainingSet | None = None,
        checkpoints: CheckpointStore | None = None,
        *,
        resume_from: dict[str, Any] | None = None,
    ) -> bool:
        """Train all epochs that are left; as :func:`train`."""
        if resume_from is not None:
            self._restore(resume_from)
        while self._at.epoch <= self._config.epochs and not self._at.is_over:
            if not self._run_epoch(checkpoints):
                return False
            self._end_epoch(validation_set)
            is_stopping = self._agreed(self._hooks.is_stopping)
            if is_stopping or self._is_due(_EPOCH_END_SHARE):
                self._save(checkpoints)
            if is_stopping:
                return False
        self._model.eval()
        return True

    def _run_epoch(self, checkpoints: CheckpointStore | None) -> bool:
        """Train what is left of an epoch; return whether it came to its end."""
        self._model.train()
        batches = self._set.epoch(self._at.epoch - 1, self._rivals)
        for batch in batches[self._at.step :]:
            result = self._run_batch(batch, n_batches=len(batches))
            self._at.step += 1
            self._at.n_steps_done += 1
            self._at.total_loss += result.loss
            self._report(result, n_batches=len(batches), n_texts=len(batch.positions))
            if self._at.watch.see(result) is Verdict.NOTHING_LEFT:
                logger.warning("Nothing is left to learn: every pair or triplet is satisfied")
                self._at.is_over = True
                return True
            if self._at.step % self._config.accumulation_steps or self._at.step == len(batches):
                continue  # within a step of the optimizer, or at the epoch's end, which saves too
            is_stopping = self._agreed(self._hooks.is_stopping)
            if is_stopping or self._is_due():
                self._save(checkpoints)
            if is_stopping:
                return False
        return True

    def _run_batch(self, batch: Batch, *, n_batches: int) -> BatchResult:
        """Add one batch's gradient, and make the optimizer's step when its last batch is in."""
        steps = self._config.accumulation_steps
        if self._at.step % steps == 0:
            self._zero_gradients()
        n_in_step = min(steps, n_batches - self._at.step // steps * steps)
        result = self._gradients.add(batch.positions, batch.targets, share=1 / n_in_step)
        if not math.isfinite(result.loss):
            raise TrainingError(
                f"the loss became {result.loss} in step {self._at.step + 1} of epoch "
                f"{self._at.epoch}; lower the learning rate, or train with precision='fp32'"
            )
        if (self._at.step + 1) % steps == 0 or self._at.step + 1 == n_batches:
            self._accelerator.clip_grad_norm_(
                self._model.parameters(), self._config.max_gradient_norm
            )
            self._optimizer.step()
            if self._loss_optimizer is not None:
                self._loss_optimizer.step()
            if not self._steps_by_epoch:
                self._scheduler.step()
        return result

    def _is_due(self, share: float = 1.0) -> bool:
        """Whether that share of the time between two checkpoints has passed."""
        passed_s = time.monotonic() - self._saved_at
        return passed_s >= share * self._config.checkpoint_interval_s

    def _agreed(self, ask: Callable[[], bool]) -> bool:
        """Return the first process's answer, in all processes."""
        answer = [ask() if self._accelerator.is_main_process else False]
        broadcast_object_list(answer)
        return answer[0]

    def _zero_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        if self._loss_optimizer is not None:
            self._loss_optimizer.zero_grad(set_to_none=True)

    def _report(self, result: BatchResult, *, n_batches: int, n_texts: int) -> None:
        if not self._accelerator.is_main_process:
            return
        at = self._at
        rate = self._scheduler.get_last_lr()[0]
        self._hooks.on_step(
            Progress(
                at.epoch,
                at.step,
                n_batches,
                at.total_loss / at.step,
                result.loss,
                result.active,
                float(rate),
                at.n_steps_done,
                n_texts,
            )
        )

    def _end_epoch(self, validation_set: TrainingSet | None) -> None:
        self._model.eval()
        if self._steps_by_epoch:
            self._scheduler.step()
        end = EpochEnd(
            self._at.epoch,
            self._at.total_loss / max(1, self._at.step),
            self._validation_loss(validation_set) if validation_set else None,
        )
        self._at.is_over |= self._agreed(lambda: bool(self._hooks.on_epoch_end(end)))
        if self._config.hard_negatives and self._at.epoch < self._config.epochs:
            self._mine()
        self._at.epoch += 1
        self._at.step, self._at.total_loss = 0, 0.0

    @torch.no_grad()
    def _validation_loss(self, validation_set: TrainingSet) -> float:
        """Return the mean loss over the validation data, a batch counting as many times as it has texts."""
        computer = self._computer(validation_set)
        total, n_texts = 0.0, 0
        for batch in validation_set.epoch(0):
            targets = batch.targets.to(self._accelerator.device)
            loss = self._objective(computer.embed(batch.positions), targets)
            total += loss.item() * len(batch.positions)
            n_texts += len(batch.positions)
        return total / n_texts

    @torch.no_grad()
    def _mine(self) -> None:
        assert self._config.hard_negatives is not None  # the caller has asked
        lengths = self._set.tokens.lengths
        order = np.argsort(lengths, kind="stable")
        embeddings = np.empty((len(lengths), self._model.dim), dtype=np.float32)
        for positions in np.array_split(order, math.ceil(len(order) / 256)):
            embeddings[positions] = self._gradients.embed(positions).cpu().numpy()
        self._rivals = mine(embeddings, self._set.classes, settings=self._config.hard_negatives)
        n_found = int(np.any(self._rivals >= 0, axis=1).sum())
        logger.info("Hard negatives found for %d of %d texts", n_found, len(lengths))

    def _save(self, checkpoints: CheckpointStore | None) -> None:
        self._saved_at = time.monotonic()
        if checkpoints is None or not self._accelerator.is_main_process:
            return
        at = self._at
        checkpoints.save(
            {
                **{name: part.state_dict() for name, part in self._parts().items()},
                "at": {**vars(at), "watch": vars(at.watch)},
                "random": {
                    "cpu": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                },
                "rivals": None if self._rivals is None else torch.from_numpy(self._rivals),
                "hooks": self._hooks.state(),
            },
            step=at.n_steps_done,
        )

    def _parts(self) -> dict[str, Any]:
        parts = {
            "model": self._model,
            "objective": self._objective,
            "optimizer": self._optimizer,
            "loss_optimizer": self._loss_optimizer,
            "scheduler": self._scheduler,
            "scaler": self._accelerator.scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _restore(self, saved: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        at = dict(saved["at"])
        self._at = _Position(**{**at, "watch": CollapseWatch(**at["watch"])})
        torch.set_rng_state(saved["random"]["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])
        rivals = saved["rivals"]
        self._rivals = None if rivals is None else rivals.numpy()
        self._hooks.restore(saved["hooks"])
        logger.info("Going on from epoch %d, batch %d", self._at.epoch, self._at.step)

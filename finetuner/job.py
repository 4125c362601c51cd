"""The work of one run, stage by stage: load, evaluate, train, evaluate each epoch, publish."""

from __future__ import annotations

import logging
import time
from typing import Any

import orjson
from rich.console import Console
from torch import Tensor

from finetuner.adaptation import LoRAOptions, add_lora, freeze_backbone, interpolate, merge_lora
from finetuner.callback import (
    BestModelCheckpoint,
    EarlyStopping,
    LoggerCallback,
    TrainingCheckpoint,
    WiSEFTCallback,
)
from finetuner.checkpoint import CheckpointStore
from finetuner.clean_pairs import PairData
from finetuner.data import TrainingData
from finetuner.device import resolve_device
from finetuner.files import sync_file
from finetuner.heartbeat import Say
from finetuner.json_lines import count_lines, keep_lines
from finetuner.logger_backends import LoggedRun
from finetuner.loggers import open_loggers
from finetuner.models import LoadedModel
from finetuner.monitoring import BestWeights, StopWatch
from finetuner.pairs import read_data
from finetuner.publishing import Publisher, keep_model, remove_leftovers
from finetuner.run_evaluation import RunEvaluations
from finetuner.run_metrics import METRICS_FILE, VERDICT_FILE, read_metrics
from finetuner.run_progress import RunProgress
from finetuner.runs import (
    CHECKPOINTS,
    MAP_FILE,
    STEPS_FILE,
    TRAIN_FILE,
    VALIDATION_FILE,
    Run,
)
from finetuner.schema import read
from finetuner.starting_model import load_starting_model
from finetuner.stopping import StopSignal
from finetuner.trainer import EpochEnd, Progress, TrainingHooks
from finetuner.training import train
from finetuner.training_set import describe, prepare
from finetuner.validation_split import split
from finetuner.verdict import Outcome
from finetuner.worklog import EpochLine

logger = logging.getLogger(__name__)
_SAY_INTERVAL_S = 1.0


class Job:
    """The work of one run.

    :param run: The run; it is claimed by this process.
    :param console: Writes the log.
    :param stop: Tells training to write a checkpoint and end.
    :param say: Told how far it is.
    """

    def __init__(self, run: Run, console: Console, stop: StopSignal, say: Say) -> None:
        self._run, self._console, self._stop, self._say = run, console, stop, say
        self._config = run.config()
        self._checkpoints = CheckpointStore(run.folder / CHECKPOINTS)
        self._stop_watches = [StopWatch(c) for c in self._config.callbacks_of(EarlyStopping)]
        self._best_weights = [
            BestWeights(c) for c in self._config.callbacks_of(BestModelCheckpoint)
        ]
        self._line: EpochLine | None = None
        self._said_at = 0.0
        self._values: dict[str, float] = {}
        self._n_steps_done = 0
        self._progress = RunProgress(self._config)

    def work(self) -> str:
        """Do all of it and return the details of the end state.

        :raises Stopped: When the process was asked to end.
        """
        started = time.monotonic()
        saved = self._checkpoints.newest()
        if saved is None:
            for name in (METRICS_FILE, STEPS_FILE, "examples.json", VERDICT_FILE, MAP_FILE):
                (self._run.folder / name).unlink(missing_ok=True)
        remove_leftovers(self._run.folder)
        self._loaded = self._load()
        untuned = self._adapt()
        device, warning = resolve_device(self._config.device)
        if warning:
            logger.warning(warning)
        data, validation = self._read_data()
        self._loaded.model.to(device)
        self._evaluations = RunEvaluations.read(self._run, self._config)
        n_steps_done = 0 if saved is None else saved["at"]["n_steps_done"]
        with open_loggers(
            self._logger_callbacks(), self._logged_run(n_steps_done)
        ) as self._loggers:
            if saved is None:
                self._loggers.log_epoch(self._evaluate(0), step=0)
            with self._stop.deferred():
                train(
                    self._loaded,
                    data,
                    config=self._config,
                    device=device,
                    hooks=self._hooks(),
                    validation_data=validation,
                    checkpoints=self._checkpoints,
                    resume_from=saved,
                )
            logger.info("Done ✨")
            logger.debug("Finetuning took %.1f seconds", time.monotonic() - started)
            return self._finish(untuned) + (f"; {warning}" if warning else "")

    def _logger_callbacks(self) -> list[LoggerCallback]:
        return [c for c in self._config.built_callbacks() if isinstance(c, LoggerCallback)]

    def _logged_run(self, n_steps_done: int) -> LoggedRun:
        settings = self._run.spec()["config"]
        return LoggedRun(
            self._run.folder, self._run.name, self._run.experiment_name, settings, n_steps_done
        )

    def _load(self) -> LoadedModel:
        return load_starting_model(self._config, self._run.folder.parents[2])

    def _adapt(self) -> dict[str, Tensor]:
        """Settle what of the model is trained; return the untuned weights where they are needed."""
        config, model = self._config, self._loaded.model
        if config.freeze:
            freeze_backbone(model, seed=config.seed)
        elif config.n_frozen_layers is not None:
            freeze_backbone(model, config.n_frozen_layers)
        # With the head that freezing may add, and under the names that weights have after LoRA too.
        untuned = _copied(self._loaded) if config.callbacks_of(WiSEFTCallback) else {}
        if config.lora is not None:
            add_lora(model, read(LoRAOptions, config.lora, "lora"), seed=config.seed)
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.debug(
            "%d of %d weights are trained", n_trained, sum(p.numel() for p in model.parameters())
        )
        return untuned

    def follow(self) -> None:
        """Train along as one of several processes; the first one evaluates, reports and publishes."""
        saved = self._checkpoints.newest()
        self._loaded = self._load()
        self._adapt()
        device, _ = resolve_device(self._config.device)
        data, validation = self._read_data()
        train(
            self._loaded,
            data,
            config=self._config,
            device=device,
            hooks=TrainingHooks(lambda _: None, lambda _: None),
            validation_data=validation,
            resume_from=saved,
        )

    def _read_data(self) -> tuple[TrainingData | PairData, TrainingData | PairData | None]:
        folder, config = self._run.folder / "data", self._config
        data = prepare(config.loss, read_data(folder / TRAIN_FILE))
        logger.info(describe(data))
        if (folder / VALIDATION_FILE).exists():
            return data, prepare(config.loss, read_data(folder / VALIDATION_FILE))
        if config.val_split:
            return split(data, config=config)
        return data, None

    def _hooks(self) -> TrainingHooks:
        return TrainingHooks(
            self._on_step,
            self._on_epoch_end,
            is_stopping=self._stop.is_set,
            state=self._state,
            restore=self._restore,
        )

    def _evaluate(self, epoch: int, step: int | None = None) -> dict[str, float]:
        if not self._evaluations.sets:
            return {}
        if epoch == 0:
            logger.info("Evaluating the model before fine-tuning ...")
        self._set_details(f"Evaluating after epoch {epoch}" if epoch else "Evaluating before")
        with self._progress.pace.evaluating():
            return self._evaluations.evaluate(self._loaded, epoch, step=step)

    def _on_step(self, progress: Progress) -> None:
        if self._line is None:
            self._line = EpochLine(
                progress.epoch, n_epochs=self._config.epochs, n_steps=progress.n_steps
            )
        values = {"loss": progress.loss, "active": progress.active}
        self._line.update(progress.step, values)
        self._n_steps_done = progress.n_steps_done
        numbers = {"loss": progress.batch_loss, "active": progress.active}
        self._loggers.log_batch(
            {**numbers, "learning_rate": progress.learning_rate}, step=progress.n_steps_done
        )
        line = {**vars(progress), "at": round(time.time(), 3)}
        with (self._run.folder / STEPS_FILE).open("ab") as file:
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._progress.see(progress)
        if self._evaluations.is_due(progress.step) and progress.step < progress.n_steps:
            self._loaded.model.eval()
            self._evaluate(progress.epoch, progress.step)
            self._loaded.model.train()
        if time.monotonic() - self._said_at > _SAY_INTERVAL_S:
            self._set_details(
                f"Epoch {progress.epoch}/{self._config.epochs}, batch "
                f"{progress.step}/{progress.n_steps}, loss {progress.loss:.3f}"
            )

    def _set_details(self, details: str) -> None:
        self._said_at = time.monotonic()
        self._say(details, self._progress.numbers())

    def _on_epoch_end(self, end: EpochEnd) -> bool:
        """Report and evaluate an epoch; return whether to stop."""
        values = {"train_loss": end.train_loss}
        if end.val_loss is not None:
            values["val_loss"] = end.val_loss
            if self._line is not None:
                self._line.add({"val_loss": end.val_loss})
        if self._line is not None:
            self._line.write(self._console)
            self._line = None
        self._values = {**values, **self._evaluate(end.epoch)}
        self._loggers.log_epoch(self._values, step=self._n_steps_done)
        for best in self._best_weights:
            best.see(self._values, end.epoch, self._loaded.model)
        self._keep_epoch(end.epoch)
        return any([watch.see(self._values) for watch in self._stop_watches])

    def _keep_epoch(self, epoch: int) -> None:
        """Write the epoch's model for TrainingCheckpoint, and remove the oldest beyond its number."""
        for callback in self._config.callbacks_of(TrainingCheckpoint):
            keep_model(
                self._run,
                self._loaded,
                epoch,
                n_kept=callback.last_k_epochs,
                prompts=self._config.prompts,
            )

    def _finish(self, untuned: dict[str, Tensor]) -> str:
        """Settle the final weights, judge them, and publish; return the details."""
        model = self._loaded.model.to("cpu")
        for best in self._best_weights:
            best.restore_into(model)
        merge_lora(model)
        for callback in self._config.callbacks_of(WiSEFTCallback):
            model.load_state_dict(interpolate(untuned, model.state_dict(), callback.alpha))
        model.eval()
        if self._progress.evaluates_at_end and self._evaluations.after:
            logger.info("Evaluating the final weights ...")
            self._evaluate(read_metrics(self._run.folder)["epochs"][-1]["epoch"])
        verdicts = self._evaluations.conclude()
        self._set_details("Drawing the map")
        self._evaluations.finish_map()
        Publisher(self._run, self._config, self._evaluations, self._set_details).publish(
            self._loaded, verdicts
        )
        logger.info("Finished 🚀")
        worse = [name for name, verdict in verdicts.items() if verdict.outcome is Outcome.REGRESSED]
        return "; ".join(["Run finished", *(f"{name} {Outcome.REGRESSED.value}" for name in worse)])

    def _state(self) -> dict[str, Any]:
        steps = self._run.folder / STEPS_FILE
        sync_file(steps)  # the checkpoint is durable, and counts on these lines
        return {
            "evaluations": self._evaluations.state(),
            "n_steps": count_lines(steps),
            "pace": self._progress.pace.state(),
            "stop_watches": [(watch.best, watch.n_worse) for watch in self._stop_watches],
            "best_weights": [best.state() for best in self._best_weights],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._evaluations.restore(state["evaluations"])
        keep_lines(self._run.folder / STEPS_FILE, state["n_steps"])
        if "pace" in state:  # a checkpoint of an earlier version has none
            self._progress.pace.restore(state["pace"])
        for watch, (value, n_worse) in zip(self._stop_watches, state["stop_watches"], strict=True):
            watch.best, watch.n_worse = value, n_worse
        self._best_weights = [
            BestWeights(callback, **saved)
            for callback, saved in zip(
                self._config.callbacks_of(BestModelCheckpoint), state["best_weights"], strict=True
            )
        ]


def _copied(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in loaded.model.state_dict().items()}

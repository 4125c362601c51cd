"""One training run: ``python -m finetuner.worker RUN_DIR``.

The run's folder lies at ``{workspace}/runs/{experiment}/{run_name}`` and holds all that is needed.
Exit codes: 0 finished, 1 failed with the cause in state and log, 75 stopped and to be started again.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from finetuner.files import write_json
from finetuner.runs import (
    EXIT_STOPPED,
    STOPPED,
    TRAIN_FILE,
    Run,
    Status,
    append_metrics,
    evaluation_file,
    read_metrics,
)
from finetuner.worklog import EpochLine, open_log

if TYPE_CHECKING:
    from finetuner.artifact import VariantFigures
    from finetuner.callback import EvaluationCallback
    from finetuner.evaluation import EvaluationSet
    from finetuner.models import LoadedModel, ModelOptions
    from finetuner.training import Progress

logger = logging.getLogger("finetuner.worker")  # __name__ is __main__ here
_STATE_INTERVAL_S = 1.0


class Stopped(BaseException):
    """The process was asked to end; no Exception, so that nothing on the way swallows it."""


def main(run_dir: str) -> int:
    """Train one run and return the exit code.

    :param run_dir: The run's folder.
    """
    run = Run(Path(run_dir).resolve())
    with run.locked(), open_log(run.folder / "log.txt") as console:
        signal.signal(signal.SIGTERM, _stop)
        # Ctrl-C in a terminal reaches the whole group; the service says what it means for a run.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            run.set_state(Status.STARTED, "Loading the model", n_starts=run.state().n_starts + 1)
            details = Job(run, console).work()
        except Stopped:
            run.set_state(Status.CREATED, STOPPED)
            return EXIT_STOPPED
        except Exception as exc:
            cause = f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"
            logger.error("The run failed: %s", cause)
            console.print(traceback.format_exc(), markup=False, highlight=False)
            run.set_state(Status.FAILED, cause)
            return 1
        run.set_state(Status.FINISHED, details)
        return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stopped


@dataclass
class Job:
    """The work of one run, stage by stage.

    :param run: The run; its lock is held.
    :param console: Writes the log.
    """

    run: Run
    console: Console
    _examples: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"before": {}, "after": {}}
    )
    _line: EpochLine | None = None
    _state_written_at: float = 0.0

    def work(self) -> str:
        """Load, evaluate, train, evaluate each epoch, save; return the details of the end state."""
        # Torch takes seconds to import; the lock is held and the state is STARTED before that.
        from finetuner.backbones import locate
        from finetuner.data import prepare_training, read_jsonl
        from finetuner.device import resolve_device
        from finetuner.models import ModelOptions, load_model
        from finetuner.schema import read
        from finetuner.training import TrainingHooks, train

        started = time.monotonic()
        config = self.config = self.run.config()
        for name in ("metrics.jsonl", "examples.json"):  # of an interrupted start
            (self.run.folder / name).unlink(missing_ok=True)
        workspace = self.run.folder.parents[2]
        options = read(ModelOptions, config.model_options, "model_options")
        self.loaded = load_model(locate(config.model, workspace), options)
        device, warning = resolve_device(config.device)
        if warning:
            logger.warning(warning)
        data = prepare_training(read_jsonl(self.run.folder / "data" / TRAIN_FILE))
        logger.info(
            "%d texts with %d labels; left out: %d repeated, %d under several labels",
            len(data.texts), data.n_classes, data.n_repeated, data.n_ambiguous,
        )  # fmt: skip
        self.loaded.model.to(device)
        self._read_evaluations()
        self._evaluate(0)
        hooks = TrainingHooks(self._on_step, self._on_epoch_end)
        train(self.loaded, data, config=config, device=device, hooks=hooks)
        logger.info("Done ✨")
        logger.debug("Finetuning took %.1f seconds", time.monotonic() - started)
        self.loaded.model.to("cpu")
        self._save(ModelOptions(
            self.loaded.model.pooler, self.loaded.max_length, self.loaded.model.normalize
        ))  # fmt: skip
        logger.info("Finished 🚀")
        return "Run finished" + (f"; {warning}" if warning else "")

    def _read_evaluations(self) -> None:
        from finetuner.data import read_jsonl
        from finetuner.evaluation import EvaluationSet

        self.evaluations: list[tuple[EvaluationCallback, EvaluationSet]] = []
        for number, callback in enumerate(self.config.evaluations()):
            folder = self.run.folder / "data"
            index_path = folder / evaluation_file(number, "index")
            data = EvaluationSet.create(
                read_jsonl(folder / evaluation_file(number, "query")),
                read_jsonl(index_path) if index_path.exists() else None,
                callback=callback,
            )
            if data.n_skipped:
                logger.warning(
                    "%d evaluation queries are left out: nothing in the index has their label",
                    data.n_skipped,
                )
            self.evaluations.append((callback, data))

    def _evaluate(self, epoch: int) -> None:
        from finetuner.encoder import torch_encoder
        from finetuner.evaluation import evaluate

        if not self.evaluations:
            return
        if epoch == 0:
            logger.info("Evaluating the model before fine-tuning ...")
        encoder = torch_encoder(self.loaded)
        metrics: dict[str, float] = {}
        for callback, data in self.evaluations:
            self._set_details(f"Evaluating after epoch {epoch}" if epoch else "Evaluating before")
            embed = lambda texts, size=callback.batch_size: encoder.encode(texts, batch_size=size)  # noqa: E731
            found = evaluate(embed, data, callback=callback)
            prefix = f"{callback.caption}_" if callback.caption else ""
            for name, value in found.metrics.items():
                logger.debug("Metric: '%smodel_%s' Value: %.5f", prefix, name, value)
                metrics[prefix + name] = value
            stage = "after" if epoch else "before"
            if found.examples:
                self._examples[stage][callback.caption or "model"] = found.examples
        append_metrics(self.run.folder, epoch, metrics)

    def _on_step(self, progress: Progress) -> None:
        if progress.step == 1:
            self._line = EpochLine(
                progress.epoch, n_epochs=self.config.epochs, n_steps=progress.n_steps
            )
        assert self._line is not None  # noqa: S101 - set by the first step
        self._line.update(progress.step, progress.loss)
        if time.monotonic() - self._state_written_at > _STATE_INTERVAL_S:
            self._set_details(
                f"Epoch {progress.epoch}/{self.config.epochs}, batch "
                f"{progress.step}/{progress.n_steps}, loss {progress.loss:.3f}"
            )

    def _set_details(self, details: str) -> None:
        self._state_written_at = time.monotonic()
        self.run.set_state(Status.STARTED, details)

    def _on_epoch_end(self, epoch: int) -> None:
        if self._line is not None:
            self._line.write(self.console)
        self._evaluate(epoch)

    def _save(self, options: ModelOptions) -> None:
        from finetuner.artifact import ONNX_GRAPH, Manifest, pack
        from finetuner.models import save_model

        loaded: LoadedModel = self.loaded
        if any(self._examples.values()):
            write_json(self.run.folder / "examples.json", self._examples)
        metrics = read_metrics(self.run.folder)
        logger.info("Saving fine-tuned models ...")
        with tempfile.TemporaryDirectory(dir=self.run.folder, prefix=".saving-") as temporary:
            logger.info("Saving model 'model' in tuned-models/model ...")
            folder = Path(temporary) / "model"
            folder.mkdir()
            save_model(loaded, folder)
            if self.config.to_onnx:
                self._export(folder, folder / ONNX_GRAPH, options)
            figures = self._add_onnx_variants(folder)
            manifest = Manifest(
                run_name=self.run.name,
                model=self.config.model,
                dim=loaded.model.dim,
                pooler=loaded.model.pooler.value,
                normalize=loaded.model.normalize,
                max_length=loaded.max_length,
                input_names=loaded.model.input_names,
                metrics={"before": metrics["before"], "after": metrics["after"]},
                has_onnx=self.config.to_onnx,
                variants=tuple(found for found in figures if found.file),
                refused_variants=tuple(found for found in figures if not found.file),
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            logger.info("Pushing saved model to the workspace ...")
            pack(folder, self.run.artifact_path, manifest=manifest)
        logger.info("Pushed model artifact ID: '%s'", self.run.spec()["artifact_id"])

    def _export(self, folder: Path, graph: Path, options: ModelOptions) -> None:
        from finetuner.onnx_export import export_onnx

        self._set_details("Exporting to ONNX")
        graph.parent.mkdir()
        parity = export_onnx(folder, graph, options=options)
        logger.info("Exported to ONNX; its vectors are torch's within %.1e", parity.difference)

    def _add_onnx_variants(self, folder: Path) -> list[VariantFigures]:
        if not self.config.onnx_variants:
            return []
        from finetuner.quantization import add_variants, describe

        self._set_details("Quantizing the ONNX graph")
        found = add_variants(
            folder,
            self.config.onnx_variants,
            tokenizer=self.loaded.tokenizer,
            dim=self.loaded.model.dim,
            evaluations=self.evaluations,
        )
        for figures in found:
            logger.log(logging.INFO if figures.file else logging.WARNING, describe(figures))
        return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

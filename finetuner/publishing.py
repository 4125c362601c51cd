"""From a trained model to its artifact: weights, ONNX graphs and a manifest in one zip."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from finetuner.adaptation import merge_lora
from finetuner.artifact import ONNX_GRAPH, Manifest, VariantFigures, pack
from finetuner.config import RunConfig
from finetuner.files import make_folder, remove_folder, sync_folder, sync_tree
from finetuner.models import LoadedModel, ModelOptions, save_model
from finetuner.onnx_export import export_onnx
from finetuner.quantization import add_variants, describe
from finetuner.run_evaluation import RunEvaluations
from finetuner.run_metrics import read_metrics
from finetuner.runs import CANCEL_FILE, Run
from finetuner.verdict import Verdict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publisher:
    """Writes a run's artifact.

    :param run: The run.
    :param config: Its settings.
    :param evaluations: What ONNX variants are measured on.
    :param set_details: Told what is being done.
    """

    run: Run
    config: RunConfig
    evaluations: RunEvaluations
    set_details: Callable[[str], None]

    def publish(self, loaded: LoadedModel, verdicts: Mapping[str, Verdict]) -> None:
        """Write the artifact; it appears whole or not at all.

        :param loaded: The model, on the CPU.
        :param verdicts: What its training changed.
        :raises TrainingError: When the ONNX graph does not give the model's vectors.
        """
        logger.info("Saving fine-tuned models ...")
        with tempfile.TemporaryDirectory(dir=self.run.folder, prefix=".saving-") as temporary:
            logger.info("Saving model 'model' in tuned-models/model ...")
            folder = Path(temporary) / "model"
            folder.mkdir()
            save_model(loaded, folder, prompts=self.config.prompts)
            figures = self._add_onnx(loaded, folder)
            manifest = self._manifest(loaded, figures, verdicts)
            logger.info("Pushing saved model to the workspace ...")
            pack(folder, self.run.artifact_path, manifest=manifest)
        logger.info("Pushed model artifact ID: '%s'", self.run.spec()["artifact_id"])

    def _manifest(
        self,
        loaded: LoadedModel,
        figures: list[VariantFigures],
        verdicts: Mapping[str, Verdict],
    ) -> Manifest:
        metrics = read_metrics(self.run.folder)
        return Manifest(
            run_name=self.run.name,
            model=self.config.model,
            dim=loaded.model.dim,
            pooler=loaded.model.pooler.value,
            normalize=loaded.model.normalize,
            max_length=loaded.max_length,
            input_names=loaded.model.input_names,
            metrics={"before": metrics["before"], "after": metrics["after"]},
            verdicts={caption: verdict.outcome.value for caption, verdict in verdicts.items()},
            dimensions=self.config.dimensions,
            prompts=self.config.prompts,
            has_onnx=self.config.to_onnx,
            variants=tuple(found for found in figures if found.file),
            refused_variants=tuple(found for found in figures if not found.file),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _add_onnx(self, loaded: LoadedModel, folder: Path) -> list[VariantFigures]:
        if not self.config.to_onnx:
            return []
        self.set_details("Exporting to ONNX")
        graph = folder / ONNX_GRAPH
        graph.parent.mkdir()
        options = ModelOptions(loaded.model.pooler, loaded.max_length, loaded.model.normalize)
        parity = export_onnx(folder, graph, options=options)
        logger.info("Exported to ONNX; its vectors are torch's within %.1e", parity.difference)
        if not self.config.onnx_variants:
            return []
        self.set_details("Quantizing the ONNX graph")
        found = add_variants(
            folder,
            self.config.onnx_variants,
            tokenizer=loaded.tokenizer,
            dim=loaded.model.dim,
            evaluations=self.evaluations.sets,
        )
        for figures in found:
            logger.log(logging.INFO if figures.file else logging.WARNING, describe(figures))
        return found


def keep_model(
    run: Run,
    loaded: LoadedModel,
    epoch: int,
    *,
    n_kept: int,
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Write a model as ``epochs/epoch-N`` of a run, whole or not at all, and drop the oldest.

    :param run: The run.
    :param loaded: The model; LoRA is merged in what is written, and goes on in the model itself.
    :param epoch: From 1.
    :param n_kept: Models to keep, at least 1.
    :param prompts: Kept with each.
    """
    if hasattr(loaded.model.backbone, "peft_config"):
        loaded = replace(loaded, model=copy.deepcopy(loaded.model))
        merge_lora(loaded.model)
    folder = make_folder(run.folder / "epochs")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        new = Path(temporary) / "model"
        new.mkdir()
        save_model(loaded, new, prompts=prompts)
        sync_tree(new)
        target = folder / f"epoch-{epoch}"
        if target.exists():  # from before an interruption
            remove_folder(target, by_way_of=folder)
        new.rename(target)
    sync_folder(folder)
    kept = sorted(folder.glob("epoch-*"), key=lambda path: int(path.name.partition("-")[2]))
    for old in kept[:-n_kept]:
        remove_folder(old, by_way_of=folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of a worker that was killed; the run is claimed."""
    newest = max(path.name for path in folder.glob("states/[0-9]*"))
    # Another process may be writing a later one.
    states = (path for path in folder.glob("states/.*") if path.name[1:] < f"{newest}~")
    for path in (*folder.glob(".*"), *folder.glob("epochs/.*"), *states):
        if path.name.startswith(f".{CANCEL_FILE}"):  # its owner may be writing it
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

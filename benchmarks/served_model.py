"""The model that the serving benchmarks share: a backbone as the artifact of a finished run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from finetuner.artifact import ONNX_GRAPH, Manifest, pack
from finetuner.backbones import locate
from finetuner.config import RunConfig, workspace_dir
from finetuner.encoder import Encoder, torch_encoder
from finetuner.models import load_model, save_model
from finetuner.onnx_export import export_onnx
from finetuner.run_store import RunStore
from finetuner.runs import Run
from finetuner.states import Actor, Status

NAME = "minilm"


def make_volume(volume: Path, model: str = "all-minilm-l6-v2") -> Encoder:
    """Put a backbone on a volume as the run ``minilm``, and its plain folder beside it.

    :param volume: Gets ``runs/default/minilm`` and the folder ``model`` with ``onnx/model.onnx``.
    :returns: Its encoder in fp32 by torch, as reference.
    """
    loaded = load_model(locate(model, workspace_dir()))
    folder = volume / "model"
    (folder / "onnx").mkdir(parents=True)
    save_model(loaded, folder)
    export_onnx(folder, folder / ONNX_GRAPH)
    run: Run = RunStore(volume).create(RunConfig(model=model, run_name=NAME), {})
    manifest = Manifest(
        run_name=NAME,
        model=model,
        dim=loaded.model.dim,
        pooler=loaded.model.pooler.value,
        normalize=loaded.model.normalize,
        max_length=loaded.max_length,
        input_names=loaded.model.input_names,
        metrics={},
        has_onnx=True,
        created_at="",
    )
    pack(folder, run.artifact_path, manifest=manifest)
    run.step(run.claim(), Status.FINISHED, "made for a benchmark", actor=Actor.WORKER)
    return torch_encoder(loaded)


if __name__ == "__main__":
    make_volume(Path(json.load(sys.stdin)["volume"]))
    print("{}")

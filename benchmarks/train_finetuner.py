"""One training of ours, timed: a job as JSON on the standard input, its figures as the last line out.

Started by train.py in a process of its own; peer_sentence_transformers.py does the same with its peer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from measurement import Row, metered, peak_memory_mb, synchronizer

from finetuner.adaptation import freeze_backbone, interpolate
from finetuner.config import Precision, RunConfig
from finetuner.data import TrainingData
from finetuner.encoder import torch_encoder
from finetuner.models import load_model
from finetuner.trainer import TrainingHooks
from finetuner.training import train

# Of the tuned weights; the rest of those before training.
ALPHA = 0.7


def configure(job: Row) -> RunConfig:
    """Return the settings that the README recommends for labels."""
    return RunConfig(
        model=job["model"],
        loss="SupConLoss",
        loss_options={"temperature": 0.07},
        optimizer="AdamW",
        learning_rate=5e-5,
        scheduler="linear",
        scheduler_options={"num_warmup_steps": 0.1},
        epochs=job["epochs"],
        batch_size=job["batch_size"],
        num_items_per_class=2,
        n_frozen_layers=2,
        precision=Precision(job["precision"]),
        seed=job["seed"],
    )


def run(job: Row) -> Row:
    device = torch.device(job["device"])
    data = TrainingData(job["texts"], np.array(job["classes"]), n_repeated=0, n_ambiguous=0)
    loaded = load_model(Path(job["model"]))
    loaded.model.to(device)
    hooks = TrainingHooks(on_step=lambda _progress: None, on_epoch_end=lambda _end: None)
    with metered(synchronizer(job["device"])) as usage:
        if job["epochs"]:
            untuned = {name: value.clone() for name, value in loaded.model.state_dict().items()}
            config = configure(job)
            freeze_backbone(loaded.model, config.n_frozen_layers)
            train(loaded, data, config=config, device=device, hooks=hooks)
            # What WiSEFTCallback(alpha=0.7) does in a run.
            averaged = interpolate(untuned, loaded.model.state_dict(), ALPHA)
            loaded.model.load_state_dict(averaged)
    result = {**vars(usage), "peak_memory_mb": peak_memory_mb()}
    if job["device"] == "cuda":
        result["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    np.save(job["vectors"], torch_encoder(loaded).encode(job["evaluation_texts"]))
    return {**result, "n_texts": len(data.texts) * job["epochs"], "torch": torch.__version__}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))

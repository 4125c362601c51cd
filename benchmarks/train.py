"""Fine-tune on labelled texts and report retrieval on classes never trained on, and speed.

    python benchmarks/train.py --data DIR --prefix unseen_

DIR holds {prefix}train.csv, {prefix}query.csv and {prefix}index.csv with the header `text,label`. The
settings are those that the README recommends. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import torch

from finetuner.backbones import locate
from finetuner.callback import EvaluationCallback
from finetuner.config import Precision, RunConfig, workspace_dir
from finetuner.csv_file import read_csv
from finetuner.data import prepare_training
from finetuner.device import has_fast_bf16
from finetuner.encoder import torch_encoder
from finetuner.evaluation import EvaluationSet, evaluate
from finetuner.models import load_model
from finetuner.training import TrainingHooks, train

CPU = torch.device("cpu")
EVALUATION = EvaluationCallback(query_data=None)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", type=Precision, choices=list(Precision), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    config = RunConfig(
        model=arguments.model,
        loss="SupConLoss",
        loss_options={"temperature": 0.05},
        optimizer="AdamW",
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        num_items_per_class=2,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    training, queries, index = (
        read_csv(arguments.data / f"{arguments.prefix}{name}.csv")
        for name in ("train", "query", "index")
    )
    data = prepare_training(training)
    evaluation = EvaluationSet.create(queries, index, callback=EVALUATION)
    loaded = load_model(locate(config.model, workspace_dir()))

    def measure() -> dict[str, float]:
        metrics = evaluate(torch_encoder(loaded).encode, evaluation, callback=EVALUATION).metrics
        return {name: round(value, 5) for name, value in metrics.items()}

    before = measure()
    hooks = TrainingHooks(on_step=lambda _: None, on_epoch_end=lambda _: None)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    train(loaded, data, config=config, device=CPU, hooks=hooks)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    n_texts = len(data.texts) * config.epochs
    result = {
        "n_texts": n_texts,
        "texts_per_cpu_second": round(n_texts / cpu_s, 1),
        "wall_s": round(wall_s, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "before": before,
        "after": measure(),
        "seed": config.seed,
        "precision": config.precision,
        "cpu": torch.cpu.get_capabilities()["cpu_name"],
        "has_fast_bf16": has_fast_bf16(CPU),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Fine-tune on labelled texts, ours beside its peer: speed, memory, and retrieval on classes never seen.

    python benchmarks/train.py --data DIR --prefix unseen_ [--peer sentence-transformers]

DIR holds {prefix}train.csv, {prefix}query.csv and {prefix}index.csv with the header `text,label`. Both
sides start from the same weights, see the same cleaned texts in batches of the same size, and are scored
by our evaluation. Ours has the settings that the README recommends, the peer those of its documentation.
The peer is installed once into an environment of its own. Each training runs in a process of its own;
only the training is timed, tokenising included. A table on the standard error, JSON lines on the standard
output.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import numpy as np
import platformdirs
import torch
from measurement import BenchmarkError, Row, machine, report, run_child

from finetuner.backbones import locate
from finetuner.callback import EvaluationCallback
from finetuner.config import workspace_dir
from finetuner.csv_file import read_csv
from finetuner.data import TrainingData, prepare_training
from finetuner.device import has_fast_bf16
from finetuner.evaluation import EvaluationSet, evaluate

HERE = Path(__file__).parent
PEER_VERSION = "6.2.0"
EVALUATION = EvaluationCallback(query_data=None)
# Two encoders of the same weights differ by rounding.
UNTUNED_TOLERANCE = 1e-3
COLUMNS = {
    "side": "",
    "loss": "loss",
    "precision": "precision",
    "texts_per_cpu_second": "texts / CPU s",
    "times_the_peer": "x peer fp32",
    "wall_s": "wall s",
    "peak_memory_mb": "peak MB",
    "peak_gpu_mb": "peak GPU MB",
    "average_precision_before": "AP before",
    "average_precision_after": "AP after",
    "reciprocal_rank_before": "RR before",
    "reciprocal_rank_after": "RR after",
}


@dataclass(frozen=True)
class Side:
    """One way to train: a row of the table."""

    side: str
    loss: str
    precision: str
    script: str


OURS = [
    Side("finetuner", "SupConLoss", precision, "train_finetuner.py")
    for precision in ("auto", "fp32")
]
PEERS = [
    Side("sentence-transformers", loss, precision, "peer_sentence_transformers.py")
    for precision in ("fp32", "bf16")
    for loss in ("MultipleNegativesRankingLoss", "BatchAllTripletLoss")
]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peer", choices=("sentence-transformers",))
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(platformdirs.user_cache_dir("finetuner-benchmarks")),
        help="where the peer's environment is kept (default: %(default)s)",
    )
    return parser.parse_args()


def install_peer(cache: Path) -> Path:
    """Return the interpreter of an environment with the peer and the same torch and transformers."""
    torch_version = version("torch").partition("+")[0]
    wanted = [
        f"sentence-transformers=={PEER_VERSION}",
        f"torch=={torch_version}",
        *(f"{name}=={version(name)}" for name in ("transformers", "tokenizers", "accelerate")),
        "datasets",
    ]
    folder = cache / f"sentence-transformers-{PEER_VERSION}-torch-{torch_version}"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text().split() != wanted:
        print(f"installing {', '.join(wanted)} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-qq", *wanted], check=True)
        stamp.write_text("\n".join(wanted))
    return python


class Comparison:
    """Trains every side on one data set and scores it."""

    def __init__(
        self, arguments: argparse.Namespace, training: TrainingData, evaluation: EvaluationSet
    ) -> None:
        self._evaluation = evaluation
        self._python = install_peer(arguments.cache) if arguments.peer else None
        # A text may stand in queries and index; it is embedded once.
        self._texts = list(dict.fromkeys([*evaluation.index.texts, *evaluation.queries.texts]))
        self._job = {
            "model": str(locate(arguments.model, workspace_dir())),
            "texts": training.texts,
            "classes": training.classes.tolist(),
            "evaluation_texts": self._texts,
            "batch_size": arguments.batch_size,
            "device": arguments.device,
        }

    def run(self, side: Side, *, epochs: int, seed: int) -> Row:
        """Train one side once; return its figures and its metrics."""
        with tempfile.TemporaryDirectory() as folder:
            vectors = str(Path(folder) / "vectors.npy")
            job = {**self._job, **vars(side), "epochs": epochs, "seed": seed, "vectors": vectors}
            python = self._python if side in PEERS else None
            row = run_child(HERE / side.script, job, python=python)
            by_text = dict(zip(self._texts, np.load(vectors), strict=True))
        row["metrics"] = evaluate(
            lambda texts: np.stack([by_text[text] for text in texts]),
            self._evaluation,
            callback=EVALUATION,
        ).metrics
        print(
            f"{side.side} {side.loss} {side.precision} seed {seed}: {row['n_texts']} texts, "
            f"{row['cpu_s']:.1f} CPU s, average precision {row['metrics']['average_precision']:.5f}",
            file=sys.stderr,
        )
        return row


def check_untuned(untuned: dict[str, Row]) -> float:
    """Return by how much the sides' metrics differ before training.

    :raises BenchmarkError: When that is more than rounding: the sides then have not the same model.
    """
    rows = [row["metrics"] for row in untuned.values()]
    largest = max(abs(row[name] - rows[0][name]) for row in rows for name in row)
    if largest > UNTUNED_TOLERANCE:
        raise BenchmarkError(f"the untuned models differ by {largest}: {untuned}")
    return largest


def summarise(side: Side, runs: list[Row], untuned: Row) -> Row:
    """Return the mean over the seeds."""
    row = {name: value for name, value in vars(side).items() if name != "script"}
    for name in ("n_texts", "cpu_s", "wall_s", "peak_memory_mb", "peak_gpu_mb"):
        if name in runs[0]:
            row[name] = round(fmean(run[name] for run in runs), 2)
    row["texts_per_cpu_second"] = round(fmean(run["n_texts"] / run["cpu_s"] for run in runs), 1)
    row["texts_per_second"] = round(fmean(run["n_texts"] / run["wall_s"] for run in runs), 1)
    for name, before in untuned["metrics"].items():
        row[f"{name}_before"] = round(before, 5)
        row[f"{name}_after"] = round(fmean(run["metrics"][name] for run in runs), 5)
    return row


def choose_sides(arguments: argparse.Namespace) -> list[Side]:
    sides = OURS + (PEERS if arguments.peer else [])
    is_fast = has_fast_bf16(torch.device(arguments.device))
    return [side for side in sides if side.precision != "bf16" or is_fast]


def main() -> None:
    arguments = parse_arguments()
    training, queries, index = (
        read_csv(arguments.data / f"{arguments.prefix}{name}.csv")
        for name in ("train", "query", "index")
    )
    evaluation = EvaluationSet.create(queries, index, callback=EVALUATION)
    comparison = Comparison(arguments, prepare_training(training), evaluation)
    sides = choose_sides(arguments)
    first = {side.side: side for side in reversed(sides)}
    untuned = {name: comparison.run(side, epochs=0, seed=0) for name, side in first.items()}
    difference = check_untuned(untuned)
    # The sides take turns, so that a busy hour of the machine falls on all of them.
    runs: dict[Side, list[Row]] = {side: [] for side in sides}
    for seed in arguments.seeds:
        for side in sides:
            runs[side].append(comparison.run(side, epochs=arguments.epochs, seed=seed))
    rows = [summarise(side, runs[side], untuned[side.side]) for side in sides]
    speed = "texts_per_cpu_second" if arguments.device == "cpu" else "texts_per_second"
    for row in rows if arguments.peer else ():
        row["times_the_peer"] = round(row[speed] / rows[len(OURS)][speed], 2)
    about = machine(["torch", "transformers"]) | {
        "device": arguments.device,
        "fast_bf16": has_fast_bf16(torch.device(arguments.device)),
        "seeds": arguments.seeds,
        "untuned_difference": difference,
    }
    title = f"{arguments.model}, {arguments.data.name}, batch {arguments.batch_size}"
    report(title, rows, {k: v for k, v in COLUMNS.items() if any(k in row for row in rows)}, about)


if __name__ == "__main__":
    main()

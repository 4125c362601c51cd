"""Encode texts with the library alone, on one thread, ours beside sentence-transformers.

    python benchmarks/encode.py --data FILE.csv [--peer sentence-transformers] [--texts 2000]

All encode the same texts with all-MiniLM-L6-v2; ours through `get_model(artifact).encode(texts)`, in fp32 by
ONNX Runtime and in the precision that `auto` picks; the peer through `SentenceTransformer.encode`, by torch
in fp32. The sides take turns, each round in a process of its own; the best round counts, since what else
runs on a machine only makes it slower. A table on the standard error, JSON lines on the standard output.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import platformdirs
from measurement import Row, machine, report, run_child
from train import install_peer

from finetuner.csv_file import read_csv

HERE = Path(__file__).parent
COLUMNS = {
    "side": "",
    "precision": "precision",
    "texts_per_cpu_second": "texts / CPU s",
    "times_the_peer": "x peer",
    "largest_difference": "largest difference to peer",
    "min_cosine": "min cosine to peer",
}
SIDES = [
    ("finetuner, ONNX Runtime", "fp32", "encode_one_side.py"),
    ("finetuner", "auto", "encode_one_side.py"),
    ("sentence-transformers, torch", "fp32", "peer_encode.py"),
]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", choices=("sentence-transformers",))
    parser.add_argument(
        "--cache", type=Path, default=Path(platformdirs.user_cache_dir("finetuner-benchmarks"))
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    texts = list(read_csv(arguments.data).texts)[: arguments.texts]
    sides = SIDES if arguments.peer else SIDES[:-1]
    python = install_peer(arguments.cache) if arguments.peer else None
    with tempfile.TemporaryDirectory() as temporary:
        volume = Path(temporary)
        run_child(HERE / "served_model.py", {"volume": str(volume)})
        job = {"volume": str(volume), "texts": texts}
        rows: list[Row] = [{"side": side, "precision": precision} for side, precision, _ in sides]
        for _ in range(arguments.rounds):
            for row, (_, precision, script) in zip(rows, sides, strict=True):
                found = run_child(
                    HERE / script,
                    {
                        **job,
                        "precision": precision,
                        "vectors": str(volume / f"{script}-{precision}"),
                    },
                    python=python if script == "peer_encode.py" else None,
                )
                speed = round(len(texts) / found["cpu_s"], 1)
                row["texts_per_cpu_second"] = max(speed, row.get("texts_per_cpu_second", 0))
        vectors = [np.load(volume / f"{script}-{precision}.npy") for _, precision, script in sides]
    for row, found in zip(rows, vectors, strict=True) if arguments.peer else ():
        row["times_the_peer"] = round(
            row["texts_per_cpu_second"] / rows[-1]["texts_per_cpu_second"], 2
        )
        row["largest_difference"] = float(f"{np.abs(found - vectors[-1]).max():.1e}")
        row["min_cosine"] = round(float((found * vectors[-1]).sum(axis=1).min()), 6)
    about = machine(["onnxruntime", "torch", "transformers"]) | {"n_texts": len(texts)}
    report("all-MiniLM-L6-v2, one thread", rows, COLUMNS, about)


if __name__ == "__main__":
    main()

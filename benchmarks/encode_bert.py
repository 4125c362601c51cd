"""Encode by a bert-base-cased of random weights, and compare with the ceiling of its matrix multiplications.

    python benchmarks/encode_bert.py [--device cuda] [--texts 20000] [--batch-size 512]

The model and its questions of 10 to 40 tokens are those of bert.py, as the artifact of a run. Each backend
and precision has a process of its own. `texts / s` is `get_model(artifact).encode(texts)`, tokenising
included; `vectors alone` the same from token ids. The ceiling is what the linear layers and attention
multiply forward, without padding, at the best rate that matrices of those sizes reach in the same run and
precision. A GPU's time is wall time, a CPU's CPU seconds. A table on the standard error, JSON lines on the
standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from bert import N_WORD_PIECES, count_flop, draw_texts, gpu_name, measure_gemm, write_model
from measurement import BenchmarkError, Row, machine, metered, report, run_child, synchronizer
from served_model import NAME, make_volume

COLUMNS = {
    "backend": "",
    "precision": "precision",
    "texts_per_second": "texts / s",
    "vectors_per_second": "vectors alone / s",
    "ceiling_per_second": "at the ceiling",
    "share": "share of it",
    "share_of_vectors": "of vectors alone",
    "gemm_gflop_per_second": "GEMM GFLOP/s",
    "peak_gpu_mb": "peak GPU MB",
    "min_cosine": "min cosine to fp32",
}
SIDES = [("torch", "bf16"), ("torch", "fp32"), ("onnx", "fp32")]
N_COMPARED = 200


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(job: Row) -> Row:
    """Encode in this process; return the figures of the best round."""
    import torch
    from transformers import BertConfig

    from finetuner.config import Device
    from finetuner.encoder import load_encoder
    from finetuner.run_store import RunStore

    volume = Path(job["volume"])
    encoder = load_encoder(
        RunStore(volume).find_artifact(NAME),
        backend=job["backend"],
        device=Device(job["device"]),
        precision=job["precision"],
    )
    if encoder.device != job["device"]:
        raise BenchmarkError(f"{job['backend']} runs on {encoder.device}, not on {job['device']}")
    texts = draw_texts(job["n_texts"])
    token_ids = sorted(encoder.tokenizer.tokenize(texts), key=len)
    batches = [
        token_ids[start : start + job["batch_size"]]
        for start in range(0, len(texts), job["batch_size"])
    ]
    seconds: dict[str, list[float]] = {"texts": [], "vectors": []}
    for _ in range(job["n_rounds"] + 1):  # the first warms up
        with metered(synchronizer(job["device"])) as whole:
            vectors = encoder.encode(texts, batch_size=job["batch_size"])
        with metered(synchronizer(job["device"])) as alone:
            for batch in batches:
                encoder.embed_tokens(batch)
        for name, usage in (("texts", whole), ("vectors", alone)):
            seconds[name].append(usage.cpu_s if job["device"] == "cpu" else usage.wall_s)
    config = BertConfig(vocab_size=N_WORD_PIECES)
    n_tokens = np.array([len(ids) for ids in token_ids])
    reference = np.load(volume / "reference.npy")
    row = {
        f"{name}_per_second": round(len(texts) / min(times[1:]), 1)
        for name, times in seconds.items()
    }
    gemm = measure_gemm(config, int(n_tokens.mean() * job["batch_size"]), job=job)
    flop = float(count_flop(config, n_tokens).mean()) / 3  # a third of forward and backward
    row["ceiling_per_second"] = round(gemm / flop, 1)
    row["share"] = round(row["texts_per_second"] / row["ceiling_per_second"], 3)
    row["share_of_vectors"] = round(row["vectors_per_second"] / row["ceiling_per_second"], 3)
    row["gemm_gflop_per_second"] = round(gemm / 1e9)
    row["min_cosine"] = round(float((vectors[:N_COMPARED] * reference).sum(axis=1).min()), 6)
    if job["device"] == "cuda" and job["backend"] == "torch":
        row["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return row


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(run_side(json.load(sys.stdin))))
        return
    import torch

    from finetuner.device import has_fast_bf16

    is_fast = has_fast_bf16(torch.device(arguments.device))
    with tempfile.TemporaryDirectory() as temporary:
        write_model(Path(temporary) / "bert")
        volume = Path(temporary) / "volume"
        reference = make_volume(volume, str(Path(temporary) / "bert"))
        compared = draw_texts(arguments.texts)[:N_COMPARED]
        np.save(volume / "reference.npy", reference.encode(compared))
        rows = []
        for backend, precision in SIDES:
            if precision == "bf16" and not is_fast:
                continue
            job = {
                "backend": backend,
                "precision": precision,
                "volume": str(volume),
                "n_texts": arguments.texts,
                "n_rounds": arguments.rounds,
                "batch_size": arguments.batch_size,
                "device": arguments.device,
                "settings": ["highest"],  # fp32 is no TF32 here
            }
            try:
                found = run_child(Path(__file__), job, arguments=["--child"])
            except BenchmarkError as exc:
                found = {"error": str(exc)[-300:]}
                print(f"{backend} {precision}: {exc}", file=sys.stderr)
            rows.append({"backend": backend, "precision": precision, **found})
    where = gpu_name() if arguments.device == "cuda" else "CPU"
    title = f"bert-base-cased, random weights, {arguments.texts} questions, {where}"
    about = machine(["torch", "transformers", "onnxruntime"])
    report(title, rows, COLUMNS, about | {"device": arguments.device, "gpu": where})


if __name__ == "__main__":
    main()

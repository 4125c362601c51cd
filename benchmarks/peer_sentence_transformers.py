"""One training of sentence-transformers, timed: a job as JSON on the standard input, its figures as the
last line out.

Run by train.py with the interpreter of an environment that holds the peer and nothing of this project.
The settings are those that its documentation recommends: learning rate 2e-5, warm-up over a tenth of the
steps, and the batch sampler that belongs to the loss.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import BatchAllTripletLoss, MultipleNegativesRankingLoss

Job = dict[str, Any]


def make_pairs(job: Job) -> Dataset:
    """Put the texts of each class into pairs at random, each text in one; an odd one is left out."""
    by_class = defaultdict(list)
    for text, class_ in zip(job["texts"], job["classes"], strict=True):
        by_class[class_].append(text)
    generator = random.Random(job["seed"])
    pairs = []
    for texts in by_class.values():
        generator.shuffle(texts)
        pairs += zip(texts[::2], texts[1::2], strict=False)
    generator.shuffle(pairs)
    return Dataset.from_dict(
        {"anchor": [pair[0] for pair in pairs], "positive": [pair[1] for pair in pairs]}
    )


def make_labelled(job: Job) -> Dataset:
    return Dataset.from_dict({"sentence": job["texts"], "label": job["classes"]})


# For each loss: its class, its data, its batch sampler, and how many texts a row has.
LOSSES = {
    "MultipleNegativesRankingLoss": (
        MultipleNegativesRankingLoss,
        make_pairs,
        "no_duplicates",
        2,
    ),
    "BatchAllTripletLoss": (BatchAllTripletLoss, make_labelled, "group_by_label", 1),
}


def build_trainer(model: SentenceTransformer, job: Job, folder: str) -> SentenceTransformerTrainer:
    loss, make_data, sampler, n_texts_a_row = LOSSES[job["loss"]]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=job["epochs"],
        per_device_train_batch_size=job["batch_size"] // n_texts_a_row,
        learning_rate=2e-5,
        warmup_steps=0.1,  # a share of all steps
        bf16=job["precision"] == "bf16",
        batch_sampler=sampler,
        use_cpu=job["device"] == "cpu",
        seed=job["seed"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=make_data(job), loss=loss(model)
    )


def peak_memory_mb() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def train(model: SentenceTransformer, job: Job) -> Job:
    n_texts = 0

    def count(_module: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal n_texts
        n_texts += len(inputs[0]["input_ids"])

    synchronize = torch.cuda.synchronize if job["device"] == "cuda" else lambda: None
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(model, job, folder)
        counter = model.register_forward_pre_hook(count)
        synchronize()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        trainer.train()
        synchronize()
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        counter.remove()
    return {"cpu_s": cpu_s, "wall_s": wall_s, "n_texts": n_texts}


def run(job: Job) -> Job:
    disable_progress_bars()
    model = SentenceTransformer(job["model"], device=job["device"])
    usage = train(model, job) if job["epochs"] else {"cpu_s": 0.0, "wall_s": 0.0, "n_texts": 0}
    result = {**usage, "peak_memory_mb": peak_memory_mb()}
    if job["device"] == "cuda":
        result["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    vectors = model.encode(job["evaluation_texts"], batch_size=32, show_progress_bar=False)
    np.save(job["vectors"], vectors)
    return {
        **result,
        "torch": torch.__version__,
        "sentence-transformers": sentence_transformers.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))

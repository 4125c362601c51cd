"""Train a bert-base-cased of random weights, and compare with the floor of its matrix multiplications.

    python benchmarks/bert.py [--precision bf16 fp32] [--batch-size 128] [--steps 8] [--device cuda]

Speed and memory of a model do not depend on what its weights are, so no hub is needed: the model is made
from bert-base-cased's configuration (12 layers, 768 wide, 28,996 word pieces), with a tokenizer made for
the purpose, and trained as the README recommends on questions of 10 to 40 tokens.

The floor of the time is what the linear layers and attention of forward and backward multiply, counted
without padding, at the best rate that this machine reaches on matrices of those sizes in the same run. The
floor of the memory is four 32-bit numbers a parameter (itself, its gradient, two of AdamW's) and what the
multiplications of one batch must keep for the backward pass. The first step warms up and does not count.
A table on the standard error, JSON lines on the standard output. `--device cuda` counts wall seconds and
GPU memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measurement import (
    BenchmarkError,
    Row,
    machine,
    metered,
    peak_memory_mb,
    report,
    run_child,
    synchronizer,
)

N_WORD_PIECES = 28_996
MIN_TOKENS, MAX_TOKENS = 10, 40
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COLUMNS = {
    "precision": "precision",
    "texts_per_second": "texts / s",
    "floor_texts_per_second": "at the floor",
    "times_the_floor_s": "x floor",
    "gemm_gflop_per_second": "GEMM GFLOP/s",
    "gflop_per_text": "GFLOP / text",
    "peak_memory_mb": "peak MB",
    "floor_memory_mb": "floor MB",
    "times_the_floor_mb": "x floor",
    "wall_s": "wall s",
    "steps_per_second": "steps / s",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp32"))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_model(folder: Path) -> None:
    """Write a bert-base-cased of random weights, and a tokenizer with one word piece a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    # Spread wider than usual: else all texts have nearly the same vector, which ends a training.
    config = BertConfig(vocab_size=N_WORD_PIECES, initializer_range=0.1)
    BertModel(config).save_pretrained(folder)
    n_words = N_WORD_PIECES - len(SPECIAL_TOKENS)
    pieces = SPECIAL_TOKENS + [f"word{number}" for number in range(n_words)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    ).save_pretrained(folder)


def draw_texts(n_texts: int) -> list[str]:
    generator = np.random.default_rng(0)
    n_words = generator.integers(MIN_TOKENS - 2, MAX_TOKENS - 1, n_texts)  # beside [CLS] and [SEP]
    highest = N_WORD_PIECES - len(SPECIAL_TOKENS)
    return [
        " ".join(f"word{number}" for number in generator.integers(0, highest, n)) for n in n_words
    ]


def count_flop(config: Any, n_tokens: Any) -> Any:
    """Return what forward and backward of texts multiply and add; backward takes twice the forward.

    :param config: The model's.
    :param n_tokens: Of each text.
    """
    width, inner = config.hidden_size, config.intermediate_size
    linear = 2 * n_tokens * (4 * width**2 + 2 * width * inner)
    attention = 4 * n_tokens**2 * width
    return 3 * config.num_hidden_layers * (linear + attention)


def check_count(backbone: Any) -> float:
    """Return torch's count for one small batch over ours.

    :raises BenchmarkError: When they are further apart than the pooler, which we leave out, explains.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.full((2, 32), 7, device=backbone.device)
    # Other kernels of attention are not in the counter's table for every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backbone(input_ids=ids).last_hidden_state.sum().backward()
    backbone.zero_grad(set_to_none=True)
    ratio = counter.get_total_flops() / (2 * count_flop(backbone.config, 32))
    if not 0.99 < ratio < 1.01:
        raise BenchmarkError(f"torch counts {ratio:.3f} times the operations that we count")
    return ratio


def count_kept_numbers(config: Any, n_tokens: float) -> float:
    """Return how many numbers of a batch the multiplications' backward pass must have kept.

    A layer keeps the inputs of its four linear layers, and queries, keys and values.

    :param n_tokens: Of the whole batch.
    """
    a_layer = 6 * config.hidden_size + config.intermediate_size
    return n_tokens * config.num_hidden_layers * a_layer


def measure_gemm(config: Any, n_tokens: int, *, job: Row) -> float:
    """Return the best rate in FLOP/s, over matrices of the model's sizes and torch's ways to multiply."""
    import torch

    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    width, inner = config.hidden_size, config.intermediate_size
    best = 0.0
    settings = job.get("settings", ("highest", "medium"))
    for setting in settings if job["precision"] == "fp32" else ("highest",):
        torch.set_float32_matmul_precision(setting)
        for m, k, n in (
            (n_tokens, width, inner),
            (n_tokens, inner, width),
            (width, n_tokens, inner),
        ):
            left = torch.randn(m, k, device=job["device"], dtype=dtype)
            right = torch.randn(k, n, device=job["device"], dtype=dtype)
            # B023 fears that the lambda is called in a later turn; it is called in this one.
            best = max(best, 2 * m * k * n / _fastest(lambda: left @ right, job["device"]))  # noqa: B023
    return best


def _fastest(multiply: Callable[[], object], device: str, n_rounds: int = 12) -> float:
    # A GPU multiplies in microseconds, of which starting and awaiting it would be a part.
    n_times = 1 if device == "cpu" else 100
    times = []
    for _ in range(n_rounds):
        with metered(synchronizer(device)) as usage:
            for _ in range(n_times):
                multiply()
        times.append((usage.cpu_s if device == "cpu" else usage.wall_s) / n_times)
    return min(times[2:])


def run_training(job: Row) -> Row:
    """Train in this process; return its figures."""
    import torch

    from finetuner.config import Precision, RunConfig
    from finetuner.data import TrainingData
    from finetuner.models import load_model
    from finetuner.trainer import TrainingHooks
    from finetuner.training import train

    n_texts = job["batch_size"] * (job["steps"] + 1)
    data = TrainingData(draw_texts(n_texts), np.arange(n_texts) // 2, n_repeated=0, n_ambiguous=0)
    config = RunConfig(
        model="bert-base-cased",
        loss="SupConLoss",
        loss_options={"temperature": 0.05},
        optimizer="AdamW",
        learning_rate=1e-7,  # there is nothing to learn
        epochs=1,
        batch_size=job["batch_size"],
        num_items_per_class=2,
        precision=Precision(job["precision"]),
    )
    loaded = load_model(Path(job["folder"]))
    n_tokens = np.array([len(text.split()) + 2 for text in data.texts])
    n_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    ends = StepTimes(synchronizer(job["device"]))
    hooks = TrainingHooks(on_step=ends.add, on_epoch_end=lambda _end: None)
    train(loaded, data, config=config, device=torch.device(job["device"]), hooks=hooks)
    usage = ends.usage(job)
    peak_mb = (
        torch.cuda.max_memory_allocated() // 2**20 if job["device"] == "cuda" else peak_memory_mb()
    )
    bert = loaded.model.backbone.config
    kept = count_kept_numbers(bert, n_tokens.mean() * job["batch_size"])
    kept_bytes = kept * (2 if job["precision"] == "bf16" else 4)
    loaded.model.eval()
    return {
        **usage,
        "peak_memory_mb": peak_mb,
        "floor_memory_mb": round((16 * n_parameters + kept_bytes) / 2**20),
        "gflop_per_text": round(float(count_flop(bert, n_tokens).mean()) / 1e9, 2),
        "gemm_gflop_per_second": round(
            measure_gemm(bert, int(n_tokens.mean() * job["batch_size"]), job=job) / 1e9
        ),
        "torch_count_over_ours": round(check_count(loaded.model.backbone), 4),
    }


class StepTimes:
    """When the first step ended, and the last.

    :param synchronize: Waits for a GPU's work; not after each step, which no training does.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._n_steps = 0
        self._start = (0.0, 0.0)

    def add(self, _progress: object) -> None:
        self._n_steps += 1
        if self._n_steps == 1:
            self._start = self._now()

    def _now(self) -> tuple[float, float]:
        self._synchronize()
        return time.process_time(), time.perf_counter()

    def usage(self, job: Row) -> Row:
        """Return time and speed of all steps but the first; called at the end."""
        cpu_s, wall_s = (end - start for start, end in zip(self._start, self._now(), strict=True))
        n_steps = self._n_steps - 1
        n_texts = job["batch_size"] * n_steps
        return {
            "n_texts": n_texts,
            "cpu_s": round(cpu_s, 2),
            "wall_s": round(wall_s, 2),
            "steps_per_second": round(n_steps / wall_s, 2),
            "texts_per_second": round(n_texts / (cpu_s if job["device"] == "cpu" else wall_s), 2),
        }


def gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def run_precision(precision: str, folder: str, arguments: argparse.Namespace) -> Row:
    job = {
        "precision": precision,
        "folder": folder,
        **{name: getattr(arguments, name) for name in ("batch_size", "steps", "device")},
    }
    row = {**job, **run_child(Path(__file__), job, arguments=["--child"])}
    del row["folder"]
    row["floor_texts_per_second"] = round(row["gemm_gflop_per_second"] / row["gflop_per_text"], 2)
    row["times_the_floor_s"] = round(row["floor_texts_per_second"] / row["texts_per_second"], 2)
    row["times_the_floor_mb"] = round(row["peak_memory_mb"] / row["floor_memory_mb"], 2)
    return row


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(run_training(json.load(sys.stdin))))
        return
    import torch

    from finetuner.device import has_fast_bf16

    fast = has_fast_bf16(torch.device(arguments.device))
    precisions = arguments.precision or (["bf16", "fp32"] if fast else ["fp32"])
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        rows = [run_precision(precision, folder, arguments) for precision in precisions]
    unit = "CPU seconds" if arguments.device == "cpu" else f"wall seconds on {gpu_name()}"
    title = f"bert-base-cased, random weights, batch {arguments.batch_size}; s are {unit}"
    report(title, rows, COLUMNS, machine(["torch", "transformers"]))


if __name__ == "__main__":
    main()

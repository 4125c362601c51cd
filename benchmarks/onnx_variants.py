"""Make the ONNX graph of a backbone and its 8-bit variants, and print size, nearness and speed.

    taskset -c 0 python benchmarks/onnx_variants.py [--data examples/quora_style_index.csv]

Speed is texts per second of processor time, the best of several rounds in which the graphs take turns,
through the encoder that serves them; taskset keeps it to one core. Prints one JSON line a graph.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from finetuner.artifact import ONNX_GRAPH
from finetuner.backbones import locate
from finetuner.backends import EncoderPrecision
from finetuner.config import OnnxVariant, workspace_dir
from finetuner.csv_file import CSVOptions, read_csv
from finetuner.encoder import onnx_encoder
from finetuner.models import load_model, save_model
from finetuner.onnx_export import export_onnx
from finetuner.quantization import add_variants


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("examples/quora_style_index.csv"))
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    texts = read_csv(arguments.data, CSVOptions(is_labeled=True)).texts
    loaded = load_model(locate(arguments.model, workspace_dir()))
    tokenizer, dim = loaded.tokenizer, loaded.model.dim
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(loaded, folder)
        (folder / ONNX_GRAPH).parent.mkdir()
        parity = export_onnx(folder, folder / ONNX_GRAPH)
        found = add_variants(folder, list(OnnxVariant), tokenizer=tokenizer, dim=dim)
        encoders = {"fp32": onnx_encoder(folder / ONNX_GRAPH, tokenizer, dim=dim)}
        for figures in found:
            if figures.file:
                encoders[figures.name] = onnx_encoder(
                    folder / figures.file,
                    tokenizer,
                    dim=dim,
                    precision=EncoderPrecision(figures.name),
                )
        size_bytes = (folder / ONNX_GRAPH).stat().st_size
    speeds = dict.fromkeys(encoders, 0.0)
    for _ in range(arguments.rounds):
        for name, encoder in encoders.items():
            started = time.process_time()
            encoder.encode(texts)
            speeds[name] = max(speeds[name], len(texts) / (time.process_time() - started))
    row = {"graph": "fp32", "megabytes": size_bytes / 1e6, "difference_to_torch": parity.difference}
    print(json.dumps({**row, "texts_per_cpu_second": round(speeds["fp32"])}))
    for figures in found:
        row = {
            "graph": figures.name,
            "megabytes": figures.size_bytes / 1e6,
            "min_cosine": figures.min_cosine,
            "mean_cosine": figures.mean_cosine,
            "refused_for": figures.refused_for,
        }
        print(json.dumps({**row, "texts_per_cpu_second": round(speeds.get(figures.name, 0))}))


if __name__ == "__main__":
    main()

"""Time the nine metrics of an evaluation, beside `match` and `evaluate` of docarray 0.21.

    python benchmarks/evaluate.py [--queries 5000] [--index 15746] [--dim 768]

Vectors are drawn: those of a class around its centre, most classes of one to four texts, as in Quora's
duplicates. docarray's `dcg_at_k` and `ndcg_at_k` call what numpy 2 has removed, so it gives seven metrics,
which must equal ours. Embedding is no part of it. A table on the standard error, JSON lines on the
standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measurement import Row, machine, metered, peak_memory_mb, report, run_child

COLUMNS = {
    "side": "",
    "wall_s": "wall s",
    "cpu_s": "CPU s",
    "peak_memory_mb": "peak MB",
    "data_mb": "of it vectors",
    "n_metrics": "metrics",
    "largest_difference": "differ by",
}
LIMIT = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--index", type=int, default=15_746)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--without-docarray", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def draw(n_queries: int, n_index: int, dim: int) -> tuple[Any, Any, Any, Any]:
    """Return vectors and labels of queries and index."""
    generator = np.random.default_rng(0)
    n_classes = n_index // 2
    centres = generator.standard_normal((n_classes, dim), dtype=np.float32)

    def vectors(labels: Any) -> Any:
        noise = generator.standard_normal((len(labels), dim), dtype=np.float32)
        return centres[labels] + 2 * noise

    index_labels = generator.integers(0, n_classes, n_index)
    query_labels = generator.choice(index_labels, n_queries)
    return vectors(query_labels), query_labels, vectors(index_labels), index_labels


def run_ours(queries: Any, query_labels: Any, index: Any, index_labels: Any) -> Row:
    from finetuner.callback import EvaluationCallback
    from finetuner.data import LabelledTexts
    from finetuner.evaluation import EvaluationSet, evaluate

    def labelled(prefix: str, labels: Any) -> LabelledTexts:
        texts = [f"{prefix}{number}" for number in range(len(labels))]
        return LabelledTexts(texts, [str(label) for label in labels], [None] * len(labels))

    query_texts, index_texts = labelled("q", query_labels), labelled("i", index_labels)
    callback = EvaluationCallback(query_data=None, limit=LIMIT)
    data = EvaluationSet.create(query_texts, index_texts, callback=callback)
    vectors = {query_texts.texts[0]: queries, index_texts.texts[0]: index}
    with metered() as usage:
        metrics = evaluate(lambda texts: vectors[texts[0]], data, callback=callback).metrics
    return {**vars(usage), "metrics": metrics}


def run_docarray(queries: Any, query_labels: Any, index: Any, index_labels: Any) -> Row:
    from docarray import Document, DocumentArray

    def documents(vectors: Any, labels: Any) -> DocumentArray:
        return DocumentArray(
            Document(embedding=vector, tags={"label": str(label)})
            for vector, label in zip(vectors, labels, strict=True)
        )

    query_documents, index_documents = (
        documents(queries, query_labels),
        documents(index, index_labels),
    )
    names, sizes = np.unique(index_labels.astype(str), return_counts=True)
    counts = dict(zip(names.tolist(), sizes.tolist(), strict=True))
    available = [
        *("average_precision", "f1_score_at_k", "hit_at_k", "precision_at_k"),
        *("r_precision", "recall_at_k", "reciprocal_rank"),
    ]
    with metered() as usage:
        query_documents.match(index_documents, metric="cosine", limit=LIMIT)
        metrics = query_documents.evaluate(
            metrics=available, num_relevant_documents_per_label=counts
        )
    return {**vars(usage), "metrics": metrics}


SIDES = {"finetuner": run_ours, "docarray": run_docarray}


def run_side(job: Row) -> Row:
    data = draw(job["queries"], job["index"], job["dim"])
    result = SIDES[job["side"]](*data)
    result["data_mb"] = (data[0].nbytes + data[2].nbytes) // 2**20
    return {**job, **result, "peak_memory_mb": peak_memory_mb()}


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(run_side(json.load(sys.stdin))))
        return
    size = {name: getattr(arguments, name) for name in ("queries", "index", "dim")}
    sides = list(SIDES)[: 1 if arguments.without_docarray else None]
    rows = [
        run_child(Path(__file__), {"side": side, **size}, arguments=["--child"]) for side in sides
    ]
    ours = rows[0]["metrics"]
    for row in rows:
        row["n_metrics"] = len(row["metrics"])
        differences = [abs(value - ours[name]) for name, value in row["metrics"].items()]
        row["largest_difference"] = f"{max(differences):.1e}"
    about = machine(["numpy", "docarray"])
    title = f"{arguments.queries} queries, {arguments.index} index vectors, {arguments.dim} wide"
    report(title, rows, COLUMNS, about)


if __name__ == "__main__":
    main()

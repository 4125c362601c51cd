"""Search ten million vectors exactly, read from the disk block by block, in memory that stays small.

    python benchmarks/search.py [--rows 10000000] [--queries 1000] [--dim 128] [--dtype float16]

A file of NumPy is written chunk by chunk: random vectors, and for each query 20 neighbours at places drawn at
random, whose cosines and so whose ranks are known; the 11th and the 12th are one vector at two places, of
which the first must come first. Each row of the table is `finetuner.evaluate_vectors` in a process of its
own; all places and all metrics must be those that were planted, or the script fails. The file of a tenth of
the rows shows what memory the rest takes, and as Parquet what reading that costs. A table on the standard
error, JSON lines on the standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from measurement import BenchmarkError, Row, machine, metered, peak_memory_mb, report, run_child

LIMIT = 20
CHUNK_ROWS = 100_000
ROWS_PER_PART = 16_384
N_RELEVANT_RANKS = 5  # every fourth of the 20 has the query's label
COLUMNS = {
    "index": "index",
    "n_rows": "vectors",
    "size_mb": "on disk MB",
    "n_threads": "threads",
    "wall_s": "wall s",
    "cpu_s": "CPU s",
    "vectors_per_cpu_second": "vectors / CPU s",
    "peak_memory_mb": "peak MB",
    "labels_mb": "of it labels",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--folder", help="where the vectors lie meanwhile (default: a temporary one)"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def neighbours(queries: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return for each query of length one 20 vectors, from the nearest on: (n_queries, 20, dim)."""
    noise = generator.standard_normal((len(queries), LIMIT, queries.shape[1]), dtype=np.float32)
    noise -= (noise @ queries[:, :, None]) * queries[:, None, :]
    noise /= np.linalg.norm(noise, axis=2, keepdims=True)
    # 0.95 to 0.76; no random vector of 128 dimensions comes near.
    cosines = (0.95 - 0.01 * np.arange(LIMIT, dtype=np.float32))[None, :, None]
    planted = cosines * queries[:, None, :] + np.sqrt(1 - cosines**2) * noise
    planted[:, 11] = planted[:, 10]
    return planted


def write(folder: Path, n_rows: int, arguments: argparse.Namespace) -> None:
    """Write queries, index, its labels, and the places that a search must find."""
    generator = np.random.default_rng(0)
    shape = (arguments.queries, arguments.dim)
    queries = generator.standard_normal(shape, dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    planted = neighbours(queries, generator)
    places = generator.choice(n_rows, (len(queries), LIMIT), replace=False)
    places[:, 10:12].sort(axis=1)
    labels = np.full(n_rows, -1, dtype=np.int32)
    labels[places[:, :: LIMIT // N_RELEVANT_RANKS]] = np.arange(len(queries))[:, None]
    order = np.argsort(places.ravel())
    in_order, vectors = places.ravel()[order], planted.reshape(-1, arguments.dim)[order]
    index = np.lib.format.open_memmap(
        folder / "index.npy", "w+", arguments.dtype, (n_rows, arguments.dim)
    )
    for first in range(0, n_rows, CHUNK_ROWS):
        stop = min(first + CHUNK_ROWS, n_rows)
        chunk = generator.standard_normal((stop - first, arguments.dim), dtype=np.float32)
        begin, end = np.searchsorted(in_order, (first, stop))
        chunk[in_order[begin:end] - first] = vectors[begin:end]
        index[first:stop] = chunk
    index.flush()
    np.save(folder / "queries.npy", queries)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "places.npy", places)


def write_parquet(folder: Path) -> None:
    """Write the index once more, as `encode-corpus` writes its parts."""
    from finetuner.corpus_output import CorpusOutput

    index = np.load(folder / "index.npy", mmap_mode="r")
    output = CorpusOutput(str(folder / "parquet"))
    output.begin({})
    for number, first in enumerate(range(0, len(index), ROWS_PER_PART)):
        vectors = index[first : first + ROWS_PER_PART]
        ids = [str(place) for place in range(first, first + len(vectors))]
        output.put(number, ids, vectors, skipped=(), about={})
    output.finish({})


def run_side(job: Row) -> Row:
    import finetuner

    folder, index = Path(job["folder"]), Path(job["path"])
    labels = np.load(folder / "labels.npy", mmap_mode="r")
    expected = np.load(folder / "places.npy")
    with metered() as usage:
        found = finetuner.evaluate_vectors(
            folder / "queries.npy",
            index,
            query_labels=np.arange(len(expected)),
            index_labels=labels,
            limit=LIMIT,
            n_threads=job["n_threads"],
            device="cpu",
        )
    n_wrong = int((found.places != expected).any(axis=1).sum())
    if n_wrong:
        raise BenchmarkError(f"{n_wrong} queries did not find what was planted")
    check(found.metrics)
    files = index.iterdir() if index.is_dir() else [index]
    return {
        "index": "Parquet" if index.is_dir() else "NumPy",
        "n_rows": len(labels),
        "size_mb": sum(path.stat().st_size for path in files) // 10**6,
        "n_threads": job["n_threads"],
        "wall_s": round(usage.wall_s, 1),
        "cpu_s": round(usage.cpu_s, 1),
        "vectors_per_cpu_second": round(len(labels) / usage.cpu_s),
        "peak_memory_mb": peak_memory_mb(),
        "labels_mb": len(labels)
        * 12
        // 2**20,  # four bytes of each in their file, eight as a class
        "metrics": found.metrics,
    }


def check(metrics: Row) -> None:
    """See that the relevant ones came at the ranks 1, 5, 9, 13 and 17, and no others are in the index."""
    ranks = range(1, LIMIT + 1, LIMIT // N_RELEVANT_RANKS)
    expected = {
        "average_precision": sum((n + 1) / rank for n, rank in enumerate(ranks)) / len(ranks),
        "precision_at_k": N_RELEVANT_RANKS / LIMIT,
        "recall_at_k": 1.0,
        "reciprocal_rank": 1.0,
    }
    for name, value in expected.items():
        if abs(metrics[name] - value) > 1e-12:
            raise BenchmarkError(f"{name} is {metrics[name]} and should be {value}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(run_side(json.load(sys.stdin))))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        tenth, whole = Path(temporary) / "tenth", Path(temporary) / "whole"
        for folder, n_rows in ((tenth, arguments.rows // 10), (whole, arguments.rows)):
            folder.mkdir()
            write(folder, n_rows, arguments)
        write_parquet(tenth)
        for folder, name in ((tenth, "parquet"), (tenth, "index.npy"), (whole, "index.npy")):
            for n_threads in arguments.threads:
                job = {"folder": str(folder), "path": str(folder / name), "n_threads": n_threads}
                rows.append(run_child(Path(__file__), job, arguments=["--child"]))
    title = f"{arguments.queries} queries, {arguments.dim} wide, {arguments.dtype}, limit {LIMIT}"
    report(f"{title}; all ranks as planted", rows, COLUMNS, machine(["numpy", "pyarrow"]))


if __name__ == "__main__":
    main()

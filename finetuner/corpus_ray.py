"""A corpus encoded on a Ray cluster: Ray Data carries the parts to workers, and to others when one dies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from finetuner.corpus import Corpus, CorpusOptions, PartDone, PartEncoder
from finetuner.corpus_output import CorpusOutput
from finetuner.corpus_parts import Part
from finetuner.errors import ConfigError, FinetunerServerError, UnavailableError
from finetuner.ray_cluster import check_answers
from finetuner.schema import read

_ADDRESS = re.compile(r"auto|local|[^\s/:]+:\d+")


@dataclass(frozen=True)
class RayOptions:
    """Where a corpus is encoded, and by how many.

    :param address: ``auto`` or ``HOST:PORT`` of a cluster that this machine is a node of, or ``local`` for
        one of this machine alone, for as long as it takes.
    :param n_workers: At least 1; each holds the model.
    :param cpus_per_worker: Cores, and threads, of each, at least 1.
    :param gpus_per_worker: GPUs of each; a part of one is shared.
    """

    address: str = "auto"
    n_workers: int = 2
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.address):
            advice = (
                ": Ray Data does not go through Ray's client; run the command on a node of the cluster"
                if self.address.startswith("ray://")
                else ""
            )
            raise ConfigError(
                f"the Ray cluster must be HOST:PORT, auto or local, got `{self.address}`{advice}"
            )
        for name in ("n_workers", "cpus_per_worker"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.gpus_per_worker < 0:
            raise ConfigError(f"gpus_per_worker must be at least 0, got {self.gpus_per_worker}")


def encode_on_ray(corpus: Corpus, options: RayOptions) -> Iterator[PartDone]:
    """Encode what is not there yet; gives each part once it is written, in any order.

    Inputs, artifact and output must have the same names on all machines, and the same finetuner must be
    installed there. A worker writes a part under its number, so that a part that is encoded twice, as
    when its machine is lost, is there once.

    :raises ConfigError: When Ray is not installed, or the cluster has never room for one worker.
    :raises UnavailableError: When no cluster answers.
    """
    if not corpus.waiting:
        return
    with _connected(options) as data:
        rows = [{"part": orjson.dumps(part).decode()} for part in corpus.waiting]
        done = data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(
                str(corpus.artifact),
                corpus.output.url,
                corpus.options,
                options.cpus_per_worker,
            ),
            concurrency=options.n_workers,
            num_cpus=options.cpus_per_worker,
            num_gpus=options.gpus_per_worker or None,
        )
        for row in done.iter_rows():
            yield PartDone(**row)


class _Worker:
    """Encodes one part after the other, in a process of Ray's.

    :param artifact: The model.
    :param output: Where to.
    :param options: How.
    :param n_threads: As many texts, or batches of them, at once.
    """

    def __init__(self, artifact: str, output: str, options: CorpusOptions, n_threads: int) -> None:
        folder = CorpusOutput(output)
        self._encoder = PartEncoder(Path(artifact), folder, options, n_threads=n_threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        part = read(Part, orjson.loads(row["part"]), "part")
        (done,) = self._encoder.encode([part])
        return asdict(done)


@contextmanager
def _connected(options: RayOptions) -> Iterator[Any]:
    """Give Ray Data, connected to the cluster, with room for a worker."""
    if find_spec("ray") is None:
        raise ConfigError("--ray needs Ray: `pip install 'finetuner-flow[ray]'`")
    import ray
    import ray.data

    try:
        check_answers(options.address)
        ray.init(address=options.address, log_to_driver=False, logging_level="error")
    except OSError as exc:  # what Ray raises is one too
        raise UnavailableError(
            f"no Ray cluster at `{options.address}` with a node on this machine: `ray start --head` begins "
            f"one, `ray start --address` joins it, --ray local uses this machine alone ({exc})"
        ) from exc
    try:
        _check_room(options, ray.nodes())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        yield ray.data
    except ray.exceptions.RayError as exc:
        raise FinetunerServerError("Ray could not encode the corpus", _cause(exc)) from exc
    finally:
        ray.shutdown()


def _check_room(options: RayOptions, nodes: list[dict[str, Any]]) -> None:
    """Refuse a worker that fits no machine, for which Ray would wait without an end."""
    wanted = {"CPU": float(options.cpus_per_worker), "GPU": options.gpus_per_worker}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(has.get(name, 0.0) >= n for name, n in wanted.items()) for has in alive):
        had = "; ".join(
            f"{has.get('CPU', 0):.0f} CPUs, {has.get('GPU', 0):.0f} GPUs" for has in alive
        )
        raise ConfigError(
            f"no machine of the cluster has {wanted['CPU']:.0f} CPUs and {wanted['GPU']} GPUs for a "
            f"worker; they have: {had}"
        )


def _cause(error: BaseException) -> str:
    """Return the last line of what a worker said, below Ray's own trace."""
    return str(error).strip().rpartition("\n")[2]

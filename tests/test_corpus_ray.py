"""A corpus on a Ray cluster of three nodes, one of which is lost on the way."""

import numpy as np
import pytest
from pyarrow import parquet

from finetuner.corpus import Corpus, CorpusOptions
from finetuner.corpus_ray import RayOptions, encode_on_ray
from finetuner.encoder import load_encoder
from finetuner.errors import ConfigError, UnavailableError

pytestmark = pytest.mark.slow
_TEXTS = [f"the {word} number {n}" for n, word in enumerate("apple river stone".split() * 400)]


@pytest.fixture
def corpus(tmp_path, publish_run):
    artifact = publish_run(tmp_path / "volume", "my-run").artifact_path
    (tmp_path / "texts.txt").write_text("\n".join(_TEXTS))
    return Corpus(
        [str(tmp_path / "texts.txt")],
        str(tmp_path / "out"),
        artifact=artifact,
        options=CorpusOptions(rows_per_part=50),
    )


def test_a_node_that_is_lost_costs_no_row_and_doubles_none(ray_cluster, corpus):
    lost = ray_cluster.list_all_nodes()[-1]
    found = []
    for done in encode_on_ray(corpus, RayOptions(ray_cluster.address, n_workers=2)):
        found.append(done.number)
        if len(found) == 4:
            ray_cluster.remove_node(lost, allow_graceful=False)
    assert set(found) == set(range(24))
    table = parquet.read_table(corpus.output.url)
    assert table["id"].to_pylist() == [f"texts.txt:{n}" for n in range(1, len(_TEXTS) + 1)]
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    expected = load_encoder(corpus.artifact).encode(_TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_worker_that_fits_no_machine_is_refused(ray_cluster, corpus):
    with pytest.raises(
        ConfigError, match=r"no machine of the cluster has 64 CPUs and 0.0 GPUs for a w"
    ):
        list(encode_on_ray(corpus, RayOptions(ray_cluster.address, cpus_per_worker=64)))


def test_no_cluster(corpus):
    with pytest.raises(
        UnavailableError,
        match=r"no Ray cluster at `127.0.0.1:1` with a node on this machine: `ray s",
    ):
        list(encode_on_ray(corpus, RayOptions("127.0.0.1:1")))


def test_options_out_of_range():
    for name in ("n_workers", "cpus_per_worker"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
            RayOptions(**{name: 0})
    for address in ("head", "ray://head"):
        with pytest.raises(ConfigError, match=f"must be HOST:PORT, auto or local, got `{address}`"):
            RayOptions(address)
    with pytest.raises(ConfigError, match="gpus_per_worker must be at least 0, got -1"):
        RayOptions(gpus_per_worker=-1)


def test_rays_client_is_refused_with_what_to_do():
    with pytest.raises(
        ConfigError,
        match=r"got `ray://head:10001`: Ray Data does not go through .* a node of the cl",
    ):
        RayOptions("ray://head:10001")

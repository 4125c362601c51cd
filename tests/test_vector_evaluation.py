import numpy as np
import pytest

import finetuner
from finetuner.callback import EvaluationCallback
from finetuner.data import LabelledTexts
from finetuner.errors import ConfigError, DataError
from finetuner.evaluation import EvaluationSet, evaluate

_INDEX = np.array([[1, 0], [0, 1], [1, 1], [-1, 0]], dtype=np.float32)
_QUERIES = np.array([[2, 0], [0, 3]], dtype=np.float32)


def _texts(labels, prefix):
    labels = [str(label) for label in labels]
    return LabelledTexts([f"{prefix}{n}" for n in range(len(labels))], labels, [None] * len(labels))


def test_by_hand(tmp_path):
    """The first query finds its label at the ranks 2 and 4, the second at 1."""
    found = finetuner.evaluate_vectors(
        _QUERIES, _INDEX, query_labels=["a", "b"], index_labels=["c", "b", "a", "a"], limit=4
    )
    assert found.places.tolist() == [[0, 2, 1, 3], [1, 2, 0, 3]]
    np.testing.assert_allclose(found.distances[0], [0, 1 - 0.5**0.5, 1, 2], rtol=1e-12)
    assert (found.n_skipped, found.metrics["reciprocal_rank"]) == (0, (1 / 2 + 1) / 2)
    assert found.metrics["average_precision"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1) / 2)
    assert found.metrics["recall_at_k"] == 1


def test_queries_without_anything_to_find_count_in_no_metric():
    found = finetuner.evaluate_vectors(
        _QUERIES, _INDEX, query_labels=[7, 1], index_labels=np.array([0, 1, 2, 3]), limit=1
    )
    assert (found.n_skipped, found.metrics["reciprocal_rank"]) == (1, 1.0)
    assert found.places.tolist() == [[0], [1]]


def test_among_themselves_without_themselves():
    found = finetuner.evaluate_vectors(_INDEX, query_labels=["a", "b", "b", "a"], limit=9)
    assert found.places.tolist() == [[2, 1, 3, -1], [2, 0, 3, -1], [0, 1, 3, -1], [1, 2, 0, -1]]
    assert found.metrics["reciprocal_rank"] == pytest.approx((1 / 3 + 1 + 1 / 2 + 1 / 3) / 4)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_file_gives_what_an_evaluation_gives(tmp_path, distance, n_threads):
    generator = np.random.default_rng(0)
    labels, query_labels = generator.integers(0, 30, 500), generator.integers(0, 40, 60)
    index = generator.integers(-2, 3, (500, 4)).astype(np.float32)  # with many ties
    queries = generator.integers(-2, 3, (60, 4)).astype(np.float32)
    np.save(tmp_path / "index.npy", index.astype(np.float16))
    found = finetuner.evaluate_vectors(
        queries,
        tmp_path / "index.npy",
        query_labels=query_labels,
        index_labels=labels,
        distance=distance,
        n_threads=n_threads,
    )
    callback = EvaluationCallback(query_data=None, distance=distance)
    data = EvaluationSet.create(_texts(query_labels, "q"), _texts(labels, "i"), callback=callback)
    vectors = dict(zip(_texts(query_labels, "q").texts, queries, strict=True))
    vectors |= dict(zip(_texts(labels, "i").texts, index, strict=True))
    expected = evaluate(
        lambda texts: np.stack([vectors[text] for text in texts]), data, callback=callback
    )
    assert (found.metrics, found.n_skipped) == (expected.metrics, data.n_skipped)
    assert found.n_skipped > 0


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"query_labels": ["a"]}, DataError, "2 query vectors have 1 labels; each needs one"),
        ({"index_labels": ["a"] * 5}, DataError, "4 index vectors have 5 labels"),
        ({"query_labels": ["y", "z"]}, DataError, "none of the 2 queries has a vector with its"),
        ({"query": np.ones((2, 3))}, DataError, "queries are 3 wide and the index 2; both must"),
        ({"query": np.ones((0, 2)), "query_labels": []}, DataError, "there are no queries"),
        ({"limit": 0}, ConfigError, "limit must be at least 1, got 0"),
        ({"n_threads": 0}, ConfigError, "n_threads must be at least 1, got 0"),
        ({"distance": "hamming"}, ConfigError, "hamming"),
    ],
)
def test_refusals(changed, error, message):
    given = {"query": _QUERIES, "index": _INDEX, "query_labels": "ab", "index_labels": "cbaa"}
    with pytest.raises(error, match=message):
        finetuner.evaluate_vectors(**given | changed)


def test_the_command(command, tmp_path):
    np.save(tmp_path / "query.npy", _QUERIES)
    np.save(tmp_path / "index.npy", _INDEX)
    (tmp_path / "query.txt").write_text("a\nnone\n")
    (tmp_path / "index.txt").write_text("c\nb\na\na")
    words = [
        tmp_path / "query.npy",
        tmp_path / "index.npy",
        "--query-labels",
        tmp_path / "query.txt",
    ]
    words += ["--index-labels", tmp_path / "index.txt", "--limit", 2, "--threads", 2]
    shown = command("evaluate-vectors", *words)
    assert "reciprocal_rank    0.50000\n" in shown.stdout
    assert "1 evaluation queries are left out" in shown.stderr
    assert '"reciprocal_rank": 0.5' in command("evaluate-vectors", *words, "--json").stdout
    (tmp_path / "query.txt").unlink()
    command("evaluate-vectors", *words, exit_code=3)

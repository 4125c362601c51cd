import logging

import numpy as np
import orjson
import pytest

from finetuner import run_map
from finetuner.callback import Distance, EvaluationCallback
from finetuner.config import RunConfig
from finetuner.data import LabelledTexts, from_rows
from finetuner.evaluation import EvaluationSet, evaluate
from finetuner.projection import principal_plane, turned
from finetuner.run_map import RunMap, Shown
from finetuner.run_store import RunStore

CALLBACK = EvaluationCallback(query_data=None, limit=3)
N_QUERIES, N_INDEX = 6, 30


@pytest.fixture
def run(tmp_path):
    config = RunConfig(model="tiny", run_name="one")
    return RunStore(tmp_path).create(config, {"train.jsonl": from_rows([["a", 1], ["b", 1]])})


def _texts(n, prefix):
    labels = [str(number % 3) for number in range(n)]
    return LabelledTexts([f"{prefix}{number}" for number in range(n)], labels, [None] * n)


@pytest.fixture
def data():
    """Six queries, and an index that holds one of them."""
    index = from_rows([["q0", "0"], *[[f"i{n}", str(n % 3)] for n in range(N_INDEX)]])
    return EvaluationSet.create(_texts(N_QUERIES, "q"), index, callback=CALLBACK)


def _evaluated(data, seed):
    generator = np.random.default_rng(seed)
    vectors = {
        text: generator.normal(size=8).astype(np.float32)
        for text in (
            *data.queries.texts,
            *(t for t in data.index.texts if t not in data.queries.texts),
        )
    }
    embed = lambda texts: np.stack([vectors[text] for text in texts])  # noqa: E731 - as it is called
    shown = np.stack(list(vectors.values()))  # in the order in which they are drawn
    return evaluate(embed, data, callback=CALLBACK), shown


def _map(run, seed=0):
    return RunMap(run, seed=seed)


def _shown_map(run, caption="model"):
    return run.map()["evaluations"][caption]


def test_evaluate_gives_the_vectors_that_it_made(data):
    found, shown = _evaluated(data, 1)
    np.testing.assert_array_equal(found.query_embeddings, shown[:N_QUERIES])
    np.testing.assert_array_equal(found.index_embeddings[1:], shown[N_QUERIES:])
    np.testing.assert_array_equal(found.index_embeddings[0], shown[0])


def test_before_and_after(run, data):
    assert run.map() == {"evaluations": {}}
    drawing = _map(run)
    before, vectors = _evaluated(data, 1)
    drawing.see("model", data, before, is_before=True)
    drawing.write()
    found = _shown_map(run)
    assert found["texts"] == [f"q{n}" for n in range(6)] + [f"i{n}" for n in range(30)]
    assert found["labels"] == [str(n % 3) for n in (*range(6), *range(30))]
    assert found["roles"] == ["query"] * 6 + ["index"] * 30
    assert (found["n_texts"], found["n_shown"]) == (36, 36)
    (pca,) = found["methods"].values()
    plane = principal_plane(vectors)
    np.testing.assert_allclose(pca["before"], plane.points, atol=1e-4)
    assert pca["after"] is None
    assert pca["explained"] == {"before": pytest.approx(plane.explained, abs=1e-5), "after": None}

    for seed in (2, 3):  # the newest counts
        after, vectors = _evaluated(data, seed)
        drawing.see("model", data, after, is_before=False)
        drawing.write()
    again = _shown_map(run)["methods"]["pca"]
    later = principal_plane(vectors)
    assert again["before"] == pca["before"]
    np.testing.assert_allclose(again["after"], turned(later.points, plane.points), atol=1e-4)
    assert again["explained"]["after"] == pytest.approx(later.explained, abs=1e-5)


def test_a_run_goes_on_with_what_is_in_its_file(run, data):
    """A worker that takes the run up knows no vectors of the untuned model."""
    first = _map(run)
    first.see("model", data, _evaluated(data, 1)[0], is_before=True)
    first.write()
    undisturbed = orjson.loads((run.folder / "map.json").read_bytes())
    second = _map(run)
    second.see("model", data, _evaluated(data, 2)[0], is_before=False)
    second.write()
    found = run.map()
    first.see("model", data, _evaluated(data, 2)[0], is_before=False)
    first.write()
    np.testing.assert_allclose(
        found["evaluations"]["model"]["methods"]["pca"].pop("after"),
        _shown_map(run)["methods"]["pca"]["after"],
        atol=1e-4,
    )
    assert found["evaluations"]["model"]["texts"] == undisturbed["evaluations"]["model"]["texts"]


@pytest.mark.parametrize("content", [b"", b'{"evaluations": {"mod', b"[]", b"{}", b"\0" * 50])
def test_a_damaged_file_is_said_and_left(run, data, content, caplog):
    (run.folder / "map.json").write_bytes(content)
    drawing = _map(run)
    drawing.see("model", data, _evaluated(data, 2)[0], is_before=False)
    drawing.write()
    assert "map is damaged" in caplog.text
    assert (run.folder / "map.json").read_bytes() == content


def test_of_other_texts_nothing_is_added(run, data):
    first = _map(run)
    first.see("model", data, _evaluated(data, 1)[0], is_before=True)
    first.write()
    second = _map(run)
    other = EvaluationSet.create(_texts(9, "q"), None, callback=CALLBACK)
    second.see("model", other, _evaluated(other, 2)[0], is_before=False)
    second.see("unknown", data, _evaluated(data, 2)[0], is_before=False)
    second.write()
    assert _shown_map(run)["methods"]["pca"]["after"] is None
    assert list(run.map()["evaluations"]) == ["model"]


def test_queries_searched_among_themselves_are_drawn_once():
    data = EvaluationSet.create(_texts(9, "q"), None, callback=CALLBACK)
    shown = Shown.choose(data, seed=0)
    assert (len(shown.queries), len(shown.index), shown.n_texts) == (9, 0, 9)


@pytest.mark.parametrize(
    ("limit", "n_queries", "n_index"), [(4, 4, 0), (6, 6, 0), (10, 6, 4), (36, 6, 30), (99, 6, 30)]
)
def test_queries_first_then_what_fits_of_the_index(data, monkeypatch, limit, n_queries, n_index):
    monkeypatch.setattr(run_map, "MAX_TEXTS", limit)
    shown, again = (Shown.choose(data, seed=3) for _ in range(2))
    assert (len(shown.queries), len(shown.index), shown.n_texts) == (n_queries, n_index, 36)
    for name in ("queries", "index"):
        np.testing.assert_array_equal(getattr(shown, name), getattr(again, name))
        assert len(set(getattr(shown, name))) == len(getattr(shown, name))
    assert 0 not in shown.index  # it is a query
    if limit == 10:
        drawn = {tuple(Shown.choose(data, seed=seed).index) for seed in range(5)}
        assert len(drawn) > 1


def test_long_texts_are_cut(run):
    texts = LabelledTexts(["é" * 500, "b"], ["1", "1"], [None, None])
    data = EvaluationSet.create(texts, None, callback=CALLBACK)
    drawing = _map(run)
    drawing.see("model", data, _evaluated(data, 1)[0], is_before=True)
    drawing.write()
    assert _shown_map(run)["texts"] == ["é" * 200, "b"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_points_keep_five_digits_of_any_size(scale):
    points = np.random.default_rng(0).normal(size=(50, 2)) * scale
    rounded = run_map._rounded(points)
    assert np.abs(rounded - points).max() <= 1e-4 * np.abs(points).max()
    assert all(len(str(value).split("e")[0].strip("-0.")) <= 8 for value in rounded.ravel())


def test_what_cannot_be_drawn_does_not_end_the_run(run, data, monkeypatch, caplog):
    def fail(_vectors):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(run_map, "principal_plane", fail)
    drawing = _map(run)
    drawing.see("model", data, _evaluated(data, 1)[0], is_before=True)
    drawing.write()
    assert "map of evaluation `model` cannot be drawn: SVD did not converge" in caplog.text
    assert run.map() == {"evaluations": {}}


@pytest.fixture
def layouts(monkeypatch):
    """Stand for UMAP; keep what was asked."""
    asked = []

    def lay_out(vectors, *, distance, seed, start=None):
        asked.append((distance, seed, start is not None))
        return principal_plane(vectors).points

    monkeypatch.setattr(run_map, "has_umap", lambda: True)
    monkeypatch.setattr(run_map, "umap_points", lay_out)
    return asked


def test_umap_comes_at_the_end_from_kept_vectors(run, data, layouts, caplog):
    caplog.set_level(logging.INFO)
    drawing = _map(run)
    (before, vectors), (after, later) = _evaluated(data, 1), _evaluated(data, 2)
    drawing.see("model", data, before, is_before=True)
    drawing.see("model", data, after, is_before=False)
    drawing.write()
    assert layouts == []
    _map(run, seed=5).conclude({"model": Distance.EUCLIDEAN})  # a worker that took the run up
    assert layouts == [(Distance.EUCLIDEAN, 5, False), (Distance.EUCLIDEAN, 5, True)]
    found = _shown_map(run)["methods"]["umap"]
    plane = principal_plane(vectors).points
    np.testing.assert_allclose(found["before"], plane, atol=1e-4)
    expected = turned(principal_plane(later).points, plane)
    np.testing.assert_allclose(found["after"], expected, atol=1e-4)
    assert "Map by UMAP of 36 texts (model): " in caplog.text
    run.clean_up()
    assert list(run.folder.rglob("*.npy")) == []


def test_umap_of_a_run_without_an_epoch(run, data, layouts):
    drawing = _map(run)
    drawing.see("model", data, _evaluated(data, 1)[0], is_before=True)
    drawing.conclude({"model": Distance.COSINE})
    assert _shown_map(run)["methods"]["umap"]["after"] is None


def test_umap_that_fails_does_not_end_the_run(run, data, layouts, monkeypatch, caplog):
    def fail(*_args, **_options):
        raise RuntimeError("cannot be compiled")

    monkeypatch.setattr(run_map, "umap_points", fail)
    drawing = _map(run)
    drawing.see("model", data, _evaluated(data, 1)[0], is_before=True)
    drawing.write()
    drawing.conclude({"model": Distance.COSINE})
    assert list(_shown_map(run)["methods"]) == ["pca"]
    assert "UMAP of evaluation `model` failed" in caplog.text


def test_without_umap_no_vectors_are_kept(run, data, monkeypatch):
    monkeypatch.setattr(run_map, "has_umap", lambda: False)
    drawing = _map(run)
    drawing.see("model", data, _evaluated(data, 1)[0], is_before=True)
    drawing.write()
    drawing.conclude({"model": Distance.COSINE})
    assert not (run.folder / "checkpoints").exists()
    assert list(_shown_map(run)["methods"]) == ["pca"]


def test_few_texts_are_not_laid_out(run, layouts):
    data = EvaluationSet.create(_texts(9, "q"), None, callback=CALLBACK)
    drawing = _map(run)
    drawing.see("model", data, _evaluated(data, 1)[0], is_before=True)
    drawing.conclude({"model": Distance.COSINE})
    assert layouts == []

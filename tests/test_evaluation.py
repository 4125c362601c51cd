import numpy as np
import pytest
from docarray import Document, DocumentArray

from finetuner.callback import Distance, EvaluationCallback
from finetuner.data import LabelledTexts
from finetuner.errors import DataError
from finetuner.evaluation import EvaluationSet, evaluate

# docarray's dcg functions call what numpy 2 has removed.
_METRICS = [
    "average_precision",
    "f1_score_at_k",
    "hit_at_k",
    "precision_at_k",
    "r_precision",
    "recall_at_k",
    "reciprocal_rank",
]


def _callback(**options):
    return EvaluationCallback(query_data=None, **options)


def _labelled(labels, ids=None, prefix="t"):
    ids = [None] * len(labels) if ids is None else ids
    return LabelledTexts([f"{prefix}{i}" for i in range(len(labels))], labels, ids)


def _embedder(*pairs):
    """Look vectors up by text."""
    vectors = {}
    for texts, embeddings in pairs:
        vectors.update(zip(texts.texts, embeddings, strict=True))
    return lambda texts: np.stack([vectors[text] for text in texts])


def _documents(data, embeddings):
    return DocumentArray(
        [
            Document(id=data.ids[i], embedding=embeddings[i], tags={"label": data.labels[i]})
            for i in range(len(data))
        ]
    )


def _docarray_metrics(queries, index, counts, callback):
    queries.match(
        index,
        metric=callback.distance.value,
        limit=callback.limit,
        exclude_self=callback.exclude_self,
    )
    return queries.evaluate(metrics=_METRICS, num_relevant_documents_per_label=counts)


def _random_data(n, n_labels, prefix):
    generator = np.random.default_rng(n)
    labels = [str(label) for label in generator.integers(0, n_labels, n)]
    centres = np.random.default_rng(7).normal(size=(n_labels, 8))
    embeddings = centres[[int(label) for label in labels]] + generator.normal(size=(n, 8))
    data = _labelled(labels, [f"{prefix}{i}" for i in range(n)], prefix)
    return data, embeddings.astype(np.float32)


@pytest.mark.parametrize("limit", [1, 5, 20, 500])
@pytest.mark.parametrize("distance", list(Distance))
def test_metrics_are_docarrays_with_another_index(distance, limit):
    callback = _callback(limit=limit, distance=distance)
    queries, query_vectors = _random_data(30, 6, "q")
    index, index_vectors = _random_data(90, 6, "i")
    data = EvaluationSet.create(queries, index, callback=callback)
    found = evaluate(
        _embedder((queries, query_vectors), (index, index_vectors)), data, callback=callback
    )
    expected = _docarray_metrics(
        _documents(queries, query_vectors),
        _documents(index, index_vectors),
        {label: list(index.labels).count(label) for label in index.labels},
        callback,
    )
    assert {name: found.metrics[name] for name in _METRICS} == pytest.approx(expected, abs=1e-6)
    assert (data.n_skipped, found.examples) == (0, [])


@pytest.mark.parametrize("is_same", [True, False])
@pytest.mark.parametrize("limit", [5, 20])
def test_metrics_are_docarrays_without_the_query_itself(limit, is_same):
    callback = _callback(limit=limit)
    texts, vectors = _random_data(60, 6, "d")
    index = None if is_same else texts
    data = EvaluationSet.create(texts, index, callback=callback)
    found = evaluate(_embedder((texts, vectors)), data, callback=callback)
    expected = _docarray_metrics(
        _documents(texts, vectors),
        _documents(texts, vectors),
        {label: list(texts.labels).count(label) - 1 for label in texts.labels},
        callback,
    )
    assert {name: found.metrics[name] for name in _METRICS} == pytest.approx(expected, abs=1e-6)


def test_all_nine_metrics_by_hand():
    """One query; matches in order: other, same, same, other; one more of its label is not found."""
    index = _labelled(["b", "a", "a", "b", "a"], prefix="i")
    queries = _labelled(["a"], prefix="q")
    places = np.array([[1.0, 0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]], np.float32)
    callback = _callback(limit=4, distance=Distance.EUCLIDEAN)
    data = EvaluationSet.create(queries, index, callback=callback)
    embed = _embedder((index, places), (queries, np.array([[1.0, 0]], np.float32)))
    dcg = 1 + 1 / np.log2(3)  # the weights are 1, 1, 1/log2(3), 1/2
    assert evaluate(embed, data, callback=callback).metrics == pytest.approx(
        {
            "average_precision": (1 / 2 + 2 / 3) / 2,
            "dcg_at_k": dcg,
            "f1_score_at_k": 2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3),
            "hit_at_k": 1.0,
            "ndcg_at_k": dcg / 2,
            "precision_at_k": 1 / 2,
            "r_precision": 1 / 2,
            "recall_at_k": 2 / 3,
            "reciprocal_rank": 1 / 2,
        }
    )


@pytest.mark.parametrize(
    ("queries", "index", "exclude_self", "expected"),
    [
        # Query `c` has nothing to find.
        (
            (["a", "c", "b"], [None] * 3),
            (["b", "a", "x", None, "a"], [None] * 5),
            True,
            ([0, 2], [0, 2], [2, 0, -1, -1, 0], [-1, -1], [2, 1], 1),
        ),
        # The same texts: a label that occurs once finds only itself.
        (
            (["a", "b", "a"], [None] * 3),
            None,
            True,
            ([0, 2], [0, 0], [0, 1, 0], [0, 2], [1, 1], 1),
        ),
        (
            (["a", "b", "a"], [None] * 3),
            None,
            False,
            ([0, 1, 2], [0, 1, 0], [0, 1, 0], [-1, -1, -1], [2, 1, 2], 0),
        ),
        # The same ids, at other places.
        (
            (["a", "a"], ["x", "y"]),
            (["a", "a", "b"], ["y", "z", "x"]),
            True,
            ([0, 1], [0, 0], [0, 0, -1], [2, 0], [2, 1], 0),
        ),
        (
            (["a", "a"], ["x", "y"]),
            (["a", "a", "b"], ["y", "z", "x"]),
            False,
            ([0, 1], [0, 0], [0, 0, -1], [-1, -1], [2, 2], 0),
        ),
        # The document with the query's id has another label or none: nothing relevant is lost.
        (
            (["a", "b"], ["x", "y"]),
            (["b", "a", None], ["x", "z", "y"]),
            True,
            ([0, 1], [0, 1], [1, 0, -1], [0, 2], [1, 1], 0),
        ),
    ],
)
def test_what_is_relevant_to_what(queries, index, exclude_self, expected):
    queries = _labelled(*queries)
    index = None if index is None else _labelled(*index, prefix="i")
    data = EvaluationSet.create(queries, index, callback=_callback(exclude_self=exclude_self))
    chosen, query_classes, index_classes, own, n_relevant, n_skipped = expected
    assert data.queries == queries.subset(chosen)
    assert data.index == (queries if index is None else index)
    assert data.query_classes.tolist() == query_classes
    assert data.index_classes.tolist() == index_classes
    assert data.own.tolist() == own
    assert data.n_relevant.tolist() == n_relevant
    assert data.n_skipped == n_skipped


def test_skipped_queries_do_not_count():
    queries, query_vectors = _random_data(30, 6, "q")
    index, index_vectors = _random_data(90, 6, "i")
    places = [place for place, label in enumerate(index.labels) if label not in ("2", "4")]
    fewer, fewer_vectors = index.subset(places), index_vectors[places]
    callback = _callback()
    data = EvaluationSet.create(queries, fewer, callback=callback)
    kept = [place for place, label in enumerate(queries.labels) if label not in ("2", "4")]
    found = evaluate(
        _embedder((queries, query_vectors), (fewer, fewer_vectors)), data, callback=callback
    )
    expected = _docarray_metrics(
        _documents(queries.subset(kept), query_vectors[kept]),
        _documents(fewer, fewer_vectors),
        {label: list(fewer.labels).count(label) for label in fewer.labels},
        callback,
    )
    assert 0 < data.n_skipped == 30 - len(kept)
    assert {name: found.metrics[name] for name in _METRICS} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("size", "n_expected"), [(1, 1), (7, 7), (60, 60), (100, 60), (None, 60)])
def test_a_sample_of_the_queries(size, n_expected):
    texts, _ = _random_data(60, 6, "d")
    callback = _callback(query_sample_size=size)
    first, second = (EvaluationSet.create(texts, None, callback=callback) for _ in range(2))
    assert first.queries == second.queries
    places = [texts.texts.index(text) for text in first.queries.texts]
    assert (len(places), places, len(first.index)) == (n_expected, sorted(set(places)), 60)
    assert first.own.tolist() == places
    assert first.n_skipped == 0


@pytest.mark.parametrize(
    ("queries", "index", "message"),
    [
        ([], ["a"], "the query data of the evaluation are empty"),
        ([], None, "the query data of the evaluation are empty"),
        (["a", None, None], ["a"], "2 of 3 evaluation queries have no label"),
        (["a", "b"], ["c", None], "none of the 2 evaluation queries .* among the 2 index texts"),
        (["a"], [], "none of the 1 evaluation queries .* among the 0 index texts"),
        (["a", "b"], None, "none of the 2 evaluation queries .* among the 2 index texts"),
    ],
)
def test_data_that_cannot_be_evaluated(queries, index, message):
    index = None if index is None else _labelled(index)
    with pytest.raises(DataError, match=message):
        EvaluationSet.create(_labelled(queries), index, callback=_callback())


@pytest.mark.parametrize(("n_asked", "n_expected"), [(1, 1), (2, 2), (9, 2)])
def test_examples(n_asked, n_expected):
    texts = _labelled(["a", "a", "b"])
    embed = _embedder((texts, np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)))
    callback = _callback(limit=5, gather_examples=True, num_example_queries=n_asked)
    data = EvaluationSet.create(texts, None, callback=callback)
    expected = [
        {
            "query": "t0",
            "label": "a",
            "results": [
                {"text": "t1", "label": "a", "distance": 0.2},
                {"text": "t2", "label": "b", "distance": 1.0},
            ],
        },
        {
            "query": "t1",
            "label": "a",
            "results": [
                {"text": "t0", "label": "a", "distance": 0.2},
                {"text": "t2", "label": "b", "distance": 0.4},
            ],
        },
    ]
    assert evaluate(embed, data, callback=callback).examples == expected[:n_expected]


def test_no_examples_unless_asked_for():
    texts = _labelled(["a", "a"])
    data = EvaluationSet.create(texts, None, callback=_callback())
    embed = _embedder((texts, np.eye(2, dtype=np.float32)))
    assert evaluate(embed, data, callback=_callback(num_example_queries=3)).examples == []

"""What is held out for an evaluation, against plain loops over the same rows."""

import random
from collections import defaultdict

import pytest

from finetuner import hold_out as module
from finetuner.callback import EvaluationCallback
from finetuner.data import fold, from_rows
from finetuner.errors import DataError
from finetuner.evaluation import EvaluationSet
from finetuner.hold_out import hold_out
from finetuner.pairs import read_rows


def labelled(n_labels, n_texts, *, noise=True):
    """Labels with so many texts; with noise, some repeated in another form, some under two labels."""
    rows = [
        (f"Text {i} of {label}", f"l{label}") for label in range(n_labels) for i in range(n_texts)
    ]
    if noise:
        rows += [(f"  text {0} OF {label} ", f"l{label}") for label in range(0, n_labels, 2)]
        rows += [
            (f"text 1 of {label}", f"l{(label + 1) % n_labels}") for label in range(0, n_labels, 3)
        ]
        rows += [(f"alone {i}", f"single {i}") for i in range(5)]
    random.Random(0).shuffle(rows)
    return from_rows(rows)


def pairs(n_groups, *, seed=0):
    """Pairs of which some share texts, are repeated, of one text, or have a negative."""
    generator = random.Random(seed)
    rows = []
    for group in range(n_groups):
        texts = [f"text {i} of {group}" for i in range(2 + group % 3)]
        for first, second in zip(texts, texts[1:], strict=False):
            row = {"anchor": first, "positive": second}
            if generator.random() < 0.5:
                row["negative"] = f"text 0 of {generator.randrange(n_groups)}"
            rows.append(row)
    rows += [{"anchor": "TEXT 1 of 0", "positive": "text 0 of 0"}]
    rows += [{"anchor": "text 0 of 1", "positive": "Text 0 of 1"}]
    generator.shuffle(rows)
    return read_rows(rows)


def folds(texts):
    return [fold(text) for text in texts if text is not None]


def labels_of(data):
    found = defaultdict(set)
    for text, label in zip(data.texts, data.labels, strict=True):
        found[fold(text)].add(label)
    return found


def check_labels(data, held):
    """Nothing that is evaluated is trained on; each text has one label, and stands once; each query finds."""
    queries, index = held.queries, held.index or held.queries
    labels = labels_of(data)
    for part in (queries, index):
        assert len(set(folds(part.texts))) == len(part)
        for text, label in zip(part.texts, part.labels, strict=True):
            assert labels[fold(text)] == {label}
    for text, label in zip(queries.texts, queries.labels, strict=True):
        assert any(
            other == label and fold(found) != fold(text)
            for found, other in zip(index.texts, index.labels, strict=True)
        )
    assert not set(folds(queries.texts)) & set(folds(held.training.texts))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.2, 0.3, 0.5])
def test_whole_labels_are_held_out_of_many(share, seed):
    data = labelled(40, 6)
    held = hold_out(data, share, seed=seed)
    check_labels(data, held)
    assert held.index is None
    gone = set(held.queries.labels)
    left = [
        (text, label)
        for text, label in zip(data.texts, data.labels, strict=True)
        if not labels_of(data)[fold(text)] & gone
    ]
    assert [*zip(held.training.texts, held.training.labels, strict=True)] == left
    n_clear = sum(len(found) == 1 for found in labels_of(data).values())
    assert share * n_clear - 6 <= len(held.queries) <= share * n_clear + 0.5
    assert len(gone) >= 5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_texts_of_every_label_are_held_out_of_few(share, seed):
    data = labelled(5, 20)
    held = hold_out(data, share, seed=seed)
    check_labels(data, held)
    clear = {text for text, found in labels_of(data).items() if len(found) == 1}
    assert len(held.queries) == round(share * len(clear))
    assert set(held.queries.labels) == {f"l{i}" for i in range(5)}
    assert set(folds(held.index.texts)) == clear - set(folds(held.queries.texts))
    left = [text for text in data.texts if fold(text) not in set(folds(held.queries.texts))]
    assert list(held.training.texts) == left


@pytest.mark.parametrize(("n_labels", "is_whole"), [(25, True), (24, False), (10, False)])
def test_a_share_of_five_labels_is_many(n_labels, is_whole):
    rows = [(f"{i} of {label}", label) for label in range(n_labels) for i in range(4)]
    assert (hold_out(from_rows(rows), 0.2, seed=0).index is None) is is_whole


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_groups_of_pairs_are_held_out(share, seed):
    data = pairs(30, seed=seed)
    held = hold_out(data, share, seed=seed)
    evaluated = set(folds(held.queries.texts)) | set(folds(held.index.texts))
    trained = held.training
    assert not evaluated & {
        *folds(trained.anchors),
        *folds(trained.positives),
        *folds(trained.negatives),
    }
    group_of = {text: text.rpartition(" ")[2] for text in evaluated}
    gone = set(group_of.values())
    rows = [*data.rows()]
    kept = [row for row in rows if fold(row["anchor"]).rpartition(" ")[2] not in gone]
    for row in kept:
        if fold(row.get("negative", "")) in evaluated:
            del row["negative"]
    assert [*trained.rows()] == kept
    usable = [row for row in rows if fold(row["anchor"]) != fold(row["positive"])]
    out = [row for row in usable if fold(row["anchor"]).rpartition(" ")[2] in gone]
    assert set(folds(held.queries.texts)) == {fold(row["anchor"]) for row in out}
    assert set(folds(held.index.texts)) == {fold(row["positive"]) for row in out}
    assert len(gone) >= 2
    assert len(out) <= max(round(share * len(usable)), 2)
    for text, label in zip(held.queries.texts, held.queries.labels, strict=True):
        found = [
            other
            for other, its in zip(held.index.texts, held.index.labels, strict=True)
            if its == label and fold(other) != fold(text)
        ]
        assert found
        assert {group_of[fold(other)] for other in found} == {group_of[fold(text)]}


def test_a_text_that_is_query_and_index_does_not_find_itself():
    rows = [{"anchor": f"a{i}", "positive": f"b{i}"} for i in range(4)]
    rows += [{"anchor": f"b{i}", "positive": f"c{i}"} for i in range(4)]
    held = hold_out(read_rows(rows), 0.5, seed=1)
    made = EvaluationSet.create(held.queries, held.index, callback=EvaluationCallback(hold_out=0.5))
    own = [made.index.texts[place] if place >= 0 else None for place in made.own]
    assert own == [text if text[0] == "b" else None for text in made.queries.texts]
    assert made.n_skipped == 0


@pytest.mark.parametrize(
    "data", [labelled(20, 6), labelled(5, 20), pairs(30)], ids=["many", "few", "pairs"]
)
def test_one_seed_gives_one_split(data):
    first = hold_out(data, 0.3, seed=1)
    assert hold_out(data, 0.3, seed=1) == first
    assert hold_out(data, 0.3, seed=2) != first


def test_what_is_searched_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_INDEX", 10)
    monkeypatch.setattr(module, "MAX_QUERIES", 7)
    data = labelled(5, 20)
    held = hold_out(data, 0.5, seed=0)
    check_labels(data, held)
    assert (len(held.queries), len(held.index)) == (7, 10)
    monkeypatch.setattr(module, "MAX_QUERIES", 17)
    assert len(hold_out(labelled(20, 3, noise=False), 0.5, seed=0).queries) == 15


SCORED = [{"sentence1": "a", "sentence2": f"b{i}", "score": i} for i in range(9)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("a", 1), ("b", 1), ("c", 2)],
            "hold_out=0.2 needs at least 2 texts that can be held out, and found 1 among 3 different ones "
            "with 2 labels, each of which keeps one: give more data, or an EvaluationCallback with query",
        ),
        ([], "found 0 among 0 different ones with 0 labels"),
        (
            [{"anchor": "a", "positive": f"b{i}"} for i in range(9)],
            "holds out whole groups of linked texts, and these 9 pairs make 1 of them; at least 4 are",
        ),
        (
            SCORED,
            "hold_out needs texts with labels or pairs .*; these are scored pairs: give query_data",
        ),
    ],
)
def test_too_little_is_refused(rows, message):
    with pytest.raises(DataError, match=message):
        hold_out(read_rows(rows), 0.2, seed=0)

import numpy as np
import pytest
from pair_rows import pairs, scored

from finetuner.data import LabelledTexts
from finetuner.errors import DataError
from finetuner.linked_texts import as_labelled, labelled_together


def test_linked_texts_share_a_label():
    found = as_labelled(pairs(("a", "b"), ("c", "d"), ("B ", "e"), ("f", "f")))
    assert found.texts == ["a", "b", "c", "d", "e", "f"]
    assert found.labels == ["0", "0", "1", "1", "0", "2"]
    labelled = LabelledTexts(["a"], ["1"], [None])
    assert as_labelled(labelled) is labelled


@pytest.mark.parametrize(
    ("data", "kind"), [(scored(("a", "b", 1)), "scores"), (pairs(("a", "b", "n")), "negatives")]
)
def test_what_labels_cannot_say(data, kind):
    with pytest.raises(DataError, match=f"texts with labels are needed here; .* with {kind}"):
        as_labelled(data)


def test_queries_and_index_share_labels_and_ids():
    queries, index = labelled_together(
        [pairs(("a", "b"), ("c", "d")), pairs(("x", "y"), ("D", "e"), ("a", "f"))]
    )
    assert list(zip(queries.texts, queries.labels, queries.ids, strict=True)) == [
        ("a", "0", "0"),
        ("b", "0", "1"),
        ("c", "1", "2"),
        ("d", "1", "3"),
    ]
    assert list(zip(index.texts, index.labels, index.ids, strict=True)) == [
        ("x", "2", "4"),
        ("y", "2", "5"),
        ("d", "1", "3"),
        ("e", "1", "6"),
        ("a", "0", "0"),
        ("f", "0", "7"),
    ]
    with pytest.raises(DataError, match="must both have labels, or both be pairs"):
        labelled_together([pairs(("a", "b")), LabelledTexts(["a"], ["0"], [None])])


def test_linked_texts_against_a_plain_search():
    generator = np.random.default_rng(0)
    rows = [tuple(map(str, generator.integers(0, 60, 2))) for _ in range(40)]
    group = {}
    for text in [text for row in rows for text in row]:
        if text in group:
            continue
        group[text], found = len(set(group.values())), [text]
        for one in found:
            near = [t for row in rows if one in row for t in row if t not in group]
            group |= dict.fromkeys(near, group[text])
            found += near
    labelled = as_labelled(pairs(*rows))
    assert dict(zip(labelled.texts, map(int, labelled.labels), strict=True)) == group
    assert 1 < max(group.values()) < len(group) - 1

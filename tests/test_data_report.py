"""What data hold, counted by plain loops over the rows."""

import math
import random
from collections import Counter, defaultdict

import pytest

from finetuner.clean_pairs import prepare_pairs
from finetuner.data import fold, prepare_training
from finetuner.data_report import SizeBin, data_report, size_bins, trouble_of
from finetuner.pairs import read_rows

ROWS = [
    *(("A", 1), ("b", "1"), (" a ", 1.0), ("c", 2), ("d", 2), ("D", "2"), ("d", 2)),
    *(("e", 3), ("f", 3), ("f", 4), ("g", 5), ("h" * 600, 2)),
]


def test_a_report_of_labels_worked_by_hand():
    report = data_report(read_rows(ROWS)).answer()
    assert (
        report
        == {
            "form": "labels",
            "n_rows": 12,
            "n_texts": 7,  # a b c d e g h…; f has two labels
            "n_labels": 4,
            "n_repeated": 3,
            "n_ambiguous": 1,
            "n_alone": 2,
            "class_sizes": [
                {"from": 1, "to": 1, "n_labels": 2},
                {"from": 2, "to": 2, "n_labels": 1},
                {"from": 3, "to": 4, "n_labels": 1},
            ],
            "largest": [
                {"label": "2", "n_texts": 3},
                {"label": "1", "n_texts": 2},
                {"label": "3", "n_texts": 1},
                {"label": "5", "n_texts": 1},
            ],
            "preview": [
                *({"text": text, "label": str(int(label))} for text, label in ROWS[:11]),
                {"text": "h" * 499 + "…", "label": "2"},
            ],
            "repeated": [{"text": "A", "label": "1", "n": 2}, {"text": "d", "label": "2", "n": 3}],
            "ambiguous": [{"text": "f", "labels": ["3", "4"]}],
            "lengths": {"p50": 1, "p99": 600, "max": 600},
        }
    )


@pytest.mark.parametrize("seed", range(10))
def test_counts_of_labels_by_a_loop(seed):
    generator = random.Random(seed)
    rows = [
        (generator.choice("aA bcdefgh") * generator.randrange(1, 4), generator.randrange(6))
        for _ in range(generator.randrange(20, 200))
    ]
    rows = [row for row in rows if row[0].strip()]
    data = read_rows(rows)
    report = data_report(data)
    labels = defaultdict(set)
    for text, label in rows:
        labels[fold(text)].add(str(label))
    clear = {text: found.pop() for text, found in labels.items() if len(found) == 1}
    assert report.sizes == Counter(clear.values())
    assert (report.n_texts, report.n_labels) == (len(clear), len(set(clear.values())))
    assert report.n_ambiguous == len(labels) - len(clear)
    assert report.n_repeated == len(rows) - len({(fold(t), label) for t, label in rows})
    lengths = sorted(len(text) for text, _ in rows)
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1)):
        least = min(n for n in lengths if sum(m <= n for m in lengths) >= share * len(lengths))
        assert report.lengths[name] == least
    if not trouble_of(data):
        prepared = prepare_training(data)
        assert (report.n_texts, report.n_labels) == (len(prepared.texts), prepared.n_classes)
        assert (report.n_repeated, report.n_ambiguous) == (
            prepared.n_repeated,
            prepared.n_ambiguous,
        )


def test_rows_without_text_or_label_count_as_rows_alone():
    report = data_report(read_rows([("a", 1), ("", 1), ("b", None), ("c", 1)]))
    assert (report.n_rows, report.n_texts, report.n_labels) == (4, 2, 1)


PAIRS = [
    {"anchor": "a", "positive": "b"},
    {"anchor": "B", "positive": " a"},
    {"anchor": "b", "positive": "c", "negative": "a"},
    {"anchor": "d", "positive": "e", "negative": "x"},
    {"anchor": "f", "positive": "F"},
]


def test_a_report_of_pairs_worked_by_hand():
    report = data_report(read_rows(PAIRS)).answer()
    assert (report["form"], report["n_rows"], report["n_texts"]) == ("pairs", 5, 7)  # a to f, x
    # Groups: a b c, d e, and f, which is paired with itself.
    assert (report["n_labels"], report["n_alone"]) == (3, 1)
    assert report["largest"][0] == {"label": "a", "n_texts": 3}
    assert (report["n_repeated"], report["n_ambiguous"]) == (1, 2)
    assert report["repeated"] == [{"text": "a", "label": "b", "n": 2}]
    assert report["ambiguous"] == [
        {"text": "b", "labels": ["c", "a"]},
        {"text": "f", "labels": ["F"]},
    ]
    assert report["preview"] == PAIRS
    prepared = prepare_pairs(read_rows(PAIRS))
    assert (prepared.n_repeated, prepared.n_ambiguous) == (1, 2)


def test_a_report_of_scored_pairs_worked_by_hand():
    rows = [("a", "b", 0.5), ("B", "a", 0.5), ("c", "d", 0), ("d", "c", 1), ("e", "f", 1)]
    rows = [dict(zip(("sentence1", "sentence2", "score"), row, strict=True)) for row in rows]
    report = data_report(read_rows(rows)).answer()
    assert (report["form"], report["n_rows"], report["n_texts"]) == ("scored pairs", 5, 6)
    assert (report["n_labels"], report["class_sizes"], report["largest"]) == (0, [], [])
    assert (report["n_repeated"], report["n_ambiguous"]) == (1, 2)
    assert report["repeated"] == [{"text": "a", "label": "b", "n": 2}]
    assert report["ambiguous"] == [{"text": "c / d", "labels": ["0", "1"]}]
    assert report["preview"] == rows


def test_lists_are_short():
    rows = [(f"t{i}", label) for i in range(50) for label in (1, 1, 2, 2)]
    report = data_report(read_rows([*rows, *((f"s{i}", i) for i in range(50))])).answer()
    shown = [len(report[name]) for name in ("preview", "repeated", "ambiguous", "largest")]
    assert shown == [20, 20, 20, 10]


def test_no_data():
    report = data_report(read_rows([])).answer()
    assert (report["n_rows"], report["class_sizes"], report["lengths"]["max"]) == (0, [], 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 16, 17, 1000])
def test_bins_double(size):
    bins = size_bins([size, 1])
    assert [(b.first, b.last) for b in bins] == [
        (1 if n == 0 else 2 ** (n - 1) + 1, 2**n) for n in range(math.ceil(math.log2(size)) + 1)
    ]
    assert bins[-1].first <= size <= bins[-1].last
    assert sum(b.n_labels for b in bins) == 2
    assert size_bins([]) == []
    assert size_bins([3, 4, 4]) == [SizeBin(1, 1, 0), SizeBin(2, 2, 0), SizeBin(3, 4, 3)]


@pytest.mark.parametrize(
    ("rows", "trouble"),
    [
        ([("a", 1), ("b", 1), ("c", 2)], ""),
        ([("a", 1), ("b", 1)], "training needs at least two labels; found 2 different texts"),
        (PAIRS, ""),
        (PAIRS[:1], "training needs at least two pairs; found 1 different pairs"),
    ],
)
def test_what_is_wrong_with_data_for_every_loss(rows, trouble):
    found = trouble_of(read_rows(rows))
    assert (found == "") == (trouble == "")
    assert found.startswith(trouble)

import pytest

from finetuner.json_lines import read_page, without_unreadable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines.jsonl"


@pytest.mark.parametrize("torn", [b"", b"{", b'{"n": 3', b'{"n": 3}', b"\0\0\0"])
def test_a_line_that_is_not_whole_is_left_for_the_next_time(path, torn):
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + torn)
    assert read_page(path) == ([{"n": 1}, {"n": 2}], 2)


def test_a_line_that_is_no_json_is_counted_and_not_shown(path):
    path.write_bytes(b'{"n": 1}\n\0\0\n{"n{"n": 2}\n{"n": 4}\n')
    assert read_page(path) == ([{"n": 1}, {"n": 4}], 4)
    assert read_page(path, 1) == ([{"n": 4}], 4)
    assert without_unreadable(path.read_bytes()) == b'{"n": 1}\n\n\n{"n": 4}\n'


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [
        (0, 2, ([0, 1], 2)),
        (2, 2, ([2], 3)),
        (3, 2, ([], 3)),
        (9, 1000, ([], 9)),
        (2**63 - 1, 1000, ([], 2**63 - 1)),
        (1, None, ([1, 2], 3)),
    ],
)
def test_pages(path, offset, limit, expected):
    path.write_bytes(b"0\n1\n2\n")
    assert read_page(path, offset, limit=limit) == expected


def test_a_file_that_is_not_there_yet_is_empty(path):
    assert read_page(path, 4, limit=3) == ([], 4)

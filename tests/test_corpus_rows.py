"""Files of a corpus, cut into parts, each read alone: the same rows as a plain reading of the whole."""

import bz2
import csv
import gzip
import io

import fsspec
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from finetuner.corpus_files import CorpusFormat, list_files
from finetuner.corpus_parts import Columns
from finetuner.corpus_rows import SkippedRow, parts_of, read_part
from finetuner.errors import ConfigError, DataError, DataNotFoundError

ROWS = [
    ("a", "one"),
    ("b", 'with "quotes", and\na line'),
    ("c", ""),
    ("d", "ü\u2028x"),
    ("e", "last"),
]
TEXTS = [text for _, text in ROWS]
IDS = [id_ for id_, _ in ROWS]


def as_csv(rows, header=("id", "text")):
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([header, *rows])
    return buffer.getvalue().encode()


def as_jsonl(rows):
    return b"".join(orjson.dumps({"id": id_, "text": text}) + b"\n" for id_, text in rows)


def as_parquet(rows):
    buffer = io.BytesIO()
    table = pa.table({"id": [id_ for id_, _ in rows], "text": [text for _, text in rows]})
    parquet.write_table(table, buffer, row_group_size=3)
    return buffer.getvalue()


def read_all(files, columns=None, rows_per_part=2):
    columns = columns or Columns()
    parts = list(parts_of(files, columns, rows_per_part=rows_per_part))
    assert [part.number for part in parts] == list(range(len(parts)))
    # From the last to the first: none needs what was read before.
    read = [read_part(part, columns) for part in reversed(parts)][::-1]
    texts = [text for rows in read for text in rows.texts]
    ids = [id_ for rows in read for id_ in rows.ids]
    return ids, texts, [row for rows in read for row in rows.skipped]


def listed(path, content):
    path.write_bytes(content)
    return list_files([str(path)])


@pytest.mark.parametrize("rows_per_part", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("name", "write"),
    [("a.csv", as_csv), ("a.jsonl", as_jsonl), ("a.ndjson", as_jsonl), ("a.parquet", as_parquet)],
)
def test_each_part_alone_gives_its_rows(tmp_path, name, write, rows_per_part):
    files = listed(tmp_path / name, write(ROWS))
    ids, texts, skipped = read_all(files, Columns(id="id"), rows_per_part)
    assert (ids, texts, skipped) == (IDS, TEXTS, [])


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [b"", b"\n"])
def test_a_text_a_line(tmp_path, ending, mark, last):
    content = mark + ending.join([b"one", b"", "ü\u2028x".encode()]) + last
    ids, texts, skipped = read_all(listed(tmp_path / "a.txt", content))
    assert texts == ["one", "", "ü\u2028x"]
    assert ids == ["a.txt:1", "a.txt:2", "a.txt:3"]
    assert skipped == []


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_what_is_packed_is_read_as_what_is_not(tmp_path, suffix, pack):
    files = listed(tmp_path / f"a.csv{suffix}", pack(as_csv(ROWS)))
    assert read_all(files)[1] == TEXTS


def test_a_csv_with_the_mark_of_utf_8(tmp_path):
    files = listed(tmp_path / "a.csv", b"\xef\xbb\xbf" + as_csv(ROWS))
    assert read_all(files, Columns(id="id"))[0] == IDS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=12),
    st.integers(1, 5),
)
def test_any_texts_come_back_from_a_csv(texts, rows_per_part):
    system = fsspec.filesystem("memory")
    system.pipe_file("/any/a.csv", as_csv(enumerate(texts)))
    files = list_files(["memory://any/a.csv"])
    read = read_all(files, Columns(id="id"), rows_per_part)
    assert read == ([str(number) for number in range(len(texts))], texts, [])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"ok\nbad \xff\n", "no UTF-8 at byte 5: invalid start byte"),
        ("a.csv", b"id,text\n1,ok\n2,bad \xff\n", "no UTF-8 at byte 5: invalid start byte"),
        ("a.csv", b"id,text\n1,ok\n\n", "0 columns where the header has 2"),
        ("a.csv", b"id,text\n1,ok\n2,a,b\n", "3 columns where the header has 2"),
        ("a.jsonl", b'{"text":"ok"}\n{"text"\n', "no JSON: "),
        ("a.jsonl", b'{"text":"ok"}\n[1]\n', "an object must be on each line, got list"),
        ("a.jsonl", b'{"text":"ok"}\n{"body":"x"}\n', "no `text`, it has: body"),
        ("a.jsonl", b'{"text":"ok"}\n{"text":null}\n', "no text"),
        ("a.jsonl", b'{"text":"ok"}\n{"text":5}\n', "text: the text must be a string, got `5`"),
        ("a.jsonl", b'{"text":"ok"}\n{"text":"\\ud800"}\n', "no JSON: "),
    ],
)
def test_a_row_without_a_text_is_skipped_and_says_why(tmp_path, name, content, reason):
    _, texts, skipped = read_all(listed(tmp_path / name, content))
    assert texts == ["ok"]
    assert [(row.url, row.row) for row in skipped] == [(str(tmp_path / name), 2)]
    assert skipped[0].reason.startswith(reason)


def test_rows_without_an_id_are_skipped(tmp_path):
    content = b'{"text":"a","id":7}\n{"text":"b"}\n{"text":"c","id":null}\n'
    files = listed(tmp_path / "a.jsonl", content)
    ids, texts, skipped = read_all(files, Columns(id="id"))
    assert (ids, texts) == (["7"], ["a"])
    assert skipped == [SkippedRow(files[0].url, row, "no `id` for its id") for row in (2, 3)]


def test_a_null_in_parquet_is_skipped(tmp_path):
    parquet.write_table(pa.table({"text": ["a", None, "c"]}), tmp_path / "a.parquet")
    _, texts, skipped = read_all(list_files([str(tmp_path)]))
    assert texts == ["a", "c"]
    assert [(row.row, row.reason) for row in skipped] == [(2, "no text")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", as_csv(ROWS, ("id", "body")), "has no column `text`, it has: id, body"),
        ("a.csv", b"", "has no column `text`, it has: none"),
        (
            "a.parquet",
            as_parquet(ROWS).replace(b"text", b"body"),
            "no column `text`, it has: id, body",
        ),
    ],
)
def test_a_column_that_is_not_there(tmp_path, name, content, message):
    files = listed(tmp_path / name, content)
    with pytest.raises(ConfigError, match=message):
        list(parts_of(files, Columns(), rows_per_part=2))


def test_a_column_of_numbers_is_no_text(tmp_path):
    parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="its column `text` holds int64, not text"):
        list(parts_of(list_files([str(tmp_path)]), Columns(), rows_per_part=2))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"no parquet"),
        ("a.txt.gz", b"no gzip"),
        ("a.txt.gz", gzip.compress(b"x\n" * 99, mtime=0)[:-9]),
    ],
    ids=["no parquet", "no gzip", "cut off"],
)
def test_a_damaged_file(tmp_path, name, content):
    files = listed(tmp_path / name, content)
    with pytest.raises(DataError, match=f"{name}` cannot be read: "):
        list(parts_of(files, Columns(), rows_per_part=2))


def test_a_quote_left_open(tmp_path, monkeypatch):
    monkeypatch.setattr("finetuner.corpus_lines._LONGEST_FIELD", 100)
    files = listed(tmp_path / "a.csv", b'text\n"open\n' + b"more\n" * 100)
    with pytest.raises(DataError, match="a.csv` cannot be read: .*is a quote left open"):
        list(parts_of(files, Columns(), rows_per_part=2))


def test_a_file_that_has_changed(tmp_path):
    path = tmp_path / "a.txt"
    (part,) = parts_of(listed(path, b"one\ntwo\n"), Columns(), rows_per_part=5)
    path.write_bytes(b"one\n")
    with pytest.raises(DataError, match="it had 2 rows from row 1, and has 1"):
        read_part(part, Columns())


def test_files_of_a_folder_of_a_glob_and_by_name(tmp_path):
    for name in ("b.csv", "a.txt", "deep/c.jsonl", "x.md", "_skipped.jsonl", "[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x\n")

    def names(*inputs, **options):
        return [
            file.name for file in list_files([str(tmp_path / given) for given in inputs], **options)
        ]

    assert names("") == ["[1].txt", "a.txt", "b.csv", "c.jsonl"]
    assert names("*.txt") == ["[1].txt", "a.txt"]
    assert names("b.csv", "*.txt", "a.txt") == ["b.csv", "[1].txt", "a.txt"]
    assert names("[1].txt") == ["[1].txt"]
    assert names("x.md", format_=CorpusFormat.TEXT) == ["x.md"]
    with pytest.raises(
        ConfigError, match=r"x.md`: its suffix is none of .parquet, .*; say which by --for"
    ):
        names("x.md")
    with pytest.raises(DataNotFoundError, match=r"no file at `.*none\*`; a glob stands in quotes"):
        names("none*")


def test_a_file_system_that_is_unknown():
    with pytest.raises(ConfigError, match="`nothing://` cannot be read: "):
        list_files(["nothing://bucket/a.txt"])


def test_no_files_and_empty_ones(tmp_path):
    assert list(parts_of([], Columns(), rows_per_part=2)) == []
    for name, write in (("a.csv", as_csv), ("a.jsonl", as_jsonl), ("a.txt", as_jsonl)):
        assert read_all(listed(tmp_path / name, write([]))) == ([], [], [])

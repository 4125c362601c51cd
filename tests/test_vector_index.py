import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from finetuner.corpus_output import CorpusOutput
from finetuner.errors import ConfigError, DataError, DataNotFoundError
from finetuner.vector_index import open_vectors

_VECTORS = np.arange(46, dtype=np.float32).reshape(23, 2)


def _write_corpus(folder, vectors=_VECTORS, rows_per_part=5, is_whole=True):
    output = CorpusOutput(str(folder))
    output.begin({})
    for number, first in enumerate(range(0, len(vectors), rows_per_part)):
        part = vectors[first : first + rows_per_part]
        output.put(number, ["id"] * len(part), part, skipped=(), about={})
    if is_whole:
        output.finish({})
    return folder


def _write_file(path, vectors=_VECTORS, rows_per_group=7):
    flat = pa.array(vectors.reshape(-1))
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})
    parquet.write_table(table, path, row_group_size=rows_per_group)
    return path


def _write_npy(path, vectors=_VECTORS):
    np.save(path, vectors)
    return path


@pytest.fixture(params=["array", "npy", "parquet", "corpus"])
def index(request, tmp_path):
    write = {
        "array": lambda: _VECTORS,
        "npy": lambda: _write_npy(tmp_path / "x.npy"),
        "parquet": lambda: _write_file(tmp_path / "x.parquet"),
        "corpus": lambda: _write_corpus(tmp_path / "vectors"),
    }
    return open_vectors(write[request.param]())


@pytest.mark.parametrize("rows_per_block", [1, 3, 7, 100])
def test_any_span_is_that_of_the_whole(index, rows_per_block):
    assert (index.n_vectors, index.dim) == (23, 2)
    for start in range(24):
        for stop in (*range(start, 24, 5), 23):
            rows = []
            for first, block in index.blocks(start, stop, rows_per_block):
                assert first == start + len(rows)
                assert 1 <= len(block) <= rows_per_block
                rows += block.tolist()
            assert rows == _VECTORS[start:stop].tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_all_that_encode_corpus_writes_but_bits(tmp_path, dtype):
    index = open_vectors(_write_corpus(tmp_path / "vectors", _VECTORS.astype(dtype)))
    blocks = [block for _, block in index.blocks(0, 23, 100)]
    assert {block.dtype for block in blocks} == {np.dtype(dtype)}
    np.testing.assert_array_equal(np.concatenate(blocks), _VECTORS.astype(dtype))


def test_packed_bits_are_refused(tmp_path):
    folder = _write_corpus(tmp_path / "vectors", _VECTORS.astype(np.uint8))
    with pytest.raises(DataError, match=r"part-00000000.parquet` holds uint8.*what can: float16"):
        open_vectors(folder)
    with pytest.raises(DataError, match="the array` holds uint8"):
        open_vectors(_VECTORS.astype(np.uint8))


def test_a_corpus_that_is_not_whole(tmp_path):
    with pytest.raises(DataError, match="is not whole yet; let the same `encode-corpus`"):
        open_vectors(_write_corpus(tmp_path / "vectors", is_whole=False))


def test_parts_of_two_widths(tmp_path):
    _write_file(tmp_path / "a.parquet")
    _write_file(tmp_path / "b.parquet", np.ones((4, 3), np.float32))
    with pytest.raises(DataError, match="holds vectors of 2 float32 and of 3 float32"):
        open_vectors(tmp_path)


def test_parquet_without_vectors(tmp_path):
    parquet.write_table(pa.table({"embedding": [[1.0], [1.0, 2.0]]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column `embedding` of lists of one length.*list<"):
        open_vectors(tmp_path)
    values = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    parquet.write_table(pa.table({"embedding": values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has 1 rows without a vector"):
        list(open_vectors(tmp_path).blocks(0, 2, 10))


@pytest.mark.parametrize("name", ["a.npy", "a.parquet"])
def test_a_file_of_something_else(tmp_path, name):
    (tmp_path / name).write_bytes(b"no vectors" * 10)
    with pytest.raises(DataError, match=f"{name}` cannot be read"):
        open_vectors(tmp_path / name)


@pytest.mark.parametrize("vectors", [np.ones(4, np.float32), np.asfortranarray(_VECTORS)])
def test_an_npy_without_rows(tmp_path, vectors):
    with pytest.raises(DataError, match="a row for each vector is needed"):
        open_vectors(_write_npy(tmp_path / "x.npy", vectors))
    with pytest.raises(DataError, match=r"the shape \(4,\); a row for each"):
        open_vectors(np.ones(4, np.float32))


def test_nothing_there(tmp_path):
    with pytest.raises(DataNotFoundError, match="neither a file nor a folder"):
        open_vectors(tmp_path / "x.npy")
    with pytest.raises(DataNotFoundError, match="no Parquet file in"):
        open_vectors(tmp_path)


def test_without_pyarrow(tmp_path, monkeypatch):
    path = _write_file(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ConfigError, match=r"needs pyarrow: `pip install 'finetuner-flow\[corpus\]'"
    ):
        open_vectors(path)

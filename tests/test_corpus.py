"""A corpus into Parquet: each row once, whatever ends it in the middle, and the vectors of the encoder."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from finetuner.corpus import Corpus, CorpusOptions
from finetuner.corpus_output import CorpusOutput
from finetuner.corpus_parts import Columns
from finetuner.encoder import load_encoder
from finetuner.errors import ConfigError, ConflictError
from finetuner.object_store import file_system
from finetuner.vectors import VectorOptions, VectorType, shape_vectors

TEXTS = [
    f"the {word} number {n}" for n, word in enumerate("apple river stone cloud tiger".split() * 5)
]


@pytest.fixture
def artifact(tmp_path, publish_run):
    return publish_run(tmp_path / "volume", "my-run").artifact_path


@pytest.fixture
def texts_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def begun(texts_file, output, artifact, **options):
    settings = CorpusOptions(**{"rows_per_part": 4, **options})
    return Corpus([str(texts_file)], str(output), artifact=artifact, options=settings)


def encoded(*arguments, **options):
    corpus = begun(*arguments, **options)
    return [done.number for done in corpus.encode()], corpus.finish()


def table_of(output):
    return parquet.read_table(output)


def vectors_of(table):
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def test_the_vectors_are_those_of_the_encoder(texts_file, tmp_path, artifact):
    numbers, summary = encoded(texts_file, tmp_path / "out", artifact)
    assert numbers == list(range(7))
    assert (summary.n_rows, summary.n_skipped, summary.n_parts, summary.n_parts_before) == (
        25,
        0,
        7,
        0,
    )
    table = table_of(tmp_path / "out")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    assert table["id"].to_pylist() == [f"texts.txt:{n}" for n in range(1, 26)]
    encoder = load_encoder(artifact)
    np.testing.assert_allclose(vectors_of(table), encoder.encode(TEXTS), atol=1e-6)
    about = parquet.read_schema(tmp_path / "out" / "part-00000000.parquet").metadata
    assert about[b"finetuner.model"].decode() == encoder.digest


@pytest.mark.parametrize(
    ("dtype", "kind", "width"),
    [
        (VectorType.FLOAT16, pa.float16(), 16),
        (VectorType.INT8, pa.int8(), 16),
        (VectorType.BINARY, pa.uint8(), 2),
    ],
)
def test_vectors_in_fewer_bits(texts_file, tmp_path, artifact, dtype, kind, width):
    options = VectorOptions(dimensions=16, dtype=dtype)
    encoded(texts_file, tmp_path / "out", artifact, vectors=options)
    table = table_of(tmp_path / "out")
    assert table.schema.field("embedding").type == pa.list_(kind, width)
    expected = shape_vectors(load_encoder(artifact).encode(TEXTS), options, is_normalized=True)
    # What lies between two whole numbers may be rounded to either in a batch of another length.
    np.testing.assert_allclose(vectors_of(table).astype(float), expected.astype(float), atol=1)
    assert (vectors_of(table) == expected).mean() > 0.95


def test_a_prompt_goes_before_each_text(texts_file, tmp_path, artifact):
    encoded(texts_file, tmp_path / "out", artifact, prompt="we like ")
    expected = load_encoder(artifact).encode([f"we like {text}" for text in TEXTS])
    np.testing.assert_allclose(vectors_of(table_of(tmp_path / "out")), expected, atol=1e-6)


@pytest.mark.parametrize("at", range(9))
def test_what_fails_at_any_file_goes_on_with_each_row_once(
    texts_file, tmp_path, artifact, at, monkeypatch
):
    texts_file.write_bytes("\n".join(TEXTS).encode() + b"\n\xff\n")
    put, n_put = CorpusOutput._put, 0

    def fail(self, name, content):
        nonlocal n_put
        if (n_put := n_put + 1) == at + 2:  # the first is the plan
            raise OSError("no space")
        put(self, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(CorpusOutput, "_put", fail)
        with pytest.raises(OSError, match="no space"):
            encoded(texts_file, tmp_path / "out", artifact)
    assert not (tmp_path / "out" / "_summary.json").exists()
    n_there = len(list((tmp_path / "out").glob("part-*")))
    numbers, summary = encoded(texts_file, tmp_path / "out", artifact)
    assert numbers == list(range(n_there, 7))
    assert (summary.n_rows, summary.n_skipped, summary.n_parts_before) == (26, 1, n_there)
    assert table_of(tmp_path / "out")["id"].to_pylist() == [f"texts.txt:{n}" for n in range(1, 26)]
    (skipped,) = (tmp_path / "out").glob("_skipped-*")
    assert orjson.loads(skipped.read_bytes())["reason"] == "no UTF-8 at byte 1: invalid start byte"


def test_what_is_done_is_done_once(texts_file, tmp_path, artifact):
    encoded(texts_file, tmp_path / "out", artifact)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    numbers, summary = encoded(texts_file, tmp_path / "out", artifact)
    assert (numbers, summary.n_parts_before) == ([], 7)
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows_per_part": 5}, "rows_per_part: 4 then, 5 now"),
        ({"vectors": VectorOptions(dtype=VectorType.INT8)}, "dtype: float32 then, int8 now"),
        ({"columns": Columns("body")}, "text: text then, body now"),
        ({"prompt": "x"}, "prompt:  then, x now"),
    ],
)
def test_a_folder_begun_with_other_settings(texts_file, tmp_path, artifact, options, message):
    encoded(texts_file, tmp_path / "out", artifact)
    with pytest.raises(
        ConflictError, match=f"out` was begun for something else .*{message}.*new folder"
    ):
        begun(texts_file, tmp_path / "out", artifact, **options)


def test_a_folder_begun_with_other_files_or_another_model(
    texts_file, tmp_path, artifact, publish_run
):
    encoded(texts_file, tmp_path / "out", artifact)
    other = publish_run(tmp_path / "volume", "other", seed=1).artifact_path
    with pytest.raises(ConflictError, match="model: .* then, .* now"):
        begun(texts_file, tmp_path / "out", other)
    texts_file.write_text("changed")
    with pytest.raises(ConflictError, match=r"texts.txt` has changed"):
        begun(texts_file, tmp_path / "out", artifact)
    renamed = texts_file.rename(tmp_path / "new.txt")
    with pytest.raises(ConflictError, match=r"texts.txt` is not given now; .*new.txt` is new"):
        begun(renamed, tmp_path / "out", artifact)


def test_a_folder_of_something_else(texts_file, tmp_path, artifact):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ConflictError, match="out` is not empty; choose a new folder"):
        begun(texts_file, tmp_path / "out", artifact)


def test_a_mistake_leaves_no_folder(texts_file, tmp_path, artifact):
    with pytest.raises(
        ConfigError, match="dimensions must be from 1 to 32 with this model, got 99"
    ):
        begun(texts_file, tmp_path / "out", artifact, vectors=VectorOptions(dimensions=99))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="rows_per_part must be at least 1, got 0"):
        CorpusOptions(rows_per_part=0)


@pytest.mark.parametrize("protocol", ["memory", "s3"])
def test_an_object_store(protocol, texts_file, tmp_path, artifact, s3):
    system, path = file_system(f"{protocol}://bucket/in/texts.txt")
    system.pipe_file(path, texts_file.read_bytes())
    root = path.removesuffix("/in/texts.txt")
    settings = CorpusOptions(rows_per_part=10)
    for numbers in ([0, 1, 2], []):
        corpus = Corpus(
            [f"{protocol}://bucket/in/*.txt"],
            f"{protocol}://bucket/out",
            artifact=artifact,
            options=settings,
        )
        assert [done.number for done in corpus.encode()] == numbers
        corpus.finish()
    tables = [
        parquet.read_table(pa.BufferReader(system.cat_file(path)))
        for path in sorted(system.glob(f"{root}/out/part-*"))
    ]
    expected = load_encoder(artifact).encode(TEXTS)
    np.testing.assert_allclose(vectors_of(pa.concat_tables(tables)), expected, atol=1e-6)


def test_the_command(command, texts_file, tmp_path, artifact):
    words = (
        "encode-corpus",
        texts_file,
        tmp_path / "out",
        "--artifact",
        artifact,
        "--device",
        "cpu",
    )
    result = command(*words)
    assert "25 vectors in `" in result.stderr
    summary = orjson.loads(command(*words, "--json").stdout)
    assert (summary["n_rows"], summary["n_parts"], summary["n_parts_before"]) == (25, 1, 1)
    assert "begun for something else (dtype: float32 then, int8 now)" in (
        command(*words, "--dtype", "int8", exit_code=1).stderr
    )
    assert (
        "no file at `"
        in command("encode-corpus", tmp_path / "x.csv", *words[2:], exit_code=3).stderr
    )


@pytest.mark.slow
def test_killed_twice_and_begun_again_each_row_is_there_once(texts_file, tmp_path, artifact):
    n_rows = 40_000
    texts_file.write_text("\n".join(f"text {number}" for number in range(n_rows)))
    output = tmp_path / "out"
    words = [sys.executable, "-m", "finetuner.cli", "encode-corpus", str(texts_file), str(output)]
    words += ["--artifact", str(artifact), "--device", "cpu", "--rows-per-part", "500"]
    for n_more in (3, 5):
        n_before = len(list(output.glob("part-*")))
        with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=os.environ) as process:
            while len(list(output.glob("part-*"))) < n_before + n_more and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    subprocess.run(words, check=True, timeout=300)
    ids = table_of(output)["id"].to_pylist()
    assert ids == [f"texts.txt:{number}" for number in range(1, n_rows + 1)]
    # Of what was being written nothing is left.
    assert all(path.name.startswith(("_", "part-")) for path in output.iterdir())

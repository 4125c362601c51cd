"""``finetuner encode``: over HTTP to a server that embeds by a rule, and here with a tiny model."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import orjson
import pytest

import finetuner
from finetuner import encode_command, follow
from finetuner.vector_files import Format, LineWriter, NpyWriter, can_be_patched, opened

TEXTS = ["one", "four", "a  b", "ü\u2028x", "last"]
INPUT = "\n".join(TEXTS).encode()


def vector(text):
    """A text's vector: its length, a third of it, and its first letter."""
    return [len(text), len(text) / 3, ord(text[0]) if text else 0.0]


EXPECTED = np.array([vector(text) for text in TEXTS], dtype=np.float32)


def answer(body):
    vectors = [np.array(vector(row["text"]), dtype=np.float32) for row in body["data"]]
    rows = orjson.dumps(
        {"data": [{"embedding": v} for v in vectors], "dim": 3}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    return orjson.loads(rows)


@pytest.fixture(autouse=True)
def _answers(fake):
    fake.answers["POST /encode"] = answer


def encode(command, *words, content=INPUT, **options):
    return command("encode", "--model", "prod", *words, input=content, **options)


def loaded(content):
    return np.load(io.BytesIO(content), allow_pickle=False)


def test_npy_through_a_pipe(command, fake):
    made = loaded(encode(command, "--batch-size", 2).stdout_bytes)
    assert (made.dtype, made.shape, made.flags["C_CONTIGUOUS"]) == (np.float32, (5, 3), True)
    np.testing.assert_array_equal(made, EXPECTED)
    sizes = [len(body["data"]) for _, _, body in fake.requests]
    assert sizes == [2, 2, 1]
    assert fake.requests[0][2]["parameters"] == {"artifact": "prod"}


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_files_and_line_endings(command, tmp_path, ending):
    content = b"\xef\xbb\xbf" + INPUT.replace(b"\n", ending or b"\n") + ending
    (tmp_path / "texts").write_bytes(content)
    encode(command, tmp_path / "texts", "-o", tmp_path / "v.npy", content=None)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), EXPECTED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts", "v.npy"]


def test_jsonl_and_csv_read_back_exactly(command):
    rows = [
        orjson.loads(line)
        for line in encode(command, "--format", "jsonl").stdout_bytes.splitlines()
    ]
    assert [row["text"] for row in rows] == TEXTS
    back = np.array([row["embedding"] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(back, EXPECTED)
    table = encode(command, "--format", "csv").stdout
    np.testing.assert_array_equal(
        np.loadtxt(io.StringIO(table), delimiter=",", dtype=np.float32), EXPECTED
    )


@pytest.mark.parametrize("format_", ["npy", "jsonl", "csv"])
def test_no_texts(command, fake, format_):
    made = encode(command, "--format", format_, content=b"").stdout_bytes
    if format_ == "npy":
        assert loaded(made).shape == (0, 3)
        assert fake.requests[-1][2]["data"] == []
    else:
        assert made == b""


def test_empty_lines_are_refused_or_kept(command, tmp_path):
    told = encode(command, "-o", tmp_path / "v", content=b"a\n \nb\n", exit_code=1).stderr
    assert "line 2 is empty; take such lines out, or embed them with --keep-empty" in told
    assert list(tmp_path.iterdir()) == []
    made = loaded(encode(command, "--keep-empty", content=b"a\n\nb\n").stdout_bytes)
    assert made[:, 0].tolist() == [1, 0, 1]


def test_what_is_no_text_is_named(command):
    assert "line 2 is no UTF-8" in encode(command, content=b"a\n\xff\n", exit_code=1).stderr


def test_options_reach_the_server(command, fake):
    encode(command, "--prompt-name", "query", "--dimensions", 2)
    asked = {"artifact": "prod", "prompt_name": "query", "dimensions": 2}
    assert fake.requests[0][2]["parameters"] == asked


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (("--prompt", "a", "--prompt-name", "b"), 2, "give --prompt or --prompt-name, not both"),
        (("--local", "--dimensions", 2), 2, "--dimensions is for the server"),
        (("--model", "x.zip"), 2, "`x.zip` is on this machine, not on the server: add --local"),
        (("--local", "--model", "nothing"), 3, "nothing"),
        (("no-such-file",), 3, "No such file"),
        (("--format", "xml"), 2, "xml"),
    ],
)
def test_what_cannot_be_is_refused(command, fake, words, exit_code, message):
    assert message in encode(command, *words, exit_code=exit_code).stderr
    assert fake.requests == []


def test_a_busy_server_is_asked_again_and_one_that_is_not_there_is_not(command, fake, monkeypatch):
    monkeypatch.setattr(follow, "_FIRST_PAUSE_S", 0.001)
    busy = (429, {"error": "OverloadedError", "detail": "retry in 1 s"})
    away = (503, {"error": "UnavailableError", "detail": "starts again"})
    fake.answers["POST /encode"] = [busy, answer, away, answer]
    np.testing.assert_array_equal(loaded(encode(command, "--batch-size", 2).stdout_bytes), EXPECTED)
    fake.answers["POST /encode"] = away
    n_before = len(fake.requests)
    encode(command, exit_code=5)
    assert len(fake.requests) == n_before + 1


def test_an_error_leaves_no_file_and_an_old_one_as_it_was(command, fake, tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    gone = (404, {"error": "ArtifactNotFound", "detail": "gone"})
    for name in ("old", "new"):
        fake.answers["POST /encode"] = [answer, gone]
        encode(command, "--batch-size", 2, "-o", tmp_path / name, exit_code=3)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old", b"old")]


def test_ctrl_c_leaves_no_half_file(command, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        yield ["a"]
        raise KeyboardInterrupt

    monkeypatch.setattr(encode_command, "_batches", interrupted)
    encode(command, "-o", tmp_path / "v.npy", exit_code=130)
    assert list(tmp_path.iterdir()) == []


def test_half_of_what_a_shell_redirects_is_no_file_of_numpy(tmp_path):
    with (tmp_path / "v.npy").open("wb") as file:
        NpyWriter(file).write(["a"], np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="pickle|magic|allow_pickle"):
        np.load(tmp_path / "v.npy", allow_pickle=False)


@pytest.mark.parametrize("n_rows", [0, 1, 9, 10, 12345])
def test_the_head_is_that_of_numpy(n_rows):
    rows, file, expected = np.ones((n_rows, 3), "<f4"), io.BytesIO(b"12"), io.BytesIO()
    file.seek(2)
    writer = NpyWriter(file)
    writer.write([], rows)
    writer.close(3)
    np.save(expected, rows)
    assert file.getvalue() == b"12" + expected.getvalue()
    assert file.tell() == len(file.getvalue())


def test_what_can_be_patched(tmp_path):
    assert not can_be_patched(io.BytesIO())
    with (tmp_path / "a").open("wb") as file:
        assert can_be_patched(file)
    with (tmp_path / "a").open("ab") as file:
        assert not can_be_patched(file)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb") as pipe:
        assert not can_be_patched(pipe)


def test_a_file_open_for_appending_and_lines_at_once(tmp_path):
    with (tmp_path / "a").open("ab") as file:
        file.write(b"before")
        file.flush()
        with opened(None, Format.NPY, file) as writer:
            writer.write([""], np.ones((1, 2), np.float32))
            writer.close(2)
    assert loaded((tmp_path / "a").read_bytes()[6:]).tolist() == [[1, 1]]
    buffer = io.BytesIO()
    with opened(None, Format.CSV, buffer) as writer:
        assert isinstance(writer, LineWriter)
        writer.write([""], np.array([[0.1, 2]], np.float32))
        assert buffer.getvalue() == b"0.1,2.0\n"


def test_locally_it_gives_what_encode_gives(command, tmp_path, publish_run, monkeypatch):
    run = publish_run(tmp_path, "one", prompts={"query": "apple "})
    monkeypatch.setenv("FINETUNER_WORKSPACE", str(tmp_path))
    model = finetuner.get_model(str(run.artifact_path), device="cpu")
    words = ("--local", "--batch-size", 2, "--device", "cpu")
    for name in (run.artifact_path, "one"):
        made = loaded(encode(command, "--model", name, *words).stdout_bytes)
        np.testing.assert_allclose(made, finetuner.encode(model, TEXTS), atol=1e-5)
    prompted = finetuner.encode(model, [f"apple {text}" for text in TEXTS])
    made = encode(command, "--model", "one", *words, "--prompt-name", "query").stdout_bytes
    np.testing.assert_allclose(loaded(made), prompted, atol=1e-5)
    assert (
        "it has: query"
        in encode(command, "--model", "one", *words, "--prompt-name", "x", exit_code=2).stderr
    )
    assert loaded(encode(command, "--model", "one", *words, content=b"").stdout_bytes).shape == (
        0,
        32,
    )


def test_a_signal_ends_the_command_without_a_file(fake, tmp_path):
    """The real thing: a process, a pipe that does not end, and Ctrl-C."""
    arguments = ["encode", "--model", "m", "--batch-size", "1", "-o", str(tmp_path / "v.npy")]
    process = subprocess.Popen(
        [sys.executable, "-m", "finetuner.cli", *arguments],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"a\nb\n")
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not fake.requests:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, b"")
    assert list(tmp_path.iterdir()) == []

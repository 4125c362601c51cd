"""The command against a real service: from data to a model that is encoded with."""

import numpy as np
import orjson
import pytest

import finetuner

pytestmark = pytest.mark.slow

ROWS = [f"{form} {topic},{topic}" for topic in "abcdef" for form in ("one", "two", "six", "ten")]
TEXTS = ["one a", "two b", "what else"]


def test_from_data_to_vectors(server, command, monkeypatch, tmp_path):
    monkeypatch.setenv("FINETUNER_HOST", server.url)
    monkeypatch.setenv("FINETUNER_WORKSPACE", str(server.workspace))
    data = tmp_path / "train.csv"
    data.write_text("text,label\n" + "\n".join(ROWS) + "\n")
    run = ("--run-name", "by-hand", "--experiment", "command", "--device", "cpu")
    shown = command(
        *("fit", "--model", "tiny", "--data", data, "--eval-query", data, *run),
        *("--loss", "SupConLoss", "--loss-option", "temperature=0.05", "--epochs", 2),
        *("--set", "num_items_per_class=2", "--follow"),
    )
    assert "Run `command/by-hand` is finished" in shown.stdout
    assert "average_precision" in shown.stdout

    assert command("status", "command/by-hand").stdout.startswith("FINISHED")
    assert "by-hand" in command("runs", "--experiment", "command").stdout
    assert "Finished" in command("logs", "-f", "command/by-hand").stdout
    metrics = orjson.loads(command("metrics", "command/by-hand", "--json").stdout)
    assert [line["epoch"] for line in metrics["epochs"]] == [0, 1, 2]
    assert "command/by-hand" in command("models").stdout

    saved = command("save", "command/by-hand", tmp_path).stdout.strip()
    expected = finetuner.encode(finetuner.get_model(saved, device="cpu"), TEXTS)
    for words in (("--model", "command/by-hand"), ("--local", "--device", "cpu", "--model", saved)):
        output = tmp_path / "vectors.npy"
        command("encode", *words, "-o", output, input="\n".join(TEXTS))
        np.testing.assert_allclose(np.load(output), expected, atol=1e-4)
    command("encode", "--model", "command/by-hand", "-o", output, input="")
    assert np.load(output).shape == (0, 32)

    assert "FINISHED" in command("cancel", "command/by-hand", exit_code=1).stderr
    assert orjson.loads(command("doctor", "--json").stdout)
    command("delete", "command/by-hand", "--yes")
    assert "by-hand" in command("status", "command/by-hand", exit_code=3).stderr

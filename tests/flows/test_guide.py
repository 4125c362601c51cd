"""The guide's script and the README's example against a live server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docarray import Document, DocumentArray

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SEED = REPOSITORY.parent / "shared" / "seed" / "000_4bfcd4689b3bc5f0.txt"
TOPICS = ("geologist", "egg", "guitar", "marathon", "passport", "kitten", "novel", "bicycle")
TRAINING_FORMS = ("How do I start with a {}?", "What is the best first step for a {}?")
EVALUATION_FORMS = ("Where do I begin with a {}?", "What would you do first for a {}?")


def documents(forms, first_label=0):
    rows = [(form.format(topic), i) for i, topic in enumerate(TOPICS) for form in forms]
    return DocumentArray(
        [Document(text=text, tags={"finetuner_label": first_label + i}) for text, i in rows]
    )


@pytest.fixture
def environment(server):
    variables = {
        "FINETUNER_HOST": server.url,
        "JINA_HUBBLE_REGISTRY": server.url,
        "JINA_AUTH_TOKEN": "none",
    }
    return {**os.environ, **variables, "COLUMNS": "120"}


def run_script(code_or_path, environment, folder):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(code_or_path)],
        env={**environment, "HOME": str(folder)},  # docarray's cache of pulled data
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def guide_data(server, monkeypatch):
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", server.url)
    monkeypatch.setenv("JINA_AUTH_TOKEN", "none")
    documents(TRAINING_FORMS).push("quora_train.da")
    documents(EVALUATION_FORMS[:1], 100).push("quora_query_dev.da")
    documents(EVALUATION_FORMS[1:], 100).push("quora_index_dev.da")


@pytest.fixture
def wide_bert(server, tiny_model_folder):
    """A cased BERT of the true width with two layers and random weights."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = server.workspace / "models" / "bert-base-cased"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=2, intermediate_size=256
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_guide_script_runs_as_it_stands(guide_data, wide_bert, environment, tmp_path):
    result = run_script(REPOSITORY / "examples" / "text_to_text.py", environment, tmp_path)

    assert result.returncode == 0, result.stderr[-3000:]
    out = result.stdout
    assert "{'status': 'CREATED', 'details': 'Run submitted and awaits execution'}" in out
    assert re.search(r"Length +16 ", out)
    assert re.search(r"Training \[3/3\] ━+ 1/1 \d:\d\d:\d\d \d:\d\d:\d\d • loss: \d\.\d{3}", out)
    names = re.findall(r"DEBUG    Metric: 'model_(\w+)' Value: \d\.\d{5}", out)
    nine = [
        "average_precision",
        "dcg_at_k",
        "f1_score_at_k",
        "hit_at_k",
        "ndcg_at_k",
        "precision_at_k",
        "r_precision",
        "recall_at_k",
        "reciprocal_rank",
    ]
    assert names == nine * 4  # before, and after each of three epochs
    tail = ["Done ✨", "Saving fine-tuned models", "Pushed model artifact ID: '", "Finished 🚀"]
    assert sorted(out.index(part) for part in tail) == [out.index(part) for part in tail]
    assert "there is no GPU here" in out
    assert out.splitlines()[-1] == "(1, 768)"
    assert (tmp_path / "bert-model" / "finetune-quora-dataset-bert-base-cased.zip").is_file()


@pytest.mark.skipif(not SEED.exists(), reason="the guide's text is not on this machine")
def test_script_holds_every_line_of_the_guide_in_order():
    blocks = re.findall(r"```python\n(.*?)```", SEED.read_text(encoding="utf-8"), re.DOTALL)
    wanted = [line for block in blocks for line in block.splitlines() if line.strip()]
    script = (REPOSITORY / "examples" / "text_to_text.py").read_text(encoding="utf-8")
    lines = iter(script.splitlines())

    assert [line for line in wanted if line not in lines] == []


def test_readme_example_gives_the_output_it_shows(server, environment, tmp_path):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    shown = re.search(r"```python\n.*?```.*?```text\n(.*?)```", readme, re.DOTALL)[1]
    script = tmp_path / "readme.py"
    script.write_text(code, encoding="utf-8")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")

    result = run_script(script, environment, tmp_path)

    assert result.returncode == 0, result.stderr[-3000:]
    figure = r"\d\.\d{3}"
    assert re.sub(figure, "0.000", result.stdout) == re.sub(figure, "0.000", shown)
    before, after = re.findall(rf"reciprocal rank \w+: ({figure})", result.stdout)
    assert float(after) > float(before)

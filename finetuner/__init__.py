"""Fine-tune text embedding models on your own server, with the calls of Jina AI's Finetuner.

>>> import finetuner
>>> run = finetuner.fit(model="all-minilm-l6-v2", train_data="questions.csv")
>>> run.status()
{'status': 'CREATED', 'details': 'Run submitted and awaits execution'}
"""

from __future__ import annotations

# The distribution's version, read by pyproject.toml and checked against CHANGELOG.md by a test.
__version__ = "0.1.0"

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime 1.32 reports to its maker from every machine, unless this is set before it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from finetuner import callback
from finetuner.alias_verbs import (
    delete_alias,
    get_alias,
    list_aliases,
    rollback_alias,
    set_alias,
)
from finetuner.api import (
    create_experiment,
    create_run,
    create_training_run,
    delete_experiment,
    delete_experiments,
    delete_run,
    delete_runs,
    fit,
    get_experiment,
    get_run,
    get_token,
    list_callbacks,
    list_experiments,
    list_runs,
    login,
    notebook_login,
)
from finetuner.check_verb import check
from finetuner.client import point_docarray_here
from finetuner.csv_file import CSVOptions
from finetuner.data_verbs import delete_data, list_data, pull_data, push_data
from finetuner.experiment import Experiment
from finetuner.inference import (
    build_model,
    cos_sim,
    describe_models,
    encode,
    evaluate_vectors,
    get_model,
    list_model_options,
    list_models,
)
from finetuner.run import Run

if TYPE_CHECKING:
    from docarray import Document, DocumentArray

__all__ = [
    "CSVOptions",
    "Document",
    "DocumentArray",
    "Experiment",
    "Run",
    "build_model",
    "callback",
    "check",
    "cos_sim",
    "create_experiment",
    "create_run",
    "create_training_run",
    "delete_alias",
    "delete_data",
    "delete_experiment",
    "delete_experiments",
    "delete_run",
    "delete_runs",
    "describe_models",
    "encode",
    "evaluate_vectors",
    "fit",
    "get_alias",
    "get_experiment",
    "get_model",
    "get_run",
    "get_token",
    "list_aliases",
    "list_callbacks",
    "list_data",
    "list_experiments",
    "list_model_options",
    "list_models",
    "list_runs",
    "login",
    "notebook_login",
    "pull_data",
    "push_data",
    "rollback_alias",
    "set_alias",
]

point_docarray_here()

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Give what is docarray's: half a second to import, and no worker and few commands need it."""
        if name not in ("Document", "DocumentArray"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import docarray

        return getattr(docarray, name)

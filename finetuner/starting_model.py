"""The model that a run begins with: a backbone, or the model of an earlier run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from finetuner.artifact import unpacked
from finetuner.backbones import locate
from finetuner.config import RunConfig
from finetuner.models import LoadedModel, load_model, read_options
from finetuner.run_store import RunStore

logger = logging.getLogger(__name__)


def load_starting_model(config: RunConfig, workspace: Path) -> LoadedModel:
    """Load what a run begins with, as it is before training.

    :param config: Of the run.
    :param workspace: The volume, where backbones and artifacts are looked for.
    :raises ModelNotFoundError, ArtifactNotFound: When it is not there, or no longer.
    """
    options = read_options(config.model_options)
    if config.output_dim is not None:
        options = replace(options, output_dim=config.output_dim)
    if config.model_artifact is None:
        return load_model(locate(config.model, workspace), options, seed=config.seed)
    with unpacked(RunStore(workspace).find_artifact(config.model_artifact)) as (folder, made):
        logger.info("Going on from the model of run '%s'", made.run_name)
        if "normalize" not in config.model_options:
            options = replace(options, normalize=made.normalize)
        return load_model(folder, options, seed=config.seed)

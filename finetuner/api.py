"""The verbs of ``import finetuner``; each loads what it needs only when it is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from finetuner.callback import CALLBACKS
from finetuner.client import Client, experiment_path, point_docarray_here, use_token
from finetuner.client import token as current_token
from finetuner.config import DEFAULT_EXPERIMENT, HardNegatives
from finetuner.csv_file import CSVOptions
from finetuner.errors import AuthenticationRequiredError, ConfigError
from finetuner.experiment import Data, Experiment
from finetuner.experiment import create_experiment as _create_experiment
from finetuner.run import Run

_client = Client()


def login(
    force: bool = False, interactive: bool | None = None, *, token: str | None = None
) -> None:
    """Check that the server answers and, where it asks for a token, that it takes ours.

    :param force: Ignored, as in the old API's scripts.
    :param interactive: Ignored.
    :param token: Sent with all calls from now on, docarray's too; when None, ``FINETUNER_TOKEN`` is.
    :raises ConfigError: When the token is no word.
    :raises AuthenticationRequiredError: When the server asks for a token and there is none.
    :raises InvalidTokenError: When the server does not know the token.
    :raises UnavailableError: When no server answers.
    """
    del force, interactive
    if token is not None:
        use_token(token)
    point_docarray_here()
    _client.get("/whoami")


notebook_login = login


def get_token() -> str:
    """Return the token that calls carry.

    :raises AuthenticationRequiredError: When ``FINETUNER_TOKEN`` is not set.
    """
    if not current_token():
        raise AuthenticationRequiredError("FINETUNER_TOKEN is not set")
    return current_token()


# Arguments of `fit` that mean something to the client alone, or nothing.
_NOT_SENT = ("experiment_name", "public", "num_workers")


def fit(
    model: str,
    train_data: Data,
    eval_data: Data = None,
    val_split: float = 0.0,
    model_artifact: str | None = None,
    run_name: str | None = None,
    description: str | None = None,
    experiment_name: str | None = None,
    model_options: dict[str, Any] | None = None,
    loss: str = "TripletMarginLoss",
    miner: str | None = None,
    miner_options: dict[str, Any] | None = None,
    optimizer: str = "Adam",
    optimizer_options: dict[str, Any] | None = None,
    learning_rate: float | None = None,
    epochs: int = 5,
    batch_size: int = 64,
    callbacks: Sequence[Any] | None = None,
    scheduler: str | None = None,
    scheduler_options: dict[str, Any] | None = None,
    freeze: bool = False,
    output_dim: int | None = None,
    device: str = "cuda",
    num_workers: int = 4,
    to_onnx: bool = False,
    csv_options: CSVOptions | None = None,
    public: bool = False,
    num_items_per_class: int = 4,
    sampler: str = "auto",
    loss_optimizer: str | None = None,
    loss_optimizer_options: dict[str, Any] | None = None,
    *,
    loss_options: dict[str, Any] | None = None,
    precision: str = "auto",
    onnx_variants: Sequence[str] | None = None,
    prompts: dict[str, str] | None = None,
    dimensions: Sequence[int] = (),
    hard_negatives: HardNegatives | dict[str, Any] | bool | None = None,
    n_frozen_layers: int | None = None,
    lora: dict[str, Any] | None = None,
    accumulation_steps: int = 1,
    gradient_cache_size: int | None = None,
    gradient_checkpointing: bool = False,
    max_gradient_norm: float = 1.0,
    checkpoint_interval_s: float = 300.0,
    n_processes: int = 1,
    priority: int = 0,
    seed: int = 0,
    idempotency_key: str | None = None,
) -> Run:
    """Start a training run on the server and return at once.

    The same request again gives the run that it made, known by its ``run_name`` or its
    ``idempotency_key``: with either, a call whose answer was lost (UnavailableError: the connection broke,
    or the server started again) may simply be repeated. Without both, it may make a second run.

    :param model: Backbone: a display name (:func:`list_models`), a Hugging Face id, or a folder of the
        server.
    :param train_data: The name of stored data, a DocumentArray, a CSV path or open file, or rows: texts
        with labels (``(text, label)``), pairs (``{'anchor': …, 'positive': …}``, perhaps with
        ``negative``), or pairs with a score (``{'sentence1': …, 'sentence2': …, 'score': …}``).
    :param eval_data: Data in the same forms, for a validation loss after each epoch.
    :param val_split: Share of the training data to keep for one instead, below 1.
    :param model_artifact: An artifact id or a run's name: go on from its weights, not from ``model``'s.
    :param run_name: Unique in its experiment; made up when None.
    :param description: Free text.
    :param experiment_name: Default ``default``.
    :param model_options: ``pooler`` (mean, cls, max), ``max_length`` in tokens, ``normalize``.
    :param loss: A loss of pytorch-metric-learning; ``SupConLoss`` is recommended for labels.
    :param miner: A miner of the same library, or None for all pairs or triplets of a batch.
    :param miner_options: Its arguments.
    :param optimizer: An optimizer of torch.
    :param optimizer_options: Its arguments.
    :param learning_rate: Above 0, below 1; 2e-5 when None and not in ``optimizer_options``.
    :param epochs: 0 to 1000.
    :param batch_size: Texts a step, at least 4.
    :param callbacks: Of :mod:`finetuner.callback`.
    :param scheduler: A schedule of transformers, such as ``linear``; constant when None.
    :param scheduler_options: ``num_warmup_steps``, and what the schedule takes.
    :param freeze: Train the projection head alone.
    :param output_dim: Length of the vectors, by a projection head.
    :param device: ``cuda``, which falls back to the CPU with a warning, or ``cpu``.
    :param num_workers: Accepted and not used: texts are tokenised once, before training.
    :param to_onnx: Put an ONNX graph beside the weights.
    :param csv_options: How CSVs are read.
    :param num_items_per_class: Texts of one label put together, at least 2.
    :param sampler: ``auto``, ``class`` or ``random``.
    :param loss_optimizer: The optimizer of a loss's own centres (ArcFaceLoss and its kin).
    :param loss_optimizer_options: Its arguments.
    :param loss_options: The loss's arguments, such as ``{'temperature': 0.05}``.
    :param precision: ``auto`` (bf16 where the hardware has it), ``fp32``, ``bf16``, or ``fp16`` on a GPU.
    :param onnx_variants: With ``to_onnx``, 8-bit graphs beside it: ``int8``, ``weight_int8``. One
        that is too far from the fp32 graph is left out; the run's log says so, with the figures.
    :param prompts: Texts that are kept with the artifact, by name, for requests to put before each text.
    :param seed: Of batches, dropout and new weights.
    :param dimensions: Lengths that the vectors may be cut to afterwards (Matryoshka).
    :param hard_negatives: True, or :class:`finetuner.config.HardNegatives`: after each epoch, put texts into
        one batch with texts of other labels that the model takes for like them.
    :param n_frozen_layers: Keep the embeddings and this many of the lowest layers as they are: faster, and
        less is forgotten.
    :param lora: ``{'rank': 8, 'alpha': 16}`` trains low-rank additions alone; needs peft on the server.
    :param accumulation_steps: Batches to a step of the optimizer.
    :param gradient_cache_size: Texts in memory at once, for batches that would not fit; exact, and about
        1.5 times the work.
    :param gradient_checkpointing: Compute layers twice and keep less in memory.
    :param max_gradient_norm: Longer gradients are cut to this.
    :param n_processes: Processes that train together, one for each GPU; the gradient is that of one.
    :param priority: -100 to 100; runs with higher ones get a worker first.
    :param checkpoint_interval_s: Seconds from one checkpoint to the next.
    :param idempotency_key: Made once for each run that is wanted, such as ``str(uuid.uuid4())``; it is
        remembered as long as the run is there.
    :raises ConfigError: When a setting is unknown or out of range.
    :raises DataError: When the data cannot train or evaluate; the message gives the numbers found.
    :raises ModelNotFoundError, DataNotFoundError: When a named thing does not exist.
    :raises RunExistsError: When the experiment has a run of that name or key with other settings or texts;
        the message shows the difference.
    :raises InsufficientSpaceError: When the server's volume has no room for the run.
    :raises UnavailableError: When no server answers.
    """
    settings = sent_settings(locals())
    return experiment_called(experiment_name).create_training_run(**settings)


def sent_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of :func:`fit` that are sent.

    :raises ConfigError: When one has no meaning here.
    """
    if arguments["public"]:
        raise ConfigError(
            "public has no meaning on a server of your own: who reaches it reads all; leave it out"
        )
    settings = {name: value for name, value in arguments.items() if name not in _NOT_SENT}
    return {**settings, "hard_negatives": _settings_of(settings["hard_negatives"])}


def _settings_of(value: HardNegatives | dict[str, Any] | bool | None) -> dict[str, Any] | None:
    if isinstance(value, HardNegatives):
        return dataclasses.asdict(value)
    if isinstance(value, bool):
        return {} if value else None
    return value


def experiment_called(name: str | None) -> Experiment:
    """Return an experiment by name alone, without asking the server whether it is there."""
    return Experiment(_client, {"name": name or DEFAULT_EXPERIMENT, "status": "ACTIVE"})


create_run = fit
create_training_run = fit


def get_run(run_name: str, experiment_name: str | None = None) -> Run:
    """Return a run, also one that another process started.

    :raises RunNotFoundError: When the experiment has none of that name.
    """
    return experiment_called(experiment_name).get_run(run_name)


def list_runs(
    experiment_name: str | None = None, page: int = 1, size: int = 50, *, order: str = "oldest"
) -> list[Run]:
    """Return a page of runs.

    :param experiment_name: All experiments when None.
    :param page: From 1.
    :param size: 1 to 100.
    :param order: Which come first: ``oldest`` or ``newest``.
    """
    found = _client.get("/runs", experiment_name=experiment_name, page=page, size=size, order=order)
    return [Run(_client, record) for record in found["items"]]


def delete_run(run_name: str, experiment_name: str | None = None) -> None:
    """Delete a run; one that trains is stopped.

    :raises RunNotFoundError: When the experiment has none of that name.
    """
    experiment_called(experiment_name).delete_run(run_name)


def delete_runs(experiment_name: str | None = None) -> None:
    """Delete the runs of one experiment, or of all when None."""
    _client.delete("/runs", experiment_name=experiment_name)


def create_experiment(name: str = DEFAULT_EXPERIMENT) -> Experiment:
    """Create an experiment, or find it."""
    return _create_experiment(_client, name)


def get_experiment(name: str) -> Experiment:
    """Return an experiment.

    :raises ExperimentNotFoundError: When there is none of that name.
    """
    return Experiment(_client, _client.get(experiment_path(name)))


def list_experiments() -> list[Experiment]:
    """Return all experiments by name."""
    return [Experiment(_client, record) for record in _client.get("/experiments")["items"]]


def delete_experiment(name: str) -> Experiment:
    """Delete an experiment and its runs, and return what it was.

    :raises ExperimentNotFoundError: When there is none of that name.
    """
    return Experiment(_client, _client.delete(experiment_path(name)))


def delete_experiments() -> list[Experiment]:
    """Delete all experiments and their runs, and return what they were."""
    return [delete_experiment(experiment.name) for experiment in list_experiments()]


def list_callbacks() -> list[str]:
    """Return the names of the callbacks."""
    return list(CALLBACKS)

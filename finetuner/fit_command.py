"""The command ``finetuner fit``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape

from finetuner.api import fit as start_run
from finetuner.callback import EvaluationCallback
from finetuner.command_errors import reported
from finetuner.config import CallbackConfig, Device, RunConfig
from finetuner.csv_file import CSVOptions
from finetuner.errors import ConfigError
from finetuner.named_run import AsJSON, NamedRun
from finetuner.run_command import echo_json
from finetuner.run_tables import show_metrics
from finetuner.run_wait import wait
from finetuner.schema import convert, nearest

# What begins so is meant as JSON, and no string when it is none.
_JSON_SIGNS = ("{", "[", '"')
# Arguments of `fit` by the names that options have.
_RENAMED = {"train_data": "--data", "experiment_name": "--experiment"}


def fit(
    model: Annotated[
        str, typer.Option(help="Backbone: a display name, a Hugging Face id, a folder there.")
    ],
    data: Annotated[str, typer.Option(help="A CSV file, or the name of stored data.")],
    eval_query: Annotated[
        str | None, typer.Option(help="Evaluate with these queries: a CSV or a stored name.")
    ] = None,
    eval_index: Annotated[
        str | None, typer.Option(help="What they search; the queries themselves when left out.")
    ] = None,
    hold_out: Annotated[
        float | None, typer.Option(help="Or keep this share of the data to evaluate with.")
    ] = None,
    run_name: Annotated[str | None, typer.Option(help="Made up when left out.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Default: default.")] = None,
    description: Annotated[str | None, typer.Option(help="Free text.")] = None,
    loss: Annotated[str | None, typer.Option(help="Default: TripletMarginLoss.")] = None,
    loss_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the loss; several times.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: 5.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 64.")] = None,
    num_items_per_class: Annotated[
        int | None, typer.Option(help="Texts of one label put together. Default: 4.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: 2e-5.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Of torch. Default: Adam.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Such as linear. Default: none.")] = None,
    miner: Annotated[str | None, typer.Option(help="Default: none.")] = None,
    val_split: Annotated[
        float | None, typer.Option(help="Share of the data for a validation loss.")
    ] = None,
    model_artifact: Annotated[
        str | None, typer.Option(help="Go on from the weights of this run or artifact id.")
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="Default: cuda, or the CPU where there is none.")
    ] = None,
    to_onnx: Annotated[bool, typer.Option("--to-onnx", help="Make an ONNX graph too.")] = False,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    priority: Annotated[int | None, typer.Option(help="-100 to 100. Default: 0.")] = None,
    labelled: Annotated[
        bool, typer.Option("--labelled", help="Two columns without a header are text and label.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=JSON: any other setting of a run; several times."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait, and show what has come of it.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Start a training run; see it through with --follow.

    All other settings of a run go by --set: lora, hard_negatives,
    dimensions, callbacks, precision ... (finetuner.fit has the list).

    \b
    finetuner fit --model all-minilm-l6-v2 --data train.csv --hold-out 0.2 --follow
    finetuner fit --model bert-base-en --data quora_train.da --run-name nightly
                  --loss SupConLoss --loss-option temperature=0.05 --epochs 3
    finetuner fit --model bert-base-en --data train.csv --set 'lora={"rank": 8}'
                  --eval-query query.csv --eval-index index.csv
    finetuner fit --model m --data d --run-name r && finetuner logs -f r
    """
    given = dict(locals())
    with reported():
        run = start_run(**_arguments(given))
        named_run = NamedRun(run.name, run.experiment_name)
        if not follow:
            _show_submitted(named_run, as_json)
            return
        record = named_run.record()
        try:
            wait(named_run, record["artifact_id"])
        except KeyboardInterrupt:
            typer.echo(f"The run goes on; `finetuner cancel {named_run.shown}` ends it.", err=True)
            raise
        _show_ended(named_run, as_json)


_OF_THE_COMMAND = (
    *("data", "experiment", "eval_query", "eval_index", "hold_out", "loss_option"),
    *("settings", "labelled", "follow", "as_json"),
)


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of :func:`finetuner.fit`; what was not given is left to its defaults.

    :param given: The command's options.
    :raises ConfigError: When a setting is unknown, given twice, or no JSON.
    """
    own = {
        **{name: value for name, value in given.items() if name not in _OF_THE_COMMAND},
        "to_onnx": given["to_onnx"] or None,
        "train_data": given["data"],
        "experiment_name": given["experiment"],
        "loss_options": dict(_pairs(given["loss_option"] or (), "--loss-option")) or None,
        "csv_options": CSVOptions(is_labeled=True) if given["labelled"] else None,
    }
    own = {name: value for name, value in own.items() if value is not None}
    others = _other_settings(given["settings"] or (), own)
    callbacks = [*_evaluations(given), *_callbacks(others.pop("callbacks", []))]
    return {**own, **others, **({"callbacks": callbacks} if callbacks else {})}


def _evaluations(given: dict[str, Any]) -> list[EvaluationCallback]:
    query, index, share = given["eval_query"], given["eval_index"], given["hold_out"]
    if index is not None and query is None:
        raise ConfigError("--eval-index is what the queries search: give --eval-query too")
    if query is not None and share is not None:
        raise ConfigError("--hold-out takes the place of --eval-query: leave one out")
    if query is None and share is None:
        return []
    return [EvaluationCallback(query_data=query, index_data=index, hold_out=share)]


def _callbacks(value: Any) -> list[Any]:
    configs = convert(tuple[CallbackConfig, ...], value, "--set callbacks")
    return [config.build() for config in configs]


def _other_settings(words: Iterable[str], own: dict[str, Any]) -> dict[str, Any]:
    """Return what ``--set`` gives."""
    known = [field.name for field in dataclasses.fields(RunConfig)]
    others: dict[str, Any] = {}
    for name, value in _pairs(words, "--set"):
        if name not in known:
            raise ConfigError(
                f"unknown setting `{name}` of --set{nearest(name, known)} known: {', '.join(known)}"
            )
        if name in own or name in others:
            option = _RENAMED.get(name, f"--{name.replace('_', '-')}")
            raise ConfigError(f"{name} is given twice: by --set and by {option}, or by --set alone")
        others[name] = value
    return others


def _pairs(words: Iterable[str], option: str) -> Iterable[tuple[str, Any]]:
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign):
            raise ConfigError(f"{option} takes NAME=VALUE, such as temperature=0.05; got `{word}`")
        yield name, _value(text, f"{option} {name}")


def _value(text: str, where: str) -> Any:
    """Return JSON as what it says, and anything else as the string that it is: ``precision=bf16``."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        if text.startswith(_JSON_SIGNS):
            raise ConfigError(
                f"{where} must be JSON or a plain word ({exc}), got `{text}`"
            ) from exc
        return text


def _show_submitted(named_run: NamedRun, as_json: bool) -> None:
    if as_json:
        echo_json(named_run.record())
        return
    name = escape(named_run.shown)
    Console(highlight=False).print(
        f"Run `{name}` is submitted. See it through: finetuner logs -f {name}", soft_wrap=True
    )


def _show_ended(named_run: NamedRun, as_json: bool) -> None:
    metrics = named_run.client.get(
        f"{named_run.path}/metrics", experiment_name=named_run.experiment_name
    )
    if as_json:
        echo_json({**named_run.record(), "metrics": metrics})
        return
    console = Console(highlight=False)
    name = escape(named_run.shown)
    console.print(f"Run `{name}` is finished. Get its model: finetuner save {name}", soft_wrap=True)
    show_metrics(console, metrics)

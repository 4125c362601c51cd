"""The verb that asks what a run would be refused for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from finetuner.api import experiment_called, fit, sent_settings

Arguments = ParamSpec("Arguments")


def _with_arguments_of(
    verb: Callable[Arguments, Any],
) -> Callable[[Callable[..., dict[str, Any]]], Callable[Arguments, dict[str, Any]]]:
    """Let a verb take the arguments of another, and say so to `help` and to type checkers."""

    def decorate(
        function: Callable[..., dict[str, Any]],
    ) -> Callable[Arguments, dict[str, Any]]:
        signature = inspect.signature(verb)

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> dict[str, Any]:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(**bound.arguments)

        shown = signature.replace(return_annotation="dict[str, Any]")
        call.__signature__ = shown  # type: ignore[attr-defined]  # functions may have one
        return call

    return decorate


@_with_arguments_of(fit)
def check(**arguments: Any) -> dict[str, Any]:
    """Find all that :func:`fit` would refuse with the same arguments, and look at the data; start nothing.

    :returns: ``problems`` and ``warnings``, each with ``field`` and ``message``; ``config``, all settings
        with their defaults, or None where some cannot be read; ``train_data``, counts, repetitions and
        contradictions, the sizes of labels and the first rows; ``evaluation``, its sizes; ``size_bytes``
        that the run would need and ``free_bytes`` that there are; ``has_gpu``, whether the server can train
        on one.
    :raises DataError: When a file that is read here, or a DocumentArray, cannot be used at all.
    :raises UnavailableError: When no server answers.
    """
    experiment = experiment_called(arguments["experiment_name"])
    return experiment.check_training_run(**sent_settings(arguments))

"""The settings that can be read of a request, and what is wrong with the others."""

import pytest

from finetuner.callback import WiSEFTCallback
from finetuner.config import RunConfig, Sampler
from finetuner.config_problems import default_of, is_clear, read_partly
from finetuner.errors import ConfigError
from finetuner.schema import read

GOOD = {"model": "m", "run_name": "r", "epochs": 3, "sampler": "class"}


def test_a_good_request_is_read_as_ever():
    partly = read_partly(GOOD)
    assert (partly.config, partly.problems) == (read(RunConfig, GOOD, "fit"), ())
    assert partly.config.sampler is Sampler.CLASS


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"epochs": -1}, ["epochs"]),
        ({"epochs": "x", "batch_size": 1, "seed": -1}, ["epochs", "batch_size", "seed"]),
        ({"onnx_variants": ["int8", "int8"], "to_onnx": True}, ["onnx_variants"]),
        ({"optimizer_options": {"lr": "x"}}, ["optimizer_options"]),
        ({"experiment_name": "..", "prompts": {"a": 1}}, ["experiment_name", "prompts"]),
        ({"sampler": "x", "device": 5, "nothing": 1}, ["sampler", "device", "nothing"]),
        (
            {"hard_negatives": {"share": 2}, "idempotency_key": ""},
            ["hard_negatives", "idempotency_key"],
        ),
    ],
)
def test_each_field_has_its_problem_and_the_others_are_read(changes, fields):
    partly = read_partly({**GOOD, **changes})
    assert sorted(problem.field for problem in partly.problems) == sorted(fields)
    assert partly.config == RunConfig(
        **{**{k: v for k, v in GOOD.items() if k not in fields}, "sampler": partly.config.sampler},
        to_onnx="to_onnx" in changes,
    )
    with pytest.raises(ConfigError) as refusal:
        read(RunConfig, {**GOOD, **changes}, "fit")
    assert str(refusal.value) in {problem.message for problem in partly.problems}


def test_callbacks_are_read_each_by_itself():
    callbacks = [{"name": "x"}, {"name": "WiSEFTCallback"}, 5, {"name": "EarlyStopping"}]
    partly = read_partly({**GOOD, "callbacks": callbacks})
    assert [problem.field for problem in partly.problems] == ["callbacks[0]", "callbacks[2]"]
    assert partly.callback_places == (1, 3)
    assert partly.config.callbacks_of(WiSEFTCallback) == [WiSEFTCallback()]
    twice = read_partly({**GOOD, "callbacks": [{"name": "WiSEFTCallback"}] * 2})
    assert ([p.field for p in twice.problems], twice.callback_places) == (["callbacks"], ())
    assert twice.config.callbacks == ()


def test_a_field_is_clear_unless_it_or_a_part_of_it_has_a_problem():
    problems = read_partly({**GOOD, "callbacks": [5], "epochs": -1}).problems
    assert not is_clear(("callbacks",), problems)
    assert not is_clear(("seed", "epochs"), problems)
    assert is_clear(("seed", "model"), problems)


def test_defaults():
    assert (default_of("epochs"), default_of("loss_options"), default_of("miner")) == (5, {}, None)

"""The same request twice makes one run; another of its name or key is refused with the difference."""

import subprocess
import sys
import threading

import orjson
import pytest

from finetuner.config import RunConfig
from finetuner.data import from_rows
from finetuner.errors import ConfigError, InsufficientSpaceError, RunExistsError
from finetuner.identity import data_digest, differences
from finetuner.resubmission import create_once
from finetuner.run_keys import RunKeys
from finetuner.run_store import RunStore
from finetuner.schema import read
from finetuner.space import Space
from finetuner.submission import submit_once

DATA = {"train.jsonl": from_rows([["a", 1], ["b", 1]])}
OTHER_DATA = {"train.jsonl": from_rows([["a", 1], ["c", 1]])}
QUERIES = {"name": "EvaluationCallback", "options": {"query_data": "q.da"}}


CRASHER = """
import os, pathlib, sys
from finetuner.config import RunConfig
from finetuner.resubmission import create_once
from finetuner.run_store import RunStore
pathlib.Path.rename = lambda *_: os._exit(9)
config = RunConfig(model="tiny", idempotency_key="k")
create_once(
    RunStore(pathlib.Path(sys.argv[1])), config, {}, is_named=False, check_space=lambda: None
)
"""


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


@pytest.fixture
def make(store):
    """Send a request, as `submit_once` does once it is checked."""

    def make(data=DATA, *, check_space=lambda: None, **settings):
        config = read(RunConfig, {"model": "tiny", **settings}, "fit")
        named = "run_name" in settings
        return create_once(store, config, data, is_named=named, check_space=check_space)

    return make


def refuse():
    raise InsufficientSpaceError("the disk is full")


@pytest.mark.parametrize("settings", [{"run_name": "one"}, {"idempotency_key": "k"}])
def test_the_same_request_gives_the_same_run(make, store, settings):
    first = make(**settings)
    again = make(check_space=refuse, **settings)

    assert (first.is_new, again.is_new) == (True, False)
    assert again.run == first.run
    assert store.list() == [first.run]


def test_without_name_and_key_each_request_is_a_run(make, store):
    assert make().is_new
    assert make().is_new
    assert len(store.list()) == 2


@pytest.mark.parametrize("settings", [{"run_name": "one"}, {"idempotency_key": "k"}])
@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"epochs": 3}, ["epochs: 5 → 3"]),
        ({"lora": {}}, ["lora: not given → {}"]),
        ({"loss_options": {"margin": 0.1}}, ["loss_options.margin: not given → 0.1"]),
        ({"dimensions": [8, 4]}, ["dimensions: () → (8, 4)"]),
        (
            {"callbacks": []},
            ["callbacks: [{'name': 'EvaluationCallback', 'batch_size': 32, 'exclude_… → []"],
        ),
        (
            {"callbacks": [{**QUERIES, "options": {"query_data": "q.da", "limit": 7}}]},
            ["callbacks[0].limit: 20 → 7"],
        ),
        ({"data": OTHER_DATA}, ["train_data: other texts"]),
        (
            {"data": {**DATA, "evaluation-0-query.jsonl": from_rows([["a", 1]])}, "seed": 1},
            ["seed: 0 → 1", "evaluation-0-query: other texts"],
        ),
        (
            {n: 7 for n in ("epochs", "batch_size", "seed", "accumulation_steps", "n_processes")}
            | {"learning_rate": 0.5, "freeze": True},
            ["freeze: False → True", "learning_rate: not given → 0.5", "epochs: 5 → 7"]
            + ["batch_size: 64 → 7", "accumulation_steps: 1 → 7", "and 2 more"],
        ),
    ],
)
def test_another_request_is_refused_with_the_difference(make, store, settings, changes, lines):
    run = make(callbacks=[QUERIES], **settings).run
    with pytest.raises(RunExistsError, match="of another request") as refusal:
        make(**{"callbacks": [QUERIES], **settings, **changes})

    first, *shown, last = str(refusal.value).splitlines()
    assert first == f"experiment `default` already has a run `{run.name}`, of another request:"
    assert [line.removeprefix("  ") for line in shown] == lines
    assert last == "choose another run_name (or idempotency key), or delete that run first"
    assert store.list() == [run]


def test_where_data_come_from_and_what_docarray_calls_them_makes_no_difference(make):
    named = {"train.jsonl": from_rows([{"text": "a", "label": 1, "id": "x"}, ["b", "1"]])}
    first = make(run_name="one", train_data="pushed.da")
    assert make(named, run_name="one", train_data="2 rows").run == first.run
    assert not make(DATA, run_name="one").is_new


def test_the_defaults_of_a_callback_make_no_difference(make):
    make(run_name="one", callbacks=[QUERIES])
    options = {**QUERIES["options"], "limit": 20, "index_data": None}
    assert not make(run_name="one", callbacks=[{**QUERIES, "options": options}]).is_new


def test_a_run_without_digests_is_compared_by_its_files(make):
    run = make(run_name="old").run
    spec = {name: value for name, value in run.spec().items() if name != "data_digest"}
    (run.folder / "spec.json").write_bytes(orjson.dumps(spec))

    assert differences(run, run.config(), DATA) == []
    assert differences(run, run.config(), OTHER_DATA) == ["train_data: other texts"]


def test_spec_holds_digests_of_the_texts_in_their_order(make):
    digests = make(run_name="one").run.spec()["data_digest"]
    rows = [{"text": "a", "label": "1"}, {"text": "b", "label": "1"}]
    assert digests == {"train.jsonl": data_digest(rows)}
    assert data_digest(rows[::-1]) != data_digest(rows)


def test_a_key_is_of_one_experiment(make, store):
    first = make(idempotency_key="k", experiment_name="a").run
    second = make(idempotency_key="k", experiment_name="b").run
    assert (first.experiment_name, second.experiment_name) == ("a", "b")


def test_a_key_with_another_run_name_is_refused(make):
    make(run_name="one", idempotency_key="k")
    with pytest.raises(
        RunExistsError, match="key `k` was used for run `one`.*\n  run_name: one → two\n"
    ):
        make(run_name="two", idempotency_key="k")
    assert not make(idempotency_key="k").is_new
    assert not make(run_name="one", idempotency_key="another").is_new


def test_a_deleted_run_frees_its_key(make, store):
    first = make(idempotency_key="k")
    store.delete(first.run)
    second = make(OTHER_DATA, idempotency_key="k")

    assert second.is_new
    assert second.run.name != first.run.name


def test_who_dies_before_the_run_is_there_leaves_its_name_to_the_next(make, store):
    with pytest.raises(InsufficientSpaceError, match="the disk is full"):
        make(idempotency_key="k", check_space=refuse)
    keys = RunKeys(store.create_experiment("default"))
    name = keys.find("k")

    assert make(idempotency_key="k").run.name == name
    assert make(idempotency_key="k", run_name=name).run.name == name


@pytest.mark.slow
def test_a_process_killed_between_key_and_run_leaves_the_key_to_the_next(make, store, tmp_path):
    assert subprocess.run([sys.executable, "-c", CRASHER, str(tmp_path)]).returncode == 9
    assert store.list() == []
    name = RunKeys(tmp_path / "runs" / "default").find("k")
    first, again = make({}, idempotency_key="k"), make({}, idempotency_key="k")
    assert (first.is_new, again.is_new, first.run.name) == (True, False, name)


def test_a_name_left_by_a_request_that_died_does_not_bind_one_that_has_its_own(make, store):
    RunKeys(store.create_experiment("default")).claim("k", "lost")
    run = make(idempotency_key="k", run_name="own").run
    assert not make(idempotency_key="k").is_new
    assert store.list() == [run]


def test_a_key_whose_name_another_run_took_is_free(make, store):
    RunKeys(store.create_experiment("default")).claim("k", "taken")
    make(run_name="taken", data=OTHER_DATA)
    found = make(idempotency_key="k")

    assert found.is_new
    assert found.run.name != "taken"
    assert make(idempotency_key="k").run == found.run


@pytest.mark.parametrize("settings", [{"run_name": "one"}, {"idempotency_key": "k"}])
def test_requests_at_once_make_one_run(make, store, settings):
    barrier = threading.Barrier(8)
    found = []

    def ask():
        barrier.wait()
        found.append(make(**settings))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(submitted.is_new for submitted in found) == [False] * 7 + [True]
    assert len({submitted.run for submitted in found}) == 1
    assert len(store.list()) == 1


def test_nothing_is_left_beside_the_keys(make, tmp_path):
    make(idempotency_key="k/../../x")
    names = [path.name for path in (tmp_path / "runs" / "default" / ".keys").iterdir()]
    assert len(names) == 1
    assert len(names[0]) == 64


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_keys_have_a_length(key):
    with pytest.raises(ConfigError, match=f"1 to 255 characters, got {len(key)}; a random UUID"):
        RunConfig(model="tiny", idempotency_key=key)


def test_submission_knows_whether_the_client_gave_the_name(tmp_path, tiny_model_folder):
    rows = [["a", 1], ["b", 1], ["c", 2], ["d", 2]]
    body = {"model": str(tiny_model_folder), "train_data": rows, "device": "cpu"}
    for settings in ({"run_name": "", "idempotency_key": "k"}, {"run_name": "one"}):
        first, again = (submit_once({**body, **settings}, Space(tmp_path)) for _ in range(2))
        assert (first.is_new, again.is_new) == (True, False)
        assert again.run == first.run

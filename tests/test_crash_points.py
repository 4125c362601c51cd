"""Each operation of a volume, cut at each of its writes: it has taken place or it has not, never half."""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from crash_points import Disk, Found
from docarray import Document, DocumentArray

from finetuner import publishing
from finetuner.alias_store import AliasStore
from finetuner.artifact import Manifest, pack, unpacked
from finetuner.checkpoint import CheckpointStore
from finetuner.config import RunConfig
from finetuner.data import from_rows, read_jsonl
from finetuner.datastore import DataStore
from finetuner.errors import (
    AliasNotFoundError,
    ConflictError,
    ImpossibleStepError,
    NotFoundError,
    RunExistsError,
)
from finetuner.publishing import keep_model, remove_leftovers
from finetuner.run_store import RunStore
from finetuner.run_summary import record_of
from finetuner.states import Actor, Status
from finetuner.targets import Promotion

WEIGHTS = b"weights" * 99
TEXTS = from_rows([["a", 1], ["b", 1]])


def runs_of(volume):
    """All that is known of a volume's runs, but for what no two runs have in common."""
    store = RunStore(volume)
    found = {}
    for run in store.list():
        state = run.state()
        assert store.get(run.name, run.experiment_name) == run
        assert record_of(run)["status"] == state.status
        assert run.history()[-1].status is state.status
        assert [read_jsonl(path) for path in (run.folder / "data").iterdir()] == [TEXTS]
        is_wanted = state.status.is_terminal or not run.is_to_be_cancelled()
        counts = state.n_starts, state.n_interruptions
        found[f"{run.experiment_name}/{run.name}"] = state.status, counts, is_wanted
    return found, [experiment["name"] for experiment in store.list_experiments()]


def aliases_of(volume):
    aliases = AliasStore(volume).list()
    return [(alias.name, alias.target.run, len(alias.history)) for alias in aliases]


def data_of(volume):
    store = DataStore(volume)
    found = {}
    for entry in store.list():
        content = store.documents_path(entry.name).read_bytes()
        documents = DocumentArray.load_binary(content, protocol="protobuf", compress="gzip")
        assert documents.texts == store.texts(entry.name).texts
        found[entry.name] = documents.texts
    return found


def checkpoint_of(volume):
    state = CheckpointStore(volume / "run" / "checkpoints").newest()
    return state and int(state["step"])


def artifact_of(volume):
    path = RunStore(volume).get("one").artifact_path
    if not path.exists():
        return None
    with unpacked(path) as (folder, _):
        return (folder / "model.safetensors").read_bytes()


def create(volume, name="one", experiment="default"):
    config = RunConfig(model="tiny", run_name=name, experiment_name=experiment)
    return RunStore(volume).create(config, {"train.jsonl": TEXTS})


def create_in(experiment):
    return lambda volume: create(volume, experiment=experiment)


def get(volume):
    return RunStore(volume).get("one")


def create_claimed(volume):
    create(volume).claim()


def create_old(volume):
    """A run of version 0.1.0."""
    run = create(volume)
    shutil.rmtree(run.folder / "states")
    old = {"status": "STARTED", "details": "", "n_starts": 2, "n_interruptions": 1}
    (run.folder / "state.json").write_text(json.dumps(old))


def step_to(status, actor, **changes):
    def step(volume):
        run = get(volume)
        run.step(run.state(), status, "", actor=actor, **changes)

    return step


def cancel(volume):
    run = get(volume)
    run.ask_to_cancel()
    run.step(run.state(), Status.CANCELLED, "", actor=Actor.SERVICE)


def delete(volume):
    RunStore(volume).delete(get(volume))


def create_experiment(volume):
    RunStore(volume).create_experiment("other")


def delete_experiment(volume):
    RunStore(volume).delete_experiment("other")


def publish(volume, name="one", weights=b"new"):
    manifest = Manifest(
        run_name=name,
        model="tiny",
        dim=1,
        pooler="mean",
        normalize=True,
        max_length=1,
        input_names=(),
        metrics={},
        has_onnx=False,
        created_at="",
    )
    run = RunStore(volume).get(name)
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".saving-") as temporary:
        (Path(temporary) / "model.safetensors").write_bytes(weights)
        pack(Path(temporary), run.artifact_path, manifest=manifest)


def create_published(volume):
    create(volume)
    publish(volume, weights=b"old")


def create_two_finished(volume):
    for name in ("one", "two"):
        run = create(volume, name)
        publish(volume, name)
        run.step(run.claim(), Status.FINISHED, "", actor=Actor.WORKER)


def set_alias(run):
    return lambda volume: AliasStore(volume).set("prod", run, require=Promotion.ANY)


def create_alias(volume):
    create_two_finished(volume)
    set_alias("one")(volume)


def create_alias_with_history(volume):
    create_alias(volume)
    set_alias("two")(volume)


def roll_back(volume):
    AliasStore(volume).rollback("prod")


def delete_alias(volume):
    AliasStore(volume).delete("prod")


def push(*texts):
    documents = DocumentArray([Document(text=t, tags={"finetuner_label": 1}) for t in texts])
    stream = documents.to_bytes(protocol="protobuf", compress="gzip")
    return lambda volume: DataStore(volume).put("me/data", io.BytesIO(stream))


def delete_data(volume):
    DataStore(volume).delete("me/data")


def save(*steps):
    def save(volume):
        (volume / "run").mkdir(exist_ok=True)
        store = CheckpointStore(volume / "run" / "checkpoints")
        for step in steps:
            store.save({"weights": torch.ones(3), "step": step}, step=step)

    return save


def keep(*epochs):
    """Keep models of epochs, at most two; what is written of each is one file."""
    loaded = SimpleNamespace(model=SimpleNamespace(backbone=None))

    def keep(volume):
        for epoch in epochs:
            keep_model(get(volume), loaded, epoch, n_kept=2)

    return keep


def create_kept(volume):
    create(volume)
    keep(1, 2)(volume)


def kept_of(volume):
    folders = sorted((get(volume).folder / "epochs").glob("[!.]*"))
    return {folder.name: (folder / "model.safetensors").read_bytes() for folder in folders}


def nothing(_volume):
    """Leave the volume empty."""


@dataclass(frozen=True)
class Operation:
    """What is cut, what is there before, and how to see whether it has taken place.

    :param done: What a second try raises after the first one took place.
    :param between: What else may be seen.
    """

    name: str
    observe: Callable[[Path], Any]
    prepare: Callable[[Path], Any]
    operate: Callable[[Path], Any]
    done: tuple[type[Exception], ...] = ()
    between: tuple[Any, ...] = ()


CREATED = Status.CREATED, (0, 0), True
# Whoever finds the run so cancels it.
ASKED = {"default/one": (Status.CREATED, (0, 0), False)}, ["default"]
EMPTY, WITH_EMPTY = ({}, ["default"]), ({"default/one": CREATED}, ["default", "other"])
KEPT_FIRST = {"epoch-1": WEIGHTS}
KEPT = {f"epoch-{number}": WEIGHTS for number in (1, 2, 3)}
_W, _S = Actor.WORKER, Actor.SERVICE
OPERATIONS = (
    Operation("first run", runs_of, nothing, create, (RunExistsError,), (EMPTY,)),
    Operation(
        "second experiment", runs_of, create, create_in("other"), (RunExistsError,), (WITH_EMPTY,)
    ),
    Operation("claim", runs_of, create, lambda v: get(v).claim(), (ImpossibleStepError,)),
    Operation("ask to cancel", runs_of, create_claimed, lambda v: get(v).ask_to_cancel()),
    Operation("cancel", runs_of, create, cancel, (ImpossibleStepError,), (ASKED,)),
    *(
        Operation(f"{status}", runs_of, create_claimed, step_to(status, actor), (ConflictError,))
        for status, actor in (
            (Status.FINISHED, _W),
            (Status.FAILED, _W),
            (Status.CANCELLED, _W),
            (Status.INTERRUPTED, _S),
        )
    ),
    Operation("old form", runs_of, create_old, lambda v: get(v).state()),
    Operation("delete run", runs_of, create, delete, (NotFoundError,)),
    Operation("create experiment", runs_of, nothing, create_experiment),
    Operation("delete experiment", runs_of, create_experiment, delete_experiment, (NotFoundError,)),
    Operation("publish", artifact_of, create, publish),
    Operation("publish again", artifact_of, create_published, publish),
    Operation("keep model", kept_of, create, keep(1)),
    Operation("keep third model", kept_of, create_kept, keep(3), between=(KEPT,)),
    Operation("keep model again", kept_of, create_kept, keep(2), between=(KEPT_FIRST,)),
    Operation("first alias", aliases_of, create_two_finished, set_alias("one")),
    Operation("alias", aliases_of, create_alias, set_alias("two")),
    Operation("roll back", aliases_of, create_alias_with_history, roll_back, (ConflictError,)),
    Operation("delete alias", aliases_of, create_alias, delete_alias, (AliasNotFoundError,)),
    Operation("first push", data_of, nothing, push("a", "b")),
    Operation("push", data_of, push("a", "b"), push("c", "d", "e")),
    Operation("delete data", data_of, push("a", "b"), delete_data, (NotFoundError,)),
    Operation("first checkpoint", checkpoint_of, save(), save(1)),
    Operation("fourth checkpoint", checkpoint_of, save(1, 2, 3), save(4)),
)


@pytest.fixture(autouse=True)
def _no_real_disk(monkeypatch):
    """The power of this machine stays; waiting for its disk proves nothing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def _small_model(monkeypatch):
    def save(loaded, folder, *, prompts=None):
        (folder / "model.safetensors").write_bytes(WEIGHTS)

    monkeypatch.setattr(publishing, "save_model", save)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_that_is_cut_has_taken_place_or_not(tmp_path, operation):
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    operation.prepare(prepared)
    before = operation.observe(shutil.copytree(prepared, tmp_path / "before"))
    n_writes = _check_whole(tmp_path, prepared, operation)
    after = operation.observe(tmp_path / "whole")
    for number in range(1, n_writes + 1):
        volume = shutil.copytree(prepared, tmp_path / f"cut-{number}")
        with Disk(volume, cut_before=number) as disk:
            operation.operate(volume)
        assert disk.is_cut
        for found in Found:
            left = disk.leave(found, tmp_path / f"cut-{number} {found.name}")
            assert operation.observe(left) in (before, *operation.between, after), (number, found)
            with contextlib.suppress(*operation.done):
                operation.operate(left)
            assert operation.observe(left) == after, (number, found)
            if operation.observe is runs_of:
                _check_going_on(left)
        disk.close()


def _check_whole(tmp_path, prepared, operation):
    """Do the whole operation; what it did must stay when the power goes a moment later."""
    volume = shutil.copytree(prepared, tmp_path / "whole")
    with Disk(volume) as disk:
        operation.operate(volume)
    left = disk.leave(Found.SYNCED, tmp_path / "whole SYNCED")
    disk.close()
    assert operation.observe(left) == operation.observe(volume)
    return disk.n_writes


def _check_going_on(volume):
    """All runs come to an end; then nothing half-written is left of them."""
    for run in RunStore(volume).list():
        if (state := run.state()).status is Status.STARTED:
            run.step(state, Status.INTERRUPTED, "", actor=Actor.SERVICE)
        if run.state().status.is_waiting:
            claim = run.claim()
            remove_leftovers(run.folder)
            run.step(claim, Status.FINISHED, "", actor=Actor.WORKER)
            # A file that its owner may be writing stays.
            assert list(run.folder.rglob(".[!c]*")) == []

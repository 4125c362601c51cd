"""What `finetuner gc` lets go, and what it must never touch."""

import json
import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from finetuner import retention
from finetuner.alias_store import AliasStore
from finetuner.config import RunConfig
from finetuner.errors import ConfigError, FinetunerServerError
from finetuner.retention import Reason, Retention, carry_out, plan
from finetuner.run_keys import RunKeys
from finetuner.run_store import RunStore
from finetuner.states import Status
from finetuner.targets import Promotion

DAY_S = 86400
ALL_RUNS = Retention(runs_older_than_s=0)


@pytest.fixture
def make(tmp_path, come_to):
    """Make a run in a state, with what a run leaves; it ended so many days ago."""

    def make(name, status=Status.FINISHED, *, n_days_ago=0, experiment="default", **settings):
        config = RunConfig(model="tiny", run_name=name, experiment_name=experiment, **settings)
        run = RunStore(tmp_path).create(config, {})
        (run.folder / "checkpoints").mkdir()
        (run.folder / "checkpoints" / "step-000000001.pt").write_bytes(b"x" * 1000)
        (run.folder / "worker.txt").write_bytes(b"x" * 10)
        (run.folder / f"{name}.zip").write_bytes(b"x" * 100)
        come_to(run, status)
        age(run, n_days_ago)
        return run

    return make


def age(run, n_days):
    """Let a run have come to its state so many days ago."""
    path = max((run.folder / "states").iterdir())
    at = (datetime.now(UTC) - timedelta(days=n_days)).isoformat()
    path.write_text(json.dumps({**json.loads(path.read_text()), "at": at}))


def age_file(path, n_days):
    then = time.time() - n_days * DAY_S
    os.utime(path, (then, then))


def shown(rows, workspace):
    return {row.path.relative_to(workspace).as_posix(): row.reason for row in rows}


def removed(workspace, settings=None):
    rows = plan(workspace, settings)
    assert [left_for for _, left_for in carry_out(workspace, rows)] == [""] * len(rows)
    assert not any(row.path.exists() for row in rows)
    return shown(rows, workspace)


def names(workspace):
    return [run.name for run in RunStore(workspace).list()]


def test_nothing_goes_from_an_empty_workspace(tmp_path):
    assert plan(tmp_path, ALL_RUNS) == []


@pytest.mark.parametrize("status", [Status.CREATED, Status.STARTED])
def test_a_run_that_has_not_ended_is_not_touched(make, tmp_path, status):
    run = make("one", status, n_days_ago=99)
    (run.folder / ".x.json.abc").write_bytes(b"x")
    assert plan(tmp_path, Retention(grace_s=0, runs_older_than_s=0)) == []


def test_checkpoints_go_from_runs_that_have_ended_and_output_from_those_that_finished(
    make, tmp_path
):
    finished, failed = make("fine"), make("bad", Status.FAILED)
    rows = plan(tmp_path)
    assert {row.path.relative_to(tmp_path).as_posix(): row.size_bytes for row in rows} == {
        "runs/default/fine/checkpoints": 1000,
        "runs/default/fine/worker.txt": 10,
        "runs/default/bad/checkpoints": 1000,
    }
    assert finished.has_checkpoint()  # a plan changes nothing

    removed(tmp_path)
    assert not finished.has_checkpoint()
    assert (failed.folder / "worker.txt").exists()
    assert finished.artifact_path.exists()
    assert plan(tmp_path) == []


def test_what_killed_processes_left_goes_when_it_is_old(make, tmp_path):
    run = make("one")
    RunKeys(run.folder.parent).claim("lost", "never-made")
    RunKeys(run.folder.parent).claim("k", "one")
    folders = ("runs/.new-a", "runs/.deleted-b", "data/.upload-c", "data/.deleted-d")
    files = ("aliases/.prod.json.e", "runs/default/.keys/.claim-f")
    kept = ("aliases/.lock", "data/stored", "models/.new-x")
    for name in (*folders, "data", "aliases", "models/.new-x"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in (*(f"{folder}/inner" for folder in folders), *files, *kept[:2]):
        (tmp_path / name).write_bytes(b"x")
    (run.folder / ".saving-x").mkdir()
    (run.folder / ".saving-x" / "inner").write_bytes(b"x")
    young = removed(tmp_path)
    assert Reason.TEMPORARY not in {*young.values()} - {young["runs/default/one/.saving-x"]}

    for path in tmp_path.rglob("*"):
        age_file(path, 2)
    age_file(tmp_path / "runs/.new-a/inner", 0)  # somebody is writing it
    found = removed(tmp_path)
    lost = found.pop(next(name for name in found if found[name] is Reason.KEY))
    assert lost is Reason.KEY
    assert found == dict.fromkeys((*folders[1:], *files), Reason.TEMPORARY)
    assert all((tmp_path / name).exists() for name in kept)
    assert RunKeys(run.folder.parent).find("k") == "one"
    assert RunKeys(run.folder.parent).find("lost") is None


@pytest.mark.parametrize(
    ("settings", "stay"),
    [
        ({}, ["old", "bad", "mid", "new"]),
        ({"runs_older_than_s": 5 * DAY_S}, ["mid", "new"]),
        ({"runs_older_than_s": 15 * DAY_S}, ["bad", "mid", "new"]),
        ({"is_failed_only": True}, ["old", "mid", "new"]),
        ({"is_failed_only": True, "n_kept": 1}, ["old", "bad", "mid", "new"]),
        ({"is_failed_only": True, "runs_older_than_s": 15 * DAY_S}, ["old", "bad", "mid", "new"]),
        ({"n_kept": 1}, ["new"]),
        ({"n_kept": 3}, ["bad", "mid", "new"]),
        ({"n_kept": 9}, ["old", "bad", "mid", "new"]),
        ({"n_kept": 3, "runs_older_than_s": 5 * DAY_S}, ["bad", "mid", "new"]),
        ({"n_kept": 0}, []),
    ],
)
def test_whole_runs_go_by_age_state_and_number(make, tmp_path, settings, stay):
    make("old", n_days_ago=20)
    make("bad", Status.FAILED, n_days_ago=10)
    make("mid", n_days_ago=1)
    make("new")
    removed(tmp_path, Retention(**settings))
    assert names(tmp_path) == stay


def test_the_last_are_kept_of_each_experiment(make, tmp_path):
    for name in ("a", "b"):
        for experiment in ("one", "two"):
            make(name, experiment=experiment)
    removed(tmp_path, Retention(n_kept=1))
    assert [(r.experiment_name, r.name) for r in RunStore(tmp_path).list()] == [
        ("one", "b"),
        ("two", "b"),
    ]


def test_a_run_that_goes_is_one_row_with_all_its_bytes_and_frees_its_key(make, tmp_path):
    run = make("one", idempotency_key="k")
    RunKeys(run.folder.parent).claim("k", "one")
    (row,) = plan(tmp_path, ALL_RUNS)
    assert (row.path, row.reason) == (run.folder, Reason.RUN)
    assert row.size_bytes == sum(f.stat().st_size for f in run.folder.rglob("*") if f.is_file())
    removed(tmp_path, ALL_RUNS)
    assert RunKeys(run.folder.parent).find("k") is None


def test_what_aliases_point_to_or_would_roll_back_to_stays(finish_run, tmp_path):
    aliases = AliasStore(tmp_path)
    for name in ("first", "second", "third", "split", "shadow", "free"):
        finish_run(name)
    for name in ("first", "second", "third"):
        aliases.set("prod", name, require=Promotion.ANY, split="split", weight=0.1, shadow="shadow")
    removed(tmp_path, ALL_RUNS)
    assert names(tmp_path) == ["second", "third", "split", "shadow"]


def test_an_alias_that_cannot_be_read_keeps_all_runs(finish_run, tmp_path):
    finish_run("one")
    (tmp_path / "aliases").mkdir()
    (tmp_path / "aliases" / "prod.json").write_bytes(b"{")
    with pytest.raises(FinetunerServerError, match="The file of alias `prod` is damaged"):
        plan(tmp_path, ALL_RUNS)
    assert plan(tmp_path) == []


@pytest.mark.parametrize("form", ["name", "path", "id"])
def test_what_a_waiting_run_goes_on_from_stays(make, tmp_path, form):
    run = make("base")
    make("other")
    artifact = {"name": "base", "path": "default/base", "id": run.spec()["artifact_id"]}[form]
    make("next", Status.CREATED, model_artifact=artifact)
    removed(tmp_path, ALL_RUNS)
    assert names(tmp_path) == ["base", "next"]


def test_a_run_of_the_same_name_that_was_made_after_the_plan_is_left(make, tmp_path):
    run = make("one", Status.FAILED)
    rows = plan(tmp_path, ALL_RUNS)
    RunStore(tmp_path).delete(run)
    make("one", Status.CREATED)
    assert [left_for for _, left_for in carry_out(tmp_path, rows)] == [
        "run `one` is CREATED by now"
    ]
    assert run.has_checkpoint()


def test_a_run_that_an_alias_takes_after_the_plan_is_left(finish_run, tmp_path):
    finish_run("one")
    rows = plan(tmp_path, ALL_RUNS)
    AliasStore(tmp_path).set("prod", "one", require=Promotion.ANY)
    left = [left_for for _, left_for in carry_out(tmp_path, rows)]
    assert left == ["an alias points to run `one` by now"]
    assert names(tmp_path) == ["one"]


def test_what_is_gone_meanwhile_is_no_error(make, tmp_path):
    run = make("one")
    rows = [*plan(tmp_path), *plan(tmp_path, ALL_RUNS)]
    RunStore(tmp_path).delete(run)
    assert [left_for for _, left_for in carry_out(tmp_path, rows)] == ["", "", ""]


def test_what_cannot_be_removed_is_named_and_the_rest_goes(make, tmp_path, monkeypatch):
    make("one")
    rows = plan(tmp_path)
    monkeypatch.setattr(retention.shutil, "rmtree", _refuse)
    assert [left_for for _, left_for in carry_out(tmp_path, rows)] == ["read-only", ""]


def _refuse(_path):
    raise OSError("read-only")


def test_a_run_in_a_state_of_a_later_version_is_not_touched(make, tmp_path):
    run = make("one")
    (run.folder / "states" / "000009.json").write_bytes(b'{"status": "PAUSED", "details": ""}')
    assert plan(tmp_path, ALL_RUNS) == []


def test_links_are_removed_and_not_followed(make, tmp_path):
    run = make("one")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"x")
    (run.folder / ".link").symlink_to(outside)
    (link,) = (row for row in plan(tmp_path) if row.path.name == ".link")
    assert link.size_bytes == len(str(outside))
    removed(tmp_path)
    assert (outside / "file").exists()


@pytest.mark.parametrize("name", ["grace_s", "runs_older_than_s", "n_kept"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 0, got -1"):
        Retention(**{name: -1})


def test_the_map_stays_and_the_vectors_beside_the_checkpoints_go(make, tmp_path):
    run = make("one")
    (run.folder / "map.json").write_bytes(b'{"evaluations": {}}')
    (run.folder / "checkpoints" / "map-0-before.npy").write_bytes(b"x" * 100)
    removed(tmp_path)
    assert (run.folder / "map.json").exists()
    assert not (run.folder / "checkpoints").exists()

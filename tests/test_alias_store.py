import os
import subprocess
import sys
import threading

import pytest

from finetuner import lock
from finetuner.alias_store import AliasStore
from finetuner.aliases import Split
from finetuner.errors import (
    AliasNotFoundError,
    ArtifactNotFound,
    ConfigError,
    ConflictError,
    FinetunerServerError,
    PromotionRefusedError,
)
from finetuner.run_store import RunStore
from finetuner.targets import Promotion

CHANGER = """
import sys
from pathlib import Path
from finetuner.alias_store import AliasStore
store, runs = AliasStore(Path(sys.argv[1])), sys.argv[2:]
print("ready", flush=True)
sys.stdin.readline()
for i in range(40):
    store.set("prod", runs[i % 2])
"""
CRASHER = """
import os, sys
from pathlib import Path
from finetuner.alias_store import AliasStore
os.replace = lambda *_: os._exit(9)
AliasStore(Path(sys.argv[1])).set("prod", "two")
"""


def _python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def store(tmp_path):
    return AliasStore(tmp_path)


@pytest.fixture
def runs(finish_run):
    """Runs `one` to `four`; all but the last improved."""
    outcomes = dict.fromkeys(("one", "two", "three"), "improved") | {"four": "unchanged"}
    return {name: finish_run(name, outcome) for name, outcome in outcomes.items()}


def names(targets):
    return [target.run.removeprefix("default/") for target in targets]


def test_alias_is_there_for_every_store_on_the_volume(store, runs, tmp_path):
    alias = store.set("prod", "one", split="two", weight=0.25, shadow="three")
    assert (alias.name, alias.revision, alias.history) == ("prod", 1, ())
    assert names(alias.targets) == ["one", "two", "three"]
    assert alias.split == Split(alias.targets[1], 0.25)
    assert [t.artifact_id for t in alias.targets] == [
        runs[name].spec()["artifact_id"] for name in ("one", "two", "three")
    ]
    other = AliasStore(tmp_path)
    assert other.get("prod") == other.find("prod") == store.find("prod") == alias
    assert other.list() == (alias,)
    assert store.locate(alias.target, alias="prod") == runs["one"].artifact_path


def test_change_is_seen_at_once_by_a_store_that_knows_the_old(store, runs, tmp_path):
    other = AliasStore(tmp_path)
    for run in ("one", "two", "one"):
        store.set("prod", run)
        assert names([other.get("prod").target]) == [run]
    store.delete("prod")
    assert other.find("prod") is None


def test_setting_again_keeps_what_was_before_and_ends_the_split(store, runs):
    store.set("prod", "one", split="two", weight=0.5, shadow="three")
    alias = store.set("prod", "one", split="three", weight=0.1)
    assert (alias.revision, alias.history, names(alias.targets)) == (2, (), ["one", "three"])
    alias = store.set("prod", "two")
    assert (alias.revision, names(alias.history), names(alias.targets)) == (3, ["one"], ["two"])
    assert (alias.split, alias.shadow) == (None, None)


def test_history_is_the_newest_twenty(store, runs):
    for i in range(26):
        alias = store.set("prod", ("one", "two", "three")[i % 3])
    assert names(alias.history) == [("one", "two", "three")[i % 3] for i in range(5, 25)]


def test_rollback_goes_back_step_by_step(store, runs):
    for run in ("one", "two"):
        store.set("prod", run)
    store.set("prod", "three", split="one", weight=0.5, shadow="two")
    back = store.rollback("prod")
    assert (names(back.targets), names(back.history), back.revision) == (["two"], ["one"], 4)
    assert store.get("prod") == back
    assert names(store.rollback("prod").targets) == ["one"]
    with pytest.raises(ConflictError, match="alias `prod` has no target before `default/one`"):
        store.rollback("prod")
    assert store.get("prod").revision == 5


def test_rollback_passes_over_runs_that_were_deleted(store, runs, finish_run, tmp_path):
    for run in ("one", "two", "three"):
        store.set("prod", run)
    RunStore(tmp_path).delete(runs["two"])
    finish_run("two", "improved")
    assert names(store.rollback("prod").targets) == ["one"]
    store.set("prod", "three")
    RunStore(tmp_path).delete(runs["one"])
    with pytest.raises(ConflictError, match=r"no target before .* that is still there"):
        store.rollback("prod")


def test_rollback_that_another_change_overtakes_is_refused(store, runs, tmp_path):
    for run in ("one", "two"):
        store.set("prod", run)
    with pytest.raises(ConflictError, match="was changed meanwhile and points to `default/three`"):
        store.rollback("prod", warm=lambda _: AliasStore(tmp_path).set("prod", "three"))
    assert names([*store.get("prod").history, store.get("prod").target]) == ["one", "two", "three"]


def test_change_during_the_warm_up_is_not_lost(store, runs, tmp_path):
    store.set("prod", "one")
    alias = store.set("prod", "two", warm=lambda _: AliasStore(tmp_path).set("prod", "three"))
    assert (names(alias.history), alias.revision) == (["one", "three"], 3)


def test_all_targets_are_warm_before_the_switch(store, runs):
    before = store.set("prod", "one")
    seen = []

    def warm(target):
        seen.append(target)
        assert store.get("prod") == before

    alias = store.set("prod", "two", split="three", weight=0.5, shadow="one", warm=warm)
    assert tuple(seen) == alias.targets
    before = alias
    seen.clear()
    back = store.rollback("prod", warm=warm)
    assert seen == [back.target]


@pytest.mark.parametrize("change", ["set", "rollback"])
def test_nothing_changes_when_the_warm_up_fails(store, runs, change):
    for run in ("one", "two"):
        before = store.set("prod", run)

    def warm(_target):
        raise MemoryError("no room")

    arguments = ("three",) if change == "set" else ()
    with pytest.raises(MemoryError, match="no room"):
        getattr(store, change)("prod", *arguments, warm=warm)
    assert store.get("prod") == before


def test_run_deleted_during_the_warm_up_is_not_pointed_to(store, runs, tmp_path):
    before = store.set("prod", "one")
    with pytest.raises(
        ArtifactNotFound, match="alias `prod` points to artifact .* which was deleted"
    ):
        store.set("prod", "two", warm=lambda _: RunStore(tmp_path).delete(runs["two"]))
    assert store.get("prod") == before


@pytest.mark.parametrize(
    "targets", [{"run": "four"}, {"run": "one", "split": "four", "weight": 0.1}]
)
@pytest.mark.parametrize("is_new", [True, False])
def test_whoever_answers_must_have_improved(store, runs, targets, is_new):
    before = None if is_new else store.set("prod", "three")
    with pytest.raises(
        PromotionRefusedError, match="run `default/four` did not measure better .set 0: unch"
    ):
        store.set("prod", **targets)
    assert store.find("prod") == before
    assert "default/four" in {
        t.run for t in store.set("prod", **targets, require=Promotion.ANY).targets
    }


def test_a_shadow_answers_nobody_and_may_be_any_run(store, runs):
    assert names(store.set("prod", "one", shadow="four").targets) == ["one", "four"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "two"}, "a second run and its weight, 0 to 1: give both or none"),
        ({"weight": 0.5}, "a second run and its weight, 0 to 1: give both or none"),
        ({"split": "two", "weight": 1.5}, "must be 0 to 1, got 1.5"),
        ({"split": "one", "weight": 0.5}, "run `default/one` cannot be split with itself"),
        ({"shadow": "default/one"}, "nor be its own shadow"),
    ],
)
def test_split_or_shadow_that_makes_no_sense(store, runs, options, message):
    with pytest.raises(ConfigError, match=message):
        store.set("prod", "one", **options)
    assert store.list() == ()


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".lock", "a\0b", "x" * 129])
def test_names_that_are_none(store, runs, name):
    assert store.find(name) is None
    for call in (store.get, store.rollback, store.delete, lambda name: store.set(name, "one")):
        with pytest.raises(ConfigError, match="the alias `.*` is not allowed"):
            call(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "`two` is a run of experiment `default`; .* choose another"),
        ("0123456789abcdefABCDEF01", "looks like an artifact id"),
    ],
)
def test_name_that_means_something_else(store, runs, name, message):
    with pytest.raises(ConflictError, match=message):
        store.set(name, "one")
    assert store.find(name) is None


def test_name_that_only_resembles_something_else(store, runs, finish_run):
    finish_run("prod", "improved", experiment="other")
    for name in ("prod", "0123456789abcdef0123456", "0123456789abcdef0123456g"):
        assert store.set(name, "one").name == name


def test_alias_can_be_set_also_when_a_run_took_its_name_later(store, runs, finish_run):
    store.set("prod", "one")
    finish_run("prod", "improved")
    assert names([store.set("prod", "two").target]) == ["two"]


def test_unknown_alias(store, runs):
    for call in (store.get, store.rollback, store.delete):
        with pytest.raises(AliasNotFoundError, match="no alias `prod`; known: none"):
            call("prod")
    store.set("prod", "one")
    with pytest.raises(AliasNotFoundError, match="no alias `prodd`; did you mean `prod`"):
        store.get("prodd")
    store.delete("prod")
    with pytest.raises(AliasNotFoundError, match="no alias `prod`"):
        store.get("prod")


def test_aliases_come_by_name(store, runs):
    for name in ("b", "a", "c"):
        store.set(name, "one")
    assert [alias.name for alias in store.list()] == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "prod"}'])
def test_damaged_file_is_named_and_can_be_deleted(store, runs, tmp_path, content):
    store.set("prod", "one")
    (tmp_path / "aliases" / "prod.json").write_text(content)
    for call in (
        store.find,
        store.get,
        lambda _: store.list(),
        lambda name: store.set(name, "one"),
    ):
        with pytest.raises(
            FinetunerServerError, match="The file of alias `prod` is damaged; delete"
        ):
            call("prod")
    store.delete("prod")
    assert store.set("prod", "one").revision == 1


def test_two_processes_lose_no_change(store, runs, tmp_path):
    changers = [_python(CHANGER, tmp_path, *pair) for pair in (("one", "two"), ("two", "three"))]
    assert [changer.stdout.readline() for changer in changers] == ["ready\n"] * 2
    for changer in changers:
        changer.stdin.write("go\n")
        changer.stdin.flush()
    for changer in changers:
        _, errors = changer.communicate(timeout=100)
        assert changer.returncode == 0, errors
    assert store.get("prod").revision == 80


def test_two_threads_lose_no_change(store, runs):
    def change(run):
        for _ in range(20):
            store.set("prod", run)

    threads = [threading.Thread(target=change, args=(run,)) for run in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("prod").revision == 40


def test_crash_before_the_rename_leaves_the_old_alias(store, runs, tmp_path):
    before = store.set("prod", "one")
    crasher = _python(CRASHER, tmp_path)
    _, errors = crasher.communicate(timeout=100)
    assert crasher.returncode == 9, errors
    assert len(os.listdir(tmp_path / "aliases")) == 3  # alias, lock, what was not renamed
    other = AliasStore(tmp_path)
    assert (other.get("prod"), other.list()) == (before, (before,))
    assert other.set("prod", "two").revision == 2


def test_lock_that_is_never_free_is_told(store, runs, tmp_path, monkeypatch):
    before = store.set("prod", "one")
    monkeypatch.setattr(lock, "TIMEOUT_S", 0.05)
    with lock.hold(tmp_path / "aliases" / ".lock") as is_free:
        assert is_free
        with pytest.raises(ConflictError, match="another server is changing aliases"):
            store.set("prod", "two")
    assert store.get("prod") == before

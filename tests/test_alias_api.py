import pytest

from finetuner.alias_api import AliasAPI
from finetuner.alias_store import AliasStore
from finetuner.errors import AliasNotFoundError, ConfigError, PromotionRefusedError
from finetuner.run_store import RunStore


@pytest.fixture
def warmed():
    return []


@pytest.fixture
def api(tmp_path, finish_run, warmed):
    for name, outcome in (("one", "improved"), ("two", "improved"), ("three", "REGRESSED")):
        finish_run(name, outcome)
    return AliasAPI(AliasStore(tmp_path), warm=lambda target: warmed.append(target.run))


def test_set_gives_what_the_list_shows(api, warmed, tmp_path):
    split = {"run": "two", "weight": 0.1}
    record = api.set({"name": "prod", "run": "one", "split": split, "shadow": "three"})
    runs = RunStore(tmp_path)
    one, two, three = (
        {"run": f"default/{name}", "artifact_id": runs.get(name).spec()["artifact_id"]}
        for name in ("one", "two", "three")
    )
    assert record == {
        "name": "prod",
        "target": one,
        "split": {"target": two, "weight": 0.1},
        "shadow": three,
        "history": (),
        "revision": 1,
        "changed_at": record["changed_at"],
        "shares": [
            {"run": "default/one", "weight": 0.9},
            {"run": "default/two", "weight": 0.1},
        ],
        "missing": [],
    }
    assert api.aliases({}) == api.aliases({"name": "prod"}) == {"items": [record]}
    assert warmed == ["default/one", "default/two", "default/three"]


def test_force_and_only_force_overrules_the_rule(api, warmed):
    for force in ({}, {"force": False}):
        with pytest.raises(PromotionRefusedError, match="not measure better .set 0: REGRESSED"):
            api.set({"name": "prod", "run": "three", **force})
    assert warmed == []
    assert api.set({"name": "prod", "run": "three", "force": True})["revision"] == 1


def test_rollback_warms_and_shows(api, warmed):
    for run in ("one", "two"):
        api.set({"name": "prod", "run": run})
    warmed.clear()
    record = api.rollback({"name": "prod"})
    assert (record["target"]["run"], record["revision"], warmed) == (
        "default/one",
        3,
        ["default/one"],
    )


def test_deleted_runs_are_shown(api, tmp_path):
    api.set({"name": "prod", "run": "one", "split": {"run": "two", "weight": 0.5}})
    RunStore(tmp_path).delete(RunStore(tmp_path).get("two"))
    (record,) = api.aliases({})["items"]
    assert record["missing"] == ["default/two"]


def test_delete(api):
    api.set({"name": "prod", "run": "one"})
    assert api.delete({"name": "prod"}) == {"name": "prod"}
    assert api.aliases({}) == {"items": []}
    with pytest.raises(AliasNotFoundError, match="no alias `prod`"):
        api.aliases({"name": "prod"})


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("aliases", {"x": 1}, "unknown field `x` in parameters"),
        ("set", {"name": "prod"}, "parameters needs the field `run`"),
        ("set", {"run": "one"}, "parameters needs the field `name`"),
        ("set", {"name": "prod", "run": "one", "wieght": 1}, "unknown field `wieght`"),
        ("set", {"name": "prod", "run": "one", "force": 1}, "force must be true or false"),
        (
            "set",
            {"name": "prod", "run": "one", "split": {"run": "two"}},
            r"parameters\.split needs the field `weight`",
        ),
        (
            "set",
            {"name": "prod", "run": "one", "split": {"run": "two", "weight": 2.0}},
            "weight of a split must be 0 to 1, got 2.0",
        ),
        ("rollback", {}, "parameters needs the field `name`"),
        ("delete", {"name": "prod", "run": "one"}, "unknown field `run`"),
    ],
)
def test_parameters_that_are_refused(api, warmed, method, parameters, message):
    with pytest.raises(ConfigError, match=message):
        getattr(api, method)(parameters)
    assert (warmed, api.aliases({})) == ([], {"items": []})

"""Aliases over HTTP, by the client's verbs and by the command, on a volume with finished runs."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

import finetuner
from finetuner import alias_verbs
from finetuner.alias_api import AliasAPI
from finetuner.alias_routes import add_alias_routes
from finetuner.alias_store import AliasStore
from finetuner.cli import app as command
from finetuner.client import Client
from finetuner.errors import AliasNotFoundError, ConfigError, ConflictError, PromotionRefusedError
from finetuner.flow_calls import request_for
from finetuner.http_api import build_app
from finetuner.http_messages import add_error_handlers
from finetuner.run import Run
from finetuner.run_store import RunStore
from finetuner.wire import json_document


@pytest.fixture
def call(tmp_path):
    """What asks the EncoderExecutor in a Flow; parameters travel as they do there."""
    api = AliasAPI(AliasStore(tmp_path), warm=lambda _: None)
    endpoints = {
        "/aliases": api.aliases,
        "/alias/set": api.set,
        "/alias/rollback": api.rollback,
        "/alias/delete": api.delete,
    }

    async def call(endpoint, docs, parameters):
        return json_document(
            endpoints[endpoint](request_for(endpoint, docs, parameters).parameters)
        )

    return call


@pytest.fixture
def http(call, finish_run):
    for name, outcome in (("one", "improved"), ("two", "improved"), ("three", "REGRESSED")):
        finish_run(name, outcome)
    app = FastAPI()
    add_error_handlers(app)
    add_alias_routes(app, call)
    return TestClient(app)


@pytest.fixture
def server(http, connect):
    connect(alias_verbs, http)


def test_life_of_an_alias_over_http(http):
    assert http.get("/aliases").json() == {"items": []}
    body = {"run": "one", "split": {"run": "default/two", "weight": 0.25}, "shadow": "three"}
    answer = http.put("/aliases/prod", json=body)
    record = answer.json()
    assert (answer.status_code, record["target"]["run"], record["revision"]) == (
        200,
        "default/one",
        1,
    )
    assert record["shares"] == [
        {"run": "default/one", "weight": 0.75},
        {"run": "default/two", "weight": 0.25},
    ]
    assert record["shadow"]["run"] == "default/three"
    assert http.get("/aliases").json() == {"items": [record]}
    assert http.get("/aliases/prod").json() == record
    plain = {"run": "two", "split": None, "shadow": None, "force": False}
    assert http.put("/aliases/prod", json=plain).json()["history"] == [record["target"]]
    back = http.post("/aliases/prod/rollback").json()
    assert (back["target"], back["split"], back["revision"]) == (record["target"], None, 3)
    assert http.delete("/aliases/prod").json() == {"name": "prod"}
    assert http.get("/aliases").json() == {"items": []}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("GET", "/aliases/prod", None, 404, "AliasNotFoundError"),
        ("POST", "/aliases/prod/rollback", None, 404, "AliasNotFoundError"),
        ("DELETE", "/aliases/prod", None, 404, "AliasNotFoundError"),
        ("PUT", "/aliases/prod", {"run": "three"}, 409, "PromotionRefusedError"),
        ("PUT", "/aliases/one", {"run": "two"}, 409, "ConflictError"),
        ("PUT", "/aliases/prod", {"run": "none"}, 404, "ArtifactNotFound"),
        ("PUT", "/aliases/prod", {}, 422, "ConfigError"),
        ("PUT", "/aliases/prod", {"run": "one", "name": "other"}, 422, "ConfigError"),
        ("PUT", "/aliases/prod", {"run": ["one"]}, 422, "ConfigError"),
        ("PUT", "/aliases/.prod", {"run": "one"}, 422, "ConfigError"),
        ("PUT", "/aliases/prod", [], 400, "MalformedRequestError"),
        ("PUT", "/aliases/prod?force=true", {"run": "one"}, 422, "ConfigError"),
        ("GET", "/aliases?x=1", None, 422, "ConfigError"),
        ("GET", "/aliases/prod?x=1", None, 422, "ConfigError"),
    ],
)
def test_what_is_refused_over_http(http, method, path, body, status, error):
    answer = http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert http.get("/aliases").json() == {"items": []}


def test_routes_are_described(call, tmp_path):
    paths = build_app(call, tmp_path).openapi()["paths"]
    assert {path: set(paths[path]) for path in paths if path.startswith("/aliases")} == {
        "/aliases": {"get"},
        "/aliases/{name}": {"get", "put", "delete"},
        "/aliases/{name}/rollback": {"post"},
    }
    put = paths["/aliases/{name}"]["put"]
    schema = put["requestBody"]["content"]["application/json"]["schema"]
    assert (schema["required"], set(schema["properties"])) == (
        ["run"],
        {"run", "force", "split", "shadow"},
    )
    assert {"200", "404", "409", "422"} <= set(put["responses"])


def test_life_of_an_alias_by_verbs(server, finish_run):
    assert finetuner.list_aliases() == []
    alias = finetuner.set_alias("prod", "one", split="two", weight=0.25, shadow="three")
    assert [share["weight"] for share in alias["shares"]] == [0.75, 0.25]
    assert finetuner.list_aliases() == [finetuner.get_alias("prod")] == [alias]
    finish_run("four", "REGRESSED", experiment="other")
    run = Run(Client(), {"name": "four", "experiment_name": "other"})
    with pytest.raises(PromotionRefusedError, match="not measure better .set 0: REGRESSED"):
        finetuner.set_alias("prod", run)
    assert finetuner.set_alias("prod", run, force=True)["target"]["run"] == "other/four"
    assert finetuner.rollback_alias("prod")["target"] == alias["target"]
    with pytest.raises(ConflictError, match="has no target before `default/one`"):
        finetuner.rollback_alias("prod")
    finetuner.delete_alias("prod")
    with pytest.raises(AliasNotFoundError, match="no alias `prod`"):
        finetuner.get_alias("prod")


@pytest.mark.parametrize("options", [{"split": "two"}, {"weight": 0.5}])
def test_verb_refuses_half_a_split(server, options):
    with pytest.raises(ConfigError, match="split and weight go together"):
        finetuner.set_alias("prod", "one", **options)


def run_command(*arguments):
    """Return exit code, what was printed, and the errors, each on one line."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(command, ["alias", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_command_shows_sets_and_goes_back(server):
    code, shown, _ = run_command()
    assert (code, shown) == (0, "There is no alias yet; make one with: finetuner alias prod RUN\n")
    code, shown, _ = run_command("prod", "one", "--split", "two", "--weight", ".1")
    assert code == 0
    assert [word in shown for word in ("prod", "default/one", "0.9", "default/two", "0.1")] == [
        True
    ] * 5
    assert run_command("prod", "three")[0] == 1
    code, shown, _ = run_command("prod", "three", "--force", "--shadow", "two", "--json")
    record = json.loads(shown)
    assert (record["target"]["run"], record["shadow"]["run"]) == ("default/three", "default/two")
    assert json.loads(run_command("--json")[1]) == [record]
    assert json.loads(run_command("prod", "--json")[1]) == record
    code, shown, _ = run_command("prod", "--rollback")
    assert (code, "default/one" in shown, "default/three" in shown) == (0, True, False)
    assert run_command("prod", "--delete") == (0, "Alias `prod` is deleted.\n", "")
    assert finetuner.list_aliases() == []


def test_table_shows_one_run_before_in_the_list_and_all_for_one_alias(server, tmp_path):
    for run in ("one", "two", "three"):
        finetuner.set_alias("prod", run, force=True)
    for arguments, expected in (((), [False, True, True]), (("prod",), [True, True, True])):
        shown = run_command(*arguments)[1]
        assert [f"default/{run}" in shown for run in ("one", "two", "three")] == expected
    store = RunStore(tmp_path)
    assert "(deleted)" not in run_command()[1]
    store.delete(store.get("three"))
    assert "default/three (deleted)" in run_command()[1]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("prod",), 3, "no alias `prod`; known: none"),
        (("prod", "three"), 1, "run `default/three` did not measure better (set 0: REGRESSED):"),
        (("prod", "one", "--split", "two"), 2, "split and weight go together"),
        (("prod", "[b]x"), 3, "no run and no artifact `[b]x`"),
        (("--rollback",), 2, "name the alias: finetuner alias NAME"),
        (("--force",), 2, "name the alias: finetuner alias NAME"),
        (("prod", "--rollback", "--delete"), 2, "take the alias alone"),
        (("prod", "one", "--rollback"), 2, "take the alias alone"),
        (("prod", "--delete", "--force"), 2, "take the alias alone"),
        (("prod", "--weight", "0"), 2, "name the run that `prod` shall point to"),
    ],
)
def test_command_ends_with_a_sentence(server, arguments, exit_code, message):
    code, shown, errors = run_command(*arguments)
    assert (code, shown) == (exit_code, "")
    assert errors.startswith("Error: ")
    assert message in errors
    assert finetuner.list_aliases() == []

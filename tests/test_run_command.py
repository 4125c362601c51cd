"""The commands about runs."""

import orjson
import pytest

from finetuner import run_command, run_wait
from finetuner.errors import ConfigError
from finetuner.named_run import complete_aliases, complete_runs, complete_served, named
from finetuner.run_tables import duration, share_done

PROGRESS = {
    **{"epoch": 2, "n_epochs": 3, "step": 20, "n_steps": 40, "n_steps_done": 60},
    **{"n_steps_total": 120, "loss": 0.41, "active": 0.8, "texts_per_s": 101.0, "eta_s": 73.0},
}
RECORD = {
    **{
        "name": "one",
        "experiment_name": "default",
        "status": "FINISHED",
        "details": "Run finished",
    },
    **{"artifact_id": "a" * 24, "config": {}, "progress": None, "verdict": "improved"},
    "metric": {"name": "average_precision", "before": 0.5, "best": 0.75, "best_epoch": 2},
}
METRICS = {
    "before": {"average_precision": 0.5, "[red]recall": 0.25},
    "after": {"average_precision": 0.625, "[red]recall": 0.25},
    "epochs": [
        {"epoch": 0, "metrics": {"average_precision": 0.5, "[red]recall": 0.25}},
        {"epoch": 1, "step": 4, "metrics": {"average_precision": 0.75, "[red]recall": 0.125}},
        {"epoch": 2, "metrics": {"average_precision": 0.625, "[red]recall": 0.25}},
    ],
    "verdicts": {"model": {"outcome": "improved", "changes": {}}},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(run_command, "POLL_INTERVAL_S", 0.01)


def page(*records, total=None):
    return {"items": list(records), "total": total or len(records), "page": 1, "size": 50}


def test_runs_shows_how_far_and_how_good(fake, command):
    at_work = {**RECORD, "name": "two", "experiment_name": "quora", "status": "STARTED"}
    at_work |= {"progress": PROGRESS, "metric": None, "verdict": None}
    waiting = {**RECORD, "name": "[red]", "status": "CREATED", "metric": None, "position": 3}
    fake.answers["GET /runs"] = page(RECORD, at_work, waiting, total=70)
    shown = command("runs").stdout.splitlines()
    (one,) = [line for line in shown if " one " in line]
    assert "average_precision 0.50000 → 0.75000" in one
    assert "improved" in one
    (two,) = [line for line in shown if "quora/two" in line]
    assert "██████░░░░░░  50%" in two
    assert "1:13" in two
    (third,) = [line for line in shown if "[red]" in line]
    assert "3. in the queue" in third
    assert shown[-1] == "Page 1: 3 of 70 runs."


def test_runs_of_an_older_server_have_less_to_show(fake, command):
    old = {"name": "one", "experiment_name": "default", "status": "STARTED", "details": "x"}
    fake.answers["GET /runs"] = page(old)
    assert "STARTED" in command("runs").stdout


def test_runs_asks_for_what_was_wanted(fake, command):
    fake.answers["GET /runs"] = page()
    assert "There is no run here" in command("runs").stdout
    assert fake.requests[-1][1] == {"page": "1", "size": "50"}
    words = ("--experiment", "quora", "--page", 2, "--size", 3, "--newest", "--json")
    assert orjson.loads(command("runs", *words).stdout) == page()
    asked = {"experiment_name": "quora", "page": "2", "size": "3", "order": "newest"}
    assert fake.requests[-1][1] == asked


def test_watch_goes_on_until_it_is_interrupted(fake, command):
    fake.answers["GET /runs"] = page(RECORD)
    n_pauses = []

    def pause(_seconds):
        n_pauses.append(1)
        if len(n_pauses) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_command.time, "sleep", pause)
        command("runs", "--watch", exit_code=130)
    assert len(fake.requests) == 3
    assert "leave --json out" in command("runs", "--watch", "--json", exit_code=2).stderr


def test_status(fake, command):
    fake.answers["GET /runs/one"] = {**RECORD, "experiment_name": "quora"}
    fake.answers["GET /runs/one/status"] = {"status": "STARTED", "details": "epoch [1]"}
    assert command("status", "quora/one").stdout == "STARTED  epoch [1]\n"
    assert fake.requests[-1][1] == {"experiment_name": "quora"}
    assert orjson.loads(command("status", "one", "--json").stdout)["status"] == "STARTED"
    assert "nothing at GET /runs/two" in command("status", "two", exit_code=3).stderr


def test_logs_as_they_are_and_as_they_come(fake, command):
    fake.answers["GET /runs/one"] = RECORD
    fake.answers["GET /runs/one/logs"] = b"first\n[red]last"
    assert command("logs", "one").stdout == "first\n[red]last"
    fake.head = {"Run-Id": RECORD["artifact_id"], "Run-Ended": "true"}
    fake.answers["GET /runs/one/status"] = {"status": "FINISHED", "details": ""}
    assert command("logs", "-f", "one").stdout == "first\n[red]last\n"
    fake.answers["GET /runs/one/status"] = {"status": "FAILED", "details": "out of luck"}
    assert "run `one`: out of luck" in command("logs", "-f", "one", exit_code=4).stderr


def test_metrics_before_best_and_after(fake, command):
    fake.answers["GET /runs/one/metrics"] = METRICS
    shown = command("metrics", "one").stdout
    assert shown.startswith("model: improved\n")
    (line,) = [line for line in shown.splitlines() if "average_precision" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells == ["average_precision", "0.50000", "0.75000 (1)", "0.62500", "+0.12500"]
    (line,) = [line for line in shown.splitlines() if "[red]recall" in line]
    assert "0.25000 (2)" in line
    epochs = command("metrics", "one", "--epochs").stdout
    assert "1, step 4" in epochs
    assert orjson.loads(command("metrics", "one", "--json").stdout) == METRICS


def test_a_verdict_says_what_it_rests_on(fake, command):
    change = {"before": 0.5, "after": 0.625, "standard_error": 0.014}
    verdict = {"outcome": "improved", "n_queries": 20, "changes": {"average_precision": change}}
    fake.answers["GET /runs/one/metrics"] = METRICS | {"verdicts": {"model": verdict}}
    assert command("metrics", "one").stdout.startswith(
        "model: improved, over 20 queries\n  average precision +0.1250, standard error 0.0140\n"
    )


def test_metrics_of_a_run_that_was_not_evaluated(fake, command):
    empty = {"before": {}, "after": {}, "epochs": [], "verdicts": {}}
    fake.answers["GET /runs/one/metrics"] = empty
    assert "was not evaluated" in command("metrics", "one").stdout
    assert "was not evaluated" in command("metrics", "one", "--epochs").stdout
    begun = {**empty, "before": {"recall": 0.5}, "epochs": METRICS["epochs"][:1]}
    fake.answers["GET /runs/one/metrics"] = begun
    assert "0.50000" in command("metrics", "one").stdout


def test_cancel(fake, command):
    fake.answers |= {"GET /runs/one": RECORD, "POST /runs/one/cancel": RECORD}
    assert command("cancel", "one").stdout == "Run `one` is cancelled.\n"
    refused = (409, {"error": "ImpossibleStepError", "detail": "it has ended"})
    fake.answers["POST /runs/one/cancel"] = refused
    assert "it has ended" in command("cancel", "one", exit_code=1).stderr


def test_delete_asks_on_a_terminal_and_wants_yes_elsewhere(fake, command, monkeypatch):
    fake.answers["DELETE /runs/one"] = {"items": [RECORD]}
    refused = command("delete", "one", exit_code=2)
    assert "finetuner delete one --yes deletes it" in refused.stderr
    monkeypatch.setattr(run_command, "_is_terminal", lambda: True)
    assert "It stays." in command("delete", "one", input="n\n").stdout
    assert fake.requests == []
    assert "is deleted" in command("delete", "one", input="y\n").stdout
    assert "is deleted" in command("delete", "quora/one", "--yes").stdout
    assert fake.requests[-1][:2] == ("DELETE /runs/one", {"experiment_name": "quora"})


def test_save_prints_the_path_alone(fake, command, tmp_path):
    fake.answers |= {"GET /runs/one": RECORD, "GET /runs/one/artifact": b"zip" * 1000}
    fake.answers["GET /runs/one/status"] = {"status": "FINISHED", "details": ""}
    saved = command("save", "one", tmp_path / "new")
    assert saved.stdout == f"{tmp_path}/new/one.zip\n"
    assert (tmp_path / "new" / "one.zip").read_bytes() == b"zip" * 1000
    fake.answers["GET /runs/one/status"] = {"status": "FAILED", "details": ""}
    command("save", "one", tmp_path, exit_code=4)
    fake.answers["GET /runs/one/status"] = {"status": "STARTED", "details": ""}
    command("save", "one", tmp_path, exit_code=1)
    assert not (tmp_path / "one.zip").exists()


def test_models(fake, command):
    fake.answers["GET /models"] = {"models": []}
    assert command("models").stdout == "No run is finished yet.\n"
    model = {"id": "prod", "kind": "alias", "artifact_id": "a" * 24, "is_loaded": True, "dim": 384}
    fake.answers["GET /models"] = {"models": [model]}
    shown = command("models").stdout
    assert all(word in shown for word in ("prod", "alias", "yes", "384", "a" * 24))
    assert orjson.loads(command("models", "--json").stdout) == [model]


@pytest.mark.parametrize(
    ("status", "name", "exit_code"),
    [
        (401, "AuthenticationRequiredError", 6),
        (403, "ForbiddenError", 6),
        (404, "RunNotFoundError", 3),
        (409, "RunFailedError", 4),
        (422, "ConfigError", 2),
        (429, "OverloadedError", 5),
        (503, "UnavailableError", 5),
        (500, "Oops", 1),
        (507, "InsufficientSpaceError", 1),
    ],
)
def test_exit_codes(fake, command, status, name, exit_code):
    fake.answers["GET /runs"] = (status, {"error": name, "detail": "it is [red]so[/red]"})
    told = command("runs", exit_code=exit_code).stderr
    assert told.startswith("Error: ")
    assert status == 401 or "it is [red]so[/red]" in told


def test_no_server_is_5(command, monkeypatch):
    monkeypatch.setenv("FINETUNER_HOST", "http://127.0.0.1:9")
    assert "start one with `finetuner serve`" in command("runs", exit_code=5).stderr


@pytest.mark.parametrize("text", ["", "/", "a/", "/a", "a/b/c"])
def test_a_name_that_is_none(text):
    with pytest.raises(ConfigError, match="a run is named `name` or `experiment/name`; got"):
        named(text)


def test_names():
    assert (named("a").name, named("a").experiment_name, named("a").shown) == ("a", "default", "a")
    assert (named("b/a").name, named("b/a").experiment_name) == ("a", "b")
    assert (named("default/a").shown, named("b/a").shown) == ("a", "b/a")


def test_completion(fake, monkeypatch):
    fake.answers["GET /runs"] = page(RECORD, {**RECORD, "experiment_name": "other"})
    fake.answers["GET /aliases"] = {"items": [{"name": "prod"}, {"name": "onwards"}]}
    assert complete_runs("") == ["one", "other/one"]
    assert complete_runs("on") == ["one"]
    assert complete_aliases("p") == ["prod"]
    assert complete_served("o") == ["onwards", "one", "other/one"]
    fake.answers["GET /runs"] = [1]
    assert complete_runs("") == []
    monkeypatch.setenv("FINETUNER_HOST", "http://127.0.0.1:9")
    assert complete_served("") == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.6, "1:00"), (73, "1:13"), (3599, "59:59"), (3661, "1:01:01")],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_share_done():
    assert share_done(PROGRESS) == 0.5
    assert share_done({"n_steps_done": 9, "n_steps_total": 0}) == 0.0
    assert share_done({"n_steps_done": 9, "n_steps_total": 8}) == 1.0


def test_lines_tell_each_state_and_epoch_once(capsys):
    from rich.console import Console

    console = Console(stderr=True, highlight=False, width=100)
    at_work = {"status": "STARTED", "details": "", "progress": PROGRESS}
    with run_wait._lines(console) as update:
        for record in (RECORD, at_work, at_work, {**at_work, "progress": {**PROGRESS, "epoch": 3}}):
            update(record)
    assert capsys.readouterr().err.splitlines() == [
        "FINISHED  Run finished",
        "STARTED  epoch 2, loss 0.4100, 1:13 left",
        "STARTED  epoch 3, loss 0.4100, 1:13 left",
    ]


def test_a_bar_shows_epoch_loss_and_time(capsys):
    from rich.console import Console

    console = Console(stderr=True, width=100, force_terminal=True, color_system=None)
    with run_wait._bar(console) as update:
        update({"status": "CREATED", "details": "waits", "progress": None})
        update({"status": "STARTED", "details": "", "progress": PROGRESS})
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("epoch 2/3", "50%", "loss 0.4100", "1:13 left"))

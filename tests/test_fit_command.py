"""``finetuner fit``."""

import orjson
import pytest

from finetuner import fit_command, run_wait

RECORD = {
    **{
        "name": "one",
        "experiment_name": "default",
        "status": "FINISHED",
        "details": "Run finished",
    },
    **{"artifact_id": "a" * 24, "config": {}},
}
METRICS = {
    "before": {"recall": 0.25},
    "after": {"recall": 0.5},
    "epochs": [{"epoch": 0, "metrics": {"recall": 0.25}}, {"epoch": 1, "metrics": {"recall": 0.5}}],
    "verdicts": {"model": {"outcome": "improved"}},
}
NEEDED = ("fit", "--model", "m", "--data", "d.da")


@pytest.fixture(autouse=True)
def _answers(fake, monkeypatch):
    fake.answers |= {"POST /fit": RECORD, "GET /runs/one": RECORD}
    fake.answers["GET /runs/one/metrics"] = METRICS
    patient = run_wait.wait
    monkeypatch.setattr(fit_command, "wait", lambda *a: patient(*a, interval_s=0.01))


def sent(fake):
    ((_, _, body),) = [request for request in fake.requests if request[0] == "POST /fit"]
    return body


def test_it_returns_at_once(fake, command):
    shown = command(*NEEDED).stdout
    assert shown == "Run `one` is submitted. See it through: finetuner logs -f one\n"
    body = sent(fake)
    assert (body["model"], body["train_data"], body["experiment_name"]) == ("m", "d.da", "default")
    assert (body["epochs"], body["loss"], body["callbacks"]) == (5, "TripletMarginLoss", [])
    assert orjson.loads(command(*NEEDED, "--json").stdout) == RECORD


def test_every_option_reaches_the_request(fake, command):
    options = {
        **{"run-name": "one", "description": "a b", "loss": "SupConLoss", "epochs": 3},
        **{"batch-size": 8, "num-items-per-class": 2, "learning-rate": 1e-4, "optimizer": "AdamW"},
        **{"scheduler": "linear", "miner": "HardMiner", "val-split": 0.1, "model-artifact": "two"},
        **{"device": "cpu", "seed": 7, "priority": 5},
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--experiment", "quora", "--to-onnx"]
    words += ["--loss-option", "temperature=0.05", "--loss-option", "name=x"]
    words += ["--set", 'lora={"rank": 8}', "--set", "precision=bf16", "--set", "dimensions=[4, 2]"]
    command(*NEEDED, *words)
    expected = {name.replace("-", "_"): value for name, value in options.items()}
    expected |= {"experiment_name": "quora", "to_onnx": True, "precision": "bf16"}
    expected |= {"loss_options": {"temperature": 0.05, "name": "x"}, "lora": {"rank": 8}}
    body = sent(fake)
    assert {name: body[name] for name in expected} == expected
    assert body["dimensions"] == [4, 2]


def test_a_csv_is_read_here(fake, command, tmp_path):
    (tmp_path / "x.csv").write_text("a,1\nb,2\n")
    command("fit", "--model", "m", "--data", tmp_path / "x.csv", "--labelled")
    assert sent(fake)["train_data"] == [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--hold-out", 0.2), {"hold_out": 0.2, "query_data": None}),
        (("--eval-query", "q"), {"hold_out": None, "query_data": "q", "index_data": None}),
        (("--eval-query", "q", "--eval-index", "i"), {"query_data": "q", "index_data": "i"}),
    ],
)
def test_evaluations(fake, command, words, options):
    command(*NEEDED, *words, "--set", 'callbacks=[{"name": "WiSEFTCallback"}]')
    evaluation, other = sent(fake)["callbacks"]
    assert evaluation["name"] == "EvaluationCallback"
    assert {name: evaluation["options"][name] for name in options} == options
    assert other == {"name": "WiSEFTCallback", "options": {"alpha": 0.4}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "epohcs=3"), "unknown setting `epohcs` of --set; did you mean `epochs`?"),
        (("--set", "epochs"), "--set takes NAME=VALUE, such as temperature=0.05; got `epochs`"),
        (("--loss-option", "=1"), "--loss-option takes NAME=VALUE"),
        (("--set", 'lora={"rank": 8'), "--set lora must be JSON or a plain word"),
        (("--epochs", 3, "--set", "epochs=4"), "epochs is given twice: by --set and by --epochs"),
        (("--set", "train_data=x"), "train_data is given twice: by --set and by --data"),
        (("--set", "seed=1", "--set", "seed=2"), "or by --set alone"),
        (("--eval-index", "i"), "give --eval-query too"),
        (("--eval-query", "q", "--hold-out", 0.2), "leave one out"),
        (("--hold-out", 2), "hold_out must be above 0"),
        (("--set", 'callbacks=[{"name": "X"}]'), "unknown callback `X`"),
        (("--set", "callbacks=3"), "--set callbacks must be a list"),
    ],
)
def test_what_makes_no_sense_is_refused_and_not_sent(fake, command, words, message):
    assert message in command(*NEEDED, *words, exit_code=2).stderr
    assert fake.requests == []


def test_follow_waits_and_shows_what_came_of_it(fake, command):
    away = (503, {"error": "UnavailableError", "detail": "starts again"})
    started = {**RECORD, "status": "STARTED", "details": "loads"}
    fake.answers["GET /runs/one"] = [RECORD, started, away, started, RECORD]
    shown = command(*NEEDED, "--follow")
    assert "STARTED  loads\n" in shown.stderr
    assert "Run `one` is finished. Get its model: finetuner save one\n" in shown.stdout
    assert "model: improved" in shown.stdout
    assert "0.50000 (1)" in shown.stdout
    fake.answers["GET /runs/one"] = RECORD
    assert orjson.loads(command(*NEEDED, "-f", "--json").stdout)["metrics"] == METRICS


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
def test_a_run_that_ends_otherwise_is_4(fake, command, status):
    fake.answers["GET /runs/one"] = {**RECORD, "status": status, "details": "why [not]"}
    assert "Error: run `one`: why [not]" in command(*NEEDED, "-f", exit_code=4).stderr


def test_a_run_of_the_same_name_is_another(fake, command):
    fake.answers["GET /runs/one"] = [
        {**RECORD, "status": "STARTED"},
        {**RECORD, "artifact_id": "b" * 24},
    ]
    assert "another one has its name" in command(*NEEDED, "-f", exit_code=3).stderr


def test_ctrl_c_leaves_the_run(fake, command, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_command, "wait", interrupt)
    told = command(*NEEDED, "-f", exit_code=130).stderr
    assert told == "The run goes on; `finetuner cancel one` ends it.\n"

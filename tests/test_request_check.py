"""What a request would be refused for, all at once, and never another answer than that of submitting it."""

import random

import orjson
import pytest
import torch

from finetuner.config import RunConfig
from finetuner.data_report import data_report
from finetuner.datastore import DataStore
from finetuner.errors import FinetunerError, FinetunerServerError
from finetuner.pairs import read_rows
from finetuner.request_check import check_request
from finetuner.space import Space, footprint
from finetuner.submission import submit_once

ROWS = [[f"text {i} of label {label}", label] for label in "abcdefghijkl" for i in range(4)]
PAIRS = [{"anchor": f"a {i}", "positive": f"p {i}"} for i in range(9)]
SCORED = [{"sentence1": f"a {i}", "sentence2": f"p {i}", "score": i} for i in range(9)]


@pytest.fixture
def space(tmp_path, tiny_model_folder):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    return Space(tmp_path)


def request(**changes):
    body = {"model": "tiny", "train_data": ROWS, "run_name": "one", "device": "cpu", **changes}
    return {name: value for name, value in body.items() if value is not None}


def evaluated(**options):
    return {"name": "EvaluationCallback", "options": options}


def files(space):
    return sorted(str(path) for path in space.workspace.rglob("*"))


def test_a_request_without_a_problem(space):
    before = files(space)
    queries = evaluated(query_data=[["q", "a"], ["r", "none"]], index_data=ROWS)
    body = request(callbacks=[{"name": "WiSEFTCallback"}, queries], dimensions=[16])
    found = check_request(body, space)
    assert files(space) == before
    assert (found["problems"], found["evaluation"]) == (
        [],
        {"n_queries": 1, "n_index": 48, "n_labels": 1},
    )
    assert found["warnings"] == [
        {
            "field": "callbacks[1]",
            "message": "1 evaluation queries are left out: nothing in the index has their label",
        }
    ]
    assert found["train_data"] == data_report(read_rows(ROWS)).answer()
    submitted = submit_once(body, space).run
    assert submitted.spec()["config"] == orjson.loads(orjson.dumps(found["config"]))
    data_bytes = sum(path.stat().st_size for path in (submitted.folder / "data").iterdir())
    needed = footprint(submitted.config(), space.workspace, data_bytes=data_bytes)
    assert found["size_bytes"] == needed.total_bytes
    assert found["free_bytes"] > 0


@pytest.mark.parametrize("has_gpu", [False, True])
def test_whether_there_is_a_gpu_is_told_whatever_device_is_asked_for(space, monkeypatch, has_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    for device in ("cpu", "cuda"):
        found = check_request(request(device=device, precision="fp32"), space)
        warned = [warning["field"] for warning in found["warnings"]]
        assert found["has_gpu"] is has_gpu
        assert ("device" in warned) is (device == "cuda" and not has_gpu)


@pytest.mark.parametrize(
    ("share", "n_queries", "n_index", "n_labels"),
    [pytest.param(0.25, 12, 36, 12, id="texts"), pytest.param(0.5, 24, 24, 6, id="labels")],
)
def test_what_is_held_out_is_counted(space, share, n_queries, n_index, n_labels):
    found = check_request(request(callbacks=[evaluated(hold_out=share)]), space)
    counted = {"n_queries": n_queries, "n_index": n_index, "n_labels": n_labels}
    assert found["evaluation"] == counted
    assert found["train_data"]["n_rows"] == 48


def test_stored_data_are_looked_at(space):
    DataStore(space.workspace).put_texts("mine", read_rows(PAIRS))
    body = request(train_data="mine", loss="MultipleNegativesRankingLoss", run_name=None)
    found = check_request(body, space)
    assert (found["problems"], found["train_data"]["form"]) == ([], "pairs")
    assert (found["config"]["train_data"], found["config"]["run_name"]) == ("mine", "")


def problems(space, **changes):
    return {p["field"]: p["message"] for p in check_request(request(**changes), space)["problems"]}


def test_every_problem_is_found(space):
    changes = {
        "model": "tiyn",
        "modle": "x",
        "train_data": [["a", 1], ["b", 1]],
        "eval_data": "none",
        "loss_options": {"marign": 1},
        "miner": "Minr",
        "optimizer": "Adm",
        "scheduler": "liner",
        "epochs": -1,
        "batch_size": "x",
        "onnx_variants": ["int8"],
        "lora": {"rnk": 1},
        "precision": "fp16",
        "learning_rate": 2,
        "callbacks": [
            {"name": "Evaluation"},
            evaluated(query_data="other"),
            evaluated(limit=0),
            evaluated(query_data=[["q", 1]], index_data=[["i", 2]], caption="b"),
        ],
    }
    found = problems(space, **changes)
    expected = {
        "model": "no model `tiyn`",
        "modle": "unknown field `modle` in fit; did you mean `model`",
        "train_data": "training needs at least two labels; found 2 different texts",
        "eval_data": "no stored data `none`",
        "loss": "did you mean `margin`",
        "miner": "unknown miner `Minr`",
        "optimizer": "unknown optimizer `Adm`; did you mean `Adam`",
        "scheduler": "unknown scheduler `liner`; did you mean `linear`",
        "epochs": "epochs must be from 0 to 1000, got -1",
        "batch_size": "fit.batch_size must be a whole number, got a string",
        "onnx_variants": "are made from the ONNX graph: add to_onnx=True",
        "lora": "unknown field `rnk` in lora; did you mean `rank`",
        "precision": "precision='fp16' needs a GPU",
        "learning_rate": "learning_rate must lie between 0 and 1, got 2",
        "callbacks[0]": "unknown callback `Evaluation`",
        "callbacks[1]": "no stored data `other`",
        "callbacks[2]": "EvaluationCallback.limit must be at least 1, got 0",
        "callbacks[3]": "none of the 1 evaluation queries has a text with its label",
    }
    assert {field: expected.get(field, "") in message for field, message in found.items()} == (
        dict.fromkeys(expected, True)
    )


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"model": None}, "model", "fit needs the field `model`"),
        ({"model": 5}, "model", "fit.model must be a string, got `5`"),
        ({"train_data": None}, "train_data", "train_data must be the name of stored data"),
        ({"train_data": [["a", 1], ["b"]]}, "train_data", "row 2 must be"),
        ({"train_data": "none"}, "train_data", "no stored data `none`"),
        ({"train_data": PAIRS, "loss": "CoSENTLoss"}, "loss", "CoSENTLoss trains on scored pairs"),
        ({"loss": "Los"}, "loss", "unknown loss `Los`"),
        ({"train_data": SCORED}, "loss", "trains on labels, and these data are scored pairs"),
        ({"loss": 5}, "loss", "fit.loss must be a string"),
        ({"val_split": 0.9}, "val_split", "val_split=0.9 leaves"),
        ({"eval_data": [["a", 1]]}, "eval_data", "at least two labels"),
        ({"eval_data": ROWS, "val_split": 0.2}, "eval_data", "two ways to one thing"),
        ({"callbacks": [evaluated(hold_out=0.95)]}, "callbacks[0]", "at most 0.9, got 0.95"),
        (
            {"callbacks": [evaluated(hold_out=0.2)], "train_data": SCORED, "loss": "CoSENTLoss"},
            "callbacks[0]",
            "these are scored pairs: give query_data",
        ),
        ({"callbacks": [evaluated()]}, "callbacks[0]", "needs query_data, or hold_out"),
        ({"callbacks": 5}, "callbacks", "fit.callbacks must be a list"),
        ({"callbacks": [{"name": "EarlyStopping"}]}, "callbacks", "watches `val_loss`, which"),
        (
            {"callbacks": [evaluated(query_data=ROWS), evaluated(query_data=ROWS)]},
            "callbacks",
            "a different `caption` each",
        ),
        ({"dimensions": [64]}, "model", "at most the length of the vectors, 32, got 64"),
        ({"run_name": "../x"}, "run_name", "the run name `../x` is not allowed"),
        ({"model_artifact": "none"}, "model", "no run and no artifact `none`"),
    ],
)
def test_one_problem_is_one_problem(space, changes, field, message):
    found = check_request(request(**changes), space)
    assert [problem["field"] for problem in found["problems"]] == [field]
    assert message in found["problems"][0]["message"]
    with pytest.raises(FinetunerError) as refusal:
        submit_once(request(**changes), space)
    assert str(refusal.value) == found["problems"][0]["message"]


CHANGES = [
    *({"model": "other"}, {"epochs": -1}, {"loss": "Los"}, {"val_split": 0.9}, {"x": 1}),
    *({"train_data": PAIRS}, {"train_data": ROWS[:5]}, {"callbacks": [evaluated(hold_out=0.3)]}),
    *({"loss": "MultipleNegativesRankingLoss"}, {"optimizer": "SGD"}, {"precision": "fp16"}),
    *({"callbacks": [{"name": "BestModelCheckpoint"}]}, {"eval_data": ROWS}, {"dimensions": [99]}),
]


@pytest.mark.parametrize("seed", range(20))
def test_a_request_is_refused_exactly_when_it_has_a_problem(space, seed):
    changes = random.Random(seed).sample(CHANGES, seed % 4)
    body = request(**{name: value for change in changes for name, value in change.items()})
    messages = [problem["message"] for problem in check_request(body, space)["problems"]]
    if not messages:
        assert submit_once(body, space).is_new
        return
    with pytest.raises(FinetunerError) as refusal:
        submit_once(body, space)
    assert str(refusal.value) in messages


def test_loss_and_data_may_both_be_wrong(space):
    found = problems(space, train_data=[{**row, "score": 1} for row in SCORED])
    assert "TripletMarginLoss trains on labels" in found["loss"]
    assert "all scores are 1: nothing can be learnt" in found["train_data"]
    # A pair of one text teaches pairs nothing, and is a label of its own.
    pairs = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "c"}]
    assert problems(space, train_data=pairs) == {}
    assert set(problems(space, train_data=pairs, loss="Los")) == {"loss", "train_data"}


def test_a_name_that_is_taken_and_a_request_that_was_made(space):
    made = submit_once(request(), space).run
    found = check_request(request(), space)
    assert (found["problems"], found["warnings"]) == (
        [],
        [
            {
                "field": "run_name",
                "message": "this request has made run `one` before: it would be given back",
            }
        ],
    )
    assert "epochs: 5 → 2" in problems(space, epochs=2)["run_name"]
    assert made.exists()


def test_a_key_that_is_taken_is_not_claimed(space):
    submit_once(request(idempotency_key="k"), space)
    before = files(space)
    assert (
        "names its run otherwise"
        in problems(space, idempotency_key="k", run_name="two")["run_name"]
    )
    assert problems(space, idempotency_key="other", run_name="two") == {}
    assert problems(space, idempotency_key="k", run_name=None) == {}
    found = check_request(request(idempotency_key="k", run_name=None), space)
    assert "has made run `one` before" in found["warnings"][0]["message"]
    assert files(space) == before


def test_what_has_no_room_is_a_problem(space):
    small = Space(space.workspace, quota_bytes=1000)
    assert "run `one` needs about" in problems(small)[""]
    assert check_request(request(), small)["free_bytes"] < 1000
    assert set(problems(small, epochs=-1)) == {"", "epochs"}


def test_a_gpu_that_is_not_there(space, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = check_request(request(device="cuda"), space)
    assert found["problems"] == []
    assert found["warnings"][0]["field"] == "device"
    assert "there is no GPU here: using the CPU" in found["warnings"][0]["message"]
    found = check_request(request(device="cuda"), space, allow_cpu_fallback=False)
    assert "this server has no GPU" in found["problems"][0]["message"]


def test_repetitions_and_contradictions_are_warned_of(space):
    rows = [*ROWS, ROWS[0], [ROWS[1][0], "z"]]
    (warning,) = check_request(request(train_data=rows), space)["warnings"]
    assert warning == {
        "field": "train_data",
        "message": "left out: 1 repeated, 1 under several labels",
    }


def test_what_the_server_is_to_blame_for_is_raised(space, monkeypatch):
    def fail(*_):
        raise FinetunerServerError("The disk is damaged")

    monkeypatch.setattr(DataStore, "texts", fail)
    with pytest.raises(FinetunerServerError, match="The disk is damaged"):
        check_request(request(train_data="mine"), space)


def test_settings_have_all_fields(space):
    config = check_request(request(), space)["config"]
    assert set(config) == set(RunConfig.__dataclass_fields__)
    assert check_request(request(epochs=-1), space)["config"] is None

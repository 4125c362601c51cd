import pytest

from finetuner.data import read_jsonl
from finetuner.errors import ConfigError, DataError, DataNotFoundError, ModelNotFoundError
from finetuner.pairs import read_data
from finetuner.run_store import RunStore
from finetuner.runs import Status
from finetuner.submission import submit

ROWS = [["a", 1], ["b", "1"], ["c", 2.0], {"text": "d", "label": 2}]
PAIRS = [
    {"anchor": "a", "positive": "b"},
    {"anchor": "c", "positive": "d"},
    {"anchor": "e", "positive": "f", "negative": "g"},
]
SCORED = [
    {"sentence1": "a", "sentence2": "b", "score": 1},
    {"sentence1": "a", "sentence2": "c", "score": 0},
]
QUERIES = {"query_data": [["e", 1]], "index_data": [["f", "1"], ["g", 3]]}


@pytest.fixture
def workspace(tmp_path, tiny_model_folder):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    return tmp_path


def request(**changes):
    callbacks = [{"name": "EvaluationCallback", "options": QUERIES}]
    body = {"model": "tiny", "train_data": ROWS, "run_name": "one", "callbacks": callbacks}
    return {name: value for name, value in {**body, **changes}.items() if value is not None}


def evaluated(**options):
    return [{"name": "EvaluationCallback", "options": options}]


def test_data_lie_in_the_runs_folder_and_not_in_its_settings(workspace):
    run = submit(request(), workspace)

    assert run.state().status is Status.CREATED
    files = {path.name: read_jsonl(path).labels for path in (run.folder / "data").iterdir()}
    assert files == {
        "train.jsonl": ["1", "1", "2", "2"],
        "evaluation-0-query.jsonl": ["1"],
        "evaluation-0-index.jsonl": ["1", "3"],
    }
    config = run.spec()["config"]
    assert config["train_data"] == "4 rows"
    assert config["callbacks"][0]["options"] == {"query_data": "1 rows", "index_data": "2 rows"}


@pytest.mark.parametrize(
    ("train_data", "loss"),
    [
        (PAIRS, "MultipleNegativesRankingLoss"),
        (PAIRS[:2], "MultipleNegativesRankingLoss"),
        (PAIRS[:2], "SupConLoss"),
        (SCORED, "CoSENTLoss"),
        (SCORED, "CosineSimilarityLoss"),
    ],
)
def test_pairs_are_kept_as_they_came(workspace, train_data, loss):
    run = submit(request(train_data=train_data, loss=loss), workspace)

    assert [*read_data(run.folder / "data" / "train.jsonl").rows()] == train_data
    assert run.spec()["config"]["train_data"] == f"{len(train_data)} rows"


def test_evaluation_data_may_be_pairs(workspace):
    index = [{"anchor": "x", "positive": "y"}, {"anchor": "a", "positive": "z"}]
    options = {"query_data": PAIRS[:1], "index_data": index}
    run = submit(request(callbacks=evaluated(**options)), workspace)

    query, index = (
        read_jsonl(run.folder / "data" / f"evaluation-0-{role}.jsonl")
        for role in ("query", "index")
    )
    assert (query.texts, query.labels) == (["a", "b"], ["0", "0"])
    assert (index.texts, index.labels) == (["x", "y", "a", "z"], ["1", "1", "0", "0"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"modle": "x"}, ConfigError, "unknown field `modle` in fit; did you mean `model`"),
        ({"model": None}, ConfigError, "needs the field `model`"),
        ({"model": "tiyn"}, ModelNotFoundError, "no model `tiyn`.*1. a folder.*4. `tiyn`"),
        ({"train_data": None}, ConfigError, "train_data must be the name of stored data"),
        ({"train_data": 5}, ConfigError, "train_data must be the name of stored data.*got int"),
        ({"train_data": "x.da"}, DataNotFoundError, "no stored data `x.da`"),
        ({"train_data": []}, DataError, "the training data are empty"),
        ({"train_data": [["a", 1], ["b", 1]]}, DataError, "at least two labels; found 2 different"),
        ({"train_data": [["a", 1], ["b", 2]]}, DataError, "a label with at least two texts"),
        ({"train_data": [["a", 1], ["b"]]}, DataError, "row 2 must be"),
        (
            {"train_data": [{"anchor": "a", "positve": "b"}]},
            DataError,
            "row 1 must have the fields",
        ),
        (
            {"train_data": [*PAIRS, ["a", 1]]},
            DataError,
            "row 4 must have the fields anchor, positive",
        ),
        (
            {"train_data": PAIRS},
            ConfigError,
            "TripletMarginLoss trains on labels, and these data are",
        ),
        (
            {"train_data": SCORED, "loss": "MultipleNegativesRankingLoss"},
            ConfigError,
            "trains on pairs, and these data are scored pairs",
        ),
        (
            {"callbacks": evaluated(query_data=PAIRS[:2], index_data=[["a", "0"]])},
            DataError,
            "must both have labels, or both be pairs",
        ),
        ({"callbacks": evaluated(query_data=SCORED)}, DataError, "these are pairs with scores"),
        ({"train_data": [["a", 1], ["b", None]]}, DataError, "1 of 2 training texts have no label"),
        ({"epochs": -1}, ConfigError, "epochs must be from 0 to 1000, got -1"),
        ({"batch_size": 1}, ConfigError, "batch_size must be from 4 to 100000, got 1"),
        (
            {"onnx_variants": ["int8"]},
            ConfigError,
            r"onnx_variants \(int8\) are made from the ONNX graph: add to_onnx=True",
        ),
        (
            {"to_onnx": True, "onnx_variants": ["int4"]},
            ConfigError,
            r"fit.onnx_variants\[0\] must be one of int8, weight_int8; got `int4`",
        ),
        (
            {"to_onnx": True, "onnx_variants": "int8"},
            ConfigError,
            "fit.onnx_variants must be a list, got a string",
        ),
        (
            {"to_onnx": True, "onnx_variants": ["int8", "weight_int8", "int8"]},
            ConfigError,
            "onnx_variants must name each variant once, got int8, weight_int8, int8",
        ),
        ({"learning_rate": 2}, ConfigError, "learning_rate must lie between 0 and 1"),
        ({"model_options": {"pooling": "cls"}}, ConfigError, "did you mean `pooler`"),
        ({"loss": "TripletLoss"}, ConfigError, "unknown loss `TripletLoss`; did you mean"),
        ({"loss_options": {"marign": 1}}, ConfigError, "did you mean `margin`"),
        ({"miner": "TripletMiner"}, ConfigError, "unknown miner `TripletMiner`; did you mean"),
        ({"optimizer": "Adm"}, ConfigError, "unknown optimizer `Adm`; did you mean `Adam`"),
        ({"scheduler": "liner"}, ConfigError, "unknown scheduler `liner`; did you mean `linear`"),
        ({"run_name": "../x"}, ConfigError, "the run name `../x` is not allowed"),
        ({"callbacks": [{"name": "Evaluation"}]}, ConfigError, "unknown callback `Evaluation`"),
        ({"callbacks": evaluated(query_data=[])}, DataError, "query data of the evaluation are"),
        (
            {"callbacks": evaluated(query_data=[["q", None]])},
            DataError,
            "1 of 1 evaluation queries",
        ),
        (
            {"callbacks": evaluated(query_data=[["q", 1]], index_data=[["i", 2]])},
            DataError,
            "none of the 1 evaluation queries has a text with its label",
        ),
        (
            {"callbacks": [*evaluated(**QUERIES), *evaluated(**QUERIES)]},
            ConfigError,
            "a different `caption` each",
        ),
    ],
)
def test_refused_before_a_run_exists(workspace, changes, error, message):
    with pytest.raises(error, match=message):
        submit(request(**changes), workspace)

    assert RunStore(workspace).list() == []


def test_gpu_can_be_demanded(workspace, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="this server has no GPU: use device='cpu'"):
        submit(request(device="cuda"), workspace, allow_cpu_fallback=False)

    assert submit(request(device="cpu"), workspace, allow_cpu_fallback=False).name == "one"

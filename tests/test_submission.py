import pytest

from finetuner.artifact import Manifest, pack
from finetuner.data import read_jsonl
from finetuner.errors import (
    ArtifactNotFound,
    ConfigError,
    CorruptedArtifact,
    DataError,
    DataNotFoundError,
    ModelNotFoundError,
    RunExistsError,
    RunFailedError,
    RunInProgressError,
)
from finetuner.models import ModelOptions, load_model, save_model
from finetuner.pairs import read_data
from finetuner.run_evaluation import RunEvaluations
from finetuner.run_store import RunStore
from finetuner.states import Actor, Status
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
        (
            {"callbacks": evaluated()},
            ConfigError,
            "an EvaluationCallback needs query_data, or hold_out, the share of the training data",
        ),
        (
            {"callbacks": evaluated(hold_out=0.2)},
            DataError,
            "hold_out=0.2 leaves too little to train on: training needs a label with at least two texts; "
            "found 2 different texts with 2 labels, 0 of them .*Hold out less, give more data",
        ),
        ({"callbacks": evaluated(hold_out=0)}, ConfigError, "above 0 and at most 0.9, got 0"),
        ({"callbacks": evaluated(hold_out=1)}, ConfigError, "above 0 and at most 0.9, got 1"),
        (
            {"callbacks": evaluated(hold_out=0.2, **QUERIES)},
            ConfigError,
            "takes queries and index from the training data: leave query_data and index_data out",
        ),
        (
            {"callbacks": evaluated(hold_out=0.2, index_data=QUERIES["index_data"])},
            ConfigError,
            "takes queries and index from the training data: leave query_data and index_data out",
        ),
        (
            {"callbacks": evaluated(hold_out=0.2, exclude_self=False)},
            ConfigError,
            "with exclude_self=False each finds itself first: leave exclude_self out",
        ),
        (
            {
                "callbacks": [
                    *evaluated(hold_out=0.2, caption="a"),
                    *evaluated(hold_out=0.2, caption="b"),
                ]
            },
            ConfigError,
            "a run holds training data out once; give the other EvaluationCallbacks query_data",
        ),
    ],
)
def test_refused_before_a_run_exists(workspace, changes, error, message):
    with pytest.raises(error, match=message):
        submit(request(**changes), workspace)

    assert RunStore(workspace).list() == []


MORE_ROWS = [[f"text {i} of label {label}", label] for label in "abcdefgh" for i in range(4)]
FINE = {"train_data": MORE_ROWS}


def watching(name, **options):
    return [*evaluated(**QUERIES, caption="test"), {"name": name, "options": options}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val_split": 0.5, "eval_data": MORE_ROWS},
            "eval_data and val_split are two ways to one thing; leave one out",
        ),
        ({"val_split": 0.95}, "val_split must be from 0 to 0.9, got 0.95"),
        ({"val_split": -0.1}, "val_split must be from 0 to 0.9, got -0.1"),
        ({"lora": {}, "freeze": True}, "lora and freeze exclude each other; leave one out"),
        (
            {"lora": {}, "n_frozen_layers": 0},
            "lora and n_frozen_layers exclude each other; leave one out",
        ),
        (
            {"n_frozen_layers": 2},
            "from 0 to 1 of the model's 2 layers can be frozen, got 2; freeze=True freezes all",
        ),
        ({"lora": {"rnk": 4}}, "unknown field `rnk` in lora; did you mean `rank`"),
        ({"lora": {"rank": 0}}, "lora.rank must be from 1 to 1024, got 0"),
        (
            {"callbacks": [{"name": "BestModelCheckpoint"}]},
            "BestModelCheckpoint watches `val_loss`, which this run does not have; it has: "
            "train_loss. A val_loss needs val_split or eval_data",
        ),
        (
            {"callbacks": [{"name": "EarlyStopping"}]},
            "EarlyStopping watches `val_loss`, which this run does not have",
        ),
        (
            {"callbacks": watching("EarlyStopping", monitor="recall_at_k")},
            "EarlyStopping watches `recall_at_k`, which this run does not have; it has: train_loss, "
            "test_average_precision, .*test_recall_at_k",
        ),
        (
            {"callbacks": [*watching("WiSEFTCallback"), {"name": "WiSEFTCallback"}]},
            "a run takes one WiSEFTCallback; leave the others out",
        ),
        (
            {"callbacks": [{"name": "TrainingCheckpoint", "options": {"last_k_epochs": 0}}]},
            "TrainingCheckpoint.last_k_epochs must be at least 1, got 0",
        ),
        (
            {"callbacks": [{"name": "EarlyStopping", "options": {"monitr": "x"}}]},
            "unknown field `monitr` in EarlyStopping; did you mean `monitor`",
        ),
        ({"dimensions": [33]}, "at most the length of the vectors, 32, got 33"),
        (
            {"dimensions": [16, 8], "output_dim": 12},
            "at most the length of the vectors, 12, got 16",
        ),
        ({"dimensions": [8, 8]}, r"dimensions must be different and above 0, got \[8, 8\]"),
        ({"dimensions": [0]}, r"dimensions must be different and above 0, got \[0\]"),
        ({"output_dim": 0}, "output_dim must be from 1 to"),
        ({"output_dim": 9000}, "output_dim must be from 1 to 8192, got 9000"),
        (
            {"output_dim": 8, "model_options": {"output_dim": 9}},
            "output_dim is 8, and model_options.output_dim is 9; leave one out",
        ),
        ({"hard_negatives": {"shar": 1}}, "unknown field `shar` in .*hard_negatives.*`share`"),
        ({"hard_negatives": {"share": 2}}, "hard_negatives.share must be from 0 to 1, got 2"),
        ({"hard_negatives": True}, "hard_negatives must be an object, got a boolean"),
        ({"hard_negatives": {"n_candidates": 0}}, "n_candidates must be at least 1, got 0"),
        (
            {"loss": "ArcFaceLoss", "eval_data": MORE_ROWS},
            "ArcFaceLoss has a centre for each label of the training data.*take val_split",
        ),
        (
            {"loss_optimizer": "SGD"},
            "TripletMarginLoss has no weights of its own to optimize.*leave loss_optimizer",
        ),
        (
            {"loss": "ArcFaceLoss", "loss_optimizer": "SDG"},
            "unknown optimizer `SDG`; did you mean `SGD`",
        ),
        ({"loss": "ArcFaceLoss", "loss_optimizer_options": {"rate": 1}}, "unknown option `rate`"),
        (
            {"optimizer_options": {"layer_wise_lr_decay": 2}},
            "layer_wise_lr_decay must be above 0 and at most 1, got 2",
        ),
        (
            {"scheduler_options": {"scheduler_step": "epcoh"}},
            "scheduler_step must be batch or epoch, got `epcoh`",
        ),
        ({"precision": "fp16"}, "precision='fp16' needs a GPU; use auto, bf16 or fp32"),
        ({"accumulation_steps": 0}, "accumulation_steps must be from 1 to"),
        ({"gradient_cache_size": 0}, "gradient_cache_size must be from 1 to"),
        ({"checkpoint_interval_s": -1}, "checkpoint_interval_s must be from 0 to"),
        ({"max_gradient_norm": 0}, "max_gradient_norm must be from"),
    ],
)
def test_settings_that_would_fail_later_are_refused(workspace, changes, message):
    with pytest.raises(ConfigError, match=message):
        submit(request(**{**FINE, "callbacks": None, "device": "cpu", **changes}), workspace)

    assert RunStore(workspace).list() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"val_split": 0.25},
        {"eval_data": MORE_ROWS[:8]},
        {"val_split": 0.25, "callbacks": [{"name": "BestModelCheckpoint"}]},
        {"eval_data": MORE_ROWS, "callbacks": [{"name": "EarlyStopping"}]},
        {"callbacks": watching("EarlyStopping", monitor="train_loss")},
        {"callbacks": watching("BestModelCheckpoint", monitor="test_ndcg_at_k")},
        {"callbacks": [*evaluated(**QUERIES), {"name": "WiSEFTCallback"}]},
        {"dimensions": [32, 8]},
        {"dimensions": [48], "output_dim": 64},
        {"hard_negatives": {}},
        {"lora": {"rank": 2}},
        {"freeze": True},
        {"n_frozen_layers": 0},
        {"loss": "ArcFaceLoss", "val_split": 0.25, "loss_optimizer": "SGD"},
        {"loss": "MarginLoss", "loss_options": {"learn_beta": True}, "loss_optimizer": "SGD"},
        {"optimizer_options": {"layer_wise_lr_decay": 0.9}},
        {"scheduler": "linear", "scheduler_options": {"scheduler_step": "epoch"}},
    ],
)
def test_settings_that_fit_are_taken(workspace, changes):
    run = submit(request(**{**FINE, "device": "cpu", **changes}), workspace)
    assert run.state().status is Status.CREATED


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            MORE_ROWS[:12],  # three labels
            {"val_split": 0.5},
            "val_split=0.5 leaves 4 texts with 1 labels to train on and 8 texts with 2 labels to "
            "validate with, too few for TripletMarginLoss: give more data, another val_split",
        ),
        (
            [*MORE_ROWS[:2], *([f"lone {i}", i] for i in range(9))],
            {"val_split": 0.5},
            "too few for TripletMarginLoss",
        ),
        (
            [["a", 1], ["b", 1], ["c", 2], ["d", 2]],
            {"val_split": 0.1, "loss": "ArcFaceLoss"},
            "4 texts with 2 labels to train on and 0 texts with 0 labels to validate with",
        ),
        (
            [{"anchor": f"q{i}", "positive": f"a{i}"} for i in range(3)],
            {"val_split": 0.5, "loss": "MultipleNegativesRankingLoss"},
            "leaves 1 pairs to train on and 2 pairs to validate with",
        ),
    ],
)
def test_too_few_data_to_split_are_refused(workspace, rows, changes, message):
    body = request(train_data=rows, callbacks=None, device="cpu", **changes)
    with pytest.raises(DataError, match=message):
        submit(body, workspace)


def _finished(workspace, folder, **options):
    """A run with an artifact, as the worker leaves it."""
    run = submit(request(run_name="earlier", device="cpu", callbacks=None), workspace)
    loaded = load_model(folder, ModelOptions(**options))
    manifest = Manifest(
        run_name="earlier",
        model="tiny",
        dim=loaded.model.dim,
        pooler="mean",
        normalize=True,
        max_length=loaded.max_length,
        input_names=loaded.model.input_names,
        metrics={},
        has_onnx=False,
        created_at="",
    )
    saved = workspace / "saved"
    saved.mkdir()
    save_model(loaded, saved)
    pack(saved, run.artifact_path, manifest=manifest)
    run.step(run.claim(), Status.FINISHED, "Run finished", actor=Actor.WORKER)
    return run


def test_an_artifact_to_go_on_from_must_be_there(workspace, come_to):
    with pytest.raises(ArtifactNotFound, match="no run and no artifact `earlier`"):
        submit(request(model_artifact="earlier"), workspace)
    run = submit(request(run_name="earlier"), workspace)
    for name in ("earlier", run.spec()["artifact_id"]):
        with pytest.raises(RunInProgressError, match="needs to be finished"):
            submit(request(model_artifact=name), workspace)
    come_to(run, Status.FAILED, "x")
    with pytest.raises(RunFailedError, match="The run failed"):
        submit(request(model_artifact="earlier"), workspace)
    run = submit(request(run_name="second"), workspace)
    come_to(run, Status.FINISHED)
    with pytest.raises(ArtifactNotFound, match="there is no artifact"):
        submit(request(model_artifact="second"), workspace)
    run.artifact_path.write_bytes(b"no zip")
    with pytest.raises(CorruptedArtifact, match="has no readable manifest.json"):
        submit(request(model_artifact="second"), workspace)
    assert len(RunStore(workspace).list()) == 2


def test_the_length_of_an_artifacts_vectors_counts(workspace, tiny_model_folder):
    _finished(workspace, tiny_model_folder, output_dim=8)
    with pytest.raises(ConfigError, match="at most the length of the vectors, 8, got 16"):
        submit(request(model_artifact="earlier", dimensions=[16]), workspace)
    with pytest.raises(ConfigError, match="output_dim is 16, but the artifact `earlier` has a tr"):
        submit(request(model_artifact="earlier", output_dim=16), workspace)
    submit(request(model_artifact="earlier", dimensions=[8, 4], output_dim=8), workspace)


def test_an_artifact_without_a_head_may_get_one(workspace, tiny_model_folder):
    _finished(workspace, tiny_model_folder)
    with pytest.raises(ConfigError, match="at most the length of the vectors, 16, got 32"):
        submit(request(model_artifact="earlier", dimensions=[32], output_dim=16), workspace)
    submit(request(model_artifact="earlier", dimensions=[16], output_dim=16), workspace)


def test_gpu_can_be_demanded(workspace, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="this server has no GPU: use device='cpu'"):
        submit(request(device="cuda"), workspace, allow_cpu_fallback=False)

    assert submit(request(device="cpu"), workspace, allow_cpu_fallback=False).name == "one"


MANY_ROWS = [[f"text {i} of label {label}", label] for label in "abcdefghijkl" for i in range(4)]
# A fifth of 25 labels is five, from which on whole labels are held out.
MANY_LABELS = [[f"text {i} of label {label}", f"{label}"] for label in range(25) for i in range(4)]
MANY_PAIRS = [
    {"anchor": f"a {i} of {n}", "positive": f"p {i} of {n}"} for n in range(9) for i in range(2)
]


@pytest.mark.parametrize(
    ("rows", "changes", "counts", "line"),
    [
        (
            MANY_LABELS,
            {},
            (80, 20, None),
            "Held out: 20 queries of 5 labels, searched among themselves (hold_out=0.2)",
        ),
        (
            MORE_ROWS,
            {},
            (26, 6, 26),
            "Held out: 6 queries of 6 labels, searched among 26 others (hold_out=0.2)",
        ),
        (
            MANY_PAIRS,
            {"loss": "MultipleNegativesRankingLoss"},
            (14, 4, 4),
            "Held out: 4 queries of 4 labels, searched among 4 others (hold_out=0.2)",
        ),
        (MANY_PAIRS, {"loss": "SupConLoss", "val_split": 0.2}, (14, 4, 4), "4 queries of 4 labels"),
    ],
)
def test_held_out_texts_lie_with_the_evaluation_and_not_with_the_training(
    workspace, caplog, rows, changes, counts, line
):
    body = request(train_data=rows, callbacks=evaluated(hold_out=0.2), device="cpu", **changes)
    run = submit(body, workspace)
    data = run.folder / "data"
    query, index = (data / f"evaluation-0-{role}.jsonl" for role in ("query", "index"))
    found = (
        len(read_data(data / "train.jsonl")),
        len(read_jsonl(query)),
        len(read_jsonl(index)) if index.exists() else None,
    )
    assert found == counts
    config = run.spec()["config"]
    assert config["callbacks"][0]["options"] == {"hold_out": 0.2}
    assert config["train_data"] == f"{len(rows)} rows"
    with caplog.at_level("INFO"):
        RunEvaluations.read(run, run.config())
    assert [line in text for text in caplog.messages] == [True]


def test_val_split_is_of_what_is_not_held_out(workspace):
    """Nine of twelve labels are held out; of the three left two are for the validation."""
    held = evaluated(hold_out=0.75)
    submit(request(train_data=MANY_ROWS, callbacks=None, val_split=0.5), workspace)
    submit(request(train_data=MANY_ROWS, callbacks=held, run_name="two"), workspace)
    with pytest.raises(DataError, match="val_split=0.5 leaves 4 texts with 1 labels to train on"):
        submit(request(train_data=MANY_ROWS, callbacks=held, val_split=0.5), workspace)


def test_evaluations_with_data_of_their_own_keep_their_places(workspace):
    callbacks = [
        *evaluated(**QUERIES, caption="own"),
        {"name": "WiSEFTCallback"},
        *evaluated(hold_out=0.2, caption="held"),
    ]
    run = submit(request(train_data=MANY_ROWS, callbacks=callbacks), workspace)
    names = sorted(path.name for path in (run.folder / "data").iterdir())
    assert names == [
        *("evaluation-0-index.jsonl", "evaluation-0-query.jsonl"),
        *("evaluation-1-index.jsonl", "evaluation-1-query.jsonl", "train.jsonl"),
    ]


def test_a_request_that_holds_out_is_known_again(workspace):
    def body(**changes):
        share = changes.pop("hold_out", 0.2)
        callbacks = evaluated(hold_out=share)
        return request(train_data=MANY_ROWS, callbacks=callbacks, device="cpu", **changes)

    run = submit(body(), workspace)
    assert submit(body(), workspace) == run
    with pytest.raises(RunExistsError) as refusal:
        submit(body(seed=1), workspace)
    lines = [line.strip() for line in str(refusal.value).splitlines()]
    assert lines[1] == "seed: 0 → 1"
    assert lines[2:4] == [f"evaluation-0-{role}: other texts" for role in ("index", "query")]
    assert lines[4] == "train_data, without what is held out: other texts"
    with pytest.raises(RunExistsError, match=r"callbacks\[0\].hold_out: 0.2 → 0.3"):
        submit(body(hold_out=0.3), workspace)

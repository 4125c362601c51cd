"""One run's work, in process: what each setting and callback does to files, log and artifact."""

import json
import math
import re
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from safetensors.torch import load_file

from finetuner import job
from finetuner.artifact import unpacked
from finetuner.callback import EvaluationCallback
from finetuner.data import from_rows, prepare_training
from finetuner.encoder import torch_encoder
from finetuner.evaluation import EvaluationSet, evaluate
from finetuner.heartbeat import read_beat
from finetuner.models import load_model
from finetuner.projection import principal_plane, turned
from finetuner.states import Status
from finetuner.submission import submit
from finetuner.training_set import create_set
from finetuner.validation_split import split_data

pytestmark = pytest.mark.slow
_LIMIT = 3


@pytest.fixture
def workspace(tmp_path, tiny_model_folder):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_model_folder)
    return tmp_path


@pytest.fixture
def rows(tiny_labelled):
    return list(tiny_labelled.rows())


@pytest.fixture
def fit(workspace, rows, work):
    """Submit and work; the run must end as expected."""

    def fit(run_name="one", *, ends=Status.FINISHED, **changes):
        request = {
            "model": "tiny",
            "train_data": rows,
            "run_name": run_name,
            "loss": "SupConLoss",
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "device": "cpu",
        }
        run = submit({**request, **changes}, workspace)
        code = work(run)
        assert run.state().status is ends, run.read_log()[0]
        assert code == (0 if ends is Status.FINISHED else 1)
        return run

    return fit


def _callback(name, **options):
    return {"name": name, "options": options}


def _evaluation(rows, **options):
    return _callback("EvaluationCallback", query_data=rows, limit=_LIMIT, **options)


def _log(run):
    """The log with the columns of time, level and file taken away, in one line."""
    text = run.read_log()[0]
    lines = [re.sub(r"\s+\w+\.py:\d+$", "", line[20:].rstrip()) for line in text.splitlines()]
    return " ".join(lines), text


def _lines(run, name):
    return [json.loads(line) for line in (run.folder / name).read_text().splitlines()]


def _loaded(run):
    with unpacked(run.artifact_path) as (folder, manifest):
        return load_model(folder), manifest


def _weights(run):
    return _loaded(run)[0].model.state_dict()


def _equal(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def _evaluated(loaded, rows):
    callback = EvaluationCallback(query_data=None, limit=_LIMIT)
    data = EvaluationSet.create(from_rows(rows), None, callback=callback)
    return evaluate(torch_encoder(loaded).encode, data, callback=callback)


def _sup_con_loss(loaded, data):
    embeddings = torch.from_numpy(torch_encoder(loaded).encode(data.texts))
    return pml_losses.SupConLoss()(embeddings, torch.from_numpy(data.classes)).item()


def _shown_val_losses(run):
    return [float(value) for value in re.findall(r"val_loss: ([\d.]+)", run.read_log()[0])]


def test_a_plain_run(fit, workspace):
    run = fit()
    assert run.state().details == "Run finished"
    assert (run.folder / "steps.jsonl").exists()
    steps = _lines(run, "steps.jsonl")
    assert [(s["epoch"], s["step"], s["n_steps"]) for s in steps] == [
        (epoch, step, 3) for epoch in (1, 2) for step in (1, 2, 3)
    ]
    for epoch in (1, 2):
        losses = [s["batch_loss"] for s in steps if s["epoch"] == epoch]
        means = [sum(losses[: i + 1]) / (i + 1) for i in range(3)]
        assert [s["loss"] for s in steps if s["epoch"] == epoch] == pytest.approx(means)
    assert all(s["learning_rate"] == 1e-3 and 0 < s["active"] <= 1 for s in steps)
    assert run.metrics() == {"before": {}, "after": {}, "epochs": [], "verdicts": {}}
    assert not (run.folder / "verdict.json").exists()
    assert not (run.folder / "checkpoints").exists()
    assert [path.name for path in run.folder.glob(".*")] == []
    _, manifest = _loaded(run)
    assert (manifest.verdicts, manifest.metrics) == ({}, {"before": {}, "after": {}})


def test_val_split_gives_a_loss_on_labels_that_are_not_trained_on(fit, rows):
    run = fit(val_split=0.25, epochs=1)
    data = prepare_training(from_rows(rows))
    _, held = split_data(data, 0.25, by_label=True, seed=0)
    assert len(held.texts) == 12  # one batch
    assert _shown_val_losses(run) == [round(_sup_con_loss(_loaded(run)[0], held), 3)]
    assert "48 texts with 12 labels" in _log(run)[0]
    assert sum(s["n_steps"] for s in _lines(run, "steps.jsonl")[:1]) == 3  # 36 texts by 16


def test_eval_data_give_a_validation_loss(fit, rows):
    run = fit(
        eval_data=rows[:16], epochs=2, callbacks=[_callback("TrainingCheckpoint", last_k_epochs=2)]
    )
    held = prepare_training(from_rows(rows[:16]))
    expected = [
        round(_sup_con_loss(load_model(run.folder / "epochs" / f"epoch-{n}"), held), 3)
        for n in (1, 2)
    ]
    assert _shown_val_losses(run) == expected
    assert _lines(run, "steps.jsonl")[0]["n_steps"] == 3  # all 48 texts


def test_a_validation_loss_over_batches_counts_texts(fit, rows):
    run = fit(eval_data=rows, epochs=1, batch_size=20)
    loaded, data = _loaded(run)[0], prepare_training(from_rows(rows))
    batches = [
        b.positions for b in create_set(data, loaded.tokenizer, config=run.config()).epoch(0)
    ]
    assert len({len(batch) for batch in batches}) > 1
    total = 0.0
    for batch in batches:
        part = replace(data, texts=[data.texts[i] for i in batch], classes=data.classes[batch])
        total += len(batch) * _sup_con_loss(loaded, part)
    assert _shown_val_losses(run) == [round(total / 48, 3)]


def test_class_centres_are_validated_on_every_label(fit):
    run = fit(loss="ArcFaceLoss", val_split=0.25, loss_optimizer="Adam", epochs=6)
    shown = _shown_val_losses(run)
    assert len(shown) == 6
    assert shown[-1] < shown[0]


def test_early_stopping_ends_the_training_and_says_so(fit):
    stop = _callback("EarlyStopping", monitor="train_loss", mode="max", patience=2)
    run = fit(epochs=10, learning_rate=1e-3, callbacks=[stop])
    assert _lines(run, "steps.jsonl")[-1]["epoch"] == 3
    losses = [s["loss"] for s in _lines(run, "steps.jsonl") if s["step"] == 3]
    assert losses[0] > max(losses[1:])
    expected = (
        f"Early stopping: train_loss was no better for 2 epochs (now {losses[2]:.5f}, "
        f"best {losses[0]:.5f})"
    )
    assert expected in _log(run)[0]


def test_early_stopping_by_validation_loss(fit):
    stop = _callback("EarlyStopping", min_delta=100.0, patience=1)
    run = fit(epochs=10, val_split=0.25, callbacks=[stop])
    assert _lines(run, "steps.jsonl")[-1]["epoch"] == 2
    assert "Early stopping: val_loss was no better for 1 epochs" in _log(run)[0]


@pytest.mark.parametrize("output_dim", [None, 16])
def test_the_best_epochs_weights_are_published_with_their_metrics(fit, rows, output_dim):
    best = _callback("BestModelCheckpoint", monitor="train_loss", mode="max")
    keep = _callback("TrainingCheckpoint", last_k_epochs=3)
    run = fit(epochs=3, output_dim=output_dim, callbacks=[best, keep, _evaluation(rows)])
    epochs = [load_model(run.folder / "epochs" / f"epoch-{n}") for n in (1, 2, 3)]
    loaded, manifest = _loaded(run)
    assert (loaded.model.head is not None) == (output_dim is not None)
    assert _equal(loaded.model.state_dict(), epochs[0].model.state_dict())
    assert not _equal(loaded.model.state_dict(), epochs[2].model.state_dict())
    lines = _lines(run, "metrics.jsonl")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 3]
    assert manifest.metrics["after"] == lines[1]["metrics"] == lines[4]["metrics"]
    assert manifest.metrics["after"] != lines[3]["metrics"]
    assert manifest.metrics["after"] == pytest.approx(_evaluated(loaded, rows).metrics)
    assert run.metrics()["after"] == manifest.metrics["after"]
    judged = json.loads((run.folder / "verdict.json").read_text())["model"]["changes"]
    for name, change in judged.items():
        assert change["after"] == pytest.approx(manifest.metrics["after"][name])
        assert change["before"] == pytest.approx(manifest.metrics["before"][name])
    assert "Keeping the model of epoch 1" in _log(run)[0]


def test_best_model_by_a_metric_with_a_caption(fit, rows):
    best = _callback("BestModelCheckpoint", monitor="own_average_precision")
    run = fit(epochs=3, callbacks=[best, _evaluation(rows, caption="own")])
    lines = _lines(run, "metrics.jsonl")
    values = [line["metrics"]["own_average_precision"] for line in lines]
    assert values[4] == max(values[1:4])


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_the_last_models_are_kept_as_folders(fit, lora):
    run = fit(epochs=4, lora=lora, callbacks=[_callback("TrainingCheckpoint", last_k_epochs=2)])
    assert sorted(p.name for p in (run.folder / "epochs").iterdir()) == ["epoch-3", "epoch-4"]
    kept = [load_model(run.folder / "epochs" / name) for name in ("epoch-3", "epoch-4")]
    assert _equal(kept[1].model.state_dict(), _weights(run))
    assert not _equal(kept[0].model.state_dict(), _weights(run))


@pytest.mark.parametrize(
    "changes", [{}, {"freeze": True}, {"lora": {"rank": 4}}, {"output_dim": 16}]
)
def test_wise_ft_is_between_untuned_and_tuned(fit, rows, changes):
    untuned = _weights(fit("untuned", epochs=0, **changes))
    tuned = _weights(fit("tuned", **changes))
    run = fit(
        "between", callbacks=[_callback("WiSEFTCallback", alpha=0.3), _evaluation(rows)], **changes
    )
    between = _weights(run)
    assert between.keys() == tuned.keys() == untuned.keys()
    for name, found in between.items():
        expected = 0.7 * untuned[name].double() + 0.3 * tuned[name].double()
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-6)
    assert not _equal(between, tuned)
    loaded, manifest = _loaded(run)
    assert manifest.metrics["after"] == pytest.approx(_evaluated(loaded, rows).metrics)
    assert run.metrics()["after"] == manifest.metrics["after"]


def test_wise_ft_of_the_best_epoch(fit):
    best = _callback("BestModelCheckpoint", monitor="train_loss", mode="max")
    first = _weights(fit("first", epochs=3, callbacks=[best]))
    untuned = _weights(fit("untuned", epochs=0))
    both = _weights(fit("both", epochs=3, callbacks=[_callback("WiSEFTCallback", alpha=0.5), best]))
    for name, found in both.items():
        expected = (untuned[name].double() + first[name].double()) / 2
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-6)


def test_several_evaluations(fit, rows):
    callbacks = [
        _evaluation(rows, caption="all", gather_examples=True, num_example_queries=2),
        _evaluation(
            rows[:24], caption="some", index_data=rows[24:] + rows[:24], steps_per_interval=2
        ),
        _evaluation(rows, query_sample_size=5),
    ]
    run = fit(callbacks=callbacks)
    lines = _lines(run, "metrics.jsonl")
    assert [(line["epoch"], line.get("step")) for line in lines] == [
        *((0, None), (1, 2), (1, None), (2, 2), (2, None))
    ]
    names = {"average_precision", "dcg_at_k", "f1_score_at_k", "hit_at_k", "ndcg_at_k"}
    names |= {"precision_at_k", "r_precision", "recall_at_k", "reciprocal_rank"}
    expected = {prefix + name for prefix in ("all_", "some_", "") for name in names}
    assert all(set(line["metrics"]) == expected for line in lines)
    assert run.metrics()["before"] == lines[0]["metrics"]
    assert run.metrics()["after"] == lines[-1]["metrics"]
    found = _evaluated(_loaded(run)[0], rows).metrics
    for name in names:
        assert lines[-1]["metrics"][f"all_{name}"] == pytest.approx(found[name])
    text = _log(run)[0]
    for prefix in ("all_", "some_", ""):
        assert text.count(f"'{prefix}model_recall_at_k' Value") == len(lines)
    examples = run.examples()
    assert {stage: list(found) for stage, found in examples.items()} == {
        "before": ["all"],
        "after": ["all"],
    }
    assert [e["query"] for e in examples["after"]["all"]] == [row["text"] for row in rows[:2]]
    assert all(len(e["results"]) == _LIMIT for e in examples["after"]["all"])
    verdicts = json.loads((run.folder / "verdict.json").read_text())
    assert set(verdicts) == {"all", "some", "model"} == set(_loaded(run)[1].verdicts)


def test_the_map_shows_the_untuned_and_the_final_model(fit, rows, workspace):
    """From the vectors of the evaluations alone, those within epochs left out."""
    callbacks = [
        _evaluation(rows[::2], caption="own", index_data=rows, steps_per_interval=2),
        _callback("WiSEFTCallback", alpha=0.3),
    ]
    run = fit(callbacks=callbacks, epochs=1)
    found = run.map()["evaluations"]["own"]
    shown = rows[::2] + rows[1::2]
    texts = [row["text"] for row in shown]
    assert (found["texts"], found["n_texts"]) == (texts, 48)
    assert found["roles"] == ["query"] * 24 + ["index"] * 24
    assert found["labels"] == [row["label"] for row in shown]
    untuned, tuned = load_model(workspace / "models" / "tiny"), _loaded(run)[0]
    before, after = (
        principal_plane(torch_encoder(loaded).encode(texts)) for loaded in (untuned, tuned)
    )
    pca = found["methods"]["pca"]
    np.testing.assert_allclose(pca["before"], before.points, atol=1e-4)
    np.testing.assert_allclose(pca["after"], turned(after.points, before.points), atol=1e-3)
    assert pca["explained"]["after"] == pytest.approx(after.explained, abs=1e-4)


def test_steps_say_when_and_how_many_texts(fit):
    run = fit(epochs=1)
    steps = _lines(run, "steps.jsonl")
    assert sum(step["n_texts"] for step in steps) == 48
    times = [step["at"] for step in steps]
    assert times == sorted(times)
    created_at, ended_at = (
        datetime.fromisoformat(at).timestamp() for at in (run.spec()["created_at"], run.state().at)
    )
    assert created_at < times[0] <= times[-1] < ended_at


def test_the_heartbeat_holds_the_numbers_of_the_last_step(fit, monkeypatch):
    monkeypatch.setattr(job, "_SAY_INTERVAL_S", 0.0)
    run = fit(epochs=2)
    steps = _lines(run, "steps.jsonl")
    progress = read_beat(run.folder / "heartbeat.json").progress
    assert progress.pop("texts_per_s") > 0
    assert progress.pop("eta_s") >= 0
    assert progress == {
        **{"epoch": 2, "n_epochs": 2, "step": 3, "n_steps": 3},
        **{"n_steps_done": 6, "n_steps_total": 6},
        "loss": pytest.approx(steps[-1]["loss"], abs=1e-6),
        "active": pytest.approx(steps[-1]["active"], abs=1e-4),
    }


def test_a_sample_of_queries_searches_the_whole_index(fit, rows):
    run = fit(epochs=0, callbacks=[_evaluation(rows, query_sample_size=5)])
    chosen = np.sort(np.random.default_rng(0).choice(len(rows), 5, replace=False))
    per_query = _evaluated(_loaded(run)[0], rows).per_query
    expected = {name: values[chosen].mean() for name, values in per_query.items()}
    assert run.metrics()["before"] == pytest.approx(expected)


def test_freeze_trains_the_head_alone(fit):
    untuned, tuned = _weights(fit("untuned", epochs=0, freeze=True)), _weights(fit(freeze=True))
    changed = {name for name in tuned if not torch.equal(tuned[name], untuned[name])}
    assert changed == {"head.linear.weight", "head.linear.bias"}
    assert tuned["head.linear.weight"].shape == (32, 32)


def test_frozen_layers_stay_as_they_were(fit):
    untuned, tuned = _weights(fit("untuned", epochs=0)), _weights(fit(n_frozen_layers=1))
    changed = {name for name in tuned if not torch.equal(tuned[name], untuned[name])}
    assert changed
    assert all(name.startswith("backbone.encoder.layer.1.") for name in changed)


def test_a_head_gives_vectors_of_another_length(fit):
    run = fit(output_dim=8)
    loaded, manifest = _loaded(run)
    assert manifest.dim == loaded.model.dim == 8
    assert torch_encoder(loaded).encode(["a text", "b"]).shape == (2, 8)


def test_lora_leaves_a_plain_model(fit):
    untuned = _weights(fit("untuned", epochs=0))
    tuned = _weights(fit(lora={"rank": 2, "alpha": 4}, learning_rate=1e-2))
    assert tuned.keys() == untuned.keys()
    changed = {name for name in tuned if not torch.equal(tuned[name], untuned[name])}
    assert changed
    assert all(
        ".layer." in name
        and name.endswith("dense.weight")
        or re.search(r"attention.self.(query|key|value).weight$", name)
        for name in changed
    )
    for name in changed:
        assert torch.linalg.matrix_rank(tuned[name] - untuned[name], atol=1e-5) <= 2


def test_layers_below_learn_slower(fit):
    untuned = _weights(fit("untuned", epochs=0))
    options = {"optimizer": "SGD", "optimizer_options": {"layer_wise_lr_decay": 1e-3}}
    run = fit(learning_rate=0.1, **options)
    tuned = _weights(run)

    def change(part):
        return max((tuned[n] - untuned[n]).abs().max().item() for n in tuned if part in n)

    assert change("layer.1.output.dense.weight") > 1e-4
    assert change("layer.0.output.dense.weight") < 1e-2 * change("layer.1.output.dense.weight")
    assert change("word_embeddings") < 1e-2 * change("layer.1.output.dense.weight")
    assert _lines(run, "steps.jsonl")[0]["learning_rate"] == 0.1


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_run_goes_on_from_the_model_of_another(fit, rows, by):
    first = fit("first", output_dim=16, callbacks=[_evaluation(rows)])
    artifact = "first" if by == "name" else first.spec()["artifact_id"]
    again = fit("again", epochs=0, model_artifact=artifact, callbacks=[_evaluation(rows)])
    assert _equal(_weights(again), _weights(first))
    assert again.metrics()["before"] == first.metrics()["after"]
    assert again.metrics()["before"] != first.metrics()["before"]
    more = fit("more", model_artifact=artifact)
    assert not _equal(_weights(more), _weights(first))
    first_losses, more_losses = (
        [s["batch_loss"] for s in _lines(run, "steps.jsonl")] for run in (first, more)
    )
    assert more_losses[0] < first_losses[0]
    assert "Going on from the model of run 'first'" in _log(more)[0]


def test_raw_vectors_stay_raw_in_the_next_run(fit):
    fit("raw", epochs=0, model_options={"normalize": False, "pooler": "max", "max_length": 9})
    _, manifest = _loaded(fit("next", epochs=0, model_artifact="raw"))
    assert (manifest.normalize, manifest.pooler, manifest.max_length) == (False, "max", 9)
    _, manifest = _loaded(
        fit("other", epochs=0, model_artifact="raw", model_options={"normalize": True})
    )
    assert manifest.normalize is True


def test_an_artifact_that_is_gone_fails_the_run(fit, workspace, rows, work):
    first = fit("first", epochs=0)
    run = submit(
        {"model": "tiny", "train_data": rows, "model_artifact": "first", "device": "cpu"}, workspace
    )
    first.artifact_path.unlink()
    assert work(run) == 1
    assert "ArtifactNotFound: there is no artifact" in run.state().details


@pytest.mark.parametrize(
    "changes",
    [
        {"dimensions": [32, 8]},
        {"hard_negatives": {}, "epochs": 3},
        {"gradient_cache_size": 5},
        {"accumulation_steps": 2},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "freeze": True},
        {"gradient_checkpointing": True, "n_frozen_layers": 1},
        {"gradient_checkpointing": True, "lora": {}},
        {"loss": "SoftTripleLoss", "dimensions": [32, 8], "hard_negatives": {}},
        {"sampler": "random", "hard_negatives": {}},
        {"scheduler": "cosine", "scheduler_options": {"num_warmup_steps": 0.2}},
        {
            **{"gradient_cache_size": 3, "accumulation_steps": 3, "gradient_checkpointing": True},
            **{"dimensions": [16, 4], "output_dim": 24, "hard_negatives": {"share": 1.0}},
            **{"val_split": 0.25, "to_onnx": True, "lora": {"dropout": 0.1}},
        },
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_settings_run_to_their_end_and_learn(fit, rows, changes):
    run = fit(**{"epochs": 2, "callbacks": [_evaluation(rows)], **changes})
    assert _loaded(run)[1].dimensions == tuple(changes.get("dimensions", ()))
    losses = [s["batch_loss"] for s in _lines(run, "steps.jsonl")]
    assert all(map(math.isfinite, losses))
    assert len(losses) >= 6
    if "hard_negatives" in changes:
        n_mined = len(re.findall(r"Hard negatives found for \d+ of \d+ texts", _log(run)[0]))
        assert n_mined == changes.get("epochs", 2) - 1


def _verdict(before, after):
    """By a loop: a change counts from two standard errors of the paired differences on."""
    outcomes = set()
    for name in ("average_precision", "recall_at_k", "reciprocal_rank"):
        gains = [b - a for a, b in zip(before[name], after[name], strict=True)]
        mean = sum(gains) / len(gains)
        variance = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
        error = math.sqrt(variance / len(gains))
        if abs(mean) > 2 * error:
            outcomes.add("improved" if mean > 0 else "REGRESSED")
    return next((o for o in ("REGRESSED", "improved") if o in outcomes), "unchanged")


def test_the_outcome_is_told_everywhere(fit, rows, workspace):
    good = fit("good", epochs=8, callbacks=[_evaluation(rows)])
    labels = [row["label"] for row in rows]
    mixed = [
        {**row, "label": label}
        for row, label in zip(rows, np.random.default_rng(0).permutation(labels), strict=True)
    ]
    bad = fit(
        "bad",
        epochs=8,
        learning_rate=0.01,
        train_data=mixed,
        model_artifact="good",
        callbacks=[_evaluation(rows, caption="own")],
    )
    untuned = load_model(workspace / "models" / "tiny")
    models = [untuned, _loaded(good)[0], _loaded(bad)[0]]
    values = [_evaluated(model, rows).per_query for model in models]
    for run, caption, outcome, before, after in (
        (good, "model", "improved", *values[:2]),
        (bad, "own", "REGRESSED", *values[1:]),
    ):
        assert _verdict(before, after) == outcome
        verdict = json.loads((run.folder / "verdict.json").read_text())[caption]
        assert verdict["outcome"] == outcome
        assert _loaded(run)[1].verdicts == {caption: outcome}
        assert f"Verdict ({caption}): {outcome}: average_precision" in _log(run)[0]
    assert good.state().details == "Run finished"
    assert bad.state().details == "Run finished; own REGRESSED"
    assert re.search(r"WARNING\s+Verdict \(own\)", _log(bad)[1])


def test_a_collapse_fails_the_run_with_advice(fit, rows):
    run = fit(ends=Status.FAILED, learning_rate=0.9, epochs=20, loss="TripletMarginLoss")
    assert re.match(
        r"TrainingError: the model has collapsed: for 20 steps all texts had nearly the same vector "
        r"\(mean cosine [\d.]+, loss [\d.]+\). Lower the learning rate, use SupConLoss",
        run.state().details,
    )
    assert "The run failed: TrainingError: the model has collapsed" in _log(run)[0]
    assert not run.artifact_path.exists()


def test_a_model_of_one_vector_fails_the_run(fit, monkeypatch):
    """Every text gets nearly the same vector, with a gradient, from the first step on."""
    from finetuner.models import EmbeddingModel

    forward = EmbeddingModel.forward

    def same(self, *inputs):
        tokens, embeddings = forward(self, *inputs)
        away = torch.nn.functional.one_hot(torch.tensor(0), embeddings.shape[1])
        return tokens, torch.nn.functional.normalize(embeddings * 1e-3 + away, dim=1)

    monkeypatch.setattr(EmbeddingModel, "forward", same)
    run = fit(ends=Status.FAILED, epochs=10)
    assert "the model has collapsed" in run.state().details
    assert len(_lines(run, "steps.jsonl")) == 20


def test_nothing_left_to_learn_ends_the_training(fit, monkeypatch):
    monkeypatch.setattr("finetuner.collapse._IDLE_STEPS", 4)
    run = fit(
        epochs=60, loss="TripletMarginLoss", loss_options={"margin": 0.01}, learning_rate=3e-3
    )
    assert "Nothing is left to learn" in _log(run)[0]
    assert _lines(run, "steps.jsonl")[-1]["epoch"] < 60


def test_a_killed_workers_leftovers_are_removed(workspace, rows, work):
    run = submit(
        {"model": "tiny", "train_data": rows, "run_name": "one", "epochs": 0, "device": "cpu"},
        workspace,
    )
    (run.folder / "epochs" / ".saving-abc" / "model").mkdir(parents=True)
    (run.folder / ".saving-xyz").mkdir()
    (run.folder / ".saving-xyz" / "half").write_bytes(b"x")
    (run.folder / ".one.zip.abc").write_bytes(b"half")
    assert work(run) == 0
    assert list(run.folder.rglob(".*")) == []
    assert (run.folder / "data" / "train.jsonl").exists()


def test_weights_in_the_artifact_are_the_files_that_others_load(fit):
    run = fit(epochs=1)
    with unpacked(run.artifact_path) as (folder, _):
        stored = load_file(folder / "model.safetensors")
    model = _loaded(run)[0].model.backbone.state_dict()
    assert set(stored) <= set(model)
    assert all(torch.equal(stored[name], model[name]) for name in stored)

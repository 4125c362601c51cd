"""The HTTP endpoints, stored data through docarray, and the same over gRPC."""

import dataclasses
import io
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orjson
import pytest
from docarray import Document, DocumentArray
from jina import Client

import finetuner
from finetuner.callback import EvaluationCallback
from finetuner.config import RunConfig
from finetuner.encode_parameters import EncodeParameters
from finetuner.errors import RunExistsError, RunFailedError, RunInProgressError

pytestmark = pytest.mark.slow

ROWS = [[f"{form} {topic}", topic] for topic in "abcdef" for form in ("one", "two", "three")]


@pytest.fixture(autouse=True)
def _client(server, monkeypatch):
    monkeypatch.setenv("FINETUNER_HOST", server.url)
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", server.url)
    monkeypatch.setenv("JINA_AUTH_TOKEN", "none")


def test_run_views(server, finished_run):
    run = server.get("/runs/finished").json()
    metrics = server.get("/runs/finished/metrics").json()
    assert run["changed_at"] > finished_run["changed_at"]
    assert run == {
        **finished_run,
        "status": "FINISHED",
        "details": "Run finished",
        "changed_at": run["changed_at"],
        "n_starts": 1,
        "position": None,
        "verdict": metrics["verdicts"]["model"]["outcome"],
        "metric": {
            "name": "average_precision",
            "before": metrics["before"]["average_precision"],
            "after": metrics["after"]["average_precision"],
            "best": metrics["after"]["average_precision"],
            "best_epoch": 1,
        },
    }
    assert [len(metrics[stage]) for stage in ("before", "after", "epochs")] == [9, 9, 2]
    logs = server.get("/runs/finished/logs").text
    assert server.get("/runs/finished/logs?follow=true").text == logs
    assert "Finished 🚀" in logs.rstrip().splitlines()[-1]
    artifact = server.get("/runs/finished/artifact")
    assert artifact.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(artifact.content)) as archive:
        assert "finished/manifest.json" in archive.namelist()
        assert orjson.loads(archive.read("finished/manifest.json"))["run_name"] == "finished"


def test_encode_equals_get_model_and_keeps_ids_and_order(server, finished_run, tmp_path):
    texts = ["one a", "a much longer text of many words", "", "x"]
    model = finetuner.get_model(finetuner.get_run("finished").save_artifact(str(tmp_path)))
    rows = [{"id": f"id{i}", "text": text} for i, text in enumerate(texts)]
    for artifact in ("finished", "default/finished", finished_run["artifact_id"]):
        answer = server.post("/encode", json={"data": rows, "parameters": {"artifact": artifact}})
        data = answer.json()["data"]
        assert [(row["id"], row["text"]) for row in data] == [(r["id"], r["text"]) for r in rows]
        found = np.array([row["embedding"] for row in data], dtype=np.float32)
        np.testing.assert_allclose(found, finetuner.encode(model, texts), atol=1e-5)
    body = {"data": [], "parameters": {"artifact": "finished"}}
    answer = server.post("/encode", json=body).json()
    assert len(answer.pop("digest")) == 64
    assert answer == {
        "data": [],
        "artifact": "finished",
        "artifact_id": finished_run["artifact_id"],
        "backend": "torch",
        "precision": "fp32",
        "dtype": "float32",
        "dim": 32,
        "n_tokens": 0,
    }


def test_grpc_gives_what_http_gives(server, finished_run):
    client = Client(port=server.grpc_port)
    assert (
        orjson.loads(client.post("/runs/finished")[0].text) == server.get("/runs/finished").json()
    )
    for view in ("status", "metrics", "map"):
        path = f"/runs/finished/{view}"
        assert orjson.loads(client.post(path)[0].text) == server.get(path).json()
    texts = DocumentArray([Document(text=f"text {i} " * (i % 7 + 1)) for i in range(250)])
    body = {"data": texts.texts, "parameters": {"artifact": "finished"}}
    over_http = [row["embedding"] for row in server.post("/encode", json=body).json()["data"]]
    documents = client.post(
        "/encode", texts, parameters={"artifact": "finished"}, results_in_order=True
    )
    np.testing.assert_allclose(documents.embeddings, over_http, atol=1e-6)
    assert documents.texts == texts.texts


def test_fit_over_grpc(server):
    documents = DocumentArray(
        [Document(text=text, tags={"finetuner_label": ord(label)}) for text, label in ROWS]
    )
    parameters = {"model": "tiny", "run_name": "grpc", "epochs": 1, "device": "cpu"}
    answer = Client(port=server.grpc_port).post(
        "/fit", documents, parameters=parameters, request_size=len(documents)
    )
    assert orjson.loads(answer[0].text)["status"] == "CREATED"
    assert server.wait_until_ended("grpc")["status"] == "FINISHED"
    server.delete("/runs/grpc")


def test_client_from_fit_to_vectors(server, tmp_path):
    before = [e.name for e in finetuner.list_experiments()]  # of other tests: they share the server
    pushed = DocumentArray([Document(text=t, tags={"finetuner_label": n}) for t, n in ROWS])
    pushed.push("me/train.da")
    assert "me/train.da" in DocumentArray.cloud_list()
    pulled = DocumentArray.pull("me/train.da", local_cache=False)
    assert pulled[:, ["id", "text"]] == pushed[:, ["id", "text"]]
    run = finetuner.fit(
        "tiny",
        "me/train.da",
        run_name="client",
        experiment_name="exp",
        epochs=1,
        to_onnx=True,
        callbacks=[EvaluationCallback(pulled, gather_examples=True, num_example_queries=2)],
    )
    assert run.status() == {
        "status": "CREATED",
        "details": "Run submitted and awaits execution",
    }
    with pytest.raises(RunInProgressError, match="needs to be finished in order to save"):
        run.save_artifact(str(tmp_path))
    with pytest.raises(RunExistsError, match="already has a run `client`"):
        finetuner.fit("tiny", "me/train.da", run_name="client", experiment_name="exp")
    assert "Finished" in list(run.stream_logs())[-1]
    assert "there is no GPU here" in run.status()["details"]
    assert sorted(run.metrics()) == ["after", "before"]
    assert [len(run.example_results()[stage]["model"]) for stage in ("before", "after")] == [2, 2]
    assert run.config["loss"] == "TripletMarginLoss"
    artifact = run.save_artifact(str(tmp_path))
    vectors = [
        finetuner.encode(finetuner.get_model(artifact, is_onnx=is_onnx), ["one a", "x " * 50])
        for is_onnx in (False, True)
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)
    experiments = [e.name for e in finetuner.list_experiments()]
    assert experiments == sorted({*before, "exp"})
    assert [r.name for r in finetuner.get_experiment("exp").list_runs()] == ["client"]
    finetuner.delete_run("client", "exp")
    assert finetuner.list_runs("exp") == []
    assert finetuner.delete_experiment("exp").name == "exp"
    DocumentArray.cloud_delete("me/train.da")
    assert "me/train.da" not in DocumentArray.cloud_list()


def test_data_pushed_again_are_seen_though_docarray_caches(server, monkeypatch, tmp_path):
    monkeypatch.setattr("docarray.array.mixins.io.pushpull.__cache_path__", str(tmp_path))
    for label in range(1, 6):
        DocumentArray([Document(id="a", text="t", tags={"finetuner_label": label})]).push("x.da")
        assert DocumentArray.pull("x.da")[0].tags["finetuner_label"] == label
    DocumentArray.cloud_delete("x.da")


def test_a_csv_becomes_stored_data_that_a_run_is_given_and_evaluated_with(server, tmp_path):
    content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
    answer = server.put("/data/me/x", data=content, headers={"Content-Type": "text/csv"})
    assert (answer.status_code, answer.json()["n_documents"]) == (201, len(ROWS))
    pulled = DocumentArray.pull("me/x", local_cache=False)
    assert [[d.text, d.tags["finetuner_label"]] for d in pulled] == ROWS
    callbacks = [EvaluationCallback(hold_out=0.3)]
    settings = {"run_name": "held", "epochs": 1, "device": "cpu", "callbacks": callbacks}
    found = finetuner.check("tiny", "me/x", **settings)
    assert (found["problems"], found["train_data"]["n_texts"]) == ([], len(ROWS))
    assert found["evaluation"] == {"n_queries": 5, "n_index": 13, "n_labels": 5}
    run = finetuner.fit("tiny", "me/x", **settings)
    assert finetuner.delete_data("me/x") == answer.json()
    assert server.wait_until_ended("held")["status"] == "FINISHED"
    assert "Held out: 5 queries of 5 labels, searched among 13 others (hold_out=0.3)" in run.logs()
    assert "13 texts with 6 labels" in run.logs()
    assert sorted(run.metrics()) == ["after", "before"]
    finetuner.delete_run("held")


def test_failed_run_tells_why_and_the_next_one_works(server, tiny_model_folder):
    broken = server.workspace / "models" / "broken"
    shutil.copytree(tiny_model_folder, broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 9)
    for name, model in (("bad", "broken"), ("good", "tiny")):
        body = {"model": model, "train_data": ROWS, "run_name": name, "epochs": 1}
        assert server.post("/fit", json={**body, "device": "cpu"}).status_code == 201
    assert server.wait_until_ended("good")["status"] == "FINISHED"
    state = server.get("/runs/bad/status").json()
    assert state["status"] == "FAILED"
    assert state["details"].startswith("ModelNotFoundError: the model in `broken` cannot be loaded")
    logs = server.get("/runs/bad/logs").text
    assert logs.index("The run failed: ModelNotFoundError") < logs.index("Traceback")
    assert server.get("/runs/bad/artifact").status_code == 409
    run = finetuner.get_run("bad")
    with pytest.raises(RunFailedError, match="please check the `logs`"):
        run.metrics()
    assert run.logs() == logs
    for name in ("bad", "good"):
        assert server.delete(f"/runs/{name}").status_code == 200


def test_fit_answers_with_the_record_and_a_run_at_work_refuses_what_it_lacks(server):
    body = {"model": "tiny", "train_data": ROWS, "run_name": "long", "epochs": 1000}
    body |= {"device": "cpu", "description": "some text", "experiment_name": "work"}
    answer = server.post("/fit", json=body)
    record = answer.json()
    assert answer.status_code == 201
    assert re.fullmatch("[0-9a-f]{24}", record["artifact_id"])
    assert record.pop("changed_at") == record["created_at"]
    assert record.pop("position") in (None, 1)  # the queue may not have seen it yet
    assert {**record, "artifact_id": "", "created_at": "", "config": {}} == {
        **dict.fromkeys(("progress", "metric", "verdict")),
        "n_starts": 0,
        "name": "long",
        "experiment_name": "work",
        "status": "CREATED",
        "details": "Run submitted and awaits execution",
        "description": "some text",
        "created_at": "",
        "artifact_id": "",
        "config": {},
    }
    assert set(record["config"]) == {field.name for field in dataclasses.fields(RunConfig)}
    assert {key: record["config"][key] for key in body} == {**body, "train_data": "18 rows"}

    in_work = {
        "error": "RunInProgressError",
        "detail": "The run needs to be finished in order to save the artifact.",
    }
    metrics = server.get("/runs/long/metrics?experiment_name=work")
    assert (metrics.status_code, metrics.json()["after"]) == (200, {})
    for view in ("examples", "artifact"):
        refusal = server.get(f"/runs/long/{view}?experiment_name=work")
        assert (refusal.status_code, refusal.json()) == (409, in_work)
    encode = {"data": ["a"], "parameters": {"artifact": "work/long"}}
    refusal = server.post("/encode", json=encode)
    assert (refusal.status_code, refusal.json()) == (409, in_work)
    again = server.post("/fit", json=body)
    assert (again.status_code, again.json()["artifact_id"]) == (200, record["artifact_id"])
    refusal = server.post("/fit", json={**body, "epochs": 2})
    assert (refusal.status_code, refusal.json()["error"]) == (409, "RunExistsError")
    assert "\n  epochs: 1000 → 2\n" in refusal.json()["detail"]

    deleted = server.delete("/runs/long?experiment_name=work").json()["items"]
    assert [run["artifact_id"] for run in deleted] == [record["artifact_id"]]
    assert server.get("/runs/long?experiment_name=work").status_code == 404
    assert server.delete("/experiments/work").json()["name"] == "work"


def test_a_key_makes_one_run_of_requests_at_once_and_later_ones(server):
    body = {"model": "tiny", "train_data": ROWS, "epochs": 0, "experiment_name": "keyed"}

    def fit(**changes):
        return server.post(
            "/fit", json={**body, "device": "cpu", **changes}, headers={"Idempotency-Key": "k 1"}
        )

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: fit(), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    (name,) = {answer.json()["name"] for answer in answers}
    assert fit().json()["name"] == name
    client = Client(port=server.grpc_port)
    parameters = {**body, "device": "cpu", "idempotency_key": "k 1"}
    del parameters["train_data"]
    documents = DocumentArray(
        [Document(text=text, tags={"finetuner_label": label}) for text, label in ROWS]
    )
    answer = orjson.loads(client.post("/fit", documents, parameters=parameters)[0].text)
    assert (answer["name"], answer["is_new"]) == (name, False)
    refusal = fit(seed=1)
    assert (refusal.status_code, refusal.json()["error"]) == (409, "RunExistsError")
    run = finetuner.fit(
        "tiny", ROWS, epochs=0, device="cpu", experiment_name="keyed", idempotency_key="k 1"
    )
    assert run.name == name
    assert server.delete("/experiments/keyed").status_code == 200


def test_logs_are_followed_to_the_end_and_the_run_serves_at_once(server):
    body = {"model": "tiny", "train_data": ROWS, "run_name": "fresh", "epochs": 1, "device": "cpu"}
    assert server.post("/fit", json=body).status_code == 201
    followed = server.get("/runs/fresh/logs?follow=true").text  # while it waits in the queue
    encode = {"data": ["a"], "parameters": {"artifact": "fresh"}}
    answer = server.post("/encode", json=encode)
    assert (answer.status_code, answer.json()["artifact"]) == (200, "fresh")
    logs = server.get("/runs/fresh/logs")
    assert logs.text == followed
    n_bytes = int(logs.headers["Next-Offset"])
    assert n_bytes == len(followed.encode())
    for query in (f"offset={n_bytes - 5}", f"offset={n_bytes - 5}&follow=true"):
        assert server.get(f"/runs/fresh/logs?{query}").text == followed[-5:]
    assert len(server.get("/runs/fresh/steps?limit=1").json()["items"]) == 1
    assert server.get("/runs/fresh/examples").json() == {"before": {}, "after": {}}
    assert server.delete("/runs/fresh").status_code == 200
    assert server.post("/encode", json=encode).status_code == 404


def test_experiments(server):
    created = server.put("/experiments/own").json()
    assert (created["name"], created["status"]) == ("own", "ACTIVE")
    assert server.get("/experiments/own").json() == server.put("/experiments/own").json()
    assert created in server.get("/experiments").json()["items"]
    assert server.get("/runs?experiment_name=own").json()["items"] == []
    assert server.delete("/experiments/own").json()["name"] == "own"
    refusal = server.get("/experiments/own")
    assert (refusal.status_code, refusal.json()) == (
        404,
        {"error": "ExperimentNotFoundError", "detail": "no experiment `own`"},
    )


def test_data_list_has_what_was_pushed(server):
    documents = DocumentArray([Document(text=t, tags={"finetuner_label": n}) for t, n in ROWS])
    names = ["listed.da", "me/listed.da"]
    for name in names:
        documents.push(name)
    entries = [e for e in server.get("/data").json()["items"] if e["name"] in names]
    assert [(entry["name"], entry["n_documents"]) for entry in entries] == [
        (name, len(ROWS)) for name in names
    ]
    assert set(names) <= set(DocumentArray.cloud_list())
    for name in names:
        DocumentArray.cloud_delete(name)
        assert server.get(f"/data/{name}").status_code == 404


def test_paging(server, finished_run):
    for i in range(3):
        body = {"model": "tiny", "train_data": ROWS, "run_name": f"p{i}", "epochs": 0}
        server.post("/fit", json={**body, "experiment_name": "pages", "device": "cpu"})
    page = server.get("/runs?experiment_name=pages&page=2&size=2").json()
    assert ([run["name"] for run in page["items"]], page["total"]) == (["p2"], 3)
    assert server.delete("/experiments/pages").json()["name"] == "pages"
    assert server.get("/runs?experiment_name=pages").status_code == 404


def test_description_is_that_of_the_code(server):
    paths = server.get("/openapi.json").json()["paths"]
    body = paths["/fit"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {field.name for field in dataclasses.fields(RunConfig)}
    options = body["properties"]["callbacks"]["items"]["oneOf"][0]["properties"]["options"]
    assert set(options["properties"]) == {f.name for f in dataclasses.fields(EvaluationCallback)}
    assert set(paths["/fit"]["post"]["responses"]) >= {
        *("200", "201", "400", "404", "409", "413", "422", "507")
    }
    body = paths["/encode"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert (set(body["properties"]), body["required"]) == ({"data", "parameters"}, ["data"])
    parameters = {field.name for field in dataclasses.fields(EncodeParameters)}
    assert set(body["properties"]["parameters"]["properties"]) == parameters
    assert {"/encode", "/runs", "/runs/{run_name}/logs", "/data/{name}"} <= set(paths)
    assert server.get("/docs").status_code == 200

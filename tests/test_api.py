import dataclasses
import inspect
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import orjson
import pytest
from docarray import Document, DocumentArray

import finetuner
from finetuner.callback import EvaluationCallback
from finetuner.config import HardNegatives, RunConfig
from finetuner.errors import (
    AuthenticationRequiredError,
    ConfigError,
    DataError,
    FinetunerServerError,
    ForbiddenError,
    InvalidTokenError,
    RunNotFoundError,
    UnavailableError,
)
from finetuner.schema import read


class Answering(HTTPServer):
    """Answers every request with what the test put there, and keeps the requests."""

    status, answer = 200, {}

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []


class Handler(BaseHTTPRequestHandler):
    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        content = orjson.dumps(self.server.answer)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Answering()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("FINETUNER_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("FINETUNER_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


RECORD = {"name": "one", "experiment_name": "default", "config": {}, "artifact_id": "a" * 24}
DOCUMENTS = DocumentArray(
    [Document(id="d1", text="a", tags={"finetuner_label": 1}), Document(id="d2", text="b")]
)


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        ("quora_train.da", "quora_train.da"),
        ([("a", 1), ("b", 2)], [["a", 1], ["b", 2]]),
        (
            DOCUMENTS,
            [{"text": "a", "label": "1", "id": "d1"}, {"text": "b", "label": None, "id": "d2"}],
        ),
    ],
)
def test_fit_sends_data_in_every_form(server, data, sent):
    server.answer = RECORD
    callback = EvaluationCallback(query_data=data, limit=7)
    variants = {"to_onnx": True, "onnx_variants": ("int8", "weight_int8")}
    run = finetuner.fit("m", data, run_name="one", callbacks=[callback], **variants)

    assert run.name == "one"
    (method, path, _, body) = server.requests[-1]
    body = orjson.loads(body)
    assert (method, path) == ("POST", "/fit")
    assert body["train_data"] == sent
    assert body["callbacks"][0]["options"]["query_data"] == sent
    assert body["callbacks"][0]["options"]["limit"] == 7
    assert (body["to_onnx"], body["onnx_variants"]) == (True, ["int8", "weight_int8"])
    assert (body["loss"], body["batch_size"], body["device"]) == ("TripletMarginLoss", 64, "cuda")


def test_fit_reads_a_csv(server, tmp_path):
    server.answer = RECORD
    (tmp_path / "x.csv").write_text('text,label\n"a, b",1\nc,1.0\n', encoding="utf-8")
    finetuner.fit("m", str(tmp_path / "x.csv"))

    assert orjson.loads(server.requests[-1][3])["train_data"] == [
        {"text": "a, b", "label": "1"},
        {"text": "c", "label": "1"},
    ]


def test_fit_refuses_what_it_would_ignore():
    with pytest.raises(ConfigError, match="public has no meaning on a server of your own"):
        finetuner.fit("m", "x.da", public=True)


def test_every_argument_of_fit_is_a_field_of_the_request(server):
    """What the client sends, the server's configuration takes; nothing is dropped on the way."""
    server.answer = RECORD
    finetuner.fit("m", "x.da", eval_data="y.da", hard_negatives=True, lora={"rank": 4})
    body = orjson.loads(server.requests[-1][3])
    assert (body["eval_data"], body["hard_negatives"], body["lora"]) == ("y.da", {}, {"rank": 4})
    config = read(RunConfig, body, "fit")
    assert config.hard_negatives == HardNegatives()
    arguments = set(inspect.signature(finetuner.fit).parameters)
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    assert arguments - fields == {"csv_options", "num_workers", "public"}
    assert fields - arguments == set()


def test_check_takes_and_sends_what_fit_does(server):
    assert [*inspect.signature(finetuner.check).parameters.items()] == [
        *inspect.signature(finetuner.fit).parameters.items()
    ]
    bodies = []
    arguments = {"experiment_name": "e", "hard_negatives": True, "dimensions": (8,), "epochs": 2}
    for verb, answer in ((finetuner.fit, RECORD), (finetuner.check, {"problems": []})):
        server.answer = answer
        verb("m", [("a", 1)], callbacks=[EvaluationCallback(hold_out=0.2)], **arguments)
        bodies.append(server.requests[-1])
    (_, fit_path, _, fit_body), (_, check_path, _, check_body) = bodies
    assert (fit_path, check_path) == ("/fit", "/check")
    assert check_body == fit_body
    assert orjson.loads(check_body)["callbacks"][0]["options"]["hold_out"] == 0.2
    assert finetuner.check("m", "x.da") == {"problems": []}
    assert finetuner.check.__doc__.startswith("Find all that :func:`fit` would refuse")
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        finetuner.check("m", "x.da", epoch=1)
    with pytest.raises(ConfigError, match="public has no meaning on a server of your own"):
        finetuner.check("m", "x.da", public=True)


def test_fit_refuses_other_data_and_callbacks():
    with pytest.raises(ConfigError, match="data must be a stored name"):
        finetuner.fit("m", 5)
    with pytest.raises(ConfigError, match=r"a callback of finetuner\.callback is needed"):
        finetuner.fit("m", "x.da", callbacks=["EvaluationCallback"])


@pytest.mark.parametrize(
    ("status", "answer", "error", "message"),
    [
        (404, {"error": "RunNotFoundError", "detail": "no run"}, RunNotFoundError, "^no run$"),
        (401, {}, AuthenticationRequiredError, "set FINETUNER_TOKEN to yours"),
        (403, {"error": "ForbiddenError", "detail": "needs fit"}, ForbiddenError, "^needs fit$"),
        (500, {"error": "Oops", "detail": "x"}, FinetunerServerError, r"server failed \(500\): x"),
        (502, [], FinetunerServerError, r"server failed \(502\)"),
    ],
)
def test_errors_come_back_as_what_they_were(server, status, answer, error, message):
    server.status, server.answer = status, answer
    with pytest.raises(error, match=message):
        finetuner.get_run("x")


def test_absent_server_is_named(monkeypatch):
    monkeypatch.setenv("FINETUNER_HOST", "http://127.0.0.1:9")
    for call in (finetuner.login, finetuner.list_runs, lambda: finetuner.fit("m", "x.da")):
        with pytest.raises(
            UnavailableError, match=r"http://127\.0\.0\.1:9; start one with `finetuner"
        ):
            call()


def test_token_travels_when_there_is_one(server, monkeypatch):
    with pytest.raises(AuthenticationRequiredError, match="FINETUNER_TOKEN is not set"):
        finetuner.get_token()
    finetuner.login()
    assert "Authorization" not in server.requests[-1][2]
    monkeypatch.setenv("FINETUNER_TOKEN", "secret")
    finetuner.login()
    assert server.requests[-1][2]["Authorization"] == "Bearer secret"
    assert finetuner.get_token() == "secret"


def test_login_with_a_token(server, monkeypatch):
    for variable in ("FINETUNER_TOKEN", "JINA_AUTH_TOKEN", "JINA_HUBBLE_REGISTRY"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    finetuner.login()  # docarray now has what stands for no token
    finetuner.login(token="ft_secret")
    (method, path, headers, _) = server.requests[-1]
    assert (method, path, headers["Authorization"]) == ("GET", "/whoami", "Bearer ft_secret")
    assert os.environ["JINA_AUTH_TOKEN"] == finetuner.get_token() == "ft_secret"
    server.status = 401
    with pytest.raises(InvalidTokenError, match="does not know the token in FINETUNER_TOKEN"):
        finetuner.login()


def test_a_token_goes_to_no_other_registry(server, monkeypatch):
    monkeypatch.setenv("JINA_HUBBLE_REGISTRY", "https://registry.example.org")
    monkeypatch.setenv("JINA_AUTH_TOKEN", "theirs")
    monkeypatch.setenv("FINETUNER_TOKEN", "")
    finetuner.login(token="ft_secret")
    assert os.environ["JINA_AUTH_TOKEN"] == "theirs"


@pytest.mark.parametrize("token", ["", "two words", "a\nb", "ü"])
def test_what_cannot_be_a_token_is_not_sent(server, token):
    with pytest.raises(ConfigError, match="a token is one word of letters"):
        finetuner.login(token=token)
    assert server.requests == []


def test_cos_sim():
    assert finetuner.cos_sim([1, 0], [1, 1]) == pytest.approx(0.5**0.5)
    assert finetuner.cos_sim(np.zeros(2), [1, 1]) == 0.0


def test_lists():
    assert finetuner.list_callbacks()[0] == "EvaluationCallback"
    assert "WandBLogger" in finetuner.list_callbacks()
    assert finetuner.list_models() == [
        "bert-base-en",
        "sbert-base-en",
        "bert-base-multi",
        "all-minilm-l6-v2",
    ]
    assert set(finetuner.list_model_options()) == set(finetuner.list_models())


def test_all_is_sorted_and_there():
    assert finetuner.__all__ == sorted(finetuner.__all__)
    assert all(hasattr(finetuner, name) for name in finetuner.__all__)


def test_encode_fills_documents_in_place(tiny_model_folder):
    model = finetuner.build_model(str(tiny_model_folder), device="cpu")
    data = DocumentArray([Document(text="a"), Document(text="b c")])

    assert finetuner.encode(model, data) is data
    np.testing.assert_allclose(data.embeddings, finetuner.encode(model, ["a", "b c"]), atol=1e-6)
    assert finetuner.encode(model, []).shape == (0, model.dim)
    assert len(finetuner.encode(model, DocumentArray())) == 0
    with pytest.raises(DataError, match="text 1: the text must be a string"):
        finetuner.encode(model, [5])
    with pytest.raises(ConfigError, match="a backbone has no ONNX graph"):
        finetuner.build_model(str(tiny_model_folder), is_onnx=True)


def test_cuda_without_a_gpu_warns(tiny_model_folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.warns(RuntimeWarning, match="there is no GPU here"):
        model = finetuner.build_model(str(tiny_model_folder), device="cuda")
    assert model.device == "cpu"


def test_public_import_points_docarray_here():
    code = "import os, finetuner; print(os.environ['JINA_HUBBLE_REGISTRY'])"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"FINETUNER_HOST": "http://h:1", "PATH": "/usr/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "http://h:1\n"


def test_a_list_of_runs_names_its_order(server):
    server.answer = {"items": []}
    assert finetuner.list_runs(size=2) == []
    assert server.requests[-1][1] == "/runs?page=1&size=2&order=oldest"
    finetuner.list_runs("e", order="newest")
    assert server.requests[-1][1].endswith("experiment_name=e&page=1&size=50&order=newest")


def test_the_map_of_a_run_is_asked_for(server):
    server.answer = {"name": "r", "experiment_name": "e"}
    run = finetuner.get_run("r", "e")
    server.answer = {"evaluations": {"model": {"n_texts": 2}}}
    assert run.map() == server.answer
    assert server.requests[-1][1] == "/runs/r/map?experiment_name=e"

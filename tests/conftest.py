"""What several test modules share: a tiny model made on the spot, tiny data, one seed."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import signal
import socket
import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
import requests
from requests.adapters import BaseAdapter

_WORKSPACE = Path(tempfile.mkdtemp(prefix="finetuner-tests-"))
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    JINA_OPTOUT_TELEMETRY="1",
    FINETUNER_WORKSPACE=str(_WORKSPACE),
)

import finetuner  # noqa: E402 - the environment comes first
from finetuner.data import LabelledTexts  # noqa: E402

_TOPICS = ("apple", "river", "stone", "cloud", "tiger", "piano")
_TOPICS += ("bread", "winter", "engine", "garden", "mirror", "planet")
_PATTERNS = ("the {}", "a {} is here", "we like the {} of today", "look at this {} now")


def pytest_collection_modifyitems(items):
    """Begin with the files that take minutes: the last one left would run alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish():
    shutil.rmtree(_WORKSPACE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Let torch compute in one thread: several wait for each other on matrices this small."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may use it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A BERT of two layers with random weights, dim 32, 128 positions, pad id 0."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = sorted({*_TOPICS, *" ".join(_PATTERNS).replace("{}", "").split()} - set(letters))
    vocabulary = {
        token: number
        for number, token in enumerate([*special, *letters, *(f"##{c}" for c in letters), *words])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        **dict(zip(names, special, strict=True)),
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model_without_dropout(tiny_model_folder, tmp_path):
    """The tiny model without dropout, which two processes cannot draw as one does."""
    folder = tmp_path / "models" / "tiny"
    shutil.copytree(tiny_model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="session")
def tiny_labelled():
    """Twelve labels with four texts each that share one word."""
    rows = [
        (pattern.format(topic), str(number))
        for number, topic in enumerate(_TOPICS)
        for pattern in _PATTERNS
    ]
    return LabelledTexts(
        [text for text, _ in rows],
        [label for _, label in rows],
        [f"d{i}" for i in range(len(rows))],
    )


@pytest.fixture(scope="session")
def come_to():
    """Bring a run to a status, by the steps that lead there from where it is."""
    from finetuner.states import Actor, Status

    def come_to(run, status, details="", **changes):
        state = run.state()
        if state.status is status:
            return state
        if state.status.is_waiting:
            state = run.claim()
        if status is Status.STARTED:
            return state
        return run.step(state, status, details, actor=Actor.WORKER, **changes)

    return come_to


@pytest.fixture
def work():
    """The worker's main in this process, which gets its signals and its log back."""

    from finetuner import worker

    def work(run, do=None):
        logger = logging.getLogger("finetuner")
        handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        propagate, level = logger.propagate, logger.level
        try:
            return worker.main(str(run.folder), do)
        finally:
            logger.propagate = propagate
            logger.setLevel(level)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return work


@pytest.fixture(scope="session")
def publish_run(tiny_model_folder, come_to):
    """Make a finished run with the tiny model on a volume; another seed gives other vectors."""
    import torch

    from finetuner.artifact import Manifest, pack
    from finetuner.config import RunConfig
    from finetuner.models import load_model, save_model
    from finetuner.run_store import RunStore
    from finetuner.states import Status

    def publish(volume, name, *, prompts=None, seed=0):
        loaded = load_model(tiny_model_folder)
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in loaded.model.parameters() if seed else ():
                weight += 0.1 * torch.randn_like(weight)
        manifest = Manifest(
            run_name=name,
            model="tiny",
            dim=loaded.model.dim,
            pooler="mean",
            normalize=True,
            max_length=loaded.max_length,
            input_names=loaded.model.input_names,
            metrics={},
            verdicts={"queries": "improved"},
            has_onnx=False,
            created_at="",
            prompts=prompts or {},
        )
        run = RunStore(volume).create(RunConfig(model="tiny", run_name=name), {})
        with tempfile.TemporaryDirectory() as folder:
            save_model(loaded, Path(folder))
            pack(Path(folder), run.artifact_path, manifest=manifest)
        come_to(run, Status.FINISHED, "Run finished")
        return run

    return publish


@pytest.fixture
def finish_run(tmp_path, come_to):
    """Make a finished run on the volume `tmp_path`, judged as told, with an artifact without a model."""
    from finetuner.artifact import Manifest, pack
    from finetuner.config import RunConfig
    from finetuner.run_store import RunStore
    from finetuner.states import Status

    def finish(name, *outcomes, experiment="default"):
        config = RunConfig(model="tiny", run_name=name, experiment_name=experiment)
        run = RunStore(tmp_path).create(config, {})
        manifest = Manifest(
            run_name=name,
            model="tiny",
            dim=32,
            pooler="mean",
            normalize=True,
            max_length=128,
            input_names=("input_ids", "attention_mask"),
            metrics={},
            verdicts={f"set {i}": outcome for i, outcome in enumerate(outcomes)},
            has_onnx=False,
            created_at="",
        )
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            pack(Path(folder), run.artifact_path, manifest=manifest)
        come_to(run, Status.FINISHED, "Run finished")
        return run

    return finish


@pytest.fixture(scope="module")
def ray_cluster():
    """A head that works on nothing, and two nodes with a core each; `client_address` is of Ray's client."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    memory = {"object_store_memory": 100 * 2**20}
    head = {"num_cpus": 0, "ray_client_server_port": port, **memory}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(Path(finetuner.__file__).parents[1]))  # of the workers
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        made.client_address = f"ray://127.0.0.1:{port}"
        for _ in range(2):
            made.add_node(num_cpus=1, **memory)
        yield made
        made.shutdown()


class InProcess(BaseAdapter):
    """Hands the requests of `requests` to an application."""

    def __init__(self, http):
        super().__init__()
        self._http = http

    def send(self, request, **_):
        content = request.body if isinstance(request.body, bytes) else b""
        found = self._http.request(
            request.method, request.path_url, headers=dict(request.headers), content=content
        )
        response = requests.Response()
        response.status_code, response.raw = found.status_code, io.BytesIO(found.content)
        response.headers.update(found.headers)
        return response

    def close(self):
        pass


@pytest.fixture
def connect(monkeypatch):
    """Let a module's verbs reach an application in this process."""
    from finetuner.client import Client

    def connect(module, http):
        client = Client("http://in-process")
        client._session.mount("http://in-process", InProcess(http))
        monkeypatch.setattr(module, "_client", client)

    return connect


@pytest.fixture
def fake(monkeypatch):
    """A server that answers what the test tells it to, where the client looks for one."""
    from fake_server import fake_server

    with fake_server() as server:
        monkeypatch.setenv("FINETUNER_HOST", server.url)
        monkeypatch.delenv("FINETUNER_TOKEN", raising=False)
        yield server


@pytest.fixture
def command():
    """Run `finetuner` with arguments, and look at its exit code."""
    from typer.testing import CliRunner

    from finetuner.cli import app

    def run(*arguments, exit_code=0, **options):
        runner = CliRunner(env={"COLUMNS": "200"})
        result = runner.invoke(app, [str(word) for word in arguments], **options)
        assert result.exit_code == exit_code, (result.output, result.exception)
        return result

    return run


@pytest.fixture
def s3(monkeypatch):
    """Run an S3 with one bucket, `bucket`, that all of this process takes for Amazon's."""
    from fake_s3 import open_s3

    with open_s3("bucket") as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield store

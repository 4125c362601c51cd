import logging
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import orjson
import pytest

from finetuner import logger_backends
from finetuner.callback import (
    CALLBACKS,
    LoggingStep,
    MLflowLogger,
    TensorBoardLogger,
    WandBArguments,
    WandBLogger,
)
from finetuner.config import CallbackConfig
from finetuner.errors import ConfigError
from finetuner.logger_backends import LoggedRun
from finetuner.loggers import RunLoggers, check_loggers, open_logger, open_loggers
from finetuner.schema import describe

SETTINGS = {
    "model": "tiny",
    "learning_rate": 2e-5,
    "loss_options": {"temperature": 0.05},
    "miner": None,
    "callbacks": [{"name": "TensorBoardLogger", "options": {}}],
}
LOGGERS = [TensorBoardLogger(), WandBLogger(), MLflowLogger()]
# What every reader below must find again: values by name, each with its step.
WRITTEN = {
    "loss": [(1, 0.75), (2, 0.5), (4, 0.25)],
    "reciprocal_rank": [(0, 0.5), (2, 0.625), (4, 0.875)],
}


@pytest.fixture(scope="module")
def trap():
    """A proxy that notes who calls; of the whole module, as W&B's process outlives a test."""
    callers = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_note_callers, args=(server, callers), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", callers
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(autouse=True)
def _nothing_gets_out(monkeypatch, tmp_path, trap):
    """Let this process's sockets reach loopback only, and lead HTTP of others to the trap.

    W&B sends from a process of its own, written in Go, which honours the proxy variables.
    """
    before = dict(os.environ)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    connect = socket.socket.connect

    def connect_near(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reached for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_near)
    url, callers = trap
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    os.environ.clear()  # `open_logger` sets defaults in it
    os.environ.update(before)
    assert callers == []


def _note_callers(server, callers):
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            callers.append(connection.recv(1000))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "quora" / "r1"
    folder.mkdir(parents=True)
    return LoggedRun(folder, "r1", "quora", SETTINGS)


def _write(logger, *, succeeded=True):
    by_step = {}
    for name, points in WRITTEN.items():
        for step, value in points:
            by_step.setdefault(step, {})[name] = value
    for step in sorted(by_step):
        logger.log(by_step[step], step=step)
    logger.close(succeeded=succeeded)


def _tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    scalars = {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }
    *_, settings = found.Tensors("settings/text_summary")
    return scalars, settings.tensor_proto.string_val[0].decode()


def test_tensorboard_reads_what_was_written(run):
    _write(open_logger(TensorBoardLogger(), run))
    scalars, settings = _tensorboard(run.folder)
    assert scalars == WRITTEN
    assert orjson.loads(settings.removeprefix("```json\n").removesuffix("\n```")) == SETTINGS


def test_tensorboard_shows_a_restarted_run_once(run):
    first = open_logger(TensorBoardLogger(), run)
    for step in range(6):
        first.log({"loss": 9.0}, step=step)
    first.close(succeeded=False)
    _write(open_logger(TensorBoardLogger(), run))
    scalars, _ = _tensorboard(run.folder)
    assert scalars == WRITTEN


def _wandb_records(folder):
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    records = []
    while (data := store.scan_data()) is not None:
        records.append(Record.FromString(data))
    return records


def _wandb_history(records):
    found = {}
    for record in records:
        if record.HasField("history"):
            row = {
                ".".join([item.key, *item.nested_key]).strip("."): orjson.loads(item.value_json)
                for item in record.history.item
            }
            for name in WRITTEN.keys() & row.keys():
                found.setdefault(name, []).append((record.history.step.num, row[name]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("succeeded", [True, False])
def test_wandb_reads_what_was_written(run, succeeded):
    callback = WandBLogger(wandb_args={"tags": ["a", "b"], "notes": "why"})
    _write(open_logger(callback, run), succeeded=succeeded)
    records = _wandb_records(run.folder)
    assert _wandb_history(records) == WRITTEN
    (header,) = [record.run for record in records if record.HasField("run")]
    assert (header.project, header.display_name, header.notes) == ("quora", "r1", "why")
    assert list(header.tags) == ["a", "b"]
    config = {item.key: orjson.loads(item.value_json) for item in header.config.update}
    assert config.items() >= SETTINGS.items()
    (end,) = [record.exit for record in records if record.HasField("exit")]
    assert end.exit_code == (0 if succeeded else 1)


@pytest.mark.slow
def test_wandb_arguments_replace_the_names(run):
    callback = WandBLogger(wandb_args={"project": "p", "name": "n", "group": "g"})
    _write(open_logger(callback, run))
    (header,) = [record.run for record in _wandb_records(run.folder) if record.HasField("run")]
    assert (header.project, header.display_name, header.run_group) == ("p", "n", "g")


@pytest.mark.parametrize(
    ("environment", "mode"),
    [({}, "offline"), ({"WANDB_API_KEY": "k"}, None), ({"WANDB_MODE": "online"}, None)],
)
def test_wandb_is_offline_unless_the_operator_has_set_it(run, monkeypatch, environment, mode):
    given = {}
    init = given.update
    fake = SimpleNamespace(init=init, teardown=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    open_logger(WandBLogger(), run)
    assert (given["mode"], given["dir"]) == (mode, str(run.folder))


@pytest.mark.slow
def test_training_survives_the_end_of_wandbs_own_process(run):
    code = """
import logging, os, pathlib, signal, subprocess, sys
from finetuner.callback import WandBLogger
from finetuner.logger_backends import LoggedRun
from finetuner.loggers import open_loggers
logging.basicConfig(format="LOG %(message)s", stream=sys.stdout)
run = LoggedRun(pathlib.Path(sys.argv[1]), "r1", "quora", {})
with open_loggers([WandBLogger()], run) as loggers:
    loggers.log_epoch({"loss": 1.0}, step=1)
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True)
    os.kill(int(children.stdout), signal.SIGKILL)
    for step in range(2, 200):
        loggers.log_epoch({"loss": 1.0}, step=step)
print("TRAINED")
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(run.folder)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (result.returncode, "TRAINED" in result.stdout) == (0, True), result.stderr
    assert result.stdout.count("LOG WandBLogger failed and writes no more: ") == 1


def _mlflow(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("quora")
    (found,) = client.search_runs([experiment.experiment_id])
    history = {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    return found, history


@pytest.mark.parametrize(("succeeded", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_mlflow_reads_what_was_written(run, succeeded, status):
    _write(open_logger(MLflowLogger(), run), succeeded=succeeded)
    found, history = _mlflow(run.folder)
    assert history == WRITTEN
    assert found.info.status == status
    assert found.data.tags["mlflow.runName"] == "r1"
    assert found.data.params == {
        "model": "tiny",
        "learning_rate": "2e-05",
        "loss_options.temperature": "0.05",
        "callbacks": "[{'name': 'TensorBoardLogger', 'options': {}}]",
    }


def test_mlflow_takes_names_and_values_that_it_would_refuse(run):
    long = LoggedRun(run.folder, "r1", "quora", {"description": "x" * 300})
    logger = open_logger(MLflowLogger(), long)
    logger.log({"größe (k=20)_model_hit": 0.5}, step=3)
    logger.close(succeeded=True)
    found, history = _mlflow(run.folder)
    assert history == {"gr__e _k_20__model_hit": [(3, 0.5)]}
    assert found.data.params == {"description": "x" * 250}


class _Refusal(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(403, "not yours")

    def log_message(self, *args):
        pass


def test_an_mlflow_server_that_refuses_is_a_warning(run, monkeypatch, caplog):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with caplog.at_level(logging.WARNING, "finetuner"):
            _write(open_logger(MLflowLogger(), run))
        server.shutdown()
    (message,) = [text for text in caplog.messages if text.startswith("MLflowLogger")]
    assert message.startswith("MLflowLogger failed and writes no more: MlflowException: ")
    assert "403" in message
    assert not (run.folder / "mlruns").exists()


class _Recorder:
    def __init__(self, fails_at=()):
        self.calls, self._fails_at = [], fails_at

    def log(self, metrics, *, step):
        self.calls.append((dict(metrics), step))
        if step in self._fails_at:
            raise OSError(28, "No space left on device")

    def close(self, *, succeeded):
        self.calls.append(succeeded)
        if "close" in self._fails_at:
            raise OSError(28, "No space left on device")


def _substitute(monkeypatch, make):
    backend = logger_backends.Backend("tensorboard", make)
    monkeypatch.setitem(logger_backends.BACKENDS, TensorBoardLogger, backend)


def test_a_logger_that_breaks_says_so_once(run, monkeypatch, caplog):
    recorder = _Recorder(fails_at=(2, 3, "close"))
    _substitute(monkeypatch, lambda callback, run: recorder)
    with (
        caplog.at_level(logging.WARNING, "finetuner"),
        open_loggers([TensorBoardLogger()], run) as opened,
    ):
        for step in (1, 2, 3):
            opened.log_epoch({"loss": 1.0}, step=step)
    assert recorder.calls == [({"loss": 1.0}, 1), ({"loss": 1.0}, 2), True]
    assert caplog.messages == [
        "TensorBoardLogger failed and writes no more: OSError: [Errno 28] No space left on device"
    ]


def test_a_logger_that_cannot_open_says_so(run, caplog):
    (run.folder / "tensorboard").write_text("in the way")
    with caplog.at_level(logging.WARNING, "finetuner"):
        _write(open_logger(TensorBoardLogger(), run))
    (message,) = caplog.messages
    assert message.startswith("TensorBoardLogger failed and writes no more: FileExistsError: ")


def test_a_run_that_fails_closes_its_loggers_as_failed(run, monkeypatch):
    recorder = _Recorder()
    _substitute(monkeypatch, lambda callback, run: recorder)

    def fail():
        with open_loggers([TensorBoardLogger()], run):
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        fail()
    assert recorder.calls == [False]


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (TensorBoardLogger(), [0, 2]),
        (TensorBoardLogger(log_zero_shot=False), [2]),
        (TensorBoardLogger("batch"), [0, 1, 2, 2]),
        (TensorBoardLogger("batch", log_zero_shot=False), [1, 2, 2]),
    ],
)
def test_what_a_callback_asks_for_is_written(callback, expected):
    recorder = _Recorder()
    opened = RunLoggers([(callback, recorder)])
    opened.log_epoch({"rank": 0.5}, step=0)
    opened.log_batch({"loss": 1.0}, step=1)
    opened.log_batch({"loss": 0.5}, step=2)
    opened.log_epoch({"rank": 0.75}, step=2)
    opened.log_epoch({}, step=3)
    assert [step for _, step in recorder.calls] == expected


def test_installed_loggers_pass():
    check_loggers(LOGGERS)


@pytest.mark.parametrize("callback", LOGGERS)
def test_a_missing_package_is_refused_with_what_installs_it(callback, monkeypatch, tmp_path):
    package = logger_backends.BACKENDS[type(callback)].package
    # W&B leaves such a folder where it ran, and the import system takes it for a package.
    (tmp_path / package).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, package, raising=False)
    message = rf"^{type(callback).__name__} needs .*: pip install 'finetuner-flow\[{package}\]'$"
    with pytest.raises(ConfigError, match=message):
        check_loggers([callback])
    (tmp_path / package).rmdir()
    with pytest.raises(ConfigError, match=message):
        check_loggers([callback])


def test_two_of_one_kind_are_refused():
    with pytest.raises(ConfigError, match="^a run takes one TensorBoardLogger, got 2$"):
        check_loggers([TensorBoardLogger(), WandBLogger(), TensorBoardLogger("batch")])


def test_the_packages_are_imported_only_when_used():
    code = (
        "import sys, finetuner.loggers as l; from finetuner.callback import *;"
        "l.check_loggers([TensorBoardLogger(), WandBLogger(), MLflowLogger()]);"
        "print([n for n in ('torch', 'tensorboard', 'wandb', 'mlflow') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_an_operators_environment_comes_first(run, monkeypatch):
    _substitute(monkeypatch, lambda callback, run: _Recorder())
    monkeypatch.setenv("WANDB_SILENT", "false")
    open_logger(TensorBoardLogger(), run)
    assert (os.environ["WANDB_SILENT"], os.environ["WANDB_ERROR_REPORTING"]) == ("false", "false")


@pytest.mark.parametrize("name", ["TensorBoardLogger", "WandBLogger", "MLflowLogger"])
def test_loggers_travel_as_callbacks(name):
    callback = CallbackConfig(name, {"metrics_logger_step": "batch"}).build()
    assert type(callback) is CALLBACKS[name]
    assert callback.metrics_logger_step is LoggingStep.BATCH
    assert callback.log_zero_shot is True
    assert describe(CALLBACKS[name])["properties"]["metrics_logger_step"]["enum"] == [
        "epoch",
        "batch",
    ]


def test_wandb_fields_are_those_of_the_old_api_in_its_order():
    callback = WandBLogger("batch", {"project": "p"}, False)
    assert callback == WandBLogger(
        metrics_logger_step="batch", wandb_args={"project": "p"}, log_zero_shot=False
    )
    assert callback.arguments() == WandBArguments(project="p")
    assert WandBLogger() == WandBLogger("epoch", None, True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: TensorBoardLogger("step"),
            "^TensorBoardLogger.metrics_logger_step must be one of",
        ),
        (
            lambda: MLflowLogger(log_zero_shot=1),
            "^MLflowLogger.log_zero_shot must be true or false",
        ),
        (lambda: WandBLogger(wandb_args=["p"]), "^WandBLogger.wandb_args must be an object"),
        (
            lambda: WandBLogger(wandb_args={"dir": "/etc"}),
            "^unknown field `dir` in WandBLogger.wandb_args; known: entity, project, name, group",
        ),
        (
            lambda: WandBLogger(wandb_args={"project": 3}),
            "^WandBLogger.wandb_args.project must be a string, got `3`$",
        ),
        (
            lambda: WandBLogger(wandb_args={"project": "a/b"}),
            "^a project of Weights & Biases has at most 128 characters .*; got `a/b`$",
        ),
        (lambda: WandBLogger(wandb_args={"project": "a" * 129}), "^a project of .* at most 128"),
        (lambda: WandBLogger(wandb_args={"tags": "a"}), "tags must be a list, got a string$"),
        (lambda: WandBLogger(wandb_args={"tags": [""]}), "has 1 to 64 characters; got ``$"),
        (lambda: WandBLogger(wandb_args={"tags": ["a" * 65]}), "has 1 to 64 characters; got `a"),
    ],
)
def test_what_a_logger_refuses(build, message):
    with pytest.raises(ConfigError, match=message):
        build()

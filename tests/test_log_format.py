"""Lines of JSON: the form itself, and a process that was set up for it."""

import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from finetuner.errors import ConfigError
from finetuner.log_format import JSONFormatter, LogFormat, chosen_format, fields, request_id


def formatted(message, *arguments, error=None, **values):
    record = logging.LogRecord("a.b", logging.WARNING, "f.py", 1, message, arguments, error)
    if values:
        record.__dict__.update(fields(**values))
    line = JSONFormatter().format(record)
    assert len(line.splitlines()) == 1
    return json.loads(line), record


def test_what_a_line_has():
    line, record = formatted("%d texts", 3, status=200)
    assert datetime.fromisoformat(line.pop("time")).timestamp() == pytest.approx(
        record.created, abs=1e-3
    )
    assert line == {
        **{"level": "WARNING", "logger": "a.b", "message": "3 texts"},
        **{"process": record.process, "status": 200},
    }


@pytest.mark.parametrize(
    "message", ["a\nb", "a\u2028b", "a\x85b", "\ud800", "é ✨", '"\\', "a\x00"]
)
def test_any_message_is_one_line(message):
    assert formatted(message)[0]["message"] == message


def test_wrong_arguments_of_others_lose_no_line():
    assert formatted("%d texts", "three")[0]["message"] == "%d texts"


def test_a_trace_stays_within_the_line():
    try:
        raise ValueError("a\nb")
    except ValueError:
        line, _ = formatted("failed", error=sys.exc_info())
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: a\nb")


def test_a_line_names_its_request():
    mark = request_id.set("r1")
    assert formatted("a")[0]["request_id"] == "r1"
    request_id.reset(mark)
    assert "request_id" not in formatted("a")[0]


def test_the_environment_chooses(monkeypatch):
    monkeypatch.delenv("FINETUNER_LOG_FORMAT", raising=False)
    assert chosen_format() is LogFormat.TEXT
    monkeypatch.setenv("FINETUNER_LOG_FORMAT", "json")
    assert chosen_format() is LogFormat.JSON
    monkeypatch.setenv("FINETUNER_LOG_FORMAT", "xml")
    with pytest.raises(ConfigError, match="FINETUNER_LOG_FORMAT must be one of text, json"):
        chosen_format()


_PROCESS = """
import logging, sys, threading, warnings
from finetuner.log_format import set_up_logs
set_up_logs()
if {with_jina}:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jina.logging.logger import JinaLogger
    early = JinaLogger("early")
    set_up_logs()
    early.error("of jina, early")
    JinaLogger("late").error("of jina, late")
logging.getLogger("finetuner.x").info("ours")
logging.getLogger("other").info("not wanted")
logging.getLogger("other").error("of others")
warnings.warn("a warning")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("at the end")
"""


@pytest.mark.parametrize("with_jina", [False, True])
def test_a_process_writes_nothing_else(monkeypatch, with_jina):
    monkeypatch.setenv("FINETUNER_LOG_FORMAT", "json")
    code = _PROCESS.format(with_jina=with_jina)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    found = [(line["level"], line["message"].partition("\n")[0]) for line in lines]
    of_jina = [("ERROR", "of jina, early"), ("ERROR", "of jina, late")] if with_jina else []
    assert found == [
        *of_jina,
        ("INFO", "ours"),
        ("ERROR", "of others"),
        ("WARNING", found[-3][1]),
        ("CRITICAL", "uncaught ZeroDivisionError"),
        ("CRITICAL", "uncaught RuntimeError"),
    ]
    assert "UserWarning: a warning" in found[-3][1]
    assert "\x1b" not in found[-3][1]
    assert lines[-1]["exception"].endswith("RuntimeError: at the end")


def test_text_changes_nothing(monkeypatch):
    monkeypatch.setenv("FINETUNER_LOG_FORMAT", "text")
    code = (
        "import logging; from finetuner.log_format import set_up_logs; set_up_logs(); "
        "logging.getLogger('finetuner').info('a'); logging.getLogger('finetuner').warning('b')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "b\n")

"""Errors and help of the command: one table of exit codes, and examples for every verb."""

import re
from pathlib import Path

import pytest
import typer

from finetuner import __version__
from finetuner.cli import app
from finetuner.command_errors import reported
from finetuner.errors import ConfigError, DeadlineExceededError, FinetunerError, RunCancelledError
from finetuner.exit_codes import ExitCode, exit_code_of

PAGE = (Path(__file__).parents[1] / "docs" / "command.md").read_text(encoding="utf-8")


def verbs(group, words=()):
    for name, verb in group.commands.items():
        if hasattr(verb, "commands"):
            yield from verbs(verb, (*words, name))
        else:
            yield (*words, name), verb


VERBS = dict(verbs(typer.main.get_command(app)))


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_teaches_by_example_and_has_its_place_in_the_page(words):
    shown = VERBS[words].help
    name = f"finetuner {' '.join(words)}"
    assert len(re.findall(rf"^.*\b{re.escape(name)}\b", shown, re.MULTILINE)) >= 2, shown
    assert name in PAGE or words[0] in ("data", "token")


def test_the_page_names_no_verb_that_is_not_there():
    named = set(re.findall(r"^(?:.*\| )?finetuner ([a-z][a-z-]*)", PAGE, re.MULTILINE))
    assert named - {words[0] for words in VERBS} == set()


def test_the_page_has_the_exit_codes():
    rows = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert [int(code) for code in rows] == sorted(ExitCode)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (FileNotFoundError("x"), 3),
        (RunCancelledError("x"), 4),
        (DeadlineExceededError("x"), 5),
        (FinetunerError("x"), 1),
        (PermissionError("x"), 1),
    ],
)
def test_what_an_error_ends_with(error, code):
    assert exit_code_of(error) == code


def test_reported_tells_a_sentence_and_keeps_the_cause(capsys):
    with pytest.raises(typer.Exit) as caught, reported():
        raise ConfigError("take [red] or `x`")
    assert (caught.value.exit_code, str(caught.value.__cause__)) == (2, "take [red] or `x`")
    assert capsys.readouterr().err == "Error: take [red] or `x`\n"
    with pytest.raises(typer.Exit) as caught, reported():
        raise KeyboardInterrupt
    assert (caught.value.exit_code, capsys.readouterr().err) == (130, "")
    with pytest.raises(BrokenPipeError, match="closed"), reported():
        raise BrokenPipeError("closed")
    with pytest.raises(ZeroDivisionError, match="ours"), reported():
        raise ZeroDivisionError("our mistakes show ours")


def test_version(command):
    assert command("--version").stdout == f"finetuner-flow {__version__}\n"


def test_completion_is_on(command):
    assert "--install-completion" in command("--help").stdout

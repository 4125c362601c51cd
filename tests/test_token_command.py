"""The command ``finetuner token``."""

import getpass
import re

import orjson
import pytest
from typer.testing import CliRunner

from finetuner.access import Scope, TokenStore
from finetuner.audit import AUDIT_FILE
from finetuner.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNER_WORKSPACE", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, ["token", *arguments])


def test_create_prints_the_token_alone_and_once(run, tmp_path):
    made = run("create", "laptop", "--scope", "fit", "--scope", "encode")
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert re.fullmatch(r"ft_\S{43}", secret)
    assert "FINETUNER_TOKEN" in made.stderr
    token = TokenStore(tmp_path).find(secret)
    assert (token.name, token.scopes) == ("laptop", (Scope.ENCODE, Scope.FIT))
    assert secret not in run("list").output


def test_list_and_revoke(run, tmp_path):
    assert "There is no token" in run("list").output
    secret = run("create", "laptop", "--scope", "admin").stdout.strip()
    run("create", "page", "--scope", "encode")
    shown = run("list").output
    assert re.search(r"laptop +. admin", shown)
    assert re.search(r"page +. encode", shown)
    gone = run("revoke", "laptop")
    assert (gone.exit_code, gone.output) == (0, "The token `laptop` is revoked.\n")
    assert TokenStore(tmp_path).find(secret) is None
    assert "It was the last one: on this machine nobody needs" in run("revoke", "page").output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("revoke", "nobody"), 3, "no token `nobody`; there are: none"),
        (("create", "../x", "--scope", "read"), 2, "the token name `../x` is not allowed"),
        (("create", "[red]", "--scope", "read"), 2, "the token name `[red]` is not allowed"),
    ],
)
def test_errors_are_sentences_and_leave_no_line(run, tmp_path, arguments, exit_code, message):
    failed = run(*arguments)
    assert failed.exit_code == exit_code
    assert message in failed.stderr
    assert not (tmp_path / AUDIT_FILE).exists()


@pytest.mark.parametrize("arguments", [("create", "laptop"), ("create", "a", "--scope", "root")])
def test_a_scope_must_be_given_and_exist(run, tmp_path, arguments):
    assert run(*arguments).exit_code == 2
    assert TokenStore(tmp_path).list() == ()


def test_a_folder_that_cannot_be_written_is_said(run, tmp_path):
    (tmp_path / "access").write_text("")
    failed = run("create", "laptop", "--scope", "read")
    assert failed.exit_code == 1
    assert "Error:" in failed.stderr


def test_what_it_does_is_audited(run, tmp_path):
    secret = run("create", "laptop", "--scope", "read").stdout.strip()
    run("revoke", "laptop")
    content = (tmp_path / AUDIT_FILE).read_text()
    rows = [orjson.loads(line) for line in content.splitlines()]
    assert [(row["action"], row["target"], row["who"], row["address"]) for row in rows] == [
        ("created a token", "laptop", getpass.getuser(), "command line"),
        ("revoked a token", "laptop", getpass.getuser(), "command line"),
    ]
    assert secret not in content


def test_a_workspace_can_be_named(run, tmp_path):
    other = tmp_path / "other"
    secret = run("create", "laptop", "--scope", "read", "--workspace", str(other)).stdout.strip()
    assert TokenStore(other).find(secret).name == "laptop"
    assert TokenStore(tmp_path).list() == ()

"""What lies under deploy/, checked against the real program: commands, variables, figures."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import typer
import yaml

import finetuner
from finetuner.cli import app
from finetuner.http_metrics import HTTPMetrics
from finetuner.serving_metrics import EncodeMetrics

ROOT = Path(finetuner.__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/finetuner.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
# Of PromQL, not labels.
_BY = re.compile(r"by \(([^)]*)\)")
_SELECTED = re.compile(r'(\w+)="')


def commands():
    """Yield the command lines of the program in compose.yml, those of its comments too."""
    yield COMPOSE["services"]["finetuner"]["command"]
    for line in (DEPLOY / "compose.yml").read_text().splitlines():
        if " run --rm finetuner finetuner " in line:
            yield shlex.split(line.partition(" run --rm finetuner ")[2])


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_a_command_line_is_one_that_the_program_takes(words):
    assert words[0] == "finetuner"
    command, words = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("finetuner", words)


def test_the_program_reads_each_of_its_variables():
    source = "".join(path.read_text() for path in (ROOT / "finetuner").rglob("*.py"))
    names = [name for name in COMPOSE["services"]["finetuner"]["environment"] if name != "HOME"]
    assert names == ["FINETUNER_WORKSPACE"]
    assert [name for name in names if name not in source] == []


def test_what_a_service_names_is_there():
    for service in COMPOSE["services"].values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert set(service.get("depends_on", [])) <= set(COMPOSE["services"])
        for mount in service["volumes"]:
            source, target, *_ = mount.split(":")
            assert target.startswith("/")
            assert (
                (DEPLOY / source).exists()
                if source.startswith(".")
                else source in COMPOSE["volumes"]
            )


def test_the_service_may_do_no_more_than_it_must():
    service = COMPOSE["services"]["finetuner"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "ports" not in service  # TLS is the proxy's
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER finetuner$", dockerfile, re.MULTILINE)
    assert 'ENTRYPOINT ["tini", "--"]' in dockerfile


def test_ports_and_paths_are_those_of_the_service():
    flow = yaml.safe_load((ROOT / "flows/all.yml").read_text())
    grpc_port, http_port = flow["gateway"]["port"]
    caddy = (DEPLOY / "Caddyfile").read_text()
    assert f"h2c://finetuner:{grpc_port}" in caddy
    assert f"reverse_proxy finetuner:{http_port}" in caddy
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"] == [{"targets": [f"finetuner:{http_port}"]}]
    secret = scrape["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in COMPOSE["services"]["prometheus"]["secrets"]
    source = yaml.safe_load((DEPLOY / "grafana/datasource.yml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}


@pytest.fixture(scope="module")
def figures():
    """From a figure's name to its labels, of all that /metrics has."""
    counts = SimpleNamespace(n_batches=0, n_texts=0, n_tokens=0, n_padding_tokens=0, inference_s=0)
    batcher = SimpleNamespace(n_queued_tokens=0, counts=counts)
    cache = SimpleNamespace(sizes=dict)
    http, encode = HTTPMetrics(), EncodeMetrics(batcher, cache)
    http.answered("/encode", 200, 0.1)
    tags = dict.fromkeys(("n_tokens", "tokenize_s", "queue_s", "inference_s"), 1)
    encode.ended({"artifact": "a", **tags}, 1)
    found = {}
    for line in (http.text() + encode.text()).splitlines():
        if not line.startswith("#"):
            name, labels = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line).groups()
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dashboard_asks_for_figures_that_are_there(expression, figures):
    names = set(re.findall(r"finetuner_\w+", expression))
    assert names
    assert names <= set(figures)
    there = set().union(*(figures[name] for name in names))
    asked = {label for group in _BY.findall(expression) for label in group.split(", ")}
    assert asked | set(_SELECTED.findall(expression)) <= there


# Of this process and its children alone; what the service may write is one folder.
_READ_ONLY = (
    'mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="to make a file system read-only takes root")
def test_the_service_runs_on_a_read_only_file_system(tmp_path, publish_run):
    publish_run(tmp_path / "data", "my-run")
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    environment = os.environ | {
        "FINETUNER_WORKSPACE": str(tmp_path / "data"),
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    words = [sys.executable, "-m", "finetuner.cli", "serve", "--grpc-port", "51610", "--http-port"]
    words = ["unshare", "--mount", "sh", "-c", _READ_ONLY, str(tmp_path), *words, "51611"]
    with subprocess.Popen(words, env=environment, cwd=ROOT) as process:
        try:
            url = "http://127.0.0.1:51611"
            wait_until_ready(url, process)
            body = {"data": [{"text": "the river"}], "parameters": {"artifact": "my-run"}}
            answer = requests.post(f"{url}/encode", json=body, timeout=60)
            assert len(answer.json()["data"][0]["embedding"]) == 32, answer.text
        finally:
            process.terminate()
        assert process.wait(60) == 0


def wait_until_ready(url, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service has ended"
        try:
            if requests.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    pytest.fail("the service was not ready within two minutes")

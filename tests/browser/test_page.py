"""The page in a real browser, over a real server with runs of all kinds, one of them at work."""

import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import orjson
import pytest
import requests
import torch
from browser.conftest import serving

from finetuner.access import Scope, TokenStore
from finetuner.config import RunConfig
from finetuner.run_store import RunStore
from finetuner.states import State, Status

pytestmark = pytest.mark.slow

EVIL = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'
TOPICS = (*"abcdefghijk", "<b>bold</b>")
ROWS = [[f"{form} {topic}", topic] for topic in TOPICS for form in ("one", "two", "three", "four")]
ROWS += [[f"{EVIL} {number}", "<b>bold</b>"] for number in range(2)]
VIEWS = {
    "runs": "#/runs",
    "compare": "#/compare?runs=default/first,default/second",
    "run": "#/runs/default/first",
    "run at work": "#/runs/default/at-work",
    "run that failed": "#/runs/default/unlucky",
    "what changed": "#/runs/default/first/changes",
    "space": "#/runs/default/first/space",
    "try it": "#/try",
    "new run": "#/new",
    "serving": "#/serving",
    "no such run": "#/runs/default/nobody",
}


def _fit(server, name, **settings):
    evaluation = {"query_data": ROWS, "gather_examples": True, "num_example_queries": 10}
    body = {
        "model": "tiny",
        "train_data": ROWS,
        "run_name": name,
        "description": EVIL,
        "device": "cpu",
        "callbacks": [{"name": "EvaluationCallback", "options": evaluation}],
        **settings,
    }
    answer = server.post("/fit", json=body)
    assert answer.status_code == 201, answer.text


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_model_folder, come_to):
    workspace = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    unlucky = RunStore(workspace).create(RunConfig(model="tiny", run_name="unlucky"), {})
    come_to(unlucky, Status.FAILED, f"CUDA out of memory. {EVIL}")
    with serving(workspace, tmp_path_factory.mktemp("log")) as server:
        _fit(server, "first", epochs=2)
        _fit(server, "second", epochs=3, learning_rate=1e-3)
        for name in ("first", "second"):
            assert server.wait_until_ended(name)["status"] == "FINISHED"
        promoted = server.put("/aliases/prod", json={"run": "first", "force": True})
        assert promoted.ok, promoted.text
        _fit(server, "at-work", epochs=1_000, batch_size=4)
        deadline = time.monotonic() + 60
        while len(server.get("/runs/at-work/epochs").json()["items"]) < 3:
            assert time.monotonic() < deadline, server.get("/runs/at-work").text
            time.sleep(0.2)
        yield server


def _is_evil(page):
    return page.evaluate("window.broken === 1")


def _has_settled(page):
    page.get_by_role("heading", level=1).wait_for()
    _until(lambda: not page.locator(".loading").count())
    time.sleep(0.5)


def _until(condition, timeout_s=20):
    """Wait here: what the page itself would evaluate, its content security policy forbids."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_the_first_load_is_small_and_stays_on_this_machine(server, open_page):
    page = open_page(server)
    _has_settled(page)
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').filter(e => e.name.includes('/assets/'))"
        ".map(e => e.decodedBodySize)"
    )
    assert len(sizes) >= 2
    assert 10_000 < sum(sizes) < 300_000


def test_the_list_is_live(server, open_page):
    page = open_page(server, "#/runs")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="at-work", exact=True))
    row.get_by_text("running").wait_for()
    before = row.inner_text()
    _until(lambda: row.inner_text() != before)
    failed = page.get_by_role("row").filter(has=page.get_by_role("link", name="unlucky"))
    failed.get_by_text("failed").wait_for()


def test_runs_are_compared(server, open_page):
    page = open_page(server, "#/runs")
    for name in ("first", "second"):
        page.get_by_role("checkbox", name=f"Compare default/{name}").check()
    page.get_by_role("link", name=re.compile("Compare")).last.click()
    page.get_by_role("heading", name="Settings that differ").wait_for()
    settings = page.locator("section").filter(has=page.get_by_role("heading", name="Settings that"))
    row = settings.get_by_role("row").filter(has_text=re.compile("learning.rate"))
    assert "0.001" in row.inner_text()
    page.get_by_role("heading", name="Loss").wait_for()


def test_a_run_at_work_is_followed(server, open_page):
    page = open_page(server, "#/runs/default/at-work")
    log = page.get_by_role("log")
    log.wait_for()
    before = log.inner_text()
    _until(lambda: log.inner_text() != before)
    for heading in ("Loss", "Active fraction", "Metrics", "Log", "Settings"):
        page.get_by_role("heading", name=heading, exact=True).wait_for()


def test_a_failed_run_says_why_and_what_to_do(server, open_page):
    page = open_page(server, "#/runs/default/unlucky")
    page.get_by_text("CUDA out of memory").first.wait_for()
    page.get_by_text(re.compile("batch", re.IGNORECASE)).first.wait_for()
    assert not _is_evil(page)


def test_what_changed_stands_side_by_side(server, open_page):
    page = open_page(server, "#/runs/default/first/changes")
    page.get_by_role("heading", name="Before").first.wait_for()
    page.get_by_role("heading", name="After").first.wait_for()
    queries = page.get_by_role("heading", level=3)
    examples = server.get("/runs/first/examples").json()["after"]["model"]
    texts = queries.all_inner_texts()
    assert {example["query"] for example in examples} & set(texts), texts


def test_queries_are_folded_away_but_for_the_first(server, open_page):
    page = open_page(server, "#/runs/default/first/changes")
    queries, opened = page.locator("details.query"), page.locator("details.query[open]")
    queries.first.wait_for()
    assert (opened.count(), queries.count()) == (2, 10)
    queries.nth(2).locator("summary").focus()
    page.keyboard.press("Enter")
    _until(lambda: opened.count() == 3)
    page.get_by_role("button", name="Close all").click()
    _until(lambda: opened.count() == 0)
    page.get_by_role("button", name="Open all").click()
    _until(lambda: opened.count() == 10)


def test_the_map_shows_every_text(server, open_page):
    page = open_page(server, "#/runs/default/first/space")
    canvas = page.locator("canvas").first
    canvas.wait_for()
    found = server.get("/runs/first/map").json()["evaluations"]["model"]
    assert len(found["texts"]) == len(ROWS)
    assert page.get_by_label(f"{len(ROWS)} texts").count() >= 1
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert not _is_evil(page)


def test_two_models_are_tried_beside_each_other(server, open_page):
    page = open_page(server, "#/try?a=default/first&b=untuned:default/first")
    page.get_by_role("searchbox").first.fill("one a")
    page.keyboard.press("Enter")
    lists = page.locator("main ol")
    lists.nth(1).get_by_role("listitem").first.wait_for()
    request = {"data": [{"text": "one a"}], "parameters": {"artifact": "first", "limit": 3}}
    best = server.post("/search", json=request).json()["results"][0]
    assert best["text"] in lists.first.get_by_role("listitem").first.inner_text()
    second = page.get_by_label(re.compile("^Second model"))
    second.select_option("none")
    _until(lambda: lists.count() == 1)


def test_an_alias_stands_beside_what_its_run_began_with(server, open_page):
    page = open_page(server, "#/try?a=prod")
    second = page.get_by_label(re.compile("^Second model"))
    assert second.locator("option:checked").inner_text() == "untuned model of first"


def test_serving_says_when_nobody_asks(server, open_page):
    page = open_page(server, "#/serving")
    page.get_by_text("Nobody has asked for anything").wait_for()
    assert page.locator("canvas").count() == 0


def test_serving_shows_what_is_asked(server, open_page):
    page = open_page(server, "#/serving")
    page.get_by_role("heading", name="prod").wait_for()
    body = {"data": [{"text": "some text"}], "parameters": {"artifact": "prod"}}
    tables = page.locator("main table")
    deadline = time.monotonic() + 20
    while not tables.count() or "first" not in tables.first.inner_text():
        assert time.monotonic() < deadline, page.locator("main").inner_text()
        assert server.post("/encode", json=body).ok
        time.sleep(0.5)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_accessible_and_shows_texts_as_texts(
    server, open_page, violations, view, theme
):
    page = open_page(server, VIEWS[view], theme=theme)
    if view == "no such run":
        page.get_by_text("There is no such run").wait_for()
    else:
        _has_settled(page)
    assert violations(page) == []
    assert not _is_evil(page)


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_scrolls_sideways_on_a_phone(server, open_page, view):
    page = open_page(server, VIEWS[view], width=360)
    page.locator("main h1, main .empty").first.wait_for()
    _until(lambda: not page.locator(".loading").count())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_from_a_csv_to_a_served_model_by_the_page_alone(server, open_page, tmp_path):
    server.post("/runs/at-work/cancel")  # or the new run would wait for it
    csv = tmp_path / "mine.csv"
    lines = [
        f'"{form} {topic}",{topic}'
        for topic in "abcdefghijklm"
        for form in ("one", "two", "three", "four")
    ]
    csv.write_text("text,label\n" + "\n".join(lines))
    page = open_page(server, "#/new")
    page.get_by_label("A CSV to upload").set_input_files(csv)
    page.get_by_text("52").first.wait_for()  # what the server found in it
    model = page.get_by_label(re.compile("^Model"))
    model.fill("tiny")
    page.get_by_role("heading", name="More settings").click()
    page.get_by_label(re.compile("^Name")).fill("by-hand")
    page.get_by_role("button", name=re.compile("^Start")).click()
    page.wait_for_url("**/#/runs/default/by-hand")
    page.get_by_text("finished").first.wait_for(timeout=90_000)
    (judged,) = server.get("/runs/by-hand/metrics").json()["verdicts"].values()
    page.get_by_text(re.compile(f"over {judged['n_queries']} queries: ")).wait_for()
    page.get_by_role("button", name="Promote").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("An alias takes a run that improved").wait_for()
    dialog.get_by_role("textbox").first.fill("shop")
    # A tiny model with random weights may not improve: then the dialog says so, and one may insist.
    is_worse = server.get("/runs/by-hand").json()["verdict"] != "improved"
    assert dialog.get_by_text("did not measure better").count() == is_worse
    if is_worse:
        assert dialog.get_by_role("button", name="Promote").is_disabled()
        dialog.get_by_role("checkbox").check()
    dialog.get_by_role("button", name="Promote").click()
    page.get_by_text("shop is served").first.wait_for(timeout=60_000)
    assert server.get("/aliases/shop").json()["shares"][0]["run"] == "default/by-hand"
    page.get_by_role("dialog").get_by_role("link", name="Try it").click()
    searched = page.get_by_label(re.compile("^Searched among"))
    _until(lambda: searched.input_value() == "data:mine")
    assert page.get_by_label(re.compile("^First model")).input_value() == "shop"


def test_an_upload_without_a_header_can_be_read_the_other_way(
    server, open_page, violations, tmp_path
):
    csv = tmp_path / "bare.csv"
    csv.write_text("\n".join(f"text {i},label {i % 4}" for i in range(24)))
    page = open_page(server, "#/new")
    page.get_by_label("A CSV to upload").set_input_files(csv)
    rows_are = page.get_by_label(re.compile("^Rows are"))
    rows_are.wait_for()
    assert rows_are.input_value() == "labels"
    page.get_by_text("texts with labels").wait_for()
    rows_are.select_option("two texts that mean the same")
    page.get_by_text("pairs of texts that mean the same").wait_for()
    assert rows_are.input_value() == "pairs"
    assert violations(page) == []
    rows_are.select_option("text and label")
    page.get_by_text("texts with labels").wait_for()
    csv.write_text("text,label\n" + csv.read_text())
    page.get_by_label("A CSV to upload").set_input_files(csv)
    page.get_by_role("button", name="Replace it").click()
    rows_are.wait_for(state="detached")  # its header says what the columns are


def test_a_header_of_other_names_is_said_to_be_one(server, open_page, tmp_path):
    csv = tmp_path / "shop.csv"
    rows = "\n".join(f"text {i},label {i % 4}" for i in range(24))
    csv.write_text(f"Question,Topic\n{rows}")
    page = open_page(server, "#/new")
    page.get_by_label("A CSV to upload").set_input_files(csv)
    page.get_by_text("its first row, Question, Topic, was taken for the names").wait_for()
    page.get_by_text(re.compile(r"about 3 steps in all, which is few")).wait_for()


def test_a_problem_is_told_before_anything_starts(server, open_page, tmp_path):
    csv = tmp_path / "alone.csv"
    csv.write_text("text,label\na,1\nb,2\nc,3\n")
    page = open_page(server, "#/new")
    page.get_by_label("A CSV to upload").set_input_files(csv)
    page.get_by_text(re.compile("training needs a label with at least two texts")).first.wait_for()
    assert page.get_by_role("button", name=re.compile("^Start")).is_disabled()


def test_a_run_asks_for_the_device_that_there_is(server, open_page, tmp_path):
    csv = tmp_path / "device.csv"
    csv.write_text("text,label\n" + "\n".join(f"{i} of {i % 3},{i % 3}" for i in range(12)))
    page = open_page(server, "#/new")
    page.get_by_label("A CSV to upload").set_input_files(csv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    page.get_by_label("python").get_by_text(f'device="{device}"').wait_for()
    assert page.get_by_text("no GPU").count() == (device == "cpu")  # beside the field alone


def test_the_page_goes_on_after_a_restart(tmp_path, tiny_model_folder, open_page):
    workspace = tmp_path / "workspace"
    shutil.copytree(tiny_model_folder, workspace / "models" / "tiny")
    with serving(workspace, tmp_path) as first:
        _fit(first, "long", epochs=1_000, batch_size=4)
        page = open_page(first, "#/runs/default/long")
        page.get_by_role("log").wait_for()
        lines_before = page.get_by_role("log").inner_text().splitlines()
        first.stop()
        page.get_by_text("The service does not answer").wait_for(timeout=30_000)
        ports = (first.grpc_port, first.http_port)
        folder = tmp_path / "again"
        folder.mkdir()
        with serving(workspace, folder, ports=ports) as second:
            page.get_by_text("The service does not answer").wait_for(state="hidden", timeout=60_000)
            log = page.get_by_role("log")
            _until(lambda: len(log.inner_text().splitlines()) > len(lines_before) + 2, timeout_s=60)
            shown = log.inner_text().strip().splitlines()
            written = second.get("/runs/long/logs").text.splitlines()[: len(shown)]
            assert [line.strip() for line in shown] == [line.strip() for line in written]


def test_while_the_service_starts_the_page_says_so_and_goes_on_by_itself(server, open_page):
    """A start may be over before a browser has looked, so its answer is given here."""
    page = open_page(server)
    starting = {"error": "StartingError", "detail": "the service has been starting for 12 s"}
    page.route("**/runs?*", lambda route: route.fulfill(status=503, json=starting))
    page.reload()
    page.get_by_text("The service has been starting for 12 s").wait_for()
    assert not page.get_by_text("does not answer").count()
    assert not page.get_by_role("alert").count()
    page.unroute("**/runs?*")
    page.get_by_role("link", name="first").first.wait_for()
    assert not page.get_by_text("has been starting").count()


def test_five_thousand_runs(tmp_path, open_page):
    workspace = tmp_path / "workspace"
    _fill(workspace, 5_000)
    with serving(workspace, tmp_path, options=("--flow", "flows/train.yml")) as server:
        page = open_page(server, "#/runs")
        page.get_by_text("5,000 runs").first.wait_for(timeout=60_000)
        page.get_by_role("link", name="run-04999").wait_for()
        page.get_by_role("link", name="Oldest").click()
        page.get_by_role("link", name="run-00000").wait_for()
        polled = page.evaluate(
            "performance.getEntriesByType('resource').filter(e => e.name.includes('/runs?'))"
            ".map(e => e.decodedBodySize)"
        )
        assert max(polled) < 200_000


def _fill(workspace, n_runs):
    """Write finished runs without the store's fsyncs, which would take minutes."""
    state = asdict(State(Status.FINISHED, "Run finished"))
    del state["number"]
    for number in range(n_runs):
        config = RunConfig(model="tiny", run_name=f"run-{number:05}")
        folder = workspace / "runs" / "default" / config.run_name
        (folder / "states").mkdir(parents=True)
        spec = {
            "artifact_id": f"{number:024x}",
            "created_at": f"2026-01-01T00:00:00.{number:06}+00:00",
            "description": "",
            "config": asdict(config),
        }
        (folder / "spec.json").write_bytes(orjson.dumps(spec))
        (folder / "states" / "000000.json").write_bytes(orjson.dumps(state))


def test_a_token_is_asked_for_and_kept_for_the_tab(tmp_path, open_page):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    secret = TokenStore(workspace).create("reader", [Scope.READ])
    with serving(workspace, tmp_path, options=("--flow", "flows/train.yml")) as server:
        page = open_page(server, "#/runs")
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Token").fill("wrong")
        dialog.get_by_role("button", name="Go on").click()
        dialog.get_by_label("Token").fill(secret)
        dialog.get_by_role("button", name="Go on").click()
        page.get_by_role("heading", name="Runs").wait_for()
        page.get_by_role("dialog").wait_for(state="hidden")
        page.reload()
        _has_settled(page)
        assert page.get_by_role("dialog").count() == 0
        assert requests.get(f"{server.url}/runs", timeout=10).status_code == 401
        assert secret not in Path(server.log).read_text()

"""Shows every view of the page with real runs, at three widths, in light and dark: screenshots/*.png.

    python tests/browser/screenshots.py [--out screenshots] [--only run,space] [--workspace DIR]

Trains all-MiniLM-L6-v2 on examples/quora_style.csv first, as the README does; that takes some minutes. In a
workspace that is named the runs stay, and the next pictures take them.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

_ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(_ROOT / "tests"), str(_ROOT)]

from flows.conftest import Server  # noqa: E402 - found by the paths above

import finetuner  # noqa: E402 - found by the paths above
from finetuner.callback import EvaluationCallback  # noqa: E402 - found by the paths above

_EXAMPLES = _ROOT / "examples"
_WIDTHS = (360, 1024, 1920)
_THEMES = ("light", "dark")
# By name: the address, what is done there, and what must be seen before the picture is taken.
VIEWS = {
    "runs": ("#/runs", None),
    "compare": ("#/compare?runs=default/careful,default/eager", None),
    "run": ("#/runs/default/careful", None),
    "running": ("#/runs/default/at-work", None),
    "failed": ("#/runs/default/too-eager", None),
    "changes": ("#/runs/default/careful/changes", None),
    "space": ("#/runs/default/careful/space", None),
    "try": ("#/try?a=careful", "search"),
    "new": ("#/new", "upload"),
    "serving": ("#/serving", None),
    "asked": ("#/serving", "encode"),
}


def main():
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=_ROOT / "screenshots")
    parser.add_argument("--only", default=",".join(VIEWS), help="names of views, by commas")
    parser.add_argument(
        "--workspace", type=Path, help="where the runs lie; a temporary one if none"
    )
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        _serving(settings.workspace or Path(folder) / "workspace", Path(folder)) as server,
    ):
        _train(server)
        with sync_playwright() as playwright:
            path = shutil.which("chromium")
            arguments = ["--no-sandbox"] if os.getuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=path, args=arguments)
            for name in settings.only.split(","):
                for width in _WIDTHS:
                    for theme in _THEMES:
                        _picture(browser, server, name, width, theme, settings.out)
            browser.close()


@contextmanager
def _serving(workspace, folder):
    server = Server(workspace, folder / "server.txt")
    try:
        server.wait_until_ready()
        os.environ["FINETUNER_HOST"] = server.url
        yield server
    finally:
        server.kill_group()


def _train(server):
    """Make runs of all kinds: two that are finished, one that failed, one at work, one that waits."""
    evaluation = EvaluationCallback(
        str(_EXAMPLES / "quora_style_query.csv"),
        str(_EXAMPLES / "quora_style_index.csv"),
        gather_examples=True,
        num_example_queries=40,
    )
    common = {
        "model": "all-minilm-l6-v2",
        "train_data": str(_EXAMPLES / "quora_style.csv"),
        "loss": "SupConLoss",
        "loss_options": {"temperature": 0.05},
        "optimizer": "AdamW",
        "num_items_per_class": 2,
        "device": "cpu",
    }
    for name, epochs, rate in (("careful", 3, 2e-5), ("eager", 3, 2e-4)):
        _say(f"training {name} ...")
        run = finetuner.fit(
            run_name=name, epochs=epochs, learning_rate=rate, callbacks=[evaluation], **common
        )
        _wait(server, run)
    _say("training one that fails, one that stays at work, one that waits ...")
    _wait(server, finetuner.fit(run_name="too-eager", epochs=3, learning_rate=0.5, **common))
    finetuner.set_alias("prod", "careful")
    finetuner.set_alias("trial", "eager", force=True)
    at_work = finetuner.fit(run_name="at-work", epochs=400, callbacks=[evaluation], **common)
    finetuner.fit(run_name="in-the-queue", epochs=1, callbacks=[evaluation], **common)
    deadline = time.monotonic() + 600
    while len(at_work.epochs()) < 3:
        assert time.monotonic() < deadline, at_work.status()
        time.sleep(0.5)


def _wait(server, run):
    _say(str(server.wait_until_ended(run.name, timeout_s=900)))


def _say(text):
    sys.stderr.write(f"{text}\n")


def _picture(browser, server, name, width, theme, out):
    address, act = VIEWS[name]
    height = 800 if width == 360 else 900
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(f"{server.url}/{address}")
    page.get_by_role("heading").first.wait_for()
    if act is not None:
        _ACTS[act](page, server)
    time.sleep(2.5)  # curves, maps and rates settle
    page.screenshot(path=out / f"{name}-{width}-{theme}.png", full_page=True)
    sideways = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    _say(f"{name} {width} {theme}{'  SCROLLS SIDEWAYS' if sideways else ''}")
    context.close()


def _search(page, _):
    page.get_by_role("searchbox").first.fill("my nose will not stop running")
    page.keyboard.press("Enter")
    for side in range(2):
        page.locator("main ol").nth(side).get_by_role("listitem").first.wait_for()


def _encode(page, server):
    page.get_by_text("Nobody").wait_for()  # counting has begun
    for number in range(24):
        body = {"data": [{"text": f"a text that is served, number {number}"}] * (1 + number % 5)}
        body["parameters"] = {"artifact": "trial" if number % 3 == 0 else "prod"}
        server.post("/encode", json=body)
        time.sleep(0.3)
    page.locator("canvas").first.wait_for()


def _upload(page, _):
    time.sleep(1)  # what an earlier picture has stored is listed by then
    stored = page.get_by_role("radio", name="quora_style")
    if stored.count():
        stored.first.check()
    else:
        page.get_by_label("A CSV to upload").set_input_files(_EXAMPLES / "quora_style.csv")
    page.get_by_role("table").first.wait_for()


_ACTS = {"search": _search, "upload": _upload, "encode": _encode}


if __name__ == "__main__":
    main()

"""How smooth a map of 20,000 texts is: the time between frames while it is hovered, dragged and zoomed.

    python tests/browser/frames.py [--points 20000]

In Chromium without a screen, which draws on the processor. A table: the median, the 95th percentile and the
longest of the times between two frames, in ms; a screen of 60 Hz gives 16.7.
"""

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import orjson
from playwright.sync_api import sync_playwright

_ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(_ROOT / "tests"), str(_ROOT)]

from flows.conftest import Server  # noqa: E402 - found by the paths above

from finetuner.config import RunConfig  # noqa: E402 - found by the paths above
from finetuner.states import State, Status  # noqa: E402 - found by the paths above

_WATCH = """() => {
    window.frameTimes = [];
    let last = performance.now();
    const next = now => { window.frameTimes.push(now - last); last = now; requestAnimationFrame(next); };
    requestAnimationFrame(next);
}"""


def main():
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20_000)
    n_points = parser.parse_args().points
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        _write_run(workspace, n_points)
        server = Server(workspace, Path(folder) / "server.txt")
        try:
            server.wait_until_ready()
            _measure(server, n_points)
        finally:
            server.kill_group()


def _write_run(workspace, n_points):
    """Write a finished run whose map has clouds of 40 labels."""
    config = RunConfig(model="tiny", run_name="large")
    folder = workspace / "runs" / "default" / config.run_name
    (folder / "states").mkdir(parents=True)
    spec = {
        "artifact_id": f"{1:024x}",
        "created_at": "2026-01-01T00:00:00.000000+00:00",
        "description": "",
        "config": asdict(config),
    }
    state = asdict(State(Status.FINISHED, "Run finished"))
    del state["number"]
    (folder / "spec.json").write_bytes(orjson.dumps(spec))
    (folder / "states" / "000000.json").write_bytes(orjson.dumps(state))
    generator = np.random.default_rng(0)
    labels = np.arange(n_points) % 40
    centres = generator.normal(size=(40, 2))
    before, after = (
        (spread * generator.normal(size=(n_points, 2)) + centres[labels]).round(5).tolist()
        for spread in (0.8, 0.2)
    )
    drawn = {
        "texts": [f"text {i}" for i in range(n_points)],
        "labels": [f"label {label}" for label in labels],
        "roles": ["query" if i % 5 == 0 else "index" for i in range(n_points)],
        "n_texts": n_points,
        "n_shown": n_points,
        "methods": {
            "pca": {"before": before, "after": after, "explained": {"before": 0.1, "after": 0.2}}
        },
    }
    (folder / "map.json").write_bytes(orjson.dumps({"evaluations": {"model": drawn}}))


def _measure(server, n_points):
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=arguments
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{server.url}/#/runs/default/large/space")
        page.evaluate(_WATCH)
        _say(f"{n_points:,} points; load average {os.getloadavg()[0]:.1f}")
        _say(f"{'':28}{'frames':>8}{'median':>8}{'p95':>8}{'longest':>9}")
        for layout in ("Side by side", "One map that moves"):
            page.get_by_text(layout).click()
            canvas = page.locator(".scatter canvas").first
            canvas.wait_for()
            time.sleep(1.5)  # what is drawn first
            for gesture, act in _GESTURES.items():
                _row(page, f"{layout}, {gesture}", partial(act, page, canvas))
        _row(page, "it moves", partial(_play, page))
        browser.close()


def _row(page, name, act):
    page.evaluate("() => { window.frameTimes.length = 0; }")
    act()
    times = np.array(page.evaluate("() => window.frameTimes.slice(1)"))
    p50, p95 = np.percentile(times, [50, 95])
    _say(f"{name:28}{len(times):8}{p50:8.1f}{p95:8.1f}{times.max():9.1f}")


def _hover(page, canvas):
    _circle(page, canvas)


def _drag(page, canvas):
    x, y = _centre(canvas)
    page.mouse.move(x, y)
    page.mouse.down()
    _circle(page, canvas)
    page.mouse.up()


def _zoom(page, canvas):
    page.mouse.move(*_centre(canvas))
    for step in range(40):
        page.mouse.wheel(0, -60 if step < 20 else 60)
        time.sleep(0.016)


def _play(page):
    page.get_by_role("button", name="To after").click()
    time.sleep(1.2)


def _centre(canvas):
    box = canvas.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def _circle(page, canvas):
    x, y = _centre(canvas)
    for step in range(90):
        page.mouse.move(x + 100 * math.sin(step / 5), y + 90 * math.cos(step / 7))
        time.sleep(0.016)


def _say(text):
    sys.stdout.write(f"{text}\n")


_GESTURES = {"hover": _hover, "drag": _drag, "zoom": _zoom}


if __name__ == "__main__":
    main()

import os
import shutil
from contextlib import contextmanager
from importlib.resources import files

import pytest
from flows.conftest import Server  # what these tests share with those of the Flow
from playwright.sync_api import sync_playwright

_AXE = files("axe_playwright_python") / "axe.min.js"


# Not for the session: while it is open, an event loop counts as running, and other tests run their own.
@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: tests/browser/install_chromium.sh says why")
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open an address of a server in a page of its own, and see that nothing went wrong there."""
    contexts, complaints = [], []

    def open_page(server, address="", *, width=1280, theme="light", **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, **options
        )
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda message: _complain(complaints, message))
        page.on("request", lambda request: _check_origin(complaints, server.url, request.url))
        page.goto(f"{server.url}/{address}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _complain(complaints, message):
    """Note what the browser reports, such as a breach of the content security policy."""
    # A failed request is part of the tests that stop the server or have no token.
    if message.type == "error" and "Failed to load resource" not in message.text:
        complaints.append(f"console: {message.text}")


def _check_origin(complaints, url, asked):
    if not asked.startswith((url, "data:", "blob:")):
        complaints.append(f"a request leaves the machine: {asked}")


@pytest.fixture(scope="session")
def violations():
    """Return what axe-core finds wrong with a page, in a form that a failed test can show."""
    source = _AXE.read_text(encoding="utf-8")

    def violations(page):
        # Evaluated by the debugger, which the page's content security policy lets pass.
        page.evaluate(f"() => {{ {source} }}")
        found = page.evaluate(
            "() => axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})"
        )
        return [
            f"{violation['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]

    return violations


@contextmanager
def serving(workspace, folder, **options):
    """A server over a workspace; gone afterwards."""
    server = Server(workspace, folder / "server.txt", **options)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill_group()

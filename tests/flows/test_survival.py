"""Parts that die, hang or are asked to stop while clients are at work."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

pytestmark = pytest.mark.slow

BODY = {"model": "served", "input": ["one text", "another text"]}


@pytest.fixture
def serving(tmp_path, publish_run, start_server):
    """Start a server over a volume with one run; gives it and the vectors of ``BODY``."""
    workspace = tmp_path / "workspace"
    publish_run(workspace, "served")
    server = start_server(workspace, options=("--flow", "flows/serve.yml"))
    return server, _vectors(server.post("/v1/embeddings", json=BODY))


def _vectors(answer):
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]])


def _wait_for(server, path, status, timeout_s):
    started = time.monotonic()
    while (found := server.get(path).status_code) != status:
        assert time.monotonic() - started < timeout_s, f"{path} is {found}, not {status}"
        time.sleep(0.05)
    return time.monotonic() - started


def test_a_killed_executor_is_noticed_and_started_again(serving):
    server, expected = serving
    server.executor().kill()

    _wait_for(server, "/readyz", 503, timeout_s=5)
    assert server.get("/livez").json() == {"alive": True}
    refused = server.post("/v1/embeddings", json=BODY)
    if refused.status_code != 200:  # not yet started again
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
    _wait_for(server, "/readyz", 200, timeout_s=60)
    np.testing.assert_allclose(
        _vectors(server.post("/v1/embeddings", json=BODY)), expected, atol=1e-6
    )
    server.stop()


def test_an_executor_that_hangs_turns_readiness_red_within_five_seconds(serving):
    server, expected = serving
    executor = server.executor()
    executor.suspend()
    try:
        assert _wait_for(server, "/readyz", 503, timeout_s=5) < 5
        assert "has not answered within 3 s" in server.get("/readyz").json()["detail"]
    finally:
        executor.resume()
    _wait_for(server, "/readyz", 200, timeout_s=10)
    np.testing.assert_allclose(
        _vectors(server.post("/v1/embeddings", json=BODY)), expected, atol=1e-6
    )


def test_sigterm_answers_what_was_taken_and_says_that_connections_close(serving):
    server, expected = serving
    until = time.monotonic() + 20
    n_answered, n_closed, broken = 0, 0, []

    def drive():
        nonlocal n_answered, n_closed
        with requests.Session() as session:
            while time.monotonic() < until:
                try:
                    answer = session.post(f"{server.url}/v1/embeddings", json=BODY, timeout=30)
                except requests.ConnectionError as error:
                    if "refused" not in str(error):
                        broken.append(str(error))
                    return
                np.testing.assert_allclose(_vectors(answer), expected, atol=1e-6)
                n_answered += 1
                n_closed += answer.headers.get("Connection") == "close"

    with ThreadPoolExecutor(8) as pool:
        drivers = [pool.submit(drive) for _ in range(8)]
        time.sleep(2)
        before = n_answered
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert requests.get(f"{server.url}/readyz", timeout=5).status_code == 503
        for driver in drivers:
            driver.result()
    assert server.process.wait(30) == 0, server.log.read_text()
    assert n_answered > before > 0
    assert n_closed > 0
    assert broken == []


def test_ctrl_c_in_a_terminal_ends_all_and_leaves_nobody_without_an_answer(serving):
    server, _ = serving
    with ThreadPoolExecutor(1) as pool:
        large = {"model": "served", "input": ["a text of some length " * 20] * 500}
        asked = pool.submit(server.post, "/v1/embeddings", json=large)
        time.sleep(0.2)
        # A terminal sends it to the whole group.
        os.killpg(server.process.pid, signal.SIGINT)
        answer = asked.result()
    assert answer.status_code in (200, 503)
    assert server.process.wait(60) == 0, server.log.read_text()

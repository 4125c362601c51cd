import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from finetuner import lock
from finetuner.errors import ConflictError

HOLDER = (
    "import sys, time, pathlib\n"
    "from finetuner import lock\n"
    "with lock.hold(pathlib.Path(sys.argv[1])) as is_free:\n"
    "    print(is_free, flush=True); time.sleep(60)\n"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def holder(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


def test_only_one_holds_it(path, holder):
    with lock.hold(path) as is_free:
        assert not is_free
    holder.kill()
    holder.wait()
    with lock.hold(path) as is_free:
        assert is_free


def test_waiting_ends_when_the_lock_is_free(path):
    with ThreadPoolExecutor(1) as pool, lock.wait_for(path, doing="testing"):
        waiting = pool.submit(_take_and_leave, path)
        assert not waiting.done()
    assert waiting.result(10) == "taken"


def _take_and_leave(path):
    with lock.wait_for(path, doing="testing"):
        return "taken"


def test_waiting_does_not_last_for_ever(path, monkeypatch):
    monkeypatch.setattr(lock, "TIMEOUT_S", 0.05)
    with (
        lock.wait_for(path, doing="testing"),
        pytest.raises(ConflictError, match="another server is testing and does not end"),
        lock.wait_for(path, doing="testing"),
    ):
        raise AssertionError("both have it")

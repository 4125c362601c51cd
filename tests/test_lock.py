import signal
import subprocess
import sys

import pytest

from finetuner import lock

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
    assert lock.is_held(path)
    with lock.hold(path) as is_free:
        assert not is_free
    holder.kill()
    holder.wait()
    assert not lock.is_held(path)
    with lock.hold(path) as is_free:
        assert is_free


def test_nobody_holds_a_file_that_is_not_there(path):
    assert not lock.is_held(path)
    assert not lock.signal_holder(path, signal.SIGTERM)
    assert not path.exists()


def test_holder_gets_the_signal(path, holder):
    assert lock.signal_holder(path, signal.SIGTERM)
    assert holder.wait(10) == -signal.SIGTERM
    assert not lock.signal_holder(path, signal.SIGTERM)


@pytest.mark.parametrize("content", ["{pid} 1", "{pid}", "", "999999999 1"])
def test_process_that_only_has_the_number_gets_none(path, content):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        with lock.hold(path) as is_free:
            assert is_free
            path.write_text(content.format(pid=bystander.pid))
            assert not lock.signal_holder(path, signal.SIGKILL)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_what_a_dead_holder_left_is_no_address(path, holder):
    holder.kill()
    holder.wait()
    assert path.read_text().startswith(f"{holder.pid} ")
    assert not lock.signal_holder(path, signal.SIGTERM)

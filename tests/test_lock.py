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
    with lock.hold(path) as is_free:
        assert not is_free
    holder.kill()
    holder.wait()
    with lock.hold(path) as is_free:
        assert is_free

import os
import signal
import subprocess
import sys

import pytest

from finetuner import holder
from finetuner.holder import Life, is_frozen, life_of, own_name, send_signal

NAMED = (
    "import time\n"
    "from finetuner.holder import own_name\n"
    "print(own_name(), flush=True); time.sleep(60)\n"
)


@pytest.fixture
def other():
    """Another process and its name."""
    process = subprocess.Popen([sys.executable, "-c", NAMED], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    yield process, name
    process.kill()
    process.communicate()


def test_a_process_lives_until_it_is_killed(other):
    process, name = other
    assert life_of(name) is Life.ALIVE
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead too
    assert life_of(name) is Life.DEAD
    process.wait()
    assert life_of(name) is Life.DEAD
    assert not send_signal(name, signal.SIGTERM)


def test_a_stopped_process_is_alive_and_frozen(other):
    process, name = other
    assert not is_frozen(name)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert is_frozen(name)
    assert life_of(name) is Life.ALIVE
    process.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, process.pid, os.WCONTINUED | os.WNOWAIT)
    assert not is_frozen(name)


def test_nobody_is_dead():
    assert life_of("") is Life.DEAD
    assert not send_signal("", signal.SIGTERM)


def test_own_name_is_of_a_living_process():
    assert life_of(own_name()) is Life.ALIVE
    assert own_name() == own_name()


def test_it_gets_the_signal(other):
    process, name = other
    assert send_signal(name, signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_a_later_process_of_the_same_number_is_another(other):
    process, name = other
    earlier = name.rsplit(" ", 1)[0] + " 1"
    assert life_of(earlier) is Life.DEAD
    assert not send_signal(earlier, signal.SIGKILL)
    assert process.poll() is None


@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_on_another_machine_boot_or_container_is_out_of_reach(other, part):
    process, name = other
    parts = name.split(" ")
    parts[part] = "elsewhere"
    assert life_of(" ".join(parts)) is Life.ELSEWHERE
    assert not send_signal(" ".join(parts), signal.SIGKILL)
    assert process.poll() is None


def test_one_of_another_user_is_out_of_reach(other, monkeypatch):
    def refused(pid, number):
        raise PermissionError

    monkeypatch.setattr(holder.os, "kill", refused)
    assert not send_signal(other[1], signal.SIGTERM)

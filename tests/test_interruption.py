import signal

import pytest

from finetuner.config import RunConfig
from finetuner.exits import Exit
from finetuner.interruption import n_kernel_kills, of_exit, of_silence
from finetuner.run_store import RunStore
from finetuner.silence import Silence
from finetuner.states import Actor, State, Status

AT_WORK = State(Status.STARTED, "", n_starts=1, n_interruptions=1)
WAITING = State(Status.CREATED, "")
INTERRUPTED, FAILED, CANCELLED = Status.INTERRUPTED, Status.FAILED, Status.CANCELLED


@pytest.fixture
def run(tmp_path):
    return RunStore(tmp_path).create(RunConfig(model="tiny", run_name="one"), {})


@pytest.mark.parametrize(
    ("code", "n_kills", "outcome"),
    [
        (
            None,
            0,
            (INTERRUPTED, "The worker was gone, perhaps with its machine; it starts again", 2),
        ),
        (0, 0, (INTERRUPTED, "The worker left without a word; it starts again", 2)),
        (Exit.STOPPED, 0, (INTERRUPTED, "Stopped with the service; it goes on with it", 1)),
        (Exit.TAKEN, 0, (INTERRUPTED, "The worker took the run for another's; it starts again", 2)),
        (Exit.VOLUME, 0, (INTERRUPTED, "The volume could not be written; it starts again", 2)),
        (
            1,
            0,
            (INTERRUPTED, "The worker ended with exit code 1; see worker.txt; it starts again", 2),
        ),
        (
            2,
            0,
            (INTERRUPTED, "The worker ended with exit code 2; see worker.txt; it starts again", 2),
        ),
        (-signal.SIGSEGV, 0, (INTERRUPTED, "The worker was ended by SIGSEGV; it starts again", 2)),
        (
            -signal.SIGKILL,
            0,
            (
                INTERRUPTED,
                "The worker was ended by SIGKILL (by hand, or out of memory); it starts again",
                2,
            ),
        ),
        (
            -signal.SIGKILL,
            1,
            (INTERRUPTED, "The worker was ended by SIGKILL for want of memory; it starts again", 2),
        ),
        (-signal.SIGTERM, 1, (INTERRUPTED, "The worker was ended by SIGTERM; it starts again", 2)),
        (
            -signal.SIGRTMIN - 1,
            0,
            (INTERRUPTED, "The worker was ended by signal 35; it starts again", 2),
        ),
    ],
)
def test_how_a_worker_ended_and_what_becomes_of_its_run(run, code, n_kills, outcome):
    assert of_exit(code, n_kills).outcome(run, AT_WORK, 5) == outcome


@pytest.mark.parametrize("code", [None, 0, 1, Exit.STOPPED, Exit.VOLUME, -signal.SIGKILL])
@pytest.mark.parametrize("state", [AT_WORK, WAITING])
def test_one_that_was_to_be_cancelled_is(run, code, state):
    run.ask_to_cancel()
    outcome = (CANCELLED, "Cancelled", state.n_interruptions)
    assert of_exit(code).outcome(run, state, 1) == outcome


@pytest.mark.parametrize("code", [None, 0, Exit.TAKEN, Exit.VOLUME, -signal.SIGKILL])
def test_one_that_was_not_claimed_waits_on(run, code):
    assert of_exit(code).outcome(run, WAITING, 1)[0] is None


def test_one_whose_worker_cannot_even_begin_fails(run):
    assert of_exit(1).outcome(run, WAITING, 5)[0] is FAILED


def test_it_is_given_up_after_so_many(run):
    found = of_exit(-signal.SIGBUS)
    cause = "The worker was ended by SIGBUS"
    assert found.outcome(run, AT_WORK, 3) == (INTERRUPTED, f"{cause}; it starts again", 2)
    given_up = f"{cause}; interrupted 2 times, the run is given up"
    assert found.outcome(run, AT_WORK, 2) == (FAILED, given_up, 2)


def test_what_the_service_asked_for_never_gives_it_up(run):
    tired = State(Status.STARTED, "", n_interruptions=4)
    assert of_exit(Exit.STOPPED).outcome(run, tired, 5)[0] is INTERRUPTED


def test_a_checkpoint_is_told(run):
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "step-000000001.pt").touch()
    details = of_exit(None).outcome(run, AT_WORK, 5)[1]
    assert details.endswith("; it goes on from its last checkpoint")


def test_only_the_volume_is_waited_for():
    codes = [None, 0, 1, Exit.STOPPED, Exit.TAKEN, Exit.VOLUME, -signal.SIGKILL]
    assert [code for code in codes if of_exit(code).is_of_volume] == [Exit.VOLUME]


@pytest.mark.parametrize(
    ("silence", "cause"),
    [
        (Silence(30.0, 3600.0), None),
        (Silence(30.6, 30.6), "The worker gave no sign of life for 31 s"),
        (Silence(0.0, 3601.0), "The worker got on with nothing for 3601 s and was ended"),
        (Silence(31.0, 4000.0), "The worker gave no sign of life for 31 s"),
    ],
)
def test_silence(silence, cause):
    found = of_silence(silence, 30.0, 3600.0)
    assert (found and found.cause) == cause


def test_kills_by_the_kernel_are_counted():
    assert n_kernel_kills() >= 0


def test_a_settled_run_takes_what_it_is_given(run):
    claim = run.claim()
    status, details, n = of_exit(None).outcome(run, claim, 5)
    run.step(claim, status, details, actor=Actor.SERVICE, n_interruptions=n)
    assert run.state().answer() == {"status": "INTERRUPTED", "details": details}

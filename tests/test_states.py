import itertools

import pytest

from finetuner.errors import ImpossibleStepError
from finetuner.states import Actor, Status, check_step

C, S, P, F, X, K = (
    Status.CREATED,
    Status.STARTED,
    Status.INTERRUPTED,
    Status.FINISHED,
    Status.FAILED,
    Status.CANCELLED,
)
ALLOWED = {
    Actor.WORKER: {(C, S), (P, S), (S, F), (S, X), (S, K), (S, P)},
    Actor.SERVICE: {(S, P), (S, X), (S, K), (C, X), (C, K), (P, X), (P, K)},
}
ALL = list(itertools.product(Status, Status, Actor))


@pytest.mark.parametrize(
    ("before", "after", "actor"),
    [row for row in ALL if row[:2] in ALLOWED[row[2]]],
)
def test_steps_that_are_possible(before, after, actor):
    check_step(before, after, actor)


@pytest.mark.parametrize(
    ("before", "after", "actor"),
    [row for row in ALL if row[:2] not in ALLOWED[row[2]]],
)
def test_all_others_are_refused(before, after, actor):
    message = f"a run that is {before} cannot become {after} by its {actor}; possible: "
    with pytest.raises(ImpossibleStepError, match=message):
        check_step(before, after, actor)


@pytest.mark.parametrize(
    ("before", "after", "actor", "possible"),
    [
        (C, F, Actor.WORKER, "STARTED"),
        (P, F, Actor.SERVICE, "CANCELLED, FAILED"),
        (S, C, Actor.WORKER, "CANCELLED, FAILED, FINISHED, INTERRUPTED"),
        (F, S, Actor.WORKER, "nothing, it has ended"),
    ],
)
def test_a_refusal_tells_what_is_possible(before, after, actor, possible):
    with pytest.raises(ImpossibleStepError, match=f"; possible: {possible}$"):
        check_step(before, after, actor)


def test_where_a_run_stays_and_where_it_waits():
    assert [status for status in Status if status.is_terminal] == [F, X, K]
    assert [status for status in Status if status.is_waiting] == [C, P]

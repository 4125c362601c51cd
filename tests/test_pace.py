import pytest

from finetuner.callback import EvaluationCallback
from finetuner.config import CallbackConfig, RunConfig
from finetuner.pace import Pace
from finetuner.run_progress import RunProgress
from finetuner.trainer import Progress


class _Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return _Clock()


@pytest.fixture
def pace(clock):
    return Pace(clock)


def _train(pace, clock, times_s, n_texts=10, *, is_last=False):
    for number, time_s in enumerate(times_s, start=1):
        clock.now_s += time_s
        pace.see(n_texts, is_last_of_epoch=is_last and number == len(times_s))


def test_nothing_is_known_before_the_second_batch(pace, clock):
    assert (pace.batch_s, pace.texts_per_s) == (None, None)
    _train(pace, clock, [100.0])  # its time holds loading and warming up
    assert (pace.batch_s, pace.texts_per_s) == (None, None)
    assert pace.eta_s(5, n_epoch_ends=1, n_evaluations=0) is None
    _train(pace, clock, [2.0])
    assert (pace.batch_s, pace.texts_per_s) == (2.0, 5.0)
    assert pace.eta_s(5, n_epoch_ends=1, n_evaluations=3) == 10.0


def test_a_clock_that_stands_still_gives_no_rate(pace, clock):
    _train(pace, clock, [0.0, 0.0])
    assert (pace.batch_s, pace.texts_per_s) == (0.0, None)


def test_the_mean_is_of_the_last_half_minute(pace, clock):
    times = [5.0] * 20 + [1.0] * 40
    _train(pace, clock, times)
    assert pace.batch_s == 1.0
    assert pace.texts_per_s == 10.0


@pytest.mark.parametrize("n", [3, 7, 20])
def test_the_mean_is_that_of_a_plain_loop(pace, clock, n):
    times = [0.5 * (number % 5 + 1) * 10 / n for number in range(n)]
    texts = [7 * (number % 3) + 1 for number in range(n)]
    ends = []
    for time_s, n_texts in zip(times, texts, strict=True):
        _train(pace, clock, [time_s], n_texts)
        ends.append(clock.now_s)
    seen = [number for number in range(n) if ends[-1] - ends[number] <= 30]
    passed_s = sum(times[number] for number in seen[1:])
    assert pace.batch_s == pytest.approx(passed_s / (len(seen) - 1))
    assert pace.texts_per_s == pytest.approx(sum(texts[i] for i in seen[1:]) / passed_s)


def test_slow_batches_are_looked_at_by_number(pace, clock):
    _train(pace, clock, [60.0, 100.0, 60.0, 20.0, 40.0, 60.0])
    assert pace.batch_s == 40.0  # of three


def test_evaluations_are_counted_beside_the_batches(pace, clock):
    with pace.evaluating():
        clock.now_s += 12.0
    _train(pace, clock, [1.0, 1.0, 1.0])
    with pace.evaluating():
        clock.now_s += 8.0
    _train(pace, clock, [1.0])
    assert (pace.batch_s, pace.texts_per_s) == (1.0, 10.0)
    assert pace.eta_s(6, n_epoch_ends=2, n_evaluations=3) == 6 + 2 * 8 + 3 * 8


def test_an_epochs_end_is_all_between_two_of_its_batches(pace, clock):
    with pace.evaluating():
        clock.now_s += 5.0
    _train(pace, clock, [1.0] * 4, is_last=True)
    clock.now_s += 3.0  # validation
    with pace.evaluating():
        clock.now_s += 4.0
    clock.now_s += 2.0  # a checkpoint
    assert pace.eta_s(4, n_epoch_ends=1, n_evaluations=0) == 4 + 4  # not seen whole yet
    _train(pace, clock, [1.0] * 2)
    assert (pace.batch_s, pace.texts_per_s) == (1.0, 10.0)
    assert pace.eta_s(2, n_epoch_ends=1, n_evaluations=1) == 2 + 9 + 4


def test_it_goes_on_from_a_checkpoint_with_what_it_learnt(pace, clock):
    _train(pace, clock, [1.0] * 4, is_last=True)
    with pace.evaluating():
        clock.now_s += 9.0
    _train(pace, clock, [1.0])
    other_clock = _Clock()
    other = Pace(other_clock)
    other.restore(pace.state())
    assert other.eta_s(1, n_epoch_ends=1, n_evaluations=0) is None
    _train(other, other_clock, [50.0, 2.0])  # a slower machine
    assert other.eta_s(3, n_epoch_ends=2, n_evaluations=1) == 3 * 2 + 2 * 9 + 9


def _config(*callbacks, **options):
    return RunConfig(model="tiny", epochs=3, callbacks=callbacks, **options)


def _at(epoch, step, n_steps=10):
    n_done = (epoch - 1) * n_steps + step
    return Progress(epoch, step, n_steps, 0.25, active=0.5, n_steps_done=n_done, n_texts=16)


def test_the_numbers_of_a_run():
    progress = RunProgress(_config())
    assert progress.numbers() is None
    progress.see(_at(2, 4))
    assert progress.numbers() == {
        "epoch": 2,
        "n_epochs": 3,
        "step": 4,
        "n_steps": 10,
        "n_steps_done": 14,
        "n_steps_total": 30,
        "loss": 0.25,
        "active": 0.5,
        "texts_per_s": None,
        "eta_s": None,
    }


EVALUATION = {"query_data": [["a", 1]]}


@pytest.mark.parametrize(
    ("intervals", "options", "expected"),
    [
        ([None], {}, 0),
        ([4], {}, 1 + 2),  # after 8 of this epoch; after 4 and 8 of the next
        ([5], {}, 0 + 1),  # after 5; that after 10 is the epoch's own
        ([4, 6], {}, 1 + 3),  # both are made together when one is due
        ([4], {"lora": {"rank": 2}}, 1 + 2 + 1),
        ([], {"lora": {"rank": 2}}, 0),
    ],
)
def test_evaluations_to_come_are_counted(monkeypatch, intervals, options, expected):
    callbacks = [
        CallbackConfig(
            EvaluationCallback.__name__,
            {**EVALUATION, "caption": f"c{n}", "steps_per_interval": interval},
        )
        for n, interval in enumerate(intervals)
    ]
    progress = RunProgress(_config(*callbacks, **options))
    asked = []
    monkeypatch.setattr(progress.pace, "eta_s", lambda n, **rest: asked.append((n, rest)) or 7.04)
    progress.see(_at(2, 7))
    assert progress.numbers()["eta_s"] == 7.0
    assert asked == [(13, {"n_epoch_ends": 2, "n_evaluations": expected})]

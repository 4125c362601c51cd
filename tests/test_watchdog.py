import logging
import os
import threading

from finetuner.watchdog import Watchdog


def test_the_process_ends_when_something_is_late_for_too_long(caplog):
    late_s, ended = iter([0.0, 9.0, 10.5]), threading.Event()
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    with caplog.at_level(logging.CRITICAL):
        watchdog = Watchdog(lambda: next(late_s), limit_s=10, interval_s=0.001, end=end)
        assert ended.wait(5)
    watchdog.close()
    assert codes == [os.EX_SOFTWARE]
    assert next(late_s, None) is None
    assert "a batch is 10 s late" in caplog.text


def test_nothing_ends_while_nothing_is_late():
    asked, codes = threading.Semaphore(0), []

    def overdue_s():
        asked.release()
        return 0.0

    watchdog = Watchdog(overdue_s, interval_s=0.001, end=codes.append)
    for _ in range(5):
        assert asked.acquire(timeout=5)
    watchdog.close()
    assert codes == []

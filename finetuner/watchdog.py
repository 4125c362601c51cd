"""The end of a process whose model hangs: a thread inside a library cannot be stopped, a process can."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)
_INTERVAL_S = 1.0


class Watchdog:
    """Ends the process once something has been overdue for too long; whoever started it starts another.

    :param overdue_s: Asked every second: by how much what is in work is late, 0 when it is not.
    :param limit_s: That much is waited for; until then the process only says that it is not ready.
    :param end: Called with the exit code.
    """

    def __init__(
        self,
        overdue_s: Callable[[], float],
        *,
        limit_s: float = 10.0,
        interval_s: float = _INTERVAL_S,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._overdue_s, self._limit_s, self._end = overdue_s, limit_s, end
        self._interval_s = interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(self._interval_s):
            overdue_s = self._overdue_s()
            if overdue_s > self._limit_s:
                logger.critical(
                    "a batch is %.0f s late: the model hangs, the process ends", overdue_s
                )
                self._end(os.EX_SOFTWARE)
                return

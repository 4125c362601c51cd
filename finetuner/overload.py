"""Refusing early: while an executor is overloaded, the gateway answers for it."""

from __future__ import annotations

import time
from typing import Any

from docarray import DocumentArray

from finetuner.encode_routes import Call
from finetuner.errors import OverloadedError

_ENDPOINT = "/encode"


class OverloadGate:
    """Asks the executors, except for a moment after one has refused to take more.

    What is refused must cost next to nothing, or the refusals themselves slow down what was taken. A
    tenth of a second is short against the queue that is full then, so no executor runs idle by it.

    :param call: Asks an executor.
    :param hold_s: How long a refusal stands.
    """

    def __init__(self, call: Call, *, hold_s: float = 0.1) -> None:
        self._call = call
        self._hold_s = hold_s
        self._holds_until = 0.0
        self._sentence = ""

    async def __call__(
        self, endpoint: str, docs: DocumentArray | None, parameters: dict[str, Any]
    ) -> DocumentArray:
        """Ask an executor.

        :raises OverloadedError: When one has just refused, or refuses now.
        """
        if endpoint == _ENDPOINT and time.monotonic() < self._holds_until:
            raise OverloadedError(self._sentence)
        try:
            return await self._call(endpoint, docs, parameters)
        except OverloadedError as error:
            self._sentence = str(error)
            self._holds_until = time.monotonic() + self._hold_s
            raise

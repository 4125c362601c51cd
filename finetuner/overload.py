"""Refusing early: while an executor is overloaded, the gateway answers for it."""

from __future__ import annotations

import time

from finetuner.encode_routes import Encode
from finetuner.errors import OverloadedError


class OverloadGate:
    """Asks the encoder, except for a moment after it has refused to take more.

    What is refused must cost next to nothing, or the refusals themselves slow down what was taken. A
    tenth of a second is short against the queue that is full then, so no executor runs idle by it.

    :param encode: Asks the encoder.
    :param hold_s: How long a refusal stands.
    """

    def __init__(self, encode: Encode, *, hold_s: float = 0.1) -> None:
        self._encode = encode
        self._hold_s = hold_s
        self._holds_until = 0.0
        self._sentence = ""

    async def __call__(self, request: bytes) -> bytes:
        """Ask the encoder.

        :raises OverloadedError: When it has just refused, or refuses now.
        """
        if time.monotonic() < self._holds_until:
            raise OverloadedError(self._sentence)
        try:
            return await self._encode(request)
        except OverloadedError as error:
            self._sentence = str(error)
            self._holds_until = time.monotonic() + self._hold_s
            raise

"""Whether a Ray cluster answers."""

from __future__ import annotations

import socket

_CONNECT_TIMEOUT_S = 10.0


def check_answers(address: str) -> None:
    """Connect once, where an address says where to: Ray itself tries for minutes.

    :param address: As ``ray.init`` takes it.
    :raises OSError: When nothing answers.
    """
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S):
            pass

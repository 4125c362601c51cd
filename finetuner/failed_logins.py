"""How often one address may send a token that is none of the server's."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

_IPV6_PREFIX = 64


class FailedLogins:
    """Counts failures by address and says when they are too many.

    Each failure adds ``interval_s`` to an address's debt, and time pays it back; a debt of more than
    ``burst`` intervals is too much. One number an address is all that is kept, of the last ``max_peers``.

    Only failures are counted, so nobody who has a token waits for those who have none, not even behind
    the same proxy. That leaves nothing open: a token is too long to be found by trying. What is bounded
    is the work, and the lines of the audit, that one address can cause.

    :param burst: Failures at once.
    :param interval_s: Between failures after that.
    :param max_peers: Addresses remembered.
    :param clock: Seconds that only grow.
    """

    def __init__(
        self,
        *,
        burst: int = 10,
        interval_s: float = 6.0,
        max_peers: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst, self._interval_s = burst, interval_s
        self._max_peers, self._clock = max_peers, clock
        self._paid_at: OrderedDict[str, float] = OrderedDict()

    def count(self, address: str) -> float:
        """Count a failure, and return the seconds after which the next one is allowed; 0 is now.

        :param address: Where it came from.
        """
        peer, now = _peer(address), self._clock()
        paid_at = max(self._paid_at.get(peer, now), now) + self._interval_s
        wait_s = paid_at - now - self._burst * self._interval_s
        if wait_s > 0:
            return wait_s
        self._paid_at[peer] = paid_at
        self._paid_at.move_to_end(peer)
        while len(self._paid_at) > self._max_peers:
            self._paid_at.popitem(last=False)
        return 0.0


def _peer(address: str) -> str:
    """Return what counts as one address: of IPv6, the network that one household or host is given."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found), _IPV6_PREFIX), strict=False))
    return address

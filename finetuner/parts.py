"""The processes of a started Flow: whether they live and answer, and new ones in the place of dead ones."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from finetuner.errors import FinetunerServerError

logger = logging.getLogger(__name__)
# An executor that dies more often than this is not helped by another start.
_MOST_DEATHS = 5
_WITHIN_S = 60.0
_ANSWER_TIMEOUT_S = 1.0
# What does not answer for so long hangs; importing torch from a slow disk takes less.
_LONGEST_SILENCE_S = 30.0
_ASK_INTERVAL_S = 2.0


@dataclass(eq=False)
class Part:
    """One process of a Flow.

    :param name: Of its deployment.
    :param pods: The list of Jina's that holds it.
    :param number: Its place there.
    :param is_executor: Whether it may be started anew; a gateway or head may not.
    """

    name: str
    pods: list[Any]
    number: int
    is_executor: bool
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_DEATHS))
    answered_at: float = 0.0

    @property
    def pod(self) -> Any:
        """Jina's object for it."""
        return self.pods[self.number]

    @property
    def process(self) -> Any:
        """Its process."""
        return self.pod.worker


def parts_of(flow: Any) -> Iterator[Part]:
    """Yield the processes of a Flow; those in containers or on other machines are not among them.

    :param flow: Jina's, as far as it has started.
    """
    for name, deployment in flow._deployment_nodes.items():
        single = [
            deployment.head_pod,
            *([deployment.gateway_pod] if deployment.gateway_pod else []),
        ]
        sets = [(single, False)]
        for shard in deployment.shards.values():
            sets.append((shard._pods, deployment.gateway_pod is None and name != "gateway"))
        for pods, is_executor in sets:
            for number, pod in enumerate(pods):
                if pod is not None and hasattr(pod, "worker"):
                    yield Part(name, pods, number, is_executor)


class Caretaker:
    """Keeps the executors of a Flow alive.

    :param flow: Has started. From now on this process starts others by a fresh interpreter: it has used
        gRPC, whose threads do not survive a fork.
    """

    def __init__(self, flow: Any) -> None:
        multiprocessing.set_start_method("spawn", force=True)
        self._parts = list(parts_of(flow))
        self._asked_at = time.monotonic()
        for part in self._parts:
            part.answered_at = self._asked_at

    def look(self) -> None:
        """Start a new process for each executor that has died, and end those that hang.

        :raises FinetunerServerError: When the gateway has died, or an executor dies again and again.
        """
        self._end_silent()
        for part in self._parts:
            if not part.process.is_alive():
                self._replace(part)

    def stop_gateway(self, timeout_s: float) -> None:
        """Let the gateway end what it has in work while the executors are there to answer it.

        :param timeout_s: Waited for at most; the Flow's own close ends it then.
        """
        gateways = [part.process for part in self._parts if part.name == "gateway"]
        for process in gateways:
            process.terminate()
        for process in gateways:
            process.join(timeout_s)

    def _end_silent(self) -> None:
        now = time.monotonic()
        if now - self._asked_at < _ASK_INTERVAL_S:
            return
        self._asked_at = now
        for part in self._parts:
            if not part.is_executor or not part.pod.is_ready.is_set() or _answers(part.pod):
                part.answered_at = now
            elif now - part.answered_at > _LONGEST_SILENCE_S and part.process.is_alive():
                logger.error("%s has not answered for %d s", part.name, _LONGEST_SILENCE_S)
                part.process.kill()
                part.process.join()

    def _replace(self, part: Part) -> None:
        from jina.orchestrate.pods.factory import PodFactory

        code, now = part.process.exitcode, time.monotonic()
        if not part.is_executor:
            raise FinetunerServerError("A part of the Flow died", f"{part.name}, exit code {code}")
        part.deaths.append(now)
        if len(part.deaths) == _MOST_DEATHS and now - part.deaths[0] < _WITHIN_S:
            raise FinetunerServerError(
                "An executor dies again and again",
                f"{part.name}, {_MOST_DEATHS} times in {now - part.deaths[0]:.0f} s, exit code {code}",
            )
        logger.error("%s died, exit code %s; it is started again", part.name, code)
        part.pods[part.number] = PodFactory.build_pod(part.pod.args).start()
        part.answered_at = now


def _answers(pod: Any) -> bool:
    """Whether a process answers the standard health check of gRPC."""
    from jina.serve.runtimes.servers.grpc import GRPCServer

    return bool(GRPCServer.is_ready(pod.runtime_ctrl_address, timeout=_ANSWER_TIMEOUT_S))

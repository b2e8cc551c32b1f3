"""Runs the shares of a plan in many processes: a barrier, a common start, and their sum.

It sees each process as a :class:`WorkerLink` and does not know where it runs.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.plan import Plan
from pulsar_client.load.recorder import Interval
from pulsar_client.load.self_check import Health
from pulsar_client.load.session import Mark, SessionEnd, Stop, TargetUnreachable

__all__ = ["LINE_LIMIT", "Coordinator", "WorkerLink"]

#: Bytes of the longest message: an interval with very many labels.
LINE_LIMIT = 64 * 2**20

#: Seconds in which all processes must be ready.
READY_WITHIN = 60.0
#: Seconds between the barrier and the first request.
START_IN = 0.3
#: A process that says nothing for so long is lost.
SILENCE = 3.0
#: Seconds for a message that came while this process was held up itself.
_LAST_LOOK = 0.1
_PINGS = 5


class WorkerLink(Protocol):
    """A line to one process."""

    async def send(self, message: dict[str, Any]) -> None:
        """Send it a message; nothing happens if it is gone."""

    async def receive(self) -> dict[str, Any] | None:
        """Wait for its next message; None when it is gone."""

    def kill(self) -> None:
        """End it at once."""


class Coordinator:
    """Leads one run.

    Args:
        plan: of the whole run.
        links: one for each share, in order.
        emit: called with each interval of each process.
        stop: ends the run early.

    Attributes:
        lost: what is known of the processes that did not come to their end.
        ends: of those that did.
    """

    def __init__(
        self,
        plan: Plan,
        links: Sequence[WorkerLink],
        emit: Callable[[Interval], None],
        stop: Stop,
    ) -> None:
        self._plan = plan
        self._links = links
        self._emit = emit
        self._stop = stop
        self._start = 0.0
        self._stopping: set[asyncio.Task[None]] = set()
        self.lost: list[str] = []
        self.ends: list[SessionEnd] = []

    async def run(self) -> None:
        """Run it to its end.

        Raises:
            TargetUnreachable, ConfigError: a process could not prepare its share.
        """
        plan, links = self._plan.as_json(), self._links
        self._stop.on_request(self._tell_all_to_stop)
        try:
            async with asyncio.timeout(READY_WITHIN), asyncio.TaskGroup() as group:
                waiting = [
                    group.create_task(self._prepare(plan, index)) for index in range(len(links))
                ]
        except* (TargetUnreachable, ConfigError) as failures:
            raise first(failures) from None
        except* TimeoutError:
            raise ConfigError(
                f"not all of {len(links)} workers were ready within {READY_WITHIN:g} s"
            ) from None
        offsets = [task.result() for task in waiting]
        if self._stop.requested:
            return
        self._start = time.monotonic() + START_IN
        for link, offset in zip(links, offsets, strict=True):
            await link.send({"type": "start", "at": self._start + offset})
        async with asyncio.TaskGroup() as group:
            for index in range(len(links)):
                group.create_task(self._follow(index))
        if self._stopping:
            await asyncio.wait(self._stopping)

    async def _prepare(self, plan: dict[str, Any], index: int) -> float:
        """Wait until a process is ready; give how far its clock is before ours."""
        link = self._links[index]
        await link.send({"plan": plan, "index": index, "count": len(self._links)})
        message = await link.receive()
        if message is None:
            if self._stop.requested:
                return 0.0
            raise ConfigError(f"worker {index} ended before it was ready; see what it printed")
        if message["type"] == "failed":
            unreachable = message["reason"] == "unreachable"
            raise (TargetUnreachable if unreachable else ConfigError)(message["text"])
        best = (float("inf"), 0.0)
        for _ in range(_PINGS):
            sent = time.monotonic()
            await link.send({"type": "ping", "sent": sent})
            message = await link.receive()
            if message is None:
                if self._stop.requested:
                    return 0.0
                raise ConfigError(f"worker {index} ended before the start")
            received = time.monotonic()
            best = min(best, (received - sent, message["clock"] - (sent + received) / 2))
        return best[1]

    async def _follow(self, index: int) -> None:
        """Take what a process says, until its end or its loss."""
        link = self._links[index]
        patience = SILENCE + max(0.0, self._start - time.monotonic())
        while True:
            try:
                message = await self._hear(link, patience)
            except TimeoutError:
                self._lose(index, f"was silent for {SILENCE:g} s")
                return
            patience = SILENCE
            if message is None:
                self._lose(index, "ended")
                return
            if message["type"] == "interval":
                self._emit(Interval.from_json(message["interval"]))
            elif message["type"] == "end":
                self.ends.append(
                    SessionEnd(
                        Health(**message["health"]),
                        message["elapsed"],
                        message["interrupted"],
                        [Mark(**mark) for mark in message["marks"]],
                    )
                )
                return

    @staticmethod
    async def _hear(link: WorkerLink, patience: float) -> dict[str, Any] | None:
        """Wait for a message of a process.

        The time may be over because this process did not run: what was said is there then.
        """
        for seconds in (patience, _LAST_LOOK):
            try:
                async with asyncio.timeout(seconds):
                    return await link.receive()
            except TimeoutError:
                continue
        raise TimeoutError

    def _lose(self, index: int, how: str) -> None:
        self._links[index].kill()
        seconds = time.monotonic() - self._start
        self.lost.append(
            f"worker {index} of {len(self._links)} {how} {seconds:.1f} s after the start: "
            "its share of the load was not sent from then on"
        )

    def _tell_all_to_stop(self) -> None:
        for link in self._links:
            self._stopping.add(asyncio.create_task(link.send({"type": "stop"})))


def first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first of the exceptions of a group."""
    found: BaseException = group.exceptions[0]
    return first(found) if isinstance(found, BaseExceptionGroup) else found

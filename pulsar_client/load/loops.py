"""Open and closed loops: when the next request is due.

An open loop sends by its schedule, whatever the answers do; what comes late is late from the
moment it was due (L1, L2).  A closed loop sends the next request when the last one has ended: it
sends less when the target is slow, and so hides how slow it was (L3).
"""

import asyncio
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from random import Random

from pulsar_client.load.callers import Caller, Callers, Request
from pulsar_client.load.recorder import Recorder
from pulsar_client.load.ticker import Ticker, make_ticker

__all__ = ["ClosedLoop", "OpenLoop"]


class OpenLoop:
    """Sends each request when it is due.

    Args:
        callers: who make the requests; more are added as they are needed, up to `cap`.
        recorder: where the counters are.
        clock: gives the moment.
        offsets: when requests are due, in seconds after the start.
        labels: the index of the scenario of each.
        warmup: seconds that are not measured.
        cap: the most requests in flight.
        drop: at the cap a request is dropped, else it is queued.
    """

    def __init__(
        self,
        callers: Callers,
        recorder: Recorder,
        clock: Callable[[], float],
        offsets: "array[float]",
        labels: bytes,
        *,
        warmup: float,
        cap: int,
        drop: bool,
    ) -> None:
        self._callers = callers
        self._recorder = recorder
        self._clock = clock
        self._offsets = offsets
        self._labels = labels
        self._first_measured = bisect_left(offsets, warmup)
        self._cap = cap
        self._drop = drop
        self._next = 0
        self._start = 0.0
        self._due: deque[int] = deque()
        self._idle: list[Caller] = []
        self._halted = False
        self._ticker: Ticker | None = None
        self._sent_all = asyncio.Event()
        self._failure: Exception | None = None

    @property
    def queued(self) -> int:
        """How many requests behind the warm-up are due and wait at the cap."""
        due, first = self._due, self._first_measured
        if not due or due[0] >= first:
            return len(due)
        return sum(number >= first for number in due)

    async def run(self, start: float) -> None:
        """Send everything, or until :meth:`halt`; `start` is a moment of the clock."""
        self._start = start
        if not self._offsets:
            return
        self._ticker = make_ticker(asyncio.get_running_loop(), self._tick, self._clock)
        try:
            self._ticker.arm(start + self._offsets[0])
            await self._sent_all.wait()
        finally:
            self._ticker.close()
        if self._failure is not None:
            raise self._failure

    async def drain(self, timeout: float) -> None:
        """Wait until every request has ended, `timeout` seconds at most."""
        await self._callers.settle(timeout, lambda: bool(self._due) and not self._halted)

    def halt(self) -> None:
        """Send nothing more, from this moment on; what is queued stays so."""
        self._halted = True
        if self._ticker is not None:
            self._ticker.close()
        self._sent_all.set()

    def _tick(self) -> None:
        """Hand out the requests that are due; whoever runs the loop is told if that fails."""
        if self._halted:
            return
        try:
            self._hand_out()
        except Exception as exc:  # noqa: BLE001 - nobody else would hear of it
            self._failure = exc
            self.halt()

    def _hand_out(self) -> None:
        assert self._ticker is not None
        offsets, start = self._offsets, self._start
        number, last = self._next, len(offsets)
        now = self._clock()
        while number < last and start + offsets[number] <= now:
            if number >= self._first_measured:
                self._recorder.scheduled += 1
                self._recorder.lateness.append(now - start - offsets[number])
            self._arrived(number)
            number += 1
        self._next = number
        if number < last:
            self._ticker.arm(start + offsets[number])
        else:
            self._sent_all.set()

    def _arrived(self, number: int) -> None:
        """A request is due: to an idle caller, a new one, or the queue."""
        # Callers that were woken have not taken theirs yet: they and the busy ones are the load.
        if self._drop and self._callers.busy + len(self._due) >= self._cap:
            if number >= self._first_measured:
                self._recorder.dropped += 1
            return
        self._due.append(number)
        if self._idle:
            caller = self._idle.pop()
            assert caller.wake is not None
            if not caller.wake.done():
                caller.wake.set_result(None)
        elif len(self._callers.all) < self._cap:
            caller = self._callers.add()
            caller.task = asyncio.get_running_loop().create_task(self._serve(caller))

    async def _serve(self, caller: Caller) -> None:
        """What one caller does: take what is due, or wait for it."""
        serve, new_future = self._callers.serve, asyncio.get_running_loop().create_future
        while True:
            if self._due:
                await serve(caller, self._take())
            caller.wake = new_future()
            self._idle.append(caller)
            await caller.wake

    def _take(self) -> Iterator[Request]:
        """What is due, one after the other."""
        due, offsets, labels, start = self._due, self._offsets, self._labels, self._start
        clock, first = self._clock, self._first_measured
        while due and not self._halted:
            number = due.popleft()
            yield labels[number], start + offsets[number], clock(), number >= first


#: Seconds that a caller of a closed loop waits when there was no connection for its request: it
#: would fail at once again, and by the thousand.
_RECOVER = 0.01


class ClosedLoop:
    """Keeps a number of requests in flight.

    Args:
        callers: who make the requests.
        recorder: where the counters are.
        clock: gives the moment.
        weights: of the scenarios.
        in_flight: how many requests.
        warmup: seconds that are not measured.
        duration: seconds that are measured.
        think: seconds that each caller waits before its next request.
    """

    #: A closed loop has no queue: what is not sent was never due.
    queued = 0

    def __init__(
        self,
        callers: Callers,
        recorder: Recorder,
        clock: Callable[[], float],
        weights: list[float],
        *,
        in_flight: int,
        warmup: float,
        duration: float,
        think: float,
    ) -> None:
        self._callers = callers
        self._recorder = recorder
        self._clock = clock
        self._weights = weights
        self._in_flight = in_flight
        self._warmup = warmup
        self._duration = duration
        self._think = think
        self._over = False
        self._halted = asyncio.Event()

    async def run(self, start: float) -> None:
        """Send until the time is over, or until :meth:`halt`."""
        end = start + self._warmup + self._duration
        loop = asyncio.get_running_loop()
        for _ in range(self._in_flight):
            caller = self._callers.add()
            caller.task = loop.create_task(self._serve(caller, start, end))
        try:
            async with asyncio.timeout(max(0.0, end - self._clock())):
                await self._halted.wait()
        except TimeoutError:
            self._over = True

    async def drain(self, timeout: float) -> None:
        """Wait until every request has ended, `timeout` seconds at most."""
        await self._callers.settle(timeout)

    def halt(self) -> None:
        """Send nothing more, from this moment on."""
        self._over = True
        self._halted.set()

    async def _serve(self, caller: Caller, start: float, end: float) -> None:
        if (early := start - self._clock()) > 0:
            await asyncio.sleep(early)
        if self._think:
            await asyncio.sleep(self._think)
        requests = self._next(caller.context.rng, start, end)
        await self._callers.serve(caller, requests, self._think, _RECOVER)

    def _next(self, random: Random, start: float, end: float) -> Iterator[Request]:
        """The next request of one caller whenever it is asked for, until the time is over."""
        clock, recorder, measured_from = self._clock, self._recorder, start + self._warmup
        kinds = range(len(self._weights))
        several = len(kinds) > 1
        label = 0
        while (now := clock()) < end and not self._over:
            if several:
                label = random.choices(kinds, self._weights)[0]
            measured = now >= measured_from
            if measured:
                recorder.scheduled += 1
            # Due at the moment at which it is sent: nothing ever waits in a closed loop (L3).
            yield label, now, now, measured

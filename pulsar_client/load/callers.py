"""Callers: each makes one request after the other, with a deadline, and has its end recorded.

Who decides when a request is due is in :mod:`pulsar_client.load.loops`.
"""

import asyncio
from asyncio import AbstractEventLoop, CancelledError
from collections.abc import Callable, Iterable, Sequence

from pulsar_client.exceptions import PoolUnavailable
from pulsar_client.load.causes import cause_of, example_of
from pulsar_client.load.recorder import Recorder
from pulsar_client.load.scenarios import Context, Scenario

__all__ = ["Caller", "Callers", "Request", "ended"]

#: One that is to be made: the index of its scenario, the moment at which it was due, this moment,
#: and whether it is behind the warm-up.
Request = tuple[int, float, float, bool]

_NOT_CONNECTED = (PoolUnavailable, ConnectionRefusedError)
# How often a task is cancelled that does not end.
_INSIST = 3
# A scenario that never waits must not keep the loop from everything else.
_BREATHE_EVERY = 64


class Caller:
    """Makes one request at a time.

    Attributes:
        context: what its scenarios get.
        task: the task it runs in.
        wake: what it waits for while it has nothing to do.
        timed_out: its request was cancelled because of its deadline.
        measured: its request is behind the warm-up.
    """

    __slots__ = ("context", "measured", "task", "timed_out", "wake")

    task: "asyncio.Task[None]"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.wake: asyncio.Future[None] | None = None
        self.timed_out = False
        self.measured = False


class Callers:
    """The callers of one process.

    Args:
        scenarios: by the index of their label.
        new_context: makes the context of one more caller.
        recorder: what is told of every end.
        clock: gives the moment, in seconds.
        timeout: seconds that a request may take once it was dequeued.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        new_context: Callable[[], Context],
        recorder: Recorder,
        clock: Callable[[], float],
        timeout: float,
    ) -> None:
        self._functions = [scenario.function for scenario in scenarios]
        self._new_context = new_context
        self._recorder = recorder
        self._clock = clock
        self._timeout = timeout
        # In the order of their deadlines, as all requests have the same time.
        self._busy: dict[Caller, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: AbstractEventLoop = asyncio.get_running_loop()
        self._settled: asyncio.Future[None] | None = None
        self._number = 0
        self.all: list[Caller] = []

    @property
    def busy(self) -> int:
        """How many requests are under way, those of the warm-up included."""
        return len(self._busy)

    @property
    def in_flight(self) -> int:
        """How many requests behind the warm-up are under way."""
        return sum(caller.measured for caller in self._busy)

    def add(self) -> Caller:
        """Make one more caller; its task is the business of who asked."""
        caller = Caller(self._new_context())
        self.all.append(caller)
        return caller

    async def settle(self, timeout: float, waiting: Callable[[], bool] = lambda: False) -> None:
        """Wait until no request is under way and none waits, `timeout` seconds at most."""
        try:
            async with asyncio.timeout(timeout):
                while self._busy or waiting():
                    self._settled = self._loop.create_future()
                    await self._settled
        except TimeoutError:
            pass
        finally:
            self._settled = None

    async def cancel(self) -> None:
        """End every caller, whatever it does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = [caller.task for caller in self.all]
        await ended(tasks)
        for task in tasks:
            if not task.done():
                raise RuntimeError("a scenario goes on in spite of its cancellation")
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def serve(
        self,
        caller: Caller,
        requests: Iterable[Request],
        think: float = 0.0,
        recover: float = 0.0,
    ) -> None:
        """Make one request after the other and record how each ended.

        Args:
            caller: who makes them.
            requests: gives the next as soon as it is to be made.
            think: seconds to wait after each.
            recover: seconds to wait after one for which there was no connection, if that is more.
        """
        # Every request passes here: what it costs is in all that is measured.
        context, recorder, busy = caller.context, self._recorder, self._busy
        functions, clock, timeout = self._functions, self._clock, self._timeout
        for label, intended, dequeued, measured in requests:
            pause = think
            number = context.number = self._number
            self._number = number + 1
            context.intended = intended
            context.dequeued = dequeued
            context.sent = 0.0
            caller.measured = measured
            if measured:
                recorder.sent += 1
            busy[caller] = dequeued + timeout
            if self._timer is None:
                self._timer = self._loop.call_later(timeout, self._look_at_deadlines)
            try:
                await functions[label](context)
            except CancelledError as exc:
                if not caller.timed_out:
                    raise
                self._failed(caller, label, intended, exc)
            except Exception as exc:  # noqa: BLE001 - whatever a scenario raises is its end
                self._failed(caller, label, intended, exc)
                pause = max(think, recover) if isinstance(exc, _NOT_CONNECTED) else think
            else:
                if caller.timed_out:  # the scenario swallowed the cancellation
                    self._failed(caller, label, intended, TimeoutError())
                elif measured:
                    times = (intended, dequeued, context.sent or dequeued, clock())
                    recorder.answered(label, times)
            finally:
                del busy[caller]
                if self._settled is not None and not busy and not self._settled.done():
                    self._settled.set_result(None)
            if pause or number % _BREATHE_EVERY == 0:
                await asyncio.sleep(pause)

    def _failed(self, caller: Caller, label: int, intended: float, exc: BaseException) -> None:
        now = self._clock()
        context = caller.context
        timeout = isinstance(exc, TimeoutError)
        if caller.timed_out:
            caller.timed_out = False
            caller.task.uncancel()
            timeout = True
            cause = "timeout: no answer" if context.sent else "timeout: not sent"
            text = f"no end within {self._timeout:g} s"
        else:
            cause, text = cause_of(exc), ""
        if caller.measured:
            message = ""
            if not self._recorder.knows(cause):
                message = example_of(exc, self._functions[label], text)
            times = (intended, context.dequeued, context.sent, now)
            self._recorder.failed(label, times, cause, message, timeout)

    def _look_at_deadlines(self) -> None:
        """Cancel the requests that took too long; one timer for all of them."""
        self._timer = None
        now = self._clock()
        for caller, deadline in self._busy.items():
            if deadline > now:
                self._timer = self._loop.call_later(deadline - now, self._look_at_deadlines)
                break
            if not caller.timed_out:
                caller.timed_out = True
                caller.task.cancel()


async def ended(tasks: "Sequence[asyncio.Task[None]]") -> None:
    """Cancel tasks and wait for their end, however they end; 3 s at most.

    A cancellation of the wait is passed on when they have ended, so that none is left behind.
    """
    cancelled: CancelledError | None = None
    pending = [task for task in tasks if not task.done()]
    for _ in range(_INSIST):
        for task in pending:
            task.cancel()
        try:
            if pending:
                await asyncio.wait(pending, timeout=1.0)
        except CancelledError as exc:
            cancelled = exc
        pending = [task for task in pending if not task.done()]
    if cancelled is not None:
        raise cancelled

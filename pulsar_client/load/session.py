"""One process's share of a run, from the first connection to the last count."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from pulsar_client.addresses import Address
from pulsar_client.exceptions import ConfigError, PoolUnavailable
from pulsar_client.load.callers import Callers, ended
from pulsar_client.load.causes import described, example_of
from pulsar_client.load.connections import (
    TargetClient,
    UdpTargetClient,
    open_client,
    wire_scenario,
)
from pulsar_client.load.faults import play
from pulsar_client.load.loops import ClosedLoop, OpenLoop
from pulsar_client.load.plan import Plan
from pulsar_client.load.recorder import Interval, Recorder
from pulsar_client.load.scenarios import Context, Scenario, Setup
from pulsar_client.load.schedule import arrivals, choices
from pulsar_client.load.self_check import Health, Probe
from pulsar_client.load.target import Target
from pulsar_client.load.wire import find_wire
from pulsar_client.testing import FaultProxy

__all__ = ["Mark", "Session", "SessionEnd", "Stop", "TargetUnreachable"]

Clock = Callable[[], float]

#: Seconds between the last preparation and the first request.
_RUN_UP = 0.05
_FOLD_EVERY = 0.1
#: Seconds that a run which was interrupted waits for the answers that are due.
_HURRY = 1.0


class TargetUnreachable(ConnectionError):
    """The target could not be reached before the first request."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment, in seconds since the start of the run."""

    at: float
    text: str


@dataclass(slots=True)
class SessionEnd:
    """What is known at the end of one process's share, besides its intervals.

    Attributes:
        health: what the self-check saw.
        elapsed: seconds from the end of the warm-up to the last answer, or the planned duration
            if that is longer.
        interrupted: it was stopped before its time.
        marks: of the time line.
    """

    health: Health
    elapsed: float
    interrupted: bool
    marks: list[Mark] = field(default_factory=list)


class Stop:
    """Ends a run before its time, at once and from anywhere in the loop.

    Attributes:
        requested: whether :meth:`request` was called.
    """

    def __init__(self) -> None:
        self.requested = False
        self._callbacks: list[Callable[[], None]] = []

    def request(self) -> None:
        """Stop sending in this turn of the loop (L18)."""
        self.requested = True
        for callback in self._callbacks:
            callback()

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call back when it is requested; at once if it was."""
        self._callbacks.append(callback)
        if self.requested:
            callback()


class Session:
    """One process's share of a run.

    Args:
        plan: of the whole run.
        index: which share, from 0.
        count: of how many.
        clock: gives the moment; one that can be replaced in tests.
        stop: ends it early.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        index: int = 0,
        count: int = 1,
        clock: Clock = time.monotonic,
        stop: Stop | None = None,
    ) -> None:
        self._plan = plan
        self._index = index
        self._count = count
        self._clock = clock
        self._stop = stop or Stop()
        self._marks: list[Mark] = []
        self._start = 0.0
        what = plan.what()
        self._setup = what.setup
        self._faults = (*plan.faults, *what.faults)
        self._proxy: FaultProxy | None = None
        self._wire = find_wire(plan.protocol) if plan.protocol is not None else None
        self._scenarios: tuple[Scenario, ...] = what.scenarios
        if not self._scenarios:
            assert self._wire is not None
            self._scenarios = (wire_scenario(plan, self._wire),)
        self._recorder = Recorder(self.labels, index)
        self._client: TargetClient | UdpTargetClient | None = None
        self._loop: OpenLoop | ClosedLoop
        self._callers: Callers

    @property
    def labels(self) -> list[str]:
        """Those of the scenarios."""
        return [scenario.label for scenario in self._scenarios]

    @contextlib.asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """Reach the target and compute the schedule; :meth:`run` comes inside.

        Raises:
            TargetUnreachable: the target can't be reached.
            ConfigError: the plan is too large, or the setup of the scenario file failed.
        """
        plan = self._plan
        target = plan.where()
        async with contextlib.AsyncExitStack() as stack:
            if self._wire is not None and target is not None:
                address = target.address
                if self._faults:
                    self._proxy = await stack.enter_async_context(FaultProxy(_pair(address)))
                    address = self._proxy.address
                self._client = open_client(
                    plan,
                    target,
                    address,
                    self._wire,
                    connects=self._recorder.connects,
                    clock=self._clock,
                    size=self._share(plan.connections),
                )
                await stack.enter_async_context(self._client)
                await self._open_connections(target)
            user_client = None
            if self._setup is not None:
                user_client = await self._set_up(self._setup, target, stack)
            self._make_loop(target, user_client)
            yield

    async def run(
        self, emit: Callable[[Interval], None], start: float | None = None
    ) -> SessionEnd:
        """Make the requests.

        Args:
            emit: called with each interval, and with the last one.
            start: the moment of the clock at which the schedule begins; None for now.

        Cancelling it ends every request at once.
        """
        plan, clock = self._plan, self._clock
        self._start = start = clock() + _RUN_UP if start is None else start
        probe = Probe(self._index, clock)
        beside = [
            asyncio.create_task(self._emit_intervals(emit)),
            asyncio.create_task(self._play_faults(start + plan.warmup)),
        ]
        self._stop.on_request(self._loop.halt)
        try:
            probe.start()
            await self._loop.run(start)
            interrupted = self._stop.requested
            await self._until_the_end_of_the_time()
            health = probe.finish()
            if self._client is not None and self._client.starved:
                health.descriptors = health.descriptors_allowed
            interrupted |= await self._drain()
            await ended(beside)
            for task in beside:
                if not task.cancelled():
                    task.result()  # one that failed, a view that can't be drawn say, is told
            emit(self._take())
            over = clock() if interrupted else start + plan.warmup + plan.measured
            elapsed = max(over, self._recorder.last_end) - start - plan.warmup
        finally:
            probe.finish()
            try:
                await ended(beside)
            finally:
                await self._callers.cancel()
        return SessionEnd(health, max(elapsed, 1e-9), interrupted, self._marks)

    def mark(self, text: str) -> None:
        """Put a mark on the time line."""
        self._marks.append(Mark(self._clock() - self._start, text))

    # Inside

    def _share(self, whole: int) -> int:
        """This process's part of a number, at least 1."""
        part = whole // self._count + (self._index < whole % self._count)
        return max(1, part)

    async def _set_up(
        self, setup: Setup, target: Target | None, stack: contextlib.AsyncExitStack
    ) -> Any:
        """Call the file's setup; its end comes when the stack is left, and costs no result."""
        context = setup(target)
        client = None
        try:
            async with asyncio.timeout(None) as limit:
                self._stop.on_request(partial(_expire, limit, 0.0))
                client = await context.__aenter__()
        except ConfigError:
            raise
        except Exception as exc:
            if self._stop.requested:
                return None
            kind = TargetUnreachable if isinstance(exc, OSError) else ConfigError
            raise kind(f"the setup failed: {example_of(exc, setup)}") from exc

        async def leave(*exc_info: Any) -> None:
            try:
                async with asyncio.timeout(None) as limit:
                    self._stop.on_request(partial(_expire, limit, _HURRY))
                    await context.__aexit__(*exc_info)
            except Exception as exc:
                if exc is exc_info[1]:
                    raise
                self.mark(f"the end of the setup failed: {example_of(exc, setup)}")

        stack.push_async_exit(leave)
        return client

    async def _open_connections(self, target: Target) -> None:
        """Open the connections of the pool, so that the first requests need not wait for them."""
        assert self._client is not None
        pool = self._client.pool
        leases: list[Any] = []
        failures: list[Exception] = []
        limit = asyncio.timeout(self._plan.timeout)

        async def lease() -> None:
            try:
                # Kept at once: a cancellation of the others must not lose it.
                leases.append(await pool.connect())
            except (OSError, PoolUnavailable) as exc:
                failures.append(exc)
                # The pool lets those wait whom it can't serve: that may take for ever.
                _expire(limit, _HURRY)

        try:
            async with limit:
                self._stop.on_request(partial(_expire, limit, 0.0))
                await lease()
                others = (lease() for _ in range(pool.pool_size - 1) if leases)
                await asyncio.gather(*others, return_exceptions=True)
        except TimeoutError as exc:
            failures.append(exc)
        finally:
            for opened in leases:
                opened.close()
        if failures and not self._stop.requested:
            why = described(failures[0])
            if isinstance(failures[0], TimeoutError):
                why = f"no answer within {self._plan.timeout:g} s"
            if not leases:
                raise TargetUnreachable(f"{target.url} can't be reached: {why}") from failures[0]
            got = f"{len(leases)} of {pool.pool_size} connections were there at the start"
            self._marks.append(Mark(0.0, f"{got}: {why}"))

    def _make_loop(self, target: Target | None, user_client: Any) -> None:
        plan, recorder, clock = self._plan, self._recorder, self._clock
        numbers = iter(range(2**62))

        def new_context() -> Context:
            return Context(
                target=target,
                pool=self._client.pool if self._client is not None else None,
                client=user_client,
                # Of a number: a text needs a module that is opened where descriptors are scarce.
                rng=Random((plan.seed * 2**16 + self._index) * 2**32 + next(numbers)),
                clock=clock,
                mark=self.mark,
                proxy=self._proxy,
            )

        self._callers = Callers(self._scenarios, new_context, recorder, clock, plan.timeout)
        weights = [scenario.weight for scenario in self._scenarios]
        if not plan.open:
            self._loop = ClosedLoop(
                self._callers,
                recorder,
                clock,
                weights,
                in_flight=self._share(plan.cap),
                warmup=plan.warmup,
                duration=plan.measured,
                think=plan.think,
            )
            return
        offsets = arrivals(
            plan.schedule,
            poisson=plan.arrivals == "poisson",
            seed=plan.seed,
            index=self._index,
            count=self._count,
        )
        self._loop = OpenLoop(
            self._callers,
            recorder,
            clock,
            offsets,
            choices(weights, seed=plan.seed + self._index, number=len(offsets)),
            warmup=plan.warmup,
            cap=self._share(plan.cap),
            drop=plan.on_full == "drop",
        )

    async def _play_faults(self, zero: float) -> None:
        if self._proxy is not None:
            await play(self._faults, self._proxy, zero=zero, clock=self._clock, mark=self.mark)

    async def _until_the_end_of_the_time(self) -> None:
        """The last request of an open loop is due before its time is over."""
        over = self._start + self._plan.warmup + self._plan.measured
        stopped = asyncio.Event()
        self._stop.on_request(stopped.set)
        try:
            async with asyncio.timeout(max(0.0, over - self._clock())):
                await stopped.wait()
        except TimeoutError:
            pass

    async def _drain(self) -> bool:
        """Wait for the answers that are due; tell whether that was interrupted."""
        draining = asyncio.create_task(self._loop.drain(self._plan.timeout + _HURRY))
        hurry: list[asyncio.TimerHandle] = []
        running = asyncio.get_running_loop()
        self._stop.on_request(lambda: hurry.append(running.call_later(_HURRY, draining.cancel)))
        try:
            await asyncio.wait([draining])
        finally:
            for handle in hurry:
                handle.cancel()
            await ended([draining])
        return self._stop.requested

    async def _emit_intervals(self, emit: Callable[[Interval], None]) -> None:
        """Fold a few times a second, and end an interval at each point of the time line."""
        number = 1
        point = self._plan.point
        while True:
            due = self._start + number * point
            now = self._clock()
            if now >= due - 1e-9:  # what a sum of floats may miss it by
                emit(self._take())
                number = max(number, int((now - self._start) / point)) + 1
            else:
                self._recorder.fold()
                await asyncio.sleep(min(_FOLD_EVERY, max(0.0, due - now)))

    def _take(self) -> Interval:
        return self._recorder.take(
            self._clock() - self._start,
            queued=self._loop.queued,
            in_flight=self._callers.in_flight,
            connections=self._client.pool.stats().size if self._client is not None else 0,
        )


def _pair(address: Address) -> tuple[str, int] | str:
    return address if isinstance(address, str) else (address[0], address[1])


def _expire(limit: asyncio.Timeout, seconds: float) -> None:
    """Let a time limit end in so many seconds at most, if it has not ended yet."""
    at = asyncio.get_running_loop().time() + seconds
    with contextlib.suppress(RuntimeError):
        limit.reschedule(min(at, limit.when() or at))

"""Cancels a scenario at every point at which it can be cancelled, and looks at what is left.

Random cancellations find the usual bugs of a client; the rare ones sit in one turn of the loop
between a hand-over and a wake-up.  `explore_cancellation` visits all of them.  This module knows
nothing of pools: what must hold afterwards is the caller's ``check``.
"""

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing.leftovers import (
    describe_sockets,
    describe_tasks,
    open_sockets,
    other_tasks,
    until,
)
from pulsar_client.testing.stepper import Stepper

__all__ = ["CancellationFailure", "Exploration", "explore_cancellation"]

#: How often a scenario that does not end is cancelled before it is given up.
_PUSHES = 10


class CancellationFailure(AssertionError):
    """What went wrong when a scenario was cancelled at one of its points.

    Attributes:
        point: the number of the suspension, from 1; 0 for a run that was not cancelled.
        moment: when in it, in words.
        problem: what failed.
        stack: where the scenario was suspended, outermost call first.
    """

    def __init__(self, point: int, moment: str, problem: str, stack: tuple[str, ...]) -> None:
        where = f"cancelled at suspension {point}, {moment}" if point else "not cancelled"
        text = f"{where}: {problem}"
        if stack:
            text += "\nThe scenario was suspended in:\n" + "".join(stack).rstrip()
        super().__init__(text)
        self.point = point
        self.moment = moment
        self.problem = problem
        self.stack = stack


@dataclass(frozen=True)
class Exploration:
    """What was explored; there was no failure.

    Attributes:
        suspensions: how often the scenario was suspended at most.
        points: at how many points it was cancelled: suspensions and moments in them.
        runs: how often it was run.
    """

    suspensions: int
    points: int
    runs: int

    def __str__(self) -> str:
        return f"cancelled at {self.points} points of {self.suspensions} suspensions: all clean"


async def explore_cancellation(
    scenario: Callable[[], Awaitable[object]],
    *,
    check: Callable[[int], Awaitable[object] | object] | None = None,
    turns: int = 3,
    within: int = 1,
    timeout: float = 10.0,
    grace: float = 1.0,
) -> Exploration:
    """Cancel a scenario at each of its suspensions in turn, each time in a run of its own.

    ::

        async def exchange() -> None:
            assert await client.ask(b"ping") == b"pong"

        await explore_cancellation(exchange, check=lambda k: settled(client.pool))

    The scenario is run once as it is.  Then, for each of its suspensions (an ``await`` that gives
    the loop a turn), it is cancelled:

    - as it is suspended, before anything else can run;
    - one, two, … turns of the loop later, while others go on;
    - in the turn of its wake-up: what it waits for is there, and it has not seen it yet.

    A last run that is not cancelled shows that it still works.  It may run on any loop; on a
    `VirtualClockLoop` the points are the same each time.

    After each run must hold, in this order:

    1. The cancellation came out as CancelledError in time; it was not swallowed, changed, or
       answered with another attempt.
    2. ``check`` passes.
    3. The loop has no more tasks and the process no more open sockets than after the first run.

    Args:
        scenario: called without arguments for each run, returns what to await.  It must do the
            same each time: what it changes, ``check`` puts back.
        check: called, and awaited if it is a coroutine function, after each run with the number
            of the suspension, 0 for a run without.  It asserts what must hold (`conservation`,
            `settled`), and closes what one run has opened.
        turns: up to which turn of each suspension to go.
        within: turns of the loop in which a cancelled scenario must have ended.  More than 1 is
            for scenarios that await in their clean-up or wait for tasks of their own.
        timeout: seconds, on the loop's clock, that a run may take.
        grace: seconds that tasks and sockets may take to go after a run.

    Returns:
        What was explored.  A scenario that is never suspended has 0 points.

    Raises:
        CancellationFailure: something of this did not hold; the message has the suspension, the
            moment, and the stack at that point.
        ConfigError: an argument is out of its range.
        Exception: what the scenario, or the check, raised in the first run, as it is.

    Cancelling it ends the run under way.
    """
    for name, number in (("turns", turns), ("within", within)):
        if number < (name == "within"):
            raise ConfigError(f"{name} is {number!r}, expected a larger number")
    for name, seconds in (("timeout", timeout), ("grace", grace)):
        if not seconds >= 0:
            raise ConfigError(f"{name} must be 0 or more seconds, not {seconds!r}")
    explorer = _Explorer(scenario, check, within, timeout, grace)
    await explorer.first_run()
    points = 0
    for point in itertools.count(1):
        if not await explorer.run(point, 0):
            break
        points += 1
        for turn in range(1, turns + 1):
            if not await explorer.run(point, turn):
                break
            points += 1
        points += await explorer.run(point, None)
    await explorer.run(0, 0)
    return Exploration(explorer.suspensions, points, explorer.runs)


class _Explorer:
    """The runs of one exploration."""

    def __init__(
        self,
        scenario: Callable[[], Awaitable[object]],
        check: Callable[[int], Awaitable[object] | object] | None,
        within: int,
        timeout: float,
        grace: float,
    ) -> None:
        self.suspensions = 0
        self.runs = 0
        self._scenario = scenario
        self._check = check
        self._within = within
        self._timeout = timeout
        self._grace = grace
        # How many there may be.
        self._tasks = self._sockets = 0
        self._known: set[tuple[int, int]] = set()
        self._last_strike = "none before"

    async def first_run(self) -> None:
        """Run it as it is; from here on nothing may be added to what is there then."""
        self._tasks, self._sockets = len(other_tasks()), len(open_sockets())
        run = _Run(self._scenario, 0, 0, self._within)
        await run.end(self._timeout)
        self._count(run)
        if not run.task.done() or run.task.cancelled():
            await self._fail(run, *self._judge(run))
        run.stepper.raised = None
        run.task.result()
        await self._call_check(0)
        # A pool that stays open has a connection now, and its server too.
        if self._too_many():
            await until(lambda: not self._too_many(), self._grace)
        self._known = set(open_sockets())
        self._tasks = max(self._tasks, len(other_tasks()))
        self._sockets = max(self._sockets, len(self._known))

    async def run(self, point: int, turn: int | None) -> bool:
        """Run it, cancelled at a point; return whether it came to that point."""
        run = _Run(self._scenario, point, turn, self._within)
        try:
            await run.end(self._timeout)
            self._count(run)
            problem, cause = self._judge(run)
            if problem is not None:
                await self._fail(run, problem, cause)
            try:
                await self._call_check(point)
            except Exception as exc:
                text = str(exc) or "no message"
                raise run.failure(f"the check failed: {type(exc).__name__}: {text}") from exc
            # The frames of what it raised are kept until now: a socket that only they hold, and
            # that would be closed by its destructor, is a leak.
            if self._too_many() and not await until(lambda: not self._too_many(), self._grace):
                raise run.failure(self._left_behind())
        finally:
            run.stepper.raised = None
        self._known = set(open_sockets())
        if run.stepper.struck:
            self._last_strike = f"at suspension {point}, {_moment(turn)}"
        return run.stepper.struck

    def _count(self, run: "_Run") -> None:
        self.runs += 1
        self.suspensions = max(self.suspensions, run.stepper.suspensions)

    def _judge(self, run: "_Run") -> tuple[str | None, BaseException | None]:
        """What is wrong with the way in which the run ended: None if nothing is."""
        task, struck = run.task, run.stepper.struck
        if run.late is not None:
            return (
                "the cancellation did not end the scenario within"
                f" {self._within} turn{'s' * (self._within > 1)} of the loop; then it was in:\n"
                + "".join(run.late).rstrip()
            ), None
        if not task.done():
            return self._too_long(), None
        if task.cancelled():
            return (None if struck else "the scenario cancelled itself"), None
        exc = task.exception()
        if exc is not None and struck:
            return f"the cancellation was turned into {exc!r}", exc
        if exc is not None:
            return f"a run that was not cancelled raised {exc!r}; {self._after()}", exc
        if struck:
            return f"the cancellation was swallowed, the scenario returned {task.result()!r}", None
        return None, None

    def _too_long(self) -> str:
        return f"the scenario did not end within {self._timeout:g} s; {self._after()}"

    def _after(self) -> str:
        return f"the cancellation before: {self._last_strike}"

    async def _fail(
        self, run: "_Run", problem: str | None, cause: BaseException | None = None
    ) -> None:
        failure = run.failure(problem or "")
        await run.abandon()
        raise failure from cause

    async def _call_check(self, point: int) -> None:
        if self._check is not None:
            result = self._check(point)
            if inspect.isawaitable(result):
                await result

    def _too_many(self) -> bool:
        return len(other_tasks()) > self._tasks or len(open_sockets()) > self._sockets

    def _left_behind(self) -> str:
        tasks, sockets = other_tasks(), open_sockets()
        lines: list[str] = []
        if len(tasks) > self._tasks:
            lines.append(f"{len(tasks)} tasks where {self._tasks} were before:")
            lines += describe_tasks(tasks)
        if len(sockets) > self._sockets:
            lines.append(f"{len(sockets)} open sockets where {self._sockets} were before; new:")
            lines += describe_sockets(
                descriptor for one, descriptor in sockets.items() if one not in self._known
            )
        return "something was left behind: " + "\n  ".join(lines)


class _Run:
    """One run of the scenario in a task of its own."""

    def __init__(
        self,
        scenario: Callable[[], Awaitable[object]],
        point: int,
        turn: int | None,
        within: int,
    ) -> None:
        self._point = point
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        # Done when the task should have ended since it was cancelled.
        self._due: asyncio.Future[None] = self._loop.create_future()
        # The task itself brings a cancellation on its way only after the step in which it is
        # suspended: one turn more.
        self._within = within + (turn == 0)
        # Where it was when it should have ended and had not.
        self.late: tuple[str, ...] | None = None
        self.stepper = Stepper(scenario, at=point, turn=turn, act=self._cancel)
        name = f"scenario, {_moment(turn)} of suspension {point}" if point else "scenario"
        self.task: asyncio.Task[Any] = self._loop.create_task(self.stepper.run(), name=name)

    async def end(self, timeout: float) -> None:
        """Wait until it has ended, or should have."""
        either: list[asyncio.Future[Any]] = [self.task, self._due]
        try:
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """Do what can be done to end it."""
        for _ in range(_PUSHES):
            if self.task.done():
                break
            self.task.cancel()
            for _ in range(_PUSHES):
                await asyncio.sleep(0)
        if self.task.done() and not self.task.cancelled():
            self.task.exception()  # it was judged
        self.stepper.raised = None

    def failure(self, problem: str) -> CancellationFailure:
        """Make the error of this run."""
        stepper = self.stepper
        if stepper.struck:
            return CancellationFailure(self._point, _moment(self._turn), problem, stepper.stack)
        return CancellationFailure(0, "", problem, stepper.where())

    def _cancel(self) -> None:
        task = asyncio.current_task() if self._turn == 0 else self.task
        assert task is not None
        task.cancel()
        self._loop.call_soon(self._countdown, self._within - 1)

    def _countdown(self, left: int) -> None:
        if left:
            self._loop.call_soon(self._countdown, left - 1)
            return
        if not self.task.done():
            self.late = self.stepper.where()
        if not self._due.done():
            self._due.set_result(None)


def _moment(turn: int | None) -> str:
    if turn is None:
        return "in the turn of its wake-up"
    if turn == 0:
        return "as it was suspended"
    return f"{turn} turn{'s' * (turn > 1)} later"

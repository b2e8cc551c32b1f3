"""Many tasks, random cancellations, time-outs, exceptions and faults: whose reply does each get?

`storm` drives a client from outside, through one function that makes one exchange.  It knows
nothing of pools, connections or protocols; what must hold of those is the caller's ``invariant``,
and afterwards `settled`.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pulsar_client.exceptions import ConfigError, PulsarClientError
from pulsar_client.testing.fault_caller import FaultCaller
from pulsar_client.testing.stepper import Stepper
from pulsar_client.testing.storm_report import Interruption, StormFailure, StormReport

__all__ = ["storm"]

# Ids are of one length, so that none is a part of another.
_ID = re.compile(rb"[0-9a-f]{8}\.[0-9a-f]{8}")

# Moments of a suspension at which a disturbance strikes, as `Stepper` has them.
_MOMENTS = (0, 1, 2, 3, None)

# How many replies of others are kept.
_EXAMPLES = 10


def _contains(request_id: bytes, reply: Any) -> bool:
    """Whether this id, and no other one, is in the reply."""
    return request_id in reply and all(found == request_id for found in _ID.findall(reply))


async def storm(
    exchange: Callable[[bytes], Awaitable[Any]],
    *,
    tasks: int = 16,
    exchanges: int = 1000,
    seed: int = 0,
    cancel: float = 0.2,
    time_out: float = 0.1,
    interrupt: float = 0.1,
    faults: Iterable[Callable[[], object]] = (),
    fault_every: int = 100,
    belongs: Callable[[bytes, Any], bool] = _contains,
    expected: tuple[type[Exception], ...] = (OSError, EOFError, PulsarClientError),
    invariant: Callable[[], object] | None = None,
    patience: float = 60.0,
) -> StormReport:
    """Make many exchanges at once, disturb them, and check that each reply is the caller's own.

    ::

        report = await storm(client.ask, exchanges=10_000, faults=[proxy.reset])
        await settled(client.pool)

    An exchange that is disturbed runs in a task of its own and is struck at one of its
    suspensions, at a random moment in it: as it begins, a few turns of the loop later, or in the
    turn of its wake-up; some are struck at a random time.  How many suspensions there are, and how
    long an exchange takes, is learnt from the others.

    Args:
        exchange: makes one exchange with the given id in the request, and returns the reply.  Ids
            are unique: 17 bytes, hexadecimal digits and a dot.  Where the client refuses at once
            while its server is down, let it wait a little before it raises that: refusals are
            exchanges too.
        tasks: how many tasks make exchanges at the same time.
        exchanges: how many to make in all.
        seed: of the random choices.  Which exchanges are disturbed, and how, is the same with the
            same seed; real networks answer when they will.
        cancel: the part of the exchanges that is cancelled.
        time_out: the part that runs under a short time-out.
        interrupt: the part in which an `Interruption` is raised where they are suspended.
        faults: functions to call now and then, one after the other, coroutine functions too:
            ``proxy.reset``, a restart of the server.  When no exchange ends any more the next is
            called soon: for ``proxy.stall`` there should also be ``proxy.resume``.
        fault_every: a fault follows another after so many exchanges on average.
        belongs: called with an id and the reply to it, tells whether they belong together.  By
            default the reply must contain this id and no other.
        expected: exceptions that exchanges may end with.  Others fail the storm.
        invariant: called after each exchange, raises if something does not hold: for example
            ``lambda: conservation(pool)``.  The storm ends with it.
        patience: seconds without the end of any exchange after which it is given up.

    Returns:
        What happened.

    Raises:
        StormFailure: a reply was not the caller's own; a cancellation was swallowed or changed;
            an exchange ended with an exception that is not expected; nothing went on any more; or
            the invariant or a fault raised (its exception is the cause).  It has the report.
        ConfigError: an argument is out of its range.

    Cancelling it cancels the exchanges under way and waits for a fault under way.
    """
    for name, number in (("tasks", tasks), ("fault_every", fault_every)):
        if number < 1:
            raise ConfigError(f"{name} is {number!r}, expected 1 or more")
    for name, part in (("cancel", cancel), ("time_out", time_out), ("interrupt", interrupt)):
        if not 0 <= part <= 1:
            raise ConfigError(f"{name} is {part!r}, expected a part from 0 to 1")
    if cancel + time_out + interrupt > 1:
        raise ConfigError(f"{cancel=}, {time_out=} and {interrupt=} are more than 1 in all")
    report = StormReport(seed)
    calling = FaultCaller(report, tuple(faults), fault_every)
    making = _Exchanges(report, exchange, belongs, expected)
    making.cancel, making.time_out, making.interrupt = cancel, time_out, interrupt

    loop = asyncio.get_running_loop()
    started = loop.time()

    async def work(numbers: Iterable[int]) -> None:
        for number in numbers:
            await making.one(number)
            report.exchanges += 1
            report.seconds = loop.time() - started
            calling.count()
            if invariant is not None:
                invariant()

    numbers = iter(range(exchanges))  # shared: each takes the next as soon as it can
    workers = {loop.create_task(work(numbers), name=f"storm {n}") for n in range(tasks)}
    caller = loop.create_task(calling.run(), name="storm faults")
    try:
        await _watch(workers, caller, making, patience)
    finally:
        calling.stop()
        await _end(workers | making.tasks, patience, cancel=True)
        # Not cancelled: a server in the middle of its restart would not be there afterwards.
        await _end({caller}, patience, cancel=False)
    if not caller.cancelled() and caller.exception() is not None:
        raise StormFailure(f"a fault raised {caller.exception()!r}", report) from (
            caller.exception()
        )
    making.judge()
    return report


async def _watch(
    workers: set[asyncio.Task[None]],
    caller: asyncio.Task[None],
    making: "_Exchanges",
    patience: float,
) -> None:
    """Wait until the workers have ended, or something is wrong."""
    report = making.report
    left = workers | {caller}
    while left & workers:
        before = report.exchanges
        done, left = await asyncio.wait(
            left, timeout=patience, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done & workers:
            if task.exception() is not None:
                raise StormFailure(f"the invariant raised {task.exception()!r}", report) from (
                    task.exception()
                )
        if caller in done and caller.exception() is not None:
            return
        if not done and report.exchanges == before:
            raise StormFailure(
                f"no exchange has ended for {patience:g} s; they wait in\n{making.where()}", report
            )


async def _end(tasks: set[asyncio.Task[Any]], patience: float, *, cancel: bool) -> None:
    """Wait, bounded, until tasks have ended; what they raise was judged elsewhere."""
    pending = {task for task in tasks if not task.done()}
    if cancel:
        for task in pending:
            task.cancel()
    if pending:
        _, pending = await asyncio.wait(pending, timeout=patience)
    for task in pending:
        task.cancel()
    for task in tasks - pending:
        if not task.cancelled():
            task.exception()


class _Exchanges:
    """Makes exchanges, disturbs them, and judges how they end."""

    def __init__(
        self,
        report: StormReport,
        exchange: Callable[[bytes], Awaitable[Any]],
        belongs: Callable[[bytes, Any], bool],
        expected: tuple[type[Exception], ...],
    ) -> None:
        self.report = report
        self.cancel = self.time_out = self.interrupt = 0.0
        #: Those that run apart from the workers.
        self.tasks: set[asyncio.Task[Any]] = set()
        self._exchange = exchange
        self._belongs = belongs
        self._expected = expected
        self._random = random.Random(report.seed)
        self._nonce = self._random.getrandbits(32)
        self._steppers: set[Stepper] = set()
        # Of the last exchange that was left alone, and on average.
        self._suspensions = 1
        self._seconds = 0.001
        self._unexpected: BaseException | None = None
        self._changed: BaseException | None = None

    async def one(self, number: int) -> None:
        """Make one exchange."""
        request_id = b"%08x.%08x" % (self._nonce, number)
        # Always as many draws: what happens to an exchange depends on the seed and its number.
        kind, place, moment = (self._random.random() for _ in range(3))
        try:
            if kind < self.cancel + self.interrupt:
                await self._struck(request_id, place, moment, kind >= self.cancel)
            elif kind < self.cancel + self.interrupt + self.time_out:
                await self._timed(request_id, place)
            else:
                await self._alone(request_id)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._failed(exc)  # by nobody here

    async def _alone(self, request_id: bytes) -> None:
        loop = asyncio.get_running_loop()
        stepper = Stepper(lambda: self._exchange(request_id))
        started = loop.time()
        self._steppers.add(stepper)
        try:
            reply = await stepper
        except Exception as exc:  # noqa: BLE001 - judged here
            self._failed(exc)
        else:
            self._replied(request_id, reply)
            self._suspensions = max(stepper.suspensions, 1)
            self._seconds += (loop.time() - started - self._seconds) / 10
        finally:
            self._steppers.discard(stepper)
            stepper.raised = None

    async def _timed(self, request_id: bytes, place: float) -> None:
        """Under a time-out of up to twice what an exchange takes."""
        stepper = Stepper(lambda: self._exchange(request_id))
        limit = asyncio.timeout(place * 2 * self._seconds)
        self._steppers.add(stepper)
        try:
            async with limit:
                reply = await stepper
        except Exception as exc:  # noqa: BLE001 - judged here
            if not limit.expired():
                self._failed(exc)
            elif isinstance(exc, TimeoutError):
                self.report.timed_out += 1
            else:
                self._swallowed(exc)
                self._failed(exc)
        else:
            if limit.expired():
                self._swallowed(None)
            self._replied(request_id, reply)
        finally:
            self._steppers.discard(stepper)
            stepper.raised = None

    async def _struck(
        self, request_id: bytes, place: float, moment: float, interrupt: bool
    ) -> None:
        """In a task of its own, cancelled or interrupted at one point."""
        loop = asyncio.get_running_loop()

        def act() -> None:
            if interrupt:
                stepper.instead = Interruption(f"in exchange {request_id!r}")
            (asyncio.current_task() or task).cancel()

        # One more than there are moments: at a random time.
        choice = int(moment * (len(_MOMENTS) + 1))
        by_time = choice == len(_MOMENTS)
        stepper = Stepper(
            lambda: self._exchange(request_id),
            at=0 if by_time else 1 + int(place * self._suspensions),
            turn=None if by_time else _MOMENTS[choice],
            act=act,
        )
        task = loop.create_task(stepper.run(), name=f"exchange {request_id.decode()}")
        self.tasks.add(task)
        self._steppers.add(stepper)
        delay = place * 2 * self._seconds
        timer = loop.call_later(delay, stepper.strike) if by_time else None
        try:
            await asyncio.wait({task})
        finally:
            if timer is not None:
                timer.cancel()
            if task.done():
                self.tasks.discard(task)
            self._steppers.discard(stepper)
            stepper.raised = None
        if not stepper.struck:
            self._suspensions = max(stepper.suspensions, 1)  # it ended before
        cancelled = stepper.struck and not interrupt
        if task.cancelled():
            if cancelled:
                self.report.cancelled += 1
            else:
                self._failed(asyncio.CancelledError())
            return
        exc = task.exception()
        if cancelled:
            self._swallowed(exc)
        if exc is None:
            self._replied(request_id, task.result())
        elif isinstance(exc, Interruption):
            self.report.interrupted += 1
        else:
            self._failed(exc)

    def _replied(self, request_id: bytes, reply: Any) -> None:
        report = self.report
        report.ok += 1
        if not self._belongs(request_id, reply):
            report.foreign += 1
            if len(report.mixed_up) < _EXAMPLES:
                found = _ID.findall(reply) if isinstance(reply, bytes | bytearray) else []
                others = [other for other in found if other != request_id]
                report.mixed_up.append((request_id, others[0] if others else reply))

    def _failed(self, exc: BaseException) -> None:
        self.report.failed[type(exc).__name__] += 1
        if self._unexpected is None and not isinstance(exc, self._expected):
            self._unexpected = exc

    def _swallowed(self, exc: BaseException | None) -> None:
        self.report.swallowed += 1
        if self._changed is None:
            self._changed = exc

    def judge(self) -> None:
        """Raise what is wrong."""
        report = self.report
        problems: list[str] = []
        if report.foreign:
            pairs = "".join(f"\n  asked {ask!r}, got {got!r}" for ask, got in report.mixed_up)
            problems.append(f"{report.foreign} replies were not the caller's own:{pairs}")
        if report.swallowed:
            last = f", one was turned into {self._changed!r}" if self._changed else ""
            problems.append(f"{report.swallowed} cancellations were swallowed{last}")
        if self._unexpected is not None:
            problems.append(f"an exchange ended with {self._unexpected!r}")
        if problems:
            raise StormFailure("\n".join(problems), report) from (
                self._unexpected or self._changed
            )

    def where(self) -> str:
        """Where the exchanges under way are suspended, for people to read."""
        places = Counter(stepper.where()[-1:] for stepper in self._steppers)
        return "".join(
            f"{number} times:\n{''.join(place)}" for place, number in places.most_common()
        ).rstrip()

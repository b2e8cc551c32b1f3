"""What the tests of the pool share: fake connections, their source, a loop that counts its turns.

Not a test module.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec

from pulsar_client import Pool
from pulsar_client.testing import Gate, VirtualClockLoop

P = ParamSpec("P")


class Fake:
    """The least that can be pooled."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.closed = False
        self.close_calls = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number}>"

    def close(self) -> Any:
        """Close at once."""
        self.close_calls += 1
        self.closed = True


class Judging(Fake):
    """Knows itself whether it may go back."""

    is_reusable = True
    aborted = False

    def abort(self) -> None:
        """Close without waiting for anybody."""
        self.closed = self.aborted = True


class Watched(Judging):
    """Tells when it stops being usable, as the library's own connections do."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(number)
        self.callbacks: list[Callable[[Any], object]] = []

    def add_closing_callback(self, callback: Callable[[Any], object]) -> None:
        """Add a callback; at once if it is too late."""
        if self.closed:
            callback(self)
        else:
            self.callbacks.append(callback)

    def remove_closing_callback(self, callback: Callable[[Any], object]) -> None:
        """Remove a callback."""
        if callback in self.callbacks:
            self.callbacks.remove(callback)

    def close(self) -> Any:
        """Close and tell."""
        super().close()
        self.die()

    def abort(self) -> None:
        """Abort and tell."""
        super().abort()
        self.die()

    def die(self) -> None:
        """End as when the peer closes: nobody here asked for it."""
        self.closed = True
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback(self)


class Slow(Watched):
    """Its close() is awaitable and goes through a gate; an abort ends it at once."""

    gate: Gate = Gate.SLOW

    def close(self) -> Any:
        """Begin to close."""
        super().close()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return self._closing()

    def abort(self) -> None:
        """Cut it."""
        super().abort()
        ended = getattr(self, "ended", None)
        if ended is not None and not ended.done():
            ended.set_result(None)

    async def _closing(self) -> None:
        passing = asyncio.ensure_future(self.gate.pass_through())
        try:
            await asyncio.wait([passing, self.ended], return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            passing.cancel()


class Stubborn(Slow):
    """Does not even end when it is aborted."""

    def abort(self) -> None:
        """Note it, and stay."""
        Watched.abort(self)


class Source:
    """A creator: counts what it opens and lets each dial through a gate.

    Attributes:
        kind: makes a connection from a number.
        gates: the gates of the next dials; the last one for all that follow.
        made: every connection, in order.
        dials: how many dials were begun.
        dialling: how many are under way now.
        peak: the most connections and dials that existed at once.
    """

    def __init__(
        self,
        kind: Callable[[int], Any] = Fake,
        *gates: Gate,
        error: BaseException | None = None,
        delay: float = 1.0,
    ) -> None:
        self.kind = kind
        self.gates = list(gates) or [Gate.OK]
        self.error = error or ConnectionRefusedError("nobody listens")
        self.delay = delay
        self.made: list[Any] = []
        self.dials = self.dialling = self.peak = 0

    async def __call__(self) -> Any:
        """Dial."""
        self.dials += 1
        self.dialling += 1
        gate = self.gates.pop(0) if len(self.gates) > 1 else self.gates[0]
        self._count()
        try:
            await gate.pass_through(delay=self.delay, error=self.error)
        finally:
            self.dialling -= 1
        connection = self.kind(len(self.made))
        self.made.append(connection)
        self._count()
        return connection

    def _count(self) -> None:
        self.peak = max(self.peak, self.dialling + self.open)

    @property
    def open(self) -> int:
        """How many connections were not told to close."""
        return sum(not connection.closed for connection in self.made)


class TurnLoop(VirtualClockLoop):
    """A virtual clock whose turns are counted, with a hook before one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.hooks: dict[int, Callable[[], object]] = {}

    def _run_once(self) -> None:
        hook = self.hooks.pop(self.turn, None)
        if hook is not None:
            hook()
        self.turn += 1
        super()._run_once()  # type: ignore[misc]


def run(main: Coroutine[Any, Any, None], loop: VirtualClockLoop | None = None) -> None:
    """Run a test on a virtual clock; it must leave no task behind."""

    async def checked() -> None:
        await main
        await turns(4)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=(lambda: loop) if loop else VirtualClockLoop) as runner:
        runner.run(checked())


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine test on a virtual clock."""

    @functools.wraps(test)
    def on_virtual_clock(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return on_virtual_clock


async def turns(count: int = 1) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


def conserved(pool: Pool) -> None:
    """I1: the books balance, and nobody waits for what is there (I10, I5)."""
    stats = pool.stats()
    counts = (stats.available, stats.in_use, stats.dialling, stats.closing)
    assert min(*counts, stats.waiting) >= 0, stats
    assert sum(counts) == stats.size <= stats.pool_size, stats
    if stats.waiting:
        assert not stats.available, stats
        assert not pool.closed, stats
        if stats.size < stats.pool_size:
            limit = pool._ledger.dial_limit  # 0 and 1 after a dial has failed
            assert stats.dialling >= min(stats.waiting, limit), stats


def at_rest(pool: Pool) -> None:
    """I1: all leases have ended and nothing is under way."""
    conserved(pool)
    stats = pool.stats()
    assert (stats.in_use, stats.dialling, stats.waiting, stats.closing) == (0, 0, 0, 0), stats


async def hold(pool: Pool, event: asyncio.Event, log: list[Any] | None = None) -> None:
    """Lease, note it, keep it until the event."""
    async with pool.connect() as lease:
        if log is not None:
            log.append(lease.connection)
        await event.wait()


def task(awaitable: Awaitable[Any]) -> "asyncio.Task[Any]":
    """Wait for an awaitable in a task of its own."""
    if asyncio.iscoroutine(awaitable):
        return asyncio.get_running_loop().create_task(awaitable)

    async def waiting() -> Any:
        return await awaitable

    return asyncio.get_running_loop().create_task(waiting())

"""What every pool must do, whatever its connections are: one suite for all kinds of them.

`conformance` makes pools of your connections and takes them through what goes wrong with pools:
who waits, who leaves, what dies, what is cancelled between a request and its reply, what is left
behind.  It knows no protocol: how a connection is used is the caller's ``exchange``.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pulsar_client.exceptions import ConfigError, LeaseReleased, PoolClosed, PoolTimeout
from pulsar_client.testing.conservation import conservation, settled
from pulsar_client.testing.explorer import explore_cancellation
from pulsar_client.testing.leftovers import (
    describe_sockets,
    describe_tasks,
    open_sockets,
    other_tasks,
    until,
)

__all__ = ["Conformance", "ConformanceFailure", "conformance"]

#: Turns of the loop in which whoever can go on has gone on.
_TURNS = 5


class ConformanceFailure(AssertionError):
    """A pool of these connections does not do what every pool must.

    Attributes:
        requirement: what was required, in words.
    """

    def __init__(self, requirement: str, problem: str) -> None:
        super().__init__(f"required: {requirement}; {problem}")
        self.requirement = requirement


@dataclass(frozen=True)
class Conformance:
    """What holds.

    Attributes:
        requirements: what was required, in words.
        points: at how many points exchanges were cancelled.
    """

    requirements: tuple[str, ...]
    points: int

    def __str__(self) -> str:
        met = "".join(f"\n  {requirement}" for requirement in self.requirements)
        return f"cancelled at {self.points} points; all of this holds:{met}"


async def conformance(
    make_pool: Callable[[int], Any],
    *,
    exchange: Callable[[Any, bytes], Awaitable[object]] | None = None,
    belongs: Callable[[bytes, Any], bool] = lambda request_id, reply: request_id in reply,
    kill: Callable[[Any], object] = lambda connection: connection.close(),
    share: int = 1,
    timeout: float = 10.0,
) -> Conformance:
    """Take pools of one kind of connection through everything that goes wrong with pools.

    ::

        report = await conformance(
            lambda size: Pool(client.connect, size),
            exchange=lambda lease, request_id: lease.request(request_id),
        )

    Args:
        make_pool: makes an open pool of that many connections; called once for each requirement.
        exchange: a coroutine function that makes one exchange on a lease, with the id of 8
            hexadecimal digits in the request, and returns the reply.  Without it connections are
            leased and not used.
        belongs: tells whether a reply belongs to an id; by default it must contain it.
        kill: makes an idle connection useless; by default closes it from this side.  To end it as
            a peer would, ``lambda connection: connection.transport.abort()``.
        share: how many leases of a connection there may be at once.
        timeout: seconds that a single step may take.

    Returns:
        What holds.

    Raises:
        ConformanceFailure: a requirement is not met; the cause says more.
        ConfigError: ``share`` or ``timeout`` is out of range.
        Exception: what the first connection or exchange failed with, as it is.

    Cancelling it closes the pool under examination.
    """
    if share < 1:
        raise ConfigError(f"share is {share!r}, expected 1 or more")
    if not timeout > 0:
        raise ConfigError(f"timeout must be more than 0 seconds, not {timeout!r}")
    suite = _Suite(make_pool, exchange, belongs, kill, share, timeout)
    await suite.try_out()
    met = []
    for scenario, size in _SCENARIOS:
        requirement = (scenario.__doc__ or "").rstrip(".")
        await suite.require(scenario, size, requirement)
        met.append(requirement)
    return Conformance(tuple(met), suite.points)


class _Suite:
    """The scenarios, each on a pool of its own."""

    def __init__(
        self,
        make_pool: Callable[[int], Any],
        exchange: Callable[[Any, bytes], Awaitable[object]] | None,
        belongs: Callable[[bytes, Any], bool],
        kill: Callable[[Any], object],
        share: int,
        timeout: float,
    ) -> None:
        self.points = 0
        self._make_pool = make_pool
        self._exchange = exchange
        self._belongs = belongs
        self._kill = kill
        self._share = share
        self._timeout = timeout
        self._numbers = itertools.count(1)

    async def try_out(self) -> None:
        """What fails here is no failure of the pool."""
        pool = self._make_pool(1)
        try:
            async with pool.connect(timeout=self._timeout) as lease:
                await self.use(lease)
        finally:
            await pool.close(self._timeout)
        # What a library does once in a process it has done now.
        await until(lambda: not other_tasks(), 0.1)

    async def require(
        self,
        scenario: "Callable[[_Suite, Any], Awaitable[None]]",
        size: int,
        requirement: str,
    ) -> None:
        """Run a scenario; nothing may be left of it."""
        tasks, sockets = len(other_tasks()), set(open_sockets())
        pool = self._make_pool(size)
        try:
            async with asyncio.timeout(20 * self._timeout):
                await scenario(self, pool)
        except Exception as exc:
            raise ConformanceFailure(requirement, f"{type(exc).__name__}: {exc}") from exc
        finally:
            await pool.close(self._timeout)

        def left() -> bool:
            return len(other_tasks()) > tasks or not set(open_sockets()) <= sockets

        if not await until(lambda: not left(), self._timeout):
            found = describe_tasks(other_tasks()) if len(other_tasks()) > tasks else []
            new = {one: number for one, number in open_sockets().items() if one not in sockets}
            found += describe_sockets(new.values())
            raise ConformanceFailure(requirement, "left behind:\n  " + "\n  ".join(found))

    # Steps

    async def use(self, lease: Any) -> None:
        """Make an exchange, and look whose reply it is."""
        if self._exchange is None:
            return
        request_id = b"%08x" % next(self._numbers)
        reply = await self._exchange(lease, request_id)
        if not self._belongs(request_id, reply):
            raise AssertionError(f"asked {request_id!r}, got {reply!r}")

    async def fill(self, pool: Any, size: int) -> list[Any]:
        """Take every lease there is."""
        leases = [await pool.connect(timeout=self._timeout) for _ in range(size * self._share)]
        users: dict[int, int] = {}
        for lease in leases:
            key = id(lease.connection)
            users[key] = users.get(key, 0) + 1
        if len(users) != size or max(users.values()) > self._share:
            raise AssertionError(
                f"{len(leases)} leases have {len(users)} connections of {size}, with at most "
                f"{max(users.values())} leases each; share is {self._share}, is that of the pool "
                "the same?"
            )
        conservation(pool)
        return leases

    async def waiting(self, pool: Any, count: int) -> "list[asyncio.Task[Any]]":
        """Let some wait, in order."""
        loop = asyncio.get_running_loop()
        found = []
        for _ in range(count):
            request = pool.connect(timeout=self._timeout)
            found.append(loop.create_task(request.__aenter__(), name="one who waits"))
            await asyncio.sleep(0)
        if any(one.done() for one in found):
            raise AssertionError("one more lease than there are connections")
        return found

    async def turns(self) -> None:
        """Let everybody go on who can."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    # Scenarios

    async def reuses(self, pool: Any) -> None:
        """A connection that was used well is used again."""
        async with pool.connect(timeout=self._timeout) as lease:
            await self.use(lease)
            connection = lease.connection
        for _ in range(3):
            async with pool.connect(timeout=self._timeout) as lease:
                if lease.connection is not connection:
                    raise AssertionError(f"{connection!r} did not go back: closed by {_why(pool)}")
                await self.use(lease)

    async def limits(self, pool: Any) -> None:
        """There are never more connections than the pool may have (I1, I2)."""
        leases = await self.fill(pool, 3)
        try:
            await pool.connect(timeout=0)
        except PoolTimeout:
            pass
        else:
            raise AssertionError("one more was leased")
        for lease in leases:
            await self.use(lease)
            lease.close()
        await settled(pool, timeout=self._timeout)

    async def queues(self, pool: Any) -> None:
        """First come, first served, and one who has left is passed over (I6, I7)."""
        leases = await self.fill(pool, 1)
        waiting = await self.waiting(pool, 4)
        waiting[1].cancel()
        for lease in leases[1:]:
            lease.close()
        expected = [waiting[0], *waiting[2:]]
        served: list[Any] = leases[:1]
        while expected:
            if self._share == 1 or len(served) >= self._share:
                served.pop(0).close()
            await asyncio.wait(expected[:1], timeout=self._timeout)
            if not expected[0].done():
                raise AssertionError("a connection came back, and the first did not get it")
            if self._share == 1 and any(one.done() for one in expected[1:]):
                raise AssertionError("one who came later was served first")
            served.append(expected.pop(0).result())
        for lease in served:
            lease.close()
        await settled(pool, timeout=self._timeout)

    async def frees(self, pool: Any) -> None:
        """Each end of a lease frees its slot, and the next one gets it (I5)."""
        for end in ("release", "discard", "detach", "error"):
            leases = await self.fill(pool, 1)
            (waiting,) = await self.waiting(pool, 1)
            first, *others = leases
            connection = first.connection
            if end == "release" or (end == "detach" and others):
                first.close()  # what others use too can't be detached
            elif end == "discard":
                first.close(discard=True)
            elif end == "detach":
                await _finished(first.detach().close())
            else:
                await first.__aexit__(ValueError, ValueError(), None)
            _release(others)
            lease = await asyncio.wait_for(waiting, self._timeout)
            await self.use(lease)
            kept = end in ("release", "error") or self._share > 1
            if lease.connection is connection and not kept:
                raise AssertionError(f"{connection!r} is used again after: {end}")
            lease.close()
            conservation(pool)
            await settled(pool, timeout=self._timeout)

    async def handles(self, pool: Any) -> None:
        """A handle does nothing after its release (I20)."""
        lease = await pool.connect(timeout=self._timeout)
        lease.close()
        before = pool.stats().available
        lease.close()
        if pool.stats().available != before or before != 1:
            raise AssertionError("a second release put the connection back twice")
        try:
            lease.connection  # noqa: B018
        except LeaseReleased:
            return
        raise AssertionError("a released handle still reaches the connection")

    async def evicts(self, pool: Any) -> None:
        """A dead idle connection is not leased (I18)."""
        leases = await self.fill(pool, 2)
        connections = [lease.connection for lease in leases]
        for lease in leases:
            lease.close()
        await settled(pool, timeout=self._timeout)
        ends = [self._kill(one) for one in {id(one): one for one in connections}.values()]
        for end in ends:
            await _finished(end)
        async with pool.connect(timeout=self._timeout) as lease:
            if any(lease.connection is connection for connection in connections):
                raise AssertionError(f"{lease.connection!r} was killed, and leased again")
            await self.use(lease)
        await settled(pool, timeout=self._timeout)

    async def stays_pure(self, pool: Any) -> None:
        """An exchange that is cancelled anywhere disturbs no other (I1, I3, I11, I16, I17)."""

        async def once() -> None:
            async with pool.connect(timeout=self._timeout) as lease:
                await self.use(lease)

        async def others(_point: int) -> None:
            await settled(pool, timeout=self._timeout)
            for _ in range(2):
                await once()

        explored = await explore_cancellation(once, check=others, timeout=self._timeout)
        self.points += explored.points

    async def hands_on(self, pool: Any) -> None:
        """One who is cancelled in the queue loses no connection (I6, I14)."""
        held: list[Any] = []

        async def wait() -> None:
            leases = await self.fill(pool, 1)
            held.extend(leases)
            asyncio.get_running_loop().call_soon(_release, held)
            async with pool.connect(timeout=self._timeout) as lease:
                await self.use(lease)

        async def whole(_point: int) -> None:
            _release(held)
            await settled(pool, timeout=self._timeout)
            leases = await self.fill(pool, 1)
            _release(leases)

        explored = await explore_cancellation(wait, check=whole, timeout=self._timeout)
        self.points += explored.points

    async def closes(self, pool: Any) -> None:
        """A pool that is closed gives no lease, and ends with its leases (I29)."""
        leases = await self.fill(pool, 2)
        (waiting,) = await self.waiting(pool, 1)
        closing = pool.close(self._timeout)
        await self.turns()
        if not waiting.done() or not isinstance(waiting.exception(), PoolClosed):
            raise AssertionError("one who waited was not told at once")
        try:
            await pool.connect(timeout=self._timeout)
        except PoolClosed:
            pass
        else:
            raise AssertionError("a closed pool gave a lease")
        connections = [lease.connection for lease in leases]
        _release(leases)
        await closing
        await pool.close()
        if pool.stats().size or not all(connection.closed for connection in connections):
            raise AssertionError(f"{pool!r} is closed, and not all of its connections are")


_SCENARIOS: tuple[tuple[Callable[[_Suite, Any], Awaitable[None]], int], ...] = (
    (_Suite.reuses, 1),
    (_Suite.limits, 3),
    (_Suite.queues, 1),
    (_Suite.frees, 1),
    (_Suite.handles, 1),
    (_Suite.evicts, 2),
    (_Suite.stays_pure, 1),
    (_Suite.hands_on, 1),
    (_Suite.closes, 2),
)


def _release(leases: list[Any]) -> None:
    while leases:
        leases.pop().close()


async def _finished(ending: Any) -> None:
    if hasattr(ending, "__await__"):
        await ending


def _why(pool: Any) -> str:
    causes = getattr(pool.stats(), "closed_by", {})
    return ", ".join(causes) or "nobody"

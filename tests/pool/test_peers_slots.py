"""What broke in other pools, made to happen in this one: slots, limits and waiters.

The docstrings name the project and the number of the issue, and the property that it broke.
"""

import asyncio
import contextlib
import gc
import itertools
import math
from typing import Any

import pytest
from pool_kit import (
    Fake,
    Judging,
    Slow,
    Source,
    TurnLoop,
    Watched,
    at_rest,
    conserved,
    hold,
    run,
    task,
    turns,
    virtual,
)

from pulsar_client import Pool, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate


async def all_slots_work(pool: Pool) -> None:
    """Every slot can be leased, and not one more."""
    leases = [await pool.connect(timeout=5.0) for _ in range(pool.pool_size)]
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=0)
    for lease in leases:
        lease.close()
    at_rest(pool)


async def briefly(pool: Pool, seconds: float = 0.1) -> None:
    async with pool.connect():
        await asyncio.sleep(seconds)


# -- slots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dial", [Gate.OK, Gate.SLOW])
@pytest.mark.parametrize("cancelled_after", range(8))
@virtual
async def test_cancelled_between_assignment_and_dial(dial: Gate, cancelled_after: int) -> None:
    """httpcore 1093, 830 and 658 (I1): a request cancelled once it had a new connection assigned.

    The connection stayed in the pool, neither open nor closed, until every slot was such a ghost.
    """
    source = Source(Judging, dial, delay=0.05)
    async with Pool(source, 2) as pool:
        for _ in range(20):
            callers = [task(briefly(pool)) for _ in range(6)]
            await turns(cancelled_after)
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)
            conserved(pool)
        await asyncio.sleep(1.0)
        at_rest(pool)
        await all_slots_work(pool)
        assert source.peak <= 2


@pytest.mark.parametrize("offset", [-0.001, 0.0, 0.001])
@virtual
async def test_wait_for_around_a_connect(offset: float) -> None:
    """asyncpg 467 and 464, cpython 26097 (I1, I6): wait_for ends as the connection is there."""
    source = Source(Judging, Gate.SLOW, delay=0.1)
    async with Pool(source, 2) as pool:
        for _ in range(50):
            try:
                # Not asyncio.timeout: wait_for is what people use, and what lost the result.
                lease = await asyncio.wait_for(pool.connect(timeout=None), 0.1 + offset)
            except TimeoutError:
                pass
            else:
                lease.close(discard=True)
            conserved(pool)
        await asyncio.sleep(1.0)
        at_rest(pool)
        assert pool.available == source.open
        await all_slots_work(pool)


@pytest.mark.parametrize("how", ["die", "abort", "close"])
@virtual
async def test_a_connection_that_is_aborted_while_it_is_leased(how: str) -> None:
    """asyncpg 1307 (I1, I5): the holder was lost with the connection, its waiters hung."""
    source = Source(Watched)
    async with Pool(source, 1) as pool:
        lease = await pool.connect()
        waiting = task(briefly(pool))
        await turns(2)
        getattr(lease.connection, how)()
        await asyncio.wait_for(waiting, 1.0)
        lease.close()  # the release that comes late
        at_rest(pool)
        await all_slots_work(pool)


@virtual
async def test_a_slot_is_freed_once() -> None:
    """go-redis 3625 (I1, I20): freed twice on one path, the count of slots was off for good."""
    source = Source(Watched)
    async with Pool(source, 2) as pool:
        for first, second in itertools.product(("close", "discard", "detach", "die"), repeat=2):
            lease = await pool.connect()
            connection = lease.connection
            ends: dict[str, Any] = {
                "close": lease.close,
                "discard": lambda lease=lease: lease.close(discard=True),
                "detach": lease.detach,
                "die": connection.die,
            }
            ends[first]()
            with contextlib.suppress(RuntimeError):
                ends[second]()
            await turns(3)
            conserved(pool)
            assert pool.in_use == 0
            if not connection.closed and connection not in pool:
                connection.close()
        await all_slots_work(pool)
        assert source.peak <= 2


@virtual
async def test_callers_that_gave_up() -> None:
    """bb8 67 (I1, I9): futures that were dropped while they waited used up the pool."""
    async with Pool(Source(Judging), 1) as pool:
        lease = await pool.connect()
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await pool.connect()
            pool.connect()  # not even awaited
        assert pool.stats().waiting == 0
        lease.close()
        await all_slots_work(pool)


@pytest.mark.parametrize("cancelled_after", range(6))
@virtual
async def test_cancelled_on_the_way_out_of_the_block(cancelled_after: int) -> None:
    """redis-py 4121, asyncpg 1052 (I1, I13): cancelled in its clean-up, it was not ended."""

    async def work(pool: Pool) -> None:
        async with pool.connect():
            try:
                await asyncio.sleep(0)
            finally:
                await asyncio.sleep(0)  # the caller's own clean-up

    async with Pool(Source(Judging), 1) as pool:
        for _ in range(5):
            working = task(work(pool))
            for _ in range(cancelled_after):
                await turns(1)
                working.cancel()
            await asyncio.wait([working])
            at_rest(pool)
        await all_slots_work(pool)


# -- limits --------------------------------------------------------------------------------------


@virtual
async def test_a_connection_counts_until_it_is_gone() -> None:
    """pgx 2425 (I2): what was cancelled left the count before the server had let go of it."""
    source = Source(Slow)
    async with Pool(source, 3) as pool:
        for _ in range(30):
            callers = [task(briefly(pool)) for _ in range(3)]
            await turns(3)
            for connection in source.made:
                if not connection.closed:
                    connection.is_reusable = False  # a request is in flight there
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)
            stats = pool.stats()
            assert stats.size <= 3
            conserved(pool)
            await asyncio.sleep(0.3)
        await asyncio.sleep(10.0)
        assert source.peak <= 3


@virtual
async def test_many_callers_at_once_on_an_empty_pool() -> None:
    """aiohttp 4936 (I2): all of them saw a free slot before one of them had taken it."""
    source = Source(Judging, Gate.SLOW, delay=0.1)
    async with Pool(source, 5) as pool:
        await asyncio.gather(*(briefly(pool, 0.01) for _ in range(100)))
        assert source.peak <= 5
        at_rest(pool)


@virtual
async def test_releases_while_others_dial() -> None:
    """aiopg 18 (I2): a release during a dial put one connection more than there may be."""
    source = Source(Judging, Gate.SLOW, delay=0.1)
    async with Pool(source, 3) as pool:

        async def churn(number: int) -> None:
            for step in range(20):
                lease = await pool.connect()
                await asyncio.sleep(0.03 * ((number + step) % 5))
                lease.close(discard=(number + step) % 3 == 0)
                conserved(pool)

        await asyncio.gather(*(churn(number) for number in range(12)))
        assert source.peak <= 3
        at_rest(pool)


class Counted(Judging):
    """Counts how often the pool looks at it."""

    looked = 0

    @property
    def closed(self) -> bool:
        Counted.looked += 1
        return self._closed

    @closed.setter
    def closed(self, value: bool) -> None:
        self._closed = value


@virtual
async def test_a_lease_looks_at_its_own_connection_only() -> None:
    """httpcore 1035, httpx2 974 (I4): each request went over all connections."""
    looked = {}
    for size in (10, 1000):
        async with Pool(Source(Counted), size) as pool:
            leases = [await pool.connect() for _ in range(size)]
            for lease in leases:
                lease.close()
            Counted.looked = 0
            for _ in range(100):
                async with pool.connect():
                    pass
            looked[size] = Counted.looked
    assert looked[1000] == looked[10]


# -- waiters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 1])
@virtual
async def test_a_failed_dial_concerns_those_who_wait_for_it(others: int) -> None:
    """puddle 1.1.3 (I5): a creation that failed left a concurrent acquire hanging."""
    source = Source(Judging, *[Gate.OK] * others, Gate.SLOW, Gate.OK)

    async def dial() -> Any:
        connection = await source()
        if source.dials == others + 1:
            connection.close()
            raise ConnectionRefusedError("no more connections")
        return connection

    async with Pool(dial, 1 + others) as pool:
        held = [await pool.connect() for _ in range(others)]
        callers = [task(briefly(pool)) for _ in range(3)]
        done, pending = await asyncio.wait(callers, timeout=20.0)
        assert not pending
        failed = [caller for caller in done if caller.exception() is not None]
        assert failed
        assert all(isinstance(caller.exception(), PoolUnavailable) for caller in failed)
        for lease in held:
            lease.close()
        at_rest(pool)


def test_a_release_at_any_moment_of_an_acquire() -> None:
    """bb8 122 (I5): released after the caller had looked and before it had queued."""
    for k in range(1, 8):
        loop = TurnLoop()

        async def main(loop: TurnLoop = loop, k: int = k) -> None:
            async with Pool(Source(Judging), 1) as pool:
                lease = await pool.connect()
                loop.hooks[loop.turn + k] = lease.close
                turning = task(turns(10))
                async with asyncio.timeout(1.0):
                    await briefly(pool)
                await turning
                at_rest(pool)

        run(main(), loop)


@virtual
async def test_all_connections_break() -> None:
    """bb8 167, deadpool 191 (I5, I22): broken ones were found one at a time, or never."""
    source = Source(Watched)
    async with Pool(source, 5) as pool:
        leases = [await pool.connect() for _ in range(5)]
        waiting = [task(briefly(pool)) for _ in range(10)]
        await turns(2)
        for connection in list(source.made):
            connection.die()
        async with asyncio.timeout(1.0):
            await asyncio.gather(*waiting)
        for lease in leases:
            lease.close()
        at_rest(pool)
        assert source.peak <= 5


@pytest.mark.parametrize("end", ["closed", "discarded", "not reusable", "detached"])
@virtual
async def test_the_release_of_what_does_not_go_back(end: str) -> None:
    """aiomysql 0.3.2 (I5): such a release woke nobody, and the waiter hung at size 0 of 1."""
    async with Pool(Source(Judging), 1) as pool:
        lease = await pool.connect()
        waiting = task(briefly(pool))
        await turns(2)
        match end:
            case "closed":
                lease.connection.closed = True
                lease.connection.is_reusable = False
                lease.close()
            case "discarded":
                lease.close(discard=True)
            case "not reusable":
                lease.connection.is_reusable = False
                lease.close()
            case _:
                lease.detach().close()
        await asyncio.wait_for(waiting, 1.0)
        at_rest(pool)


@pytest.mark.parametrize("gone", ["cancelled", "timed out"])
@pytest.mark.parametrize("first", ["release", "end"])
@virtual
async def test_a_waiter_that_ends_as_it_is_woken(gone: str, first: str) -> None:
    """aiohttp 9670, psycopg 509, sqlx 620 (I6): the wake-up was swallowed with its waiter."""
    async with Pool(Source(Judging), 1) as pool:
        lease = await pool.connect()
        loop = asyncio.get_running_loop()
        at = loop.time() + 1.0
        ending = task(pool.connect(timeout=1.0 if gone == "timed out" else None))
        await turns(1)
        following = task(briefly(pool))
        events: list[Any] = [lease.close]
        if gone == "cancelled":
            events.append(ending.cancel)
        if first == "end":
            events.reverse()
        for event in events:
            loop.call_at(at, event)
        async with asyncio.timeout(2.0):
            await asyncio.wait([ending])
            if not ending.cancelled() and ending.exception() is None:
                ending.result().close()
            await following
        at_rest(pool)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("what", ["release", "dial"])
@virtual
async def test_a_cancellation_wins_over_the_connection(what: str, after: int) -> None:
    """psycopg 1275 and 1345, cpython 26097 (I11): cancelled in the moment of the hand-over, the
    task got the connection and went on; cancel() had returned True."""
    source = Source(Judging, Gate.SLOW, delay=1.0)
    async with Pool(source, 1) as pool:
        lease = await pool.connect() if what == "release" else None
        reached: list[Any] = []

        async def work() -> None:
            async with pool.connect() as mine:
                await asyncio.sleep(0)
                reached.append(mine)

        working = task(work())
        await turns(2)
        if lease is None:
            await asyncio.sleep(0.999)
            asyncio.get_running_loop().call_later(0.001, lambda: None)
            await asyncio.sleep(0.001)
        else:
            lease.close()
        await turns(after)
        if working.cancel():
            await turns(2)
            assert working.cancelled()
            assert not reached or after == 2
        await asyncio.wait([working])
        await asyncio.sleep(2.0)
        at_rest(pool)
        await all_slots_work(pool)


@virtual
async def test_one_connection_is_promised_to_one() -> None:
    """httpcore 822 (I8, I12): promised to all in the queue; the losers' time was never up."""
    async with Pool(Source(Judging), 1) as pool:
        lease = await pool.connect()
        release = asyncio.Event()
        log: list[Any] = []
        waiting = [task(hold(pool, release, log)) for _ in range(5)]
        late = task(pool.connect(timeout=2.0))
        await turns(2)
        lease.close()
        await turns(5)
        assert len(log) == 1
        await asyncio.sleep(3.0)
        assert isinstance(late.exception(), PoolTimeout)
        release.set()
        await asyncio.gather(*waiting)
        assert len(log) == 5


@virtual
async def test_dead_waiters_are_forgotten() -> None:
    """go-redis 3678 (I9): 788,000 waiters that had given up were still in the queue."""
    async with Pool(Source(Judging), 1) as pool:
        lease = await pool.connect()

        async def give_up() -> None:
            with contextlib.suppress(PoolTimeout):
                await pool.connect(timeout=0.01)

        def futures() -> int:
            gc.collect()
            return sum(isinstance(found, asyncio.Future) for found in gc.get_objects())

        before = futures()
        for _ in range(20):
            await asyncio.gather(*(give_up() for _ in range(250)))
        await asyncio.sleep(1.0)
        assert pool.stats().timeouts == 5000
        assert pool.stats().waiting == 0
        assert futures() <= before + 10
        lease.close()


@virtual
async def test_a_healthy_idle_connection_is_leased() -> None:
    """go-redis 3571, HikariCP 1215 (I10): "not available" while healthy connections lay idle."""
    async with Pool(Source(Judging), 3) as pool:
        leases = [await pool.connect() for _ in range(3)]
        for lease in leases:
            lease.close()
        for _ in range(100):
            for _ in range(3):
                (await pool.connect(timeout=0)).close()
            await asyncio.sleep(100.0)
        assert pool.stats().timeouts == 0
        assert pool.stats().opened == 3


@virtual
async def test_nobody_starves() -> None:
    """asyncpg 1247 (I7): 100 workers hold each of 10 connections 0.2 s; one waited beyond 10 s."""
    longest = 0.0
    served = [0] * 100

    async def worker(pool: Pool, number: int) -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            async with pool.connect(timeout=10.0):
                longest = max(longest, loop.time() - asked)
                served[number] += 1
                await asyncio.sleep(0.2)

    async with Pool(Source(Judging), 10) as pool:
        workers = [task(worker(pool, number)) for number in range(100)]
        await asyncio.sleep(60.0)
        assert not any(one.done() for one in workers)
        for one in workers:
            one.cancel()
        await asyncio.wait(workers)
        assert longest <= math.ceil(100 / 10) * 0.2 + 0.01
        assert max(served) - min(served) <= 1


# -- dials ---------------------------------------------------------------------------------------


@virtual
async def test_a_dial_is_not_its_askers() -> None:
    """pgx 1021, go-redis 3497 (I14): a dial that ended with the request was paid for nothing."""
    source = Source(Judging, Gate.SLOW, delay=1.0)
    async with Pool(source, 2) as pool:
        impatient = task(pool.connect(timeout=20.0))
        await asyncio.sleep(0.9)
        impatient.cancel()
        await asyncio.wait([impatient])
        started = asyncio.get_running_loop().time()
        async with pool.connect():
            assert asyncio.get_running_loop().time() - started < 0.2
        assert source.dials == 1


@virtual
async def test_one_who_dials_takes_what_is_released() -> None:
    """go-redis 3890 (I14): it never looked at the idle list again, however long its dial took."""
    source = Source(Judging, Gate.OK, Gate.NEVER)
    async with Pool(source, 2, timeout=50.0) as pool:
        lease = await pool.connect()
        dialling = task(briefly(pool))
        await asyncio.sleep(1.0)
        assert pool.stats().dialling == 1
        lease.close()
        await asyncio.wait_for(dialling, 1.0)


@virtual
async def test_a_dial_does_not_hold_up_releases() -> None:
    """aiopg, aiomysql (I5, I14): one dial, under the pool's lock, stopped them all."""
    source = Source(Judging, Gate.OK, Gate.OK, Gate.NEVER)
    async with Pool(source, 3, timeout=50.0) as pool:
        first, second = await pool.connect(), await pool.connect()
        stuck = task(briefly(pool))
        await turns(3)
        waiting = [task(briefly(pool)) for _ in range(4)]
        await turns(3)
        first.close()
        second.close()
        async with asyncio.timeout(1.0):
            await asyncio.gather(stuck, *waiting)


@virtual
async def test_an_open_connection_is_kept_by_somebody() -> None:
    """coredis 6.9 (I1): a time-out in the middle of connecting cost the slot, twice and all."""
    source = Source(Fake, Gate.SLOW, delay=0.1)
    async with Pool(source, 2) as pool:
        for _ in range(10):
            with contextlib.suppress(PoolTimeout):
                await pool.connect(timeout=0.05)
        await asyncio.sleep(1.0)
        at_rest(pool)
        await all_slots_work(pool)

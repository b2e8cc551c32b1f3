"""What broke in other pools, made to happen in this one: checks, resets, ages, floors, overload.

The docstrings name the project and the number of the issue, and the property that it broke.
"""

import asyncio
import contextlib
import gc
import os
import random
import warnings
from collections.abc import Coroutine
from typing import Any

import pytest
from pool_kit import (
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

from pulsar_client import Pool, PoolClosed, PoolOverloaded, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate


def now() -> float:
    return asyncio.get_running_loop().time()


async def briefly(pool: Pool, seconds: float = 0.1) -> None:
    async with pool.connect():
        await asyncio.sleep(seconds)


async def fill(pool: Pool, count: int) -> list[Any]:
    """Open that many connections and put them back."""
    leases = [await pool.connect() for _ in range(count)]
    connections = [lease.connection for lease in leases]
    for lease in leases:
        lease.close()
    await turns(3)
    return connections


async def all_slots_work(pool: Pool) -> None:
    leases = [await pool.connect(timeout=5.0) for _ in range(pool.pool_size)]
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=0)
    for lease in leases:
        lease.close()
    await asyncio.sleep(10.0)
    at_rest(pool)


# -- checks and resets ---------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [Gate.SLOW, Gate.NEVER])
@pytest.mark.parametrize("after", range(6))
@virtual
async def test_cancelled_in_a_check(gate: Gate, after: int) -> None:
    """psycopg 1208 and 1123 (I1), 1401 (I11): the connection was lost, or the cancellation was."""

    async def check(connection: Any) -> None:
        await gate.pass_through(delay=0.5)

    async with Pool(Source(Judging), 2, check=check) as pool:
        await fill(pool, 2)
        for _ in range(4):
            caller = task(briefly(pool))
            await turns(after)
            caller.cancel()
            await turns(2)
            assert caller.cancelled()
            conserved(pool)
        at_rest(pool)
        gate = Gate.OK
        await all_slots_work(pool)


@virtual
async def test_a_wait_for_around_a_check_that_hangs() -> None:
    """psycopg 1401 (I11, I12): wait_for could not bound it, the loop ate its cancellation."""

    async def check(connection: Any) -> None:
        await Gate.NEVER.pass_through()

    async with Pool(Source(Judging), 1, check=check) as pool:
        await fill(pool, 1)
        started = now()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.connect(timeout=None), 1.0)
        assert now() - started < 1.1
        at_rest(pool)


@virtual
async def test_the_deadline_covers_the_check() -> None:
    """HikariCP 588, pgx 1287 (I12): the validation had a time of its own, or none."""

    async def check(connection: Any) -> None:
        await Gate.NEVER.pass_through()

    async with Pool(Source(Judging), 1, check=check) as pool:
        await fill(pool, 1)
        started = now()
        with pytest.raises(PoolTimeout):
            await pool.connect(timeout=2.0)
        assert now() - started < 2.1


@virtual
async def test_a_check_that_always_fails() -> None:
    """psycopg 709 (I26): it replaced connections in a hot loop, thousands of dials a second."""
    source = Source(Judging)

    async def check(connection: Any) -> bool:
        return False

    async with Pool(source, 5, check=check) as pool:
        await fill(pool, 5)
        dials = source.dials
        for _ in range(20):
            await briefly(pool)
        # Each idle one is rejected once; a new one is not checked before its first lease.
        assert source.dials <= dials + 20 + 5
        at_rest(pool)


@pytest.mark.parametrize("gate", list(Gate))
@pytest.mark.parametrize("after", range(4))
@virtual
async def test_cancelled_as_the_reset_begins(gate: Gate, after: int) -> None:
    """redis-py 4121, SQLAlchemy 8145 and 12077 (I1, I13): the caller's cancellation hit the reset.

    It runs in a task of the pool, under its own limit; the caller has nothing to do with it.
    """

    async def reset(connection: Any) -> None:
        await gate.pass_through(delay=1.0)

    source = Source(Judging)
    async with Pool(source, 2, reset=reset) as pool:
        for _ in range(4):
            caller = task(briefly(pool, 0.0))
            for _ in range(after):
                await turns(1)
                caller.cancel()
            await asyncio.wait([caller])
            conserved(pool)
        await asyncio.sleep(30.0)
        at_rest(pool)
        assert source.peak <= 2
        gate = Gate.OK
        await all_slots_work(pool)


@virtual
async def test_a_reset_that_never_ends() -> None:
    """asyncpg 431 (I13): the release hung for ever, and with it the slot."""

    async def reset(connection: Any) -> None:
        await Gate.NEVER.pass_through()

    async with Pool(Source(Judging), 1, reset=reset) as pool:
        started = now()
        await briefly(pool, 0.0)
        assert now() == started
        await briefly(pool, 0.0)  # waits until the pool gives the reset up
        assert now() - started < 10.0


# -- ages and floors -----------------------------------------------------------------------------


@virtual
async def test_the_ages_of_connections_are_spread() -> None:
    """HikariCP 480, 2004 and 2035, db_connection 99 (I24): all were replaced at once."""
    random.seed(4)
    ends: list[float] = []
    source = Source(Watched)
    async with Pool(source, 50, max_age=1000.0, min_size=50) as pool:
        pool.bind_event("on_close", lambda pool, exc=None, **kw: ends.append(now()))
        await asyncio.sleep(1100.0)
        assert len(ends) >= 50
        first = sorted(ends)[:50]
        assert first[-1] - first[0] >= 100.0
        # In none of the seconds more than a few.
        assert max(sum(end <= other < end + 5.0 for other in first) for end in first) <= 10


@pytest.mark.parametrize("use", ["hot", "idle"])
@virtual
async def test_no_lease_of_an_old_connection(use: str) -> None:
    """pgx 2560, psycopg 584 and 1018 (I24): a hot pool, or an idle one, kept its connections."""
    born: dict[int, float] = {}
    source = Source(Watched)

    async def dial() -> Any:
        connection = await source()
        born[id(connection)] = now()
        return connection

    async with Pool(dial, 2, max_age=60.0) as pool:
        deadline = now() + 600.0
        while now() < deadline:
            async with pool.connect() as lease:
                assert now() - born[id(lease.connection)] <= 60.0
                await asyncio.sleep(0.5)
            if use == "idle":
                await asyncio.sleep(70.0)
        assert source.dials >= 8


@virtual
async def test_the_successor_is_opened_first() -> None:
    """pgx 1164 and 1213 (I24): the health check closed before it created, and callers waited."""
    source = Source(Watched, Gate.SLOW, delay=5.0)
    async with Pool(source, 4, min_size=2, max_age=100.0) as pool:
        await asyncio.sleep(20.0)
        assert pool.available == 2
        least = 2
        for _ in range(4000):
            await asyncio.sleep(0.1)
            least = min(least, pool.available)
        assert least == 2
        assert source.dials >= 6
        assert source.peak <= 4


@pytest.mark.parametrize("share", [1, 8])
@pytest.mark.parametrize("cause", ["age", "expired"])
@virtual
async def test_the_successor_of_one_that_grew_old_in_use_is_opened_first(
    cause: str, share: int
) -> None:
    """I24: what comes back too old stays, unused, until the floor is whole without it."""
    source = Source(Watched, Gate.SLOW, delay=5.0)
    options: dict[str, Any] = {"max_age": 100.0} if cause == "age" else {}
    async with Pool(source, 4, min_size=2, share=share, **options) as pool:
        await asyncio.sleep(20.0)
        leases = [await pool.connect(exclusive=share > 1) for _ in range(2)]
        old = [lease.connection for lease in leases]
        await asyncio.sleep(200.0)
        if cause == "expired":
            pool.expire()
        for lease in leases:
            lease.close()
        await asyncio.sleep(4.9)
        assert not any(connection.closed for connection in old)
        await asyncio.sleep(0.2)
        assert all(connection.closed for connection in old)
        assert (pool.available, source.dials, source.peak) == (2, 4, 4)


@pytest.mark.parametrize("gate", [Gate.ERROR, Gate.NEVER])
@virtual
async def test_an_old_connection_whose_successor_can_not_be_opened(gate: Gate) -> None:
    """I24, I10: nobody is given it, and it does not stay for ever."""
    source = Source(Watched, Gate.OK, gate)
    async with Pool(source, 4, min_size=1, max_age=100.0, timeout=1.0) as pool:
        async with pool.connect() as lease:
            old = lease.connection
            await asyncio.sleep(200.0)
        with pytest.raises(PoolUnavailable if gate is Gate.ERROR else PoolTimeout):
            await pool.connect()
        assert old.closed


@pytest.mark.parametrize("reason", ["idle", "age", "death", "discard"])
@virtual
async def test_the_floor_is_kept_without_being_asked(reason: str) -> None:
    """asyncpg 711, 989 and 1268, bb8 123 (I25): min_size was for the start only."""
    source = Source(Watched)
    options: dict[str, Any] = {"idle": {"max_idle": 5.0}, "age": {"max_age": 5.0}}.get(reason, {})
    async with Pool(source, 5, min_size=3, **options) as pool:
        await asyncio.sleep(1.0)
        assert pool.available == 3
        match reason:
            case "death":
                for connection in list(source.made):
                    connection.die()
            case "discard":
                leases = [await pool.connect() for _ in range(3)]
                for lease in leases:
                    lease.close(discard=True)
            case _:
                await fill(pool, 5)
        await asyncio.sleep(60.0)
        assert pool.available == 3
        assert source.peak <= 5


# -- a target that is down -----------------------------------------------------------------------


@virtual
async def test_many_callers_of_a_dead_host() -> None:
    """go-redis 3890, pymongo 511 and 531, envoy 5057 (I26): each caller dialled, a storm."""
    source = Source(Judging, Gate.SLOW, Gate.ERROR, delay=0.1)

    async def dial() -> Any:
        connection = await source()
        connection.close()
        raise ConnectionRefusedError("down")

    async with Pool(dial, 100, max_dialling=4) as pool:

        async def call() -> None:
            with pytest.raises(PoolUnavailable) as info:
                await pool.connect(timeout=20.0)
            assert isinstance(info.value.__cause__, ConnectionError)

        started = now()
        await asyncio.gather(*(call() for _ in range(1000)))
        # They fail fast, with the cause (HikariCP 2254).
        assert now() - started < 1.0
        assert source.dials <= 8
        await asyncio.gather(*(call() for _ in range(1000)))
        assert source.dials <= 16


@virtual
async def test_never_more_dials_at_once_than_allowed() -> None:
    """pymongo 511, psycopg 1176 (I26): as many at once as there were callers."""
    source = Source(Judging, Gate.SLOW, delay=1.0)
    peak = 0
    async with Pool(source, 50, max_dialling=3) as pool:
        callers = [task(briefly(pool)) for _ in range(50)]
        for _ in range(200):
            await asyncio.sleep(0.1)
            peak = max(peak, pool.stats().dialling, source.dialling)
        assert peak == 3
        await asyncio.gather(*callers)


@virtual
async def test_a_long_outage_costs_next_to_nothing() -> None:
    """rueidis 156, redis-py 3034 (I26, I22): a retry loop at full CPU, and no return."""
    down = True
    source = Source(Judging)

    async def dial() -> Any:
        connection = await source()
        if down:
            connection.close()
            raise ConnectionRefusedError("down")
        return connection

    async with Pool(dial, 5, min_size=1) as pool:
        await asyncio.sleep(900.0)
        assert 100 <= source.dials <= 3000
        down = False
        await asyncio.sleep(5.0)
        assert pool.available >= 1
        await asyncio.gather(*(briefly(pool) for _ in range(20)))
        assert pool.stats().opened <= 5


@virtual
async def test_a_dial_that_fails_among_healthy_connections() -> None:
    """pymongo 2192, mongo-java-driver 1900 (I27): one refusal cleared the whole pool."""
    source = Source(Watched, Gate.OK, Gate.OK, Gate.ERROR)
    async with Pool(source, 3) as pool:
        first, second = await pool.connect(), await pool.connect()
        with pytest.raises(PoolUnavailable):
            await pool.connect(timeout=5.0)
        assert not first.closed
        assert not second.closed
        first.close()
        async with pool.connect(timeout=0) as lease:
            assert lease.connection is source.made[0]
        second.close()


# -- overload ------------------------------------------------------------------------------------


@virtual
async def test_beyond_the_bound_they_fail_at_once() -> None:
    """reactor-netty 2261 and 3986, reactor-pool 121 (I9): 35,000 pending, then out of memory."""
    async with Pool(Source(Judging), 1, max_waiting=3) as pool:
        release = asyncio.Event()
        holding = task(hold(pool, release))
        await turns(3)
        waiting = [task(hold(pool, release)) for _ in range(3)]
        await turns(1)
        started = now()
        for _ in range(100):
            with pytest.raises(PoolOverloaded, match="3"):
                await pool.connect()
        assert now() == started
        assert pool.stats().waiting == 3
        release.set()
        await asyncio.gather(holding, *waiting)
        at_rest(pool)


@virtual
async def test_a_queue_without_waiting() -> None:
    """deadpool 14, reactor-netty 3986 (I9, I10): one may dial, nobody may queue."""
    async with Pool(Source(Judging, Gate.SLOW, delay=0.1), 2, max_waiting=0) as pool:
        leases = [await pool.connect(), await pool.connect()]
        with pytest.raises(PoolOverloaded):
            await pool.connect()
        for lease in leases:
            lease.close()
        (await pool.connect()).close()


@virtual
async def test_nobody_is_shed_while_something_is_idle() -> None:
    """db_connection 324 and 177 (I10): requests were dropped although connections were there."""
    async with Pool(Source(Judging), 2, queue_target=0.05, queue_interval=0.1) as pool:

        async def load(callers: int, seconds: float) -> list[str]:
            shed: list[str] = []
            deadline = now() + seconds

            async def call() -> None:
                while now() < deadline:
                    try:
                        await briefly(pool, 0.02)
                    except PoolOverloaded as exc:
                        shed.append(str(exc))
                        await asyncio.sleep(0.02)

            await asyncio.gather(*(call() for _ in range(callers)))
            return shed

        assert not await load(2, 10.0)
        shed = await load(40, 10.0)  # a standing queue
        assert shed
        assert all("0 available" in text for text in shed)
        await asyncio.sleep(1.0)
        # It is over: whoever comes now is served.
        assert not await load(2, 10.0)


# -- the end of leases and pools -----------------------------------------------------------------


@virtual
async def test_a_forgotten_lease_gives_its_slot_back() -> None:
    """redis-py 2995, aioredis 1103 (I30): "no connection available", and nobody had told why."""
    async with Pool(Source(Watched), 1) as pool:

        async def forget() -> None:
            lease = await pool.connect()
            assert lease.closed is False

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await forget()
            gc.collect()
        (warning,) = (one for one in caught if one.category is ResourceWarning)
        assert "forget" in str(warning.message)
        await briefly(pool)
        assert pool.stats().leaked == 1


def test_a_lease_that_is_collected_after_its_loop() -> None:
    """redis-py 3431, aioredis 1078 and 1115 (I30): "Event loop is closed" out of ``__del__``."""
    kept: list[Any] = []

    async def main() -> None:
        pool = Pool(Source(Watched), 1)
        kept.append(await pool.connect())

    loop = TurnLoop()
    with contextlib.suppress(Exception):
        run(main(), loop)
    assert loop.is_closed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept.clear()
        gc.collect()
    assert [one.category for one in caught] in ([], [ResourceWarning])


def in_a_child(check: Coroutine[Any, Any, bool]) -> int:
    """Fork, take the first step of a coroutine in the child; 0 if it ended there with True."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: threads and fork
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check.send(None)
        except StopIteration as end:
            code = 0 if end.value else 2
        finally:
            os._exit(code)
    check.close()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@virtual
async def test_a_pool_in_a_forked_process() -> None:
    """psycopg 651 and 395, SQLAlchemy 5460 (I31): parent and child wrote to the same sockets."""
    source = Source(Watched)
    async with Pool(source, 2) as pool:
        (connection,) = await fill(pool, 1)

        async def in_the_child() -> bool:
            try:
                await pool.connect()
            except RuntimeError as exc:
                return "fork" in str(exc) and not connection.closed
            return False

        assert in_a_child(in_the_child()) == 0
        async with pool.connect() as lease:
            assert lease.connection is connection


@virtual
async def test_closing_while_resets_and_closes_hang() -> None:
    """asyncpg 1356, psycopg 784 (I29): close ignored its time-out while clean-ups hung."""

    async def reset(connection: Any) -> None:
        await Gate.NEVER.pass_through()

    kind = type("Hanging", (Slow,), {"gate": Gate.NEVER})
    source = Source(kind)
    pool = Pool(source, 3, reset=reset)
    leases = [await pool.connect() for _ in range(3)]
    leases[0].close()
    leases[1].close(discard=True)
    waiting = task(pool.connect())
    await turns(2)
    started = now()
    await pool.close(timeout=1.0)
    assert now() - started < 3.0
    assert isinstance(waiting.exception(), PoolClosed)
    assert source.open == 0


# -- connections that are shared -----------------------------------------------------------------


class Piped(Judging):
    """Several may use it at once; it is reusable when nothing is in flight."""

    is_shareable = True

    async def drained(self) -> None:
        """Wait until nothing is in flight."""


@virtual
async def test_one_who_blocks_leaves_a_connection_to_the_others() -> None:
    """aioredis 511, go-redis 1002, 1261 and 195 (I33): BRPOP sat on the shared connection."""
    async with Pool(Source(Piped), 3, share=100) as pool:
        blocking = [task(pool.connect(exclusive=True, timeout=5.0)) for _ in range(5)]
        await asyncio.sleep(0.1)
        # However many block, the others are served at once.
        await asyncio.wait_for(
            asyncio.gather(*(briefly(pool, 0.01) for _ in range(50))), timeout=1.0
        )
        done, _ = await asyncio.wait(blocking, timeout=10.0)
        held = [one.result() for one in done if one.exception() is None]
        assert len(held) == 2
        for lease in held:
            lease.close()


@virtual
async def test_an_error_tells_what_the_pool_was_doing() -> None:
    """db_connection 325 and 333, HikariCP 4 (I35): a time-out, of which pool and why?"""
    source = Source(Judging, Gate.OK, Gate.ERROR)
    async with Pool(source, 2, name="orders") as pool, pool.connect():
        with pytest.raises(PoolUnavailable) as refused:
            await pool.connect(timeout=1.0)
        assert "'orders'" in str(refused.value)
        assert isinstance(refused.value.__cause__, ConnectionRefusedError)
        with pytest.raises((PoolTimeout, PoolUnavailable)) as late:
            await pool.connect(timeout=0)
        for part in ("'orders'", "1 in use", "nobody listens"):
            assert part in str(late.value)

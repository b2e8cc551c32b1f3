"""The storm over real sockets once more, with the options of the pool on.

Connections are checked before and reset after each lease, live for a moment only, and their
server restarts: 100,000 exchanges ordinarily, on the faster loop, and a part of them on the
other; 1,000,000 on both with ``PULSAR_CLIENT_LONG=1`` in the environment.
"""

import asyncio
import importlib.util
import os
from typing import Any

import pytest
from storm_kit import echo_weather, recovered

from pulsar_client import Pool, PoolUnavailable
from pulsar_client.testing import conservation, settled, storm

LONG = os.environ.get("PULSAR_CLIENT_LONG") == "1"
HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None
POOL_SIZE = 8
FAULT_EVERY = 300
#: Seconds that a caller may wait; faults last for some milliseconds.
PATIENCE = 10.0


async def blow(exchanges: int, seed: int) -> None:
    """I1, I2, I7, I11, I16, I29: storm, then look what is left."""
    async with echo_weather(seed, POOL_SIZE) as (weather, echo):

        async def greet(connection: Any) -> None:
            assert await connection.request(b"hello") == b"hello"

        async def check(connection: Any) -> bool:
            await asyncio.sleep(0)
            return not connection.closed

        async def reset(connection: Any) -> None:
            # An exchange of its own: what was left of the last one would be found here.
            assert await connection.request(b"reset") == b"reset"

        pool = Pool(
            echo.connect,
            POOL_SIZE,
            timeout=PATIENCE,
            min_size=2,
            max_idle=0.5,
            max_age=0.2,
            max_uses=500,
            check=check,
            reset=reset,
            on_connect=greet,
            leak_after=60.0,
        )

        async def ask(request_id: bytes) -> object:
            try:
                async with pool.connect() as connection:
                    return await connection.request(request_id)
            except PoolUnavailable:
                await asyncio.sleep(0.01)  # it refuses all callers for a moment
                raise

        def invariant() -> None:
            conservation(pool)
            # I2: sockets of this client, those that are being opened and closed included.
            assert len(echo._protocols) <= POOL_SIZE

        report = await storm(
            ask,
            tasks=32,
            exchanges=exchanges,
            seed=seed,
            faults=weather.faults,
            fault_every=FAULT_EVERY,
            invariant=invariant,
        )
        weather.calm()
        stats = pool.stats()
        print(report, stats)
        assert report.exchanges == exchanges
        assert report.foreign == report.swallowed == 0
        assert report.ok > exchanges / 3
        assert min(report.cancelled, report.timed_out, report.interrupted) > exchanges / 200
        assert report.failed["PoolTimeout"] == stats.timeouts == 0
        assert stats.longest_wait < PATIENCE
        assert stats.leaked == 0
        if exchanges > 50_000:  # all that can end a connection did
            assert {"age", "check", "reset", "lost", "unusable"} <= set(stats.closed_by)
            assert stats.opened_by["min_size"]
        # And the pool is as good as new: all of its slots, and none more.
        await recovered(pool)
        await settled_but_for_the_floor(pool)
        leases = [await pool.connect() for _ in range(POOL_SIZE)]
        assert pool.in_use == POOL_SIZE
        for number, lease in enumerate(leases):
            assert await lease.request(b"%d" % number) == b"%d" % number
            lease.close()
        await pool.close()
        assert pool.stats().size == 0
        await settled(pool)
        await weather.proxy.until(lambda proxy: proxy.open == 0)


async def settled_but_for_the_floor(pool: Pool) -> None:
    """Its floor is refilled all the time; nobody leases or waits."""
    async with asyncio.timeout(15.0):
        while pool.in_use or pool.stats().waiting or pool.stats().closing:
            await asyncio.sleep(0.01)
    conservation(pool)


@pytest.mark.slow
@pytest.mark.time_limit(7200 if LONG else 600)
async def test_every_caller_gets_its_own_reply_with_all_options_on() -> None:
    """I16: 0 of 10^5 (10^6) replies are somebody else's."""
    on_asyncio = type(asyncio.get_running_loop()).__module__.startswith("asyncio.")
    if LONG:
        await blow(1_000_000, seed=16)
    else:
        await blow(5_000 if on_asyncio and HAS_UVLOOP else 100_000, seed=15)

"""A storm over the pool, its connections and a client, on real sockets that break in every way.

20,000 exchanges ordinarily, and 1,000,000 with ``PULSAR_CLIENT_LONG=1`` in the environment; the
100,000 of an ordinary run are made with the options of the pool on, in a module of their own.
"""

import asyncio
import os

import pytest
from storm_kit import echo_weather, recovered

from pulsar_client import PoolUnavailable
from pulsar_client.testing import conservation, settled, storm

LONG = os.environ.get("PULSAR_CLIENT_LONG") == "1"
POOL_SIZE = 8
FAULT_EVERY = 200


async def blow(exchanges: int, seed: int, tasks: int = 32) -> None:
    """Storm, then look whether everything is as it was before (I1, I2, I16)."""
    async with echo_weather(seed, POOL_SIZE) as (weather, echo):

        async def ask(request_id: bytes) -> object:
            try:
                return await echo(request_id)
            except PoolUnavailable:
                # It refuses all callers for a moment, and would burn thousands of exchanges.
                await asyncio.sleep(0.01)
                raise

        report = await storm(
            ask,
            tasks=tasks,
            exchanges=exchanges,
            seed=seed,
            faults=weather.faults,
            fault_every=FAULT_EVERY,
            invariant=lambda: conservation(echo.pool),
        )
        print(report)
        weather.calm()
        await settled(echo.pool, timeout=15.0)
        assert report.exchanges == exchanges
        assert report.foreign == report.swallowed == 0
        # It was a storm: all of it happened, and most exchanges got through it.
        assert report.ok > exchanges / 2
        assert min(report.cancelled, report.timed_out, report.interrupted) > exchanges / 200
        assert report.failures < exchanges / 4
        assert report.faults.total() > exchanges / FAULT_EVERY / 3
        if exchanges > 50 * FAULT_EVERY:
            assert len(report.faults) == len(set(weather.faults))
        # And the pool is as good as new.
        await recovered(echo.pool)
        replies = await asyncio.gather(*(echo(b"%d" % n) for n in range(100)))
        assert replies == [b"%d" % n for n in range(100)]
        await settled(echo.pool)


@pytest.mark.slow
@pytest.mark.time_limit(3600 if LONG else 300)
async def test_every_caller_gets_its_own_reply() -> None:
    """I16, I1: 0 of 20,000 (10^6) replies are somebody else's, whatever happens to the others."""
    if LONG:
        await blow(1_000_000, seed=6)
    else:
        await blow(20_000, seed=5)


@pytest.mark.parametrize("seed", range(4))
async def test_few_tasks_and_many_seeds(seed: int) -> None:
    """I16, I1: where connections are idle at times, and die then."""
    await blow(2000, seed=seed, tasks=4)

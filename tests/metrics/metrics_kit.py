"""A pool with a life to be reported; not a test module."""

import asyncio
from typing import Any

from pulsar_client import Pool, PoolTimeout


class Fake:
    """The least that can be pooled."""

    closed = False

    def close(self) -> None:
        """Close at once."""
        self.closed = True


async def connect() -> Any:
    """Open one, after a turn of the loop."""
    await asyncio.sleep(0)
    return Fake()


def make_pool(name: str = "books", **options: Any) -> Pool:
    """A pool of three."""
    return Pool(connect, 3, name=name, **options)


async def live(pool: Pool) -> Any:
    """Four leases, one time-out, one connection closed; one lease is left, and one is idle."""
    first, second, third = [await pool.connect() for _ in range(3)]
    try:
        await pool.connect(timeout=0.001)
    except PoolTimeout:
        pass
    second.close()
    third.close(discard=True)
    async with pool.connect():
        pass
    return first

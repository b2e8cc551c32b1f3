"""Storms over pools with random options: callers, cancellations, deaths, resizes, expiries.

Each pool has options of its own, drawn from a seed, and so has every gate that its dials, checks,
resets and closes go through.  A failing seed is in the test's message and always fails again.
"""

import asyncio
import logging
import os
import random
from typing import Any

import pytest
from pool_kit import Fake, Judging, Slow, Source, Watched, run, task

from pulsar_client import Pool, PoolOverloaded, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate

SEEDS = 1000 if os.environ.get("PULSAR_CLIENT_LONG") else 400


class Shared(Watched):
    """May be used by several at once."""

    is_shareable = True

    async def drained(self) -> bool:
        """Wait for what is in flight."""
        await asyncio.sleep(0.01)
        return True


class Storm:
    """One pool, its callers, and what they must find."""

    def __init__(self, seed: int) -> None:
        self.random = choose = random.Random(seed)
        random.seed(seed)  # jitter
        self.share = choose.choice([1, 1, 2, 5])
        size = choose.randint(1, 5)
        kind: type[Any] = Shared
        if self.share == 1:
            kind = choose.choice([Fake, Judging, Watched, Slow])
        gates = choose.choices(list(Gate), [8, 1, 2, 0.3], k=300)
        self.options = self.draw(size)
        self.pool = Pool(
            Source(kind, *gates, Gate.OK, delay=0.05), size, share=self.share, **self.options
        )
        self.largest = size
        self.users: dict[int, list[bool]] = {}  # whether each user wanted to be alone

    def draw(self, size: int) -> dict[str, Any]:
        """Draw options."""
        choose = self.random
        drawn = {
            "min_size": (0.5, choose.randint(0, size)),
            "max_waiting": (0.4, choose.randint(0, 10)),
            "max_idle": (0.4, choose.uniform(0.01, 1)),
            "max_age": (0.4, choose.uniform(0.05, 2)),
            "max_uses": (0.3, choose.randint(1, 5)),
            "lifo": (0.3, False),
            "max_dialling": (0.3, choose.randint(1, 3)),
            "check": (0.4, self.act),
            "reset": (0.4, self.act),
            "on_connect": (0.4, self.act),
            "leak_after": (0.3, 0.2),
            "queue_target": (0.3, 0.05),
        }
        return {name: value for name, (chance, value) in drawn.items() if choose.random() < chance}

    async def act(self, connection: Any) -> bool:
        """What a user's hook may do."""
        gate = self.random.choices(list(Gate), [10, 1, 2, 0.3])[0]
        await gate.pass_through(delay=0.03, error=ValueError("no"))
        return self.random.random() > 0.05

    def balanced(self) -> None:
        """I1, I2, I10."""
        stats = self.pool.stats()
        parts = (stats.available, stats.in_use, stats.dialling, stats.closing)
        assert sum(parts) == stats.size <= self.largest, stats
        assert min(*parts, stats.waiting) >= 0, stats
        if stats.waiting and self.share == 1:
            assert stats.available == len(self.pool._ledger.dying), stats

    async def caller(self) -> None:
        choose = self.random
        for _ in range(15):
            alone = self.share > 1 and choose.random() < 0.2
            timeout = choose.choice([0, 0.01, 0.1, 1.0])
            try:
                lease = await self.pool.connect(timeout=timeout, exclusive=alone)
            except (PoolTimeout, PoolUnavailable, PoolOverloaded):
                await asyncio.sleep(choose.random() * 0.05)
                continue
            connection = lease.connection
            users = self.users.setdefault(id(connection), [])
            try:
                # I8, I33: nobody joins one who is alone, nor more than may share.
                assert not users if alone or self.share == 1 else not any(users)
                users.append(alone)
                assert len(users) <= self.share
                await asyncio.sleep(choose.random() * 0.05)
                if choose.random() < 0.1 and hasattr(connection, "die"):
                    connection.die()
                if choose.random() < 0.05 and (alone or self.share == 1):
                    closing = lease.detach().close()
                    if asyncio.iscoroutine(closing):
                        closing.close()
            finally:
                users.remove(alone)
                lease.close(discard=choose.random() < 0.1)
                del lease
                self.balanced()

    def disturb(self, callers: "list[asyncio.Task[None]]") -> None:
        """Do one or more of the things that happen to pools."""
        choose = self.random
        if choose.random() < 0.5:
            choose.choice(callers).cancel()
        if choose.random() < 0.05:
            self.pool.expire()
        if choose.random() < 0.05:
            size = choose.randint(max(1, self.options.get("min_size", 0)), 5)
            self.largest = max(self.largest, size)
            self.pool.resize(size)
        self.balanced()

    async def rage(self) -> None:
        """The storm, and what must be there when it is over."""
        callers = [task(self.caller()) for _ in range(20)]
        while not all(one.done() for one in callers):
            await asyncio.sleep(self.random.random() * 0.03)
            self.disturb(callers)
        for result in await asyncio.gather(*callers, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError | None):
                raise result
        await asyncio.sleep(20.0)
        stats = self.pool.stats()
        assert (stats.in_use, stats.waiting) == (0, 0), stats
        if not self.options.get("min_size"):
            assert (stats.dialling, stats.closing) == (0, 0), stats
        await self.pool.close(1.0)
        assert self.pool.stats().size == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_storms_of_options(part: int) -> None:
    """I1, I2, I3, I5, I8, I10, I11, I29, I33: whatever the options, nothing is lost."""
    logging.disable(logging.ERROR)  # hooks fail by the thousand
    try:
        for seed in range(part, SEEDS, 4):

            async def storm(seed: int = seed) -> None:
                try:
                    await Storm(seed).rage()
                except BaseException as exc:
                    exc.add_note(f"seed {seed}")
                    raise

            run(storm())
    finally:
        logging.disable(logging.NOTSET)

"""`conservation` and `settled`, on pools that are all numbers."""

import asyncio
from dataclasses import dataclass, replace

import pytest

from pulsar_client.exceptions import ConfigError
from pulsar_client.testing import VirtualClockLoop, conservation, settled


@dataclass(frozen=True)
class Stats:
    pool_size: int = 4
    size: int = 3
    available: int = 1
    in_use: int = 2
    dialling: int = 0
    closing: int = 0
    waiting: int = 0


class Numbers:
    """A pool that is nothing but its numbers."""

    def __init__(self, **numbers: int) -> None:
        self.numbers = Stats(**numbers)

    def __repr__(self) -> str:
        return "<Numbers>"

    def stats(self) -> Stats:
        return self.numbers

    def change(self, **numbers: int) -> None:
        self.numbers = replace(self.numbers, **numbers)


def test_books_that_balance() -> None:
    conservation(Numbers())
    conservation(Numbers(size=4, dialling=1, waiting=7))
    conservation(Numbers(size=0, available=0, in_use=0))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"in_use": 1}, "available 1 .* in_use 1 .* is not the size 3"),
        ({"closing": 1}, "closing 1 is not the size 3"),
        ({"size": 5, "dialling": 2}, "more than the pool_size 4"),
        ({"available": -1, "in_use": 4}, "available is -1"),
        ({"waiting": -1}, "waiting is -1"),
    ],
)
def test_books_that_do_not(numbers: dict[str, int], message: str) -> None:
    """I1: every number of the balance counts."""
    with pytest.raises(AssertionError, match=message):
        conservation(Numbers(**numbers))


def at_rest(**numbers: int) -> Numbers:
    return Numbers(size=1, in_use=0, **numbers)


async def test_a_pool_at_rest_has_settled() -> None:
    await settled(at_rest(), timeout=0.0)


@pytest.mark.parametrize("busy", ["in_use", "dialling", "closing"])
def test_a_pool_that_does_not_settle(busy: str) -> None:
    """I1: the message names the numbers, and the tasks that might be why."""

    async def main() -> None:
        asyncio.current_task().set_name("main")  # type: ignore[union-attr]
        pool = at_rest()
        pool.change(**{busy: 1}, size=2)
        culprit = asyncio.get_running_loop().create_task(asyncio.sleep(1e4), name="culprit")
        started = asyncio.get_running_loop().time()
        with pytest.raises(AssertionError, match=f"(?s){busy} 1.*culprit"):
            await settled(pool, timeout=3.0)
        assert asyncio.get_running_loop().time() - started == pytest.approx(3.0)
        culprit.cancel()

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


async def test_waiting_callers_are_not_at_rest() -> None:
    with pytest.raises(AssertionError, match="waiting 1"):
        await settled(at_rest(waiting=1), timeout=0.0)


def test_it_waits_for_tasks_and_for_what_has_none() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = Numbers(dialling=1, closing=1, size=5, pool_size=5)

        async def dial() -> None:
            await asyncio.sleep(2.0)
            pool.change(dialling=0, available=2)

        dialling = loop.create_task(dial())
        loop.call_later(3.0, lambda: pool.change(in_use=0, available=4))
        loop.call_later(4.0, lambda: pool.change(closing=0, size=4))
        await settled(pool)
        assert dialling.done()
        assert loop.time() == pytest.approx(4.0, abs=0.1)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


async def test_books_that_stop_balancing_on_the_way() -> None:
    pool = Numbers()
    asyncio.get_running_loop().call_soon(lambda: pool.change(size=2))
    with pytest.raises(AssertionError, match="is not the size 2"):
        await settled(pool, timeout=60.0)


async def test_a_pool_that_was_made_smaller() -> None:
    """More connections than there may be are closed on the way, and must not be left."""
    pool = Numbers(pool_size=1, size=2, available=1, in_use=0, closing=1)
    with pytest.raises(AssertionError, match="more than the pool_size 1"):
        conservation(pool)
    asyncio.get_running_loop().call_soon(lambda: pool.change(closing=0, size=1))
    await settled(pool)
    pool.change(available=2, size=2)
    with pytest.raises(AssertionError, match="more than the pool_size 1"):
        await settled(pool)


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
async def test_a_bad_time_out(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        await settled(at_rest(), timeout=timeout)

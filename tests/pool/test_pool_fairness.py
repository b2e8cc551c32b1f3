"""First come, first served (I7), and what a queue of ten thousand costs (I4, I9)."""

import asyncio
import gc
import math
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pool_kit import Fake, Source, at_rest, conserved, task, turns, virtual

from pulsar_client import Pool, PoolTimeout
from pulsar_client.testing import Gate


@virtual
async def test_a_loop_of_release_and_acquire_never_overtakes() -> None:
    """I7: a task that gives back and asks again at once stands behind those who wait."""
    pool = Pool(Source(), 1)
    order: list[str] = []
    holder = await pool.connect()

    async def greedy() -> None:
        lease = holder
        for _ in range(5):
            lease.close()
            lease = await pool.connect(timeout=1.0)
            order.append("greedy")
        lease.close()

    async def patient(name: str) -> None:
        async with pool.connect(timeout=1.0):
            order.append(name)

    waiting = [task(patient(name)) for name in "abc"]
    await turns()
    await asyncio.gather(greedy(), *waiting)
    assert order[:4] == ["a", "b", "c", "greedy"]
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_newcomer_never_overtakes_one_who_was_woken() -> None:
    """I7: between the hand-over and the turn of the woken task others run."""
    pool = Pool(Source(), 1)
    lease = await pool.connect()
    waiter = task(pool.connect())
    await turns()
    lease.close()
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=0)
    newcomer = task(pool.connect())
    await turns()
    assert waiter.done()
    assert not newcomer.done()
    waiter.result().close()
    (await newcomer).close()
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("detaches", [False, True], ids=["release", "discard"])
@pytest.mark.parametrize(("tasks", "size"), [(7, 3), (40, 4), (100, 1), (10, 10)])
@virtual
async def test_no_wait_is_longer_than_its_share(tasks: int, size: int, detaches: bool) -> None:
    """I7: N tasks looping on M connections held h seconds: at most ceil(N/M) h."""
    loop = asyncio.get_running_loop()
    pool = Pool(Source(), size, timeout=None)
    held = 0.25
    longest = 0.0
    line: list[int] = []

    async def looping(number: int) -> None:
        nonlocal longest
        while loop.time() < 60.0:
            asked = loop.time()
            line.append(number)
            async with pool.connect() as lease:
                assert line.pop(0) == number, "overtaken"
                longest = max(longest, loop.time() - asked)
                await asyncio.sleep(held)
                if detaches:
                    lease.close(discard=True)

    await asyncio.gather(*(looping(number) for number in range(tasks)))
    assert longest <= math.ceil(tasks / size) * held + 1e-6
    at_rest(pool)
    await pool.close()


@virtual
async def test_served_in_the_order_of_asking_whatever_frees_the_slot() -> None:
    """I5, I7: release, discard, detach, death, a failed dial: the next in line is served."""
    source = Source()
    pool = Pool(source, 2, timeout=None)
    order: list[int] = []
    leases: list[Any] = [await pool.connect(), await pool.connect()]

    async def one(number: int) -> None:
        lease = await pool.connect()
        order.append(number)
        leases.append(lease)

    waiting = [task(one(number)) for number in range(20)]
    await turns()
    ways: list[Callable[[Any], object]] = [
        lambda lease: lease.close(),
        lambda lease: lease.close(discard=True),
        lambda lease: lease.detach(),
    ]
    for number in range(20):
        ways[number % 3](leases.pop(0))
        conserved(pool)
        await turns(4)
        assert order == list(range(number + 1))
    await asyncio.gather(*waiting)
    for lease in leases:
        lease.close()
    at_rest(pool)
    await pool.close()


def count_lines(action: Callable[[], object]) -> int:
    """Count the lines of the pool's modules that an action runs."""
    count = 0

    def trace(frame: Any, event: str, _arg: object) -> Any:
        nonlocal count
        if "pulsar_client" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


class Step:
    """Drives a coroutine by hand, so that each of its steps can be counted."""

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def __call__(self) -> None:
        self.coroutine.send(None)


@virtual
async def test_the_cost_of_a_release_and_of_a_wait_does_not_grow() -> None:
    """I4: counted lines, at 10 and at 10,000 waiters."""
    work: dict[int, tuple[int, int, int]] = {}
    for waiters in (10, 10_000):
        pool = Pool(Source(), 2)
        lease, second = await pool.connect(), await pool.connect()
        waiting = [task(pool.connect(timeout=5.0)) for _ in range(waiters)]
        await turns()
        coroutine = pool.connect(timeout=5.0).__aenter__()
        asking = count_lines(Step(coroutine))
        releasing = count_lines(lease.close)
        discarding = count_lines(partial(second.close, discard=True))
        work[waiters] = asking, releasing, discarding
        coroutine.close()
        for waiter in waiting:
            waiter.cancel()
        await asyncio.wait(waiting)
        for waiter in waiting:
            if not waiter.cancelled():
                waiter.result().close()
        await turns(4)
        at_rest(pool)
        await pool.close()
    assert work[10] == work[10_000]
    assert max(work[10]) < 150


@virtual
async def test_the_cost_of_a_lease_does_not_grow_with_the_connections() -> None:
    """I4: counted lines, at 10 and at 1,000 connections."""
    work = {}
    for size in (10, 1000):
        pool = Pool(Source(), size)
        leases = [await pool.connect() for _ in range(size)]
        releasing = count_lines(leases.pop().close)
        asking = count_lines(partial(lease_and_release, pool))
        for lease in leases:
            lease.close()
        work[size] = asking, releasing
        at_rest(pool)
        await pool.close()
    assert work[10] == work[1000]


def lease_and_release(pool: Pool) -> None:
    coroutine = pool.connect().__aenter__()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        stop.value.close()


@virtual
async def test_an_abandoned_waiter_costs_no_memory() -> None:
    """I9: cancelled or late, nothing of it is kept; not by the queue, not by a dial."""
    pool = Pool(Source(Fake, Gate.NEVER), 1, timeout=None)
    first = task(pool.connect(timeout=None))
    await turns(3)
    gone: list[weakref.ref[Any]] = []

    class Marker:
        pass

    async def one(marker: Marker, timeout: float | None) -> None:
        await pool.connect(timeout=timeout)

    def start(timeout: float | None) -> "asyncio.Task[None]":
        marker = Marker()
        gone.append(weakref.ref(marker))
        return task(one(marker, timeout))

    waiting = [start(None) for _ in range(1000)] + [start(0.5) for _ in range(1000)]
    await asyncio.sleep(1.0)
    for waiter in waiting:
        waiter.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert pool.stats().waiting == 1
    assert pool.stats().timeouts == 1000
    waiting.clear()
    del waiter
    await turns()  # the loop lets go of what woke this task
    gc.collect()
    assert not any(ref() for ref in gone)
    ledger = pool._ledger
    assert (len(ledger.waiters), len(ledger._dialled)) == (1, 1)
    first.cancel()
    await turns(2)
    assert (len(ledger.waiters), len(ledger._dialled)) == (0, 0)
    await pool.close()


@virtual
async def test_ten_thousand_deadlines_are_kept() -> None:
    """I12: over by the deadline + 50 ms, however many wait."""
    loop = asyncio.get_running_loop()
    pool = Pool(Source(Fake, Gate.NEVER), 1)

    async def one(timeout: float) -> float:
        started = loop.time()
        with pytest.raises(PoolTimeout):
            await pool.connect(timeout=timeout)
        return loop.time() - started - timeout

    late = await asyncio.gather(*(one(0.1 + number / 1e4) for number in range(10_000)))
    assert min(late) >= -1e-6
    assert max(late) <= 0.05
    assert pool.stats().timeouts == 10_000
    await pool.close()

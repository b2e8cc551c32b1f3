"""F1, F2 and F3: what a lease costs, alone and when many wait."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.bare import QueuePool
from benchmarks.pairing import Case, Goal, Side, Slice
from benchmarks.peers import open_peers
from pulsar_client import Connection, Pool

__all__ = ["SIZE", "Lease", "Plain", "contend", "f1", "f2", "f3", "filled", "lease_and_release"]

Lease = Callable[[], AbstractAsyncContextManager[Any]]
SIZE = 10


class Plain:
    """The least that a pool of ours takes as a connection and trusts after use."""

    __slots__ = ("closed", "is_reusable")

    def __init__(self) -> None:
        self.closed = False
        self.is_reusable = True

    def close(self) -> None:
        self.closed = True


async def plain() -> Plain:
    return Plain()


@asynccontextmanager
async def filled(creator: Callable[[], Any], size: int, **options: Any) -> AsyncIterator[Pool]:
    """A pool of ours whose connections are all open and idle."""
    async with Pool(creator, size, name="benchmark", **options) as pool:
        async with AsyncExitStack() as stack:
            for _ in range(size):
                await stack.enter_async_context(pool.connect())
        yield pool


@asynccontextmanager
async def real_connections() -> AsyncIterator[Callable[[], Any]]:
    """A creator of the library's own connections, over socket pairs."""
    far_ends = []

    async def connect() -> Connection:
        near, far = socket.socketpair()
        far_ends.append(far)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(Connection, sock=near)
        return connection

    try:
        yield connect
    finally:
        for far in far_ends:
            far.close()


# F1


def lease_and_release(lease: Lease, operations: int) -> Side:
    async def side() -> Slice:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(operations):
            async with lease():
                pass
        cpu = time.process_time() - cpu
        return Slice(operations, cpu, time.perf_counter() - wall)

    return side


@asynccontextmanager
async def f1(loop: str, operations: int) -> AsyncIterator[list[Case]]:
    """Lease and release, nobody waits, no I/O."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(filled(plain, SIZE))
        queue = QueuePool([Plain() for _ in range(SIZE)])
        ours = "Pool"
        case = Case(
            "F1",
            "lease and release",
            loop,
            ours,
            sides={
                ours: lease_and_release(pool.connect, operations),
                "bare queue": lease_and_release(queue.lease, operations),
            },
            goals={"bare queue": Goal(1.5, at_most=True)},
        )
        peers = await stack.enter_async_context(open_peers(SIZE, case.notes, "F1"))
        for name, lease in peers.items():
            case.sides[name] = lease_and_release(lease, max(1, operations // 10))
            case.goals[name] = Goal(4.0, at_most=False)
        connect = await stack.enter_async_context(real_connections())
        real = await stack.enter_async_context(filled(connect, SIZE))
        own = Case(
            "F1",
            "the same with Connection",
            loop,
            "Pool of Connection",
            sides={
                "Pool of Connection": lease_and_release(real.connect, operations),
                "bare queue": case.sides["bare queue"],
            },
            goals={"bare queue": None},
        )
        yield [case, own]


# F2 and F3


def contend(lease: Lease, tasks: int, operations: int, counts: list[int] | None = None) -> Side:
    """``tasks`` tasks lease in turns and hold for one loop turn.

    What is measured begins when all of them had the time to queue, and ends with the last lease
    of the budget: making and ending the tasks is not in it.
    """

    async def side() -> Slice:
        left = operations
        cpu = wall = used_cpu = used_wall = 0.0

        async def task(number: int) -> None:
            nonlocal left, used_cpu, used_wall
            await begin.wait()
            while left > 0:
                async with lease():
                    await asyncio.sleep(0)
                    left -= 1
                    if left == 0:
                        used_cpu = time.process_time() - cpu
                        used_wall = time.perf_counter() - wall
                    elif left < 0:
                        return
                    if counts is not None:
                        counts[number] += 1

        begin = asyncio.Event()
        running = [asyncio.create_task(task(number)) for number in range(tasks)]
        await asyncio.sleep(0)
        begin.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        wall, cpu = time.perf_counter(), time.process_time()
        started = left
        await asyncio.gather(*running)
        return Slice(started, used_cpu, used_wall)

    return side


async def fairness(lease: Lease, operations: int) -> str:
    counts = [0] * 100
    await contend(lease, 100, operations, counts)()
    few, many = min(counts), max(counts)
    ratio = f"{many / few:.2f}" if few else "infinite"
    return f"{few} to {many} leases a task (ratio {ratio})"


@asynccontextmanager
async def f2(loop: str, operations: int) -> AsyncIterator[list[Case]]:
    """100 tasks on 10 connections, one loop turn held; and who gets how much."""
    notes: list[str] = []
    async with filled(plain, SIZE) as pool, open_peers(SIZE, notes, "F2") as peers:
        queue = QueuePool([Plain() for _ in range(SIZE)])
        fair = await fairness(pool.connect, 10 * operations)
        unfair = await fairness(queue.lease, 10 * operations)
        yield [
            Case(
                "F2",
                "100 tasks on 10 connections",
                loop,
                "Pool",
                sides={
                    "Pool": contend(pool.connect, 100, operations),
                    "bare queue": contend(queue.lease, 100, operations),
                },
                goals={"bare queue": Goal(1.3, at_most=True)},
                notes=[*notes, f"F2 fairness ({loop}): Pool {fair}; bare queue {unfair}"],
            ),
            *(
                _beside("F2", name, lease, pool, loop, 100, operations)
                for name, lease in peers.items()
            ),
        ]


def _beside(
    goal: str, name: str, lease: Lease, pool: Pool, loop: str, tasks: int, operations: int
) -> Case:
    """Another pool at the same work: shown, there is no goal."""
    return Case(
        goal,
        f"{tasks:,} tasks on {SIZE} connections",
        loop,
        "Pool",
        sides={
            "Pool": contend(pool.connect, tasks, operations),
            name: contend(lease, tasks, max(tasks * 12 // 10, operations // 10)),
        },
        goals={name: None},
        costs=False,
    )


@asynccontextmanager
async def f3(loop: str, operations: int) -> AsyncIterator[list[Case]]:
    """Ourselves at 10,000 waiters and at 1,000 connections, against ourselves at 10."""
    async with AsyncExitStack() as stack:
        few = await stack.enter_async_context(filled(plain, SIZE))
        busy = await stack.enter_async_context(filled(plain, SIZE))
        many = await stack.enter_async_context(filled(plain, 1000))
        queue = QueuePool([Plain() for _ in range(SIZE)])
        crowd = max(20_000, operations)
        notes: list[str] = []
        peers = await stack.enter_async_context(open_peers(SIZE, notes, "F3"))
        yield [
            Case(
                "F3",
                "10,000 waiters",
                loop,
                "10,000 waiters",
                sides={
                    "10,000 waiters": contend(busy.connect, SIZE + 10_000, crowd),
                    "10 waiters": contend(few.connect, SIZE + 10, operations),
                },
                goals={"10 waiters": Goal(2.0, at_most=True)},
            ),
            Case(
                "F3",
                "the bare queue's own",
                loop,
                "queue, 10,000 waiters",
                sides={
                    "queue, 10,000 waiters": contend(queue.lease, SIZE + 10_000, crowd),
                    "queue, 10 waiters": contend(queue.lease, SIZE + 10, operations),
                },
                goals={"queue, 10 waiters": None},
            ),
            Case(
                "F3",
                "1,000 connections",
                loop,
                "1,000 connections",
                sides={
                    "1,000 connections": lease_and_release(many.connect, operations),
                    "10 connections": lease_and_release(few.connect, operations),
                },
                goals={"10 connections": Goal(2.0, at_most=True)},
                notes=notes,
            ),
            *(
                _beside("F3", name, lease, busy, loop, SIZE + 10_000, crowd)
                for name, lease in peers.items()
            ),
        ]

"""A small pool that is right, and the same with one bug planted.

Not a test module.  Its connections make exchanges in the loop, without sockets: a reply comes a
few turns after the request, to whoever reads next.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

REPLY_TURNS = 2


@dataclass(frozen=True)
class Stats:
    """The numbers that every pool has."""

    pool_size: int
    size: int
    available: int
    in_use: int
    waiting: int
    dialling: int = 0
    closing: int = 0


class Wire:
    """A connection: replies come in order, some turns after their request."""

    def __init__(self) -> None:
        self.pending = 0  # replies that nobody has read
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()

    async def ask(self, request: bytes) -> bytes:
        self.pending += 1
        self._travel(request, REPLY_TURNS)
        reply = await self._replies.get()
        self.pending -= 1
        return b"re:" + reply

    def _travel(self, request: bytes, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._travel, request, turns - 1)
        else:
            self._replies.put_nowait(request)


class ToyPool:
    """Leases wires to those who wait, in order."""

    def __init__(self, size: int = 2) -> None:
        self.pool_size = size
        self.idle: list[Wire] = [Wire() for _ in range(size)]
        self.in_use = 0
        self.waiters: deque[asyncio.Future[Wire]] = deque()

    def stats(self) -> Stats:
        waiting = sum(not waiter.done() for waiter in self.waiters)
        size = len(self.idle) + self.in_use
        return Stats(self.pool_size, size, len(self.idle), self.in_use, waiting)

    async def acquire(self) -> Wire:
        if self.idle:
            self.in_use += 1
            return self.idle.pop()
        waiter: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            return await waiter
        except BaseException:
            self.gave_up(waiter)
            raise

    def gave_up(self, waiter: asyncio.Future[Wire]) -> None:
        """A waiter was cancelled: what it was handed in the same turn goes on."""
        if waiter.done() and not waiter.cancelled():
            self.release(waiter.result())

    def release(self, wire: Wire) -> None:
        if wire.pending:
            wire = Wire()  # the old one has somebody's reply in it
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(wire)
                return
        self.in_use -= 1
        self.idle.append(wire)

    async def ask(self, request: bytes) -> bytes:
        """Make one exchange."""
        wire = await self.acquire()
        try:
            return await wire.ask(request)
        finally:
            self.release(wire)


class LosesSlots(ToyPool):
    """Bug: a waiter cancelled between its hand-over and its wake-up keeps the connection."""

    def gave_up(self, waiter: asyncio.Future[Wire]) -> None:
        pass


class CrossTalk(ToyPool):
    """Bug: a connection goes back with an exchange that is not over."""

    def release(self, wire: Wire) -> None:
        pending, wire.pending = wire.pending, 0
        super().release(wire)
        wire.pending = pending


class Swallows(ToyPool):
    """Bug: a cancelled exchange is made again, as if its connection had failed."""

    async def ask(self, request: bytes) -> bytes:
        try:
            return await super().ask(request)
        except asyncio.CancelledError:
            return await super().ask(request)


class Converts(ToyPool):
    """Bug: a cancellation comes out as an error of the pool."""

    async def ask(self, request: bytes) -> bytes:
        try:
            return await super().ask(request)
        except asyncio.CancelledError as exc:
            raise ConnectionError("the exchange failed") from exc


async def contended(pool: Any) -> None:
    """One exchange that has to wait for another one's connection."""
    asyncio.get_running_loop().create_task(pool.ask(b"other"), name="other")
    await asyncio.sleep(0)
    assert await pool.ask(b"mine") == b"re:mine"

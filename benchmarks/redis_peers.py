"""Clients of Redis that ours is compared with; each gives a coroutine function that gets a key."""

import asyncio
import importlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from hiredis import Reader, pack_command

__all__ = ["CLIENTS", "Get", "PipeliningClient"]

Get = Callable[[str], Awaitable[Any]]


class PipeliningClient(asyncio.Protocol):
    """What a good engineer writes by hand: a queue of futures, and one write a turn of the loop.

    It does what one can't leave out: errors are raised, a lost connection fails what is in
    flight, and replies that nobody asked for end the connection.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.reader = Reader(notEnoughData=self)
        self.waiters: deque[asyncio.Future[Any]] = deque()
        self.chunks: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def execute(self, *words: str | bytes | int | float) -> asyncio.Future[Any]:
        if self.transport.is_closing():
            raise ConnectionError("closed")
        waiter = self.loop.create_future()
        self.waiters.append(waiter)
        if not self.chunks:
            self.loop.call_soon(self.flush)
        self.chunks.append(pack_command(words))
        return waiter

    async def get(self, key: str) -> Any:
        return await self.execute("GET", key)

    def flush(self) -> None:
        self.transport.write(b"".join(self.chunks))
        self.chunks.clear()

    def data_received(self, data: bytes) -> None:
        reader, waiters = self.reader, self.waiters
        reader.feed(data)
        while (reply := reader.gets()) is not self:
            if not waiters:
                self.transport.abort()  # nobody asked for it
                return
            waiter = waiters.popleft()
            if waiter.done():
                continue  # cancelled
            if isinstance(reply, Exception):
                waiter.set_exception(reply)
            else:
                waiter.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(exc or ConnectionError("lost"))
        self.waiters.clear()


@asynccontextmanager
async def ours(port: int) -> AsyncIterator[Get]:
    from examples.redis_client import Redis

    async with Redis(("127.0.0.1", port)) as client:
        yield client.get


@asynccontextmanager
async def by_hand(port: int) -> AsyncIterator[Get]:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(PipeliningClient, "127.0.0.1", port)
    await client.execute("HELLO", "3")
    yield client.get
    client.transport.abort()


@asynccontextmanager
async def redis_py(port: int) -> AsyncIterator[Get]:
    redis = importlib.import_module("redis.asyncio")
    async with redis.Redis(port=port) as client:
        yield client.get


@asynccontextmanager
async def coredis(port: int) -> AsyncIterator[Get]:
    client = importlib.import_module("coredis").Redis(host="127.0.0.1", port=port)
    async with client:
        yield client.get


@asynccontextmanager
async def valkey_glide(port: int) -> AsyncIterator[Get]:
    glide = importlib.import_module("glide")
    config = glide.GlideClientConfiguration([glide.NodeAddress("127.0.0.1", port)])
    client = await glide.GlideClient.create(config)
    try:
        yield client.get
    finally:
        await client.close()


#: By the names of their packages, "by hand" and ours aside.
CLIENTS: dict[str, Callable[[int], AbstractAsyncContextManager[Get]]] = {
    "ours": ours,
    "by hand": by_hand,
    "redis": redis_py,
    "coredis": coredis,
    "valkey-glide": valkey_glide,
}

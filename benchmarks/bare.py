"""The other side: what a good engineer writes by hand on the bare loop."""

import asyncio
from typing import Any

__all__ = ["EchoClient", "EchoServer", "JoinedEchoServer", "QueuePool", "echo"]

SEPARATOR = b"\r\n\r\n"
MAX_MESSAGE = 2**24


class QueuePool:
    """A bare queue of connections behind ``async with pool.lease()``."""

    def __init__(self, connections: list[Any]) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        for connection in connections:
            self.queue.put_nowait(connection)

    def lease(self) -> "Lease":
        return Lease(self.queue)


class Lease:
    """Takes a connection from the queue and puts it back."""

    __slots__ = ("connection", "queue")

    def __init__(self, queue: asyncio.Queue[Any]) -> None:
        self.queue = queue

    async def __aenter__(self) -> Any:
        self.connection = await self.queue.get()
        return self.connection

    async def __aexit__(self, *exc_info: object) -> None:
        self.queue.put_nowait(self.connection)


class EchoClient(asyncio.Protocol):
    """A client connection with one request in flight: a future a request."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.buffer = b""
        self.waiter: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def request(self, message: bytes) -> asyncio.Future[bytes]:
        if self.waiter is not None:
            raise RuntimeError("a request is in flight")
        if self.transport.is_closing():
            raise ConnectionError("closed")
        waiter = self.waiter = self.loop.create_future()
        self.transport.write(message + SEPARATOR)
        return waiter

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        message, separator, rest = data.partition(SEPARATOR)
        if not separator:
            self.buffer = data
            if len(data) > MAX_MESSAGE:
                self.transport.abort()
            return
        self.buffer = b""
        waiter, self.waiter = self.waiter, None
        if waiter is None or rest:
            self.transport.abort()  # nobody asked for it
        if waiter is not None and not waiter.done():
            waiter.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(exc or ConnectionError("lost"))


async def echo(queue: asyncio.Queue[EchoClient], message: bytes) -> bytes:
    """One request on a connection of the queue."""
    connection = await queue.get()
    try:
        return await connection.request(message)
    finally:
        queue.put_nowait(connection)


class EchoServer(asyncio.Protocol):
    """Answers each message with a write of its own."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        while True:
            message, separator, rest = data.partition(SEPARATOR)
            if not separator:
                self.buffer = data
                if len(data) > MAX_MESSAGE:
                    self.transport.abort()
                return
            self.transport.write(message + SEPARATOR)
            if not rest:
                self.buffer = b""
                return
            data = rest


class JoinedEchoServer(EchoServer):
    """Answers all the messages of a chunk with one write."""

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        answers = []
        while True:
            message, separator, rest = data.partition(SEPARATOR)
            if not separator:
                self.buffer = data
                if len(data) > MAX_MESSAGE:
                    self.transport.abort()
                break
            answers.append(message + SEPARATOR)
            if not rest:
                self.buffer = b""
                break
            data = rest
        if answers:
            self.transport.write(answers[0] if len(answers) == 1 else b"".join(answers))

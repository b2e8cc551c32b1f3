"""A line client, and a peer made by hand that does with each line what the test says.

Not a test module; its fixture ``peer`` is imported by those that use it.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from pulsar_client import (
    AbstractClient,
    Connection,
    DelimitedDecoder,
    Pool,
    ProtocolConsumer,
    ProtocolError,
)
from pulsar_client.testing import memory_pair


class Line(ProtocolConsumer):
    """A line there, a line back."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = DelimitedDecoder(b"\n", max_size=1000)

    def start_request(self) -> None:
        self.write(self.request + b"\n")

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            if line == b"?":
                raise ProtocolError("not a reply")
            self.finished(line)
        return rest


class Client(AbstractClient):
    protocol_factory = partial(Connection, Line)

    def __init__(self, address: Any, pool_size: int = 10) -> None:
        super().__init__()
        self.address = address
        self.pool: Pool = Pool(self.connect, pool_size, timeout=20.0, name="lines")

    async def connect(self) -> Any:
        return await self.create_connection(self.address)


class MemoryClient(Client):
    """Its connections have no sockets, so that it can live on a virtual clock.

    Args:
        answers: whether lines are answered.
    """

    def __init__(self, pool_size: int = 10, *, answers: bool = True) -> None:
        super().__init__(("127.0.0.1", 1), pool_size)
        self.answers = answers

    async def connect(self) -> Any:
        connection = self.create_protocol()
        memory_pair(connection, Capitals() if self.answers else asyncio.Protocol())
        await connection.event("connection_made")
        return connection


class Capitals(asyncio.Protocol):
    """Answers what comes in capitals."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


class Peer:
    """A server made by hand: keeps the lines it got and does with each what the test says.

    Attributes:
        plan: what to do with the next lines; "answer" when it is empty.
        lines: what it got.
        released: what "answer later" waits for.
        peak: the most connections that were open at once.
    """

    def __init__(self, address: Any = ("127.0.0.1", 0)) -> None:
        self.listener = socket.create_server(address)
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.lines: list[bytes] = []
        self.plan: list[str] = []
        self.released = asyncio.Event()
        self.connections: list[socket.socket] = []
        self.peak = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.acceptor = self.start(self.accept())

    def start(self, coroutine: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        return task

    async def accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
            sock.setblocking(False)
            self.connections.append(sock)
            self.peak = max(self.peak, len(self.connections))
            self.start(self.serve(sock))

    async def serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            buffer = b""
            while data := await loop.sock_recv(sock, 1000):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self.lines.append(line)
                    if not await self.act(sock, line):
                        return
        self.connections.remove(sock)
        sock.close()

    async def act(self, sock: socket.socket, line: bytes) -> bool:
        """Follow the plan for one line; False when that was the end of the connection."""
        loop = asyncio.get_running_loop()
        reply = line.upper() + b"\n"
        match self.plan.pop(0) if self.plan else "answer":
            case "answer":
                await loop.sock_sendall(sock, reply)
            case "answer later":
                await self.released.wait()
                await loop.sock_sendall(sock, reply)
            case "answer half":
                await loop.sock_sendall(sock, reply[: len(reply) // 2])
                await self.released.wait()
                await loop.sock_sendall(sock, reply[len(reply) // 2 :])
            case "answer twice":
                await loop.sock_sendall(sock, reply + b"UNASKED\n")
            case "garbage":
                await loop.sock_sendall(sock, b"?\n")
            case "stay silent":
                pass
            case "drop":
                self.connections.remove(sock)
                sock.close()
                return False
        return True

    async def stop_listening(self) -> None:
        """Refuse further connections."""
        self.acceptor.cancel()
        await asyncio.wait([self.acceptor])
        self.listener.close()

    def close_idle(self) -> None:
        """Close every connection, as a server does whose keep-alive time is over."""
        for sock in self.connections:
            sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    try:
        yield peer
    finally:
        for task in peer.tasks:
            task.cancel()
        await asyncio.wait(peer.tasks)
        for sock in (*peer.connections, peer.listener):
            sock.close()


@contextlib.asynccontextmanager
async def open_client(peer: Peer, pool_size: int = 10) -> AsyncIterator[Client]:
    async with Client(peer.address, pool_size) as client:
        yield client


async def fill(client: Client, count: int) -> list[Any]:
    """Open that many connections and let them be idle."""
    leases = [await client.pool.connect() for _ in range(count)]
    for lease in leases:
        assert await lease.request(b"hello") == b"HELLO"
    connections = [lease.connection for lease in leases]
    for lease in leases:
        lease.close()
    assert client.pool.available >= count
    return connections


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0)

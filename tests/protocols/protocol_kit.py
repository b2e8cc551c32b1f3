"""Consumers, producers and connected pairs for the tests of protocols and servers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from pulsar_client import (
    AbstractClient,
    Connection,
    DelimitedDecoder,
    Producer,
    ProtocolConsumer,
    TcpServer,
)
from pulsar_client.testing import Link, memory_pair

Factory = Callable[[], ProtocolConsumer]


class Line(ProtocolConsumer):
    """Client: writes a line, the result is the line that comes back."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.decoder = DelimitedDecoder(b"\n", max_size=2**24)

    def start_request(self) -> None:
        self.write(self.request + b"\n")

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.finished(line)
        return rest


class EchoLine(Line):
    """Server: answers a line with itself."""

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.write(line + b"\n")
            self.finished()
        return rest


class SlowLine(Line):
    """Server: takes a line and answers when the test says so."""

    line: bytes | None = None

    def data_received(self, data: bytes) -> bytes:
        if self.line is not None:
            return data
        self.line, rest = self.decoder.decode(data)
        return rest

    def answer(self) -> None:
        assert self.line is not None
        self.write(self.line + b"\n")
        self.finished()


class Silent(ProtocolConsumer):
    """Keeps what comes and never finishes by itself."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.received = b""

    def start_request(self) -> None:
        if self.request:
            self.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data


class Answers(Producer):
    """A producer whose connections answer requests."""

    server_side = True


class Client(AbstractClient):
    """Connects to where it is told."""

    protocol_factory = partial(Connection, Line)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def connected(
    client: Factory = Line,
    server: Factory = EchoLine,
    *,
    client_kw: dict[str, Any] | None = None,
    server_kw: dict[str, Any] | None = None,
    to_server: Link | None = None,
    to_client: Link | None = None,
) -> tuple[Connection, Connection]:
    """Give a client's and a server's connection, joined in memory."""
    near = Connection(client, **(client_kw or {}))
    far = Connection(server, **{"producer": Answers(), **(server_kw or {})})
    memory_pair(near, far, to_server=to_server, to_client=to_client)
    await turns(1)
    assert not near.closed
    assert not far.closed
    return near, far


async def lost(*connections: Connection) -> None:
    """Close connections and wait until they are gone, however."""
    for connection in connections:
        connection.close()
    for connection in connections:
        with contextlib.suppress(OSError):
            await connection.close()


@contextlib.asynccontextmanager
async def served(
    consumer: Factory = EchoLine, address: Any = ("127.0.0.1", 0), **kw: Any
) -> AsyncIterator[TcpServer]:
    """Serve a consumer on a real socket."""
    sslcontext = kw.pop("sslcontext", None)
    server = TcpServer(partial(Connection, consumer), address=address, **kw)
    await server.start_serving(sslcontext=sslcontext)
    try:
        yield server
    finally:
        await server.close(grace=0.5)


@contextlib.asynccontextmanager
async def dialled(
    address: Any, consumer: Factory = Line, *, connection: Any = Connection, **kw: Any
) -> AsyncIterator[Any]:
    """Connect to an address; the connection is cut in the end."""
    client = Client(protocol_factory=partial(connection, consumer))
    try:
        yield await client.create_connection(address, **kw)
    finally:
        client.abort()
        await client.wait_closed()


class Peer:
    """The raw other side of a connection, with blocking reads in the loop's own way."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int = 65536) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    async def receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.receive(size - len(data))
            if not more:
                raise EOFError(data)
            data += more
        return data

    async def receive_all(self) -> bytes:
        data = bytearray()
        while more := await self.receive():
            data += more
        return bytes(data)

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


@contextlib.asynccontextmanager
async def raw_client(address: Any, *, buffers: int | None = None) -> AsyncIterator[Peer]:
    """Connect without the library."""
    sock = socket.socket()
    try:
        sock.setblocking(False)
        if buffers is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        await asyncio.get_running_loop().sock_connect(sock, address)
        yield Peer(sock)
    finally:
        sock.close()


@contextlib.asynccontextmanager
async def raw_server() -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    """Listen without the library: the address, and a coroutine function that accepts a peer."""
    peers: list[Peer] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        async def accept() -> Peer:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            peers.append(Peer(sock))
            return peers[-1]

        try:
            yield listener.getsockname(), accept
        finally:
            for peer in peers:
                peer.sock.close()

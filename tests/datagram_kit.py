"""Consumers, clients, servers and raw peers for the tests of datagrams."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

from pulsar_client import AbstractUdpClient, DatagramProtocol, DatagramServer, ProtocolConsumer

Factory = Callable[[], ProtocolConsumer]
KEY = 4


class Keyed(ProtocolConsumer):
    """Client: a datagram is a key of four bytes and a message; the result is the message."""

    @staticmethod
    def match_key(data: bytes) -> bytes:
        return data[:KEY]

    def start_request(self) -> None:
        self.write(self.connection.fresh_key(size=KEY) + self.request)

    def data_received(self, data: bytes) -> None:
        self.finished(data[KEY:])


class Patient(Keyed):
    """The same, and it does no harm to ask twice."""

    idempotent = True


class Plain(ProtocolConsumer):
    """Client: a datagram is a message; nothing tells the replies apart."""

    def start_request(self) -> None:
        self.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.finished(data)


class EchoDatagram(ProtocolConsumer):
    """Server: answers a datagram with itself."""

    def data_received(self, data: bytes) -> None:
        self.write(data)
        self.finished()


class Kept(ProtocolConsumer):
    """Server: keeps its datagram until the test answers."""

    all: list["Kept"]
    data = b""

    def data_received(self, data: bytes) -> None:
        self.data = data
        self.all.append(self)

    def answer(self) -> None:
        self.write(self.data)
        self.finished()


def keeping() -> tuple[type[Kept], list[Kept]]:
    """A class of its own for each test, and the list of its consumers."""
    kept: list[Kept] = []
    return type("KeptHere", (Kept,), {"all": kept}), kept


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def factory(consumer: Any, protocol: type[DatagramProtocol] = DatagramProtocol, **kw: Any) -> Any:
    return partial(protocol, consumer_factory=consumer, **kw)


@contextlib.asynccontextmanager
async def served(
    consumer: Any = EchoDatagram,
    address: Any = ("127.0.0.1", 0),
    *,
    protocol: type[DatagramProtocol] = DatagramProtocol,
    grace: float = 0.5,
    **kw: Any,
) -> AsyncIterator[DatagramServer]:
    """Serve a consumer on a real socket."""
    server = DatagramServer(factory(consumer, protocol), address=address, **kw)
    await server.create_endpoint()
    try:
        yield server
    finally:
        await server.close(grace=grace)


@contextlib.asynccontextmanager
async def endpoint(
    remote: Any,
    consumer: Any = Keyed,
    *,
    protocol: type[DatagramProtocol] = DatagramProtocol,
    **kw: Any,
) -> AsyncIterator[DatagramProtocol]:
    """Open a client's endpoint; it is cut in the end."""
    client = AbstractUdpClient(protocol_factory=factory(consumer, protocol))
    try:
        yield await client.create_datagram_endpoint(remote_addr=remote, **kw)
    finally:
        client.abort()
        await client.wait_closed()


class Peer:
    """A datagram socket without the library."""

    def __init__(self, address: Any = ("127.0.0.1", 0)) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.setblocking(False)
        self.address = self.sock.getsockname()

    def send(self, data: bytes, address: Any) -> None:
        self.sock.sendto(data, address)

    async def receive(self, seconds: float = 20.0) -> tuple[bytes, Any]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return self.sock.recvfrom(65536)
                except BlockingIOError:
                    pass
                ready = loop.create_future()  # uvloop has no sock_recvfrom
                loop.add_reader(self.sock.fileno(), _wake, ready)
                try:
                    await ready
                finally:
                    loop.remove_reader(self.sock.fileno())


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


@contextlib.contextmanager
def peer(address: Any = ("127.0.0.1", 0)) -> Iterator[Peer]:
    found = Peer(address)
    try:
        yield found
    finally:
        found.sock.close()


def dead_address() -> Any:
    """An address that refuses datagrams: nobody has had the port for a moment."""
    with peer() as gone:
        return gone.address


def has_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with peer(("::1", 0)):
            return True
    except OSError:
        return False

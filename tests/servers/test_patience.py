"""Limits against slow and greedy clients, each with a silent and a dripping one."""

import asyncio
import contextlib
import logging
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from virtual_clock import virtual

from pulsar_client import Connection, DelimitedDecoder, Protocol, ProtocolConsumer, TcpServer
from pulsar_client.servers.patience import Patience
from pulsar_client.testing import MemoryTransport, memory_pair

LOOPBACK = ("127.0.0.1", 0)
# The time a client has in these tests, and for how long the patient ones are watched: several
# times as long.
LIMIT = 0.1
LONG = 5 * LIMIT


class EchoLine(ProtocolConsumer):
    """Answers a line with itself."""

    def connection_made(self, connection: Connection) -> None:
        if connection.parser is None:
            connection.parser = DelimitedDecoder(b"\n")

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.connection.parser.decode(data)
        if line is not None:
            self.write(line + b"\n")
            self.finished()
        return bytes(rest)


class Stateless(ProtocolConsumer):
    """The same for a line that ends its chunk; keeps nothing of its own."""

    def data_received(self, data: bytes) -> bytes:
        line, end, rest = data.partition(b"\n")
        if not end:
            return data
        self.write(line + end)
        self.finished()
        return rest


echo = partial(Connection, EchoLine)


@contextlib.asynccontextmanager
async def served(
    factory: Any = echo, *, sslcontext: ssl.SSLContext | None = None, **kw: Any
) -> AsyncIterator[TcpServer]:
    server = TcpServer(factory, address=LOOPBACK, **kw)
    server.first_byte_grace = 0.0
    await server.start_serving(sslcontext=sslcontext)
    try:
        yield server
    finally:
        await server.close(grace=0.5)


class Client:
    """A raw connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int = 1000) -> bytes:
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(self.sock, size)

    async def ask(self, line: bytes = b"hello\n") -> None:
        await self.send(line)
        assert await self.receive() == line

    async def is_cut(self) -> None:
        """Wait until the server has closed the connection."""
        with contextlib.suppress(ConnectionResetError):
            while await self.receive(2**20):
                pass

    async def drip(self, byte: bytes = b"x") -> None:
        """Send a byte now and then until the connection is closed."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self.send(byte)
                await asyncio.sleep(LIMIT / 20)


@contextlib.asynccontextmanager
async def dialled(server: TcpServer, **options: int) -> AsyncIterator[Client]:
    with socket.socket() as sock:
        sock.setblocking(False)
        if "buffer" in options:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options["buffer"])
        await asyncio.get_running_loop().sock_connect(sock, server.address)
        yield Client(sock)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


class Far(asyncio.Protocol):
    """The client's end of a connection in memory."""

    transport: MemoryTransport

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.received = b""
        self.changed = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.changed.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.changed.set()

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    async def has_received(self, size: int) -> None:
        while len(self.received) < size:
            assert not self.transport.is_closing()
            self.changed.clear()
            await self.changed.wait()

    async def ask(self, line: bytes = b"hello\n", answer: bytes = b"hello\n") -> None:
        before = len(self.received)
        self.send(line)
        await self.has_received(before + len(answer))
        assert self.received[before:] == answer

    async def seconds_until_cut(self) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self.peer.event("connection_lost")
        return loop.time() - began


@contextlib.asynccontextmanager
async def watched(factory: Any = echo, **kw: Any) -> AsyncIterator[Far]:
    """A connection of a server without sockets: for a virtual clock.

    On a real one it can't be told whether somebody was cut too early, or was late because the
    machine held up the process.
    """
    server = TcpServer(factory, **kw)
    protocol = server.create_protocol()
    far = Far(protocol)
    memory_pair(far, protocol)
    await asyncio.sleep(0)
    assert server.connections == 1
    loop = asyncio.get_running_loop()
    patience = Patience(loop, server._protocols, server._limits, server.logger)
    patience.start()
    try:
        yield far
    finally:
        patience.stop()
        protocol.abort()
        await asyncio.sleep(0.001)
        assert server.connections == 0


# -- the handshake ---------------------------------------------------------------------------


async def test_a_silent_handshake(server_ssl: ssl.SSLContext) -> None:
    """P21."""
    async with (
        served(sslcontext=server_ssl, handshake_timeout=LIMIT) as server,
        dialled(server) as client,
    ):
        await client.is_cut()
        await until(lambda: server.connections == 0)


async def test_a_dripping_handshake(server_ssl: ssl.SSLContext) -> None:
    """P21: its bytes do not reset the time."""
    async with (
        served(sslcontext=server_ssl, handshake_timeout=LIMIT) as server,
        dialled(server) as client,
    ):
        await client.send(
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        )  # ClientHello, 512 bytes
        async with asyncio.timeout(20):
            await client.drip(b"\0")
        await until(lambda: server.connections == 0)


# -- the first byte --------------------------------------------------------------------------


async def test_no_first_byte() -> None:
    """P21."""
    async with served(first_byte_timeout=LIMIT) as server, dialled(server) as client:
        await client.is_cut()


async def test_no_first_byte_over_tls(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """P21."""
    async with served(sslcontext=server_ssl, first_byte_timeout=LIMIT) as server:
        reader, writer = await asyncio.open_connection(
            *server.address, ssl=client_ssl, server_hostname="localhost"
        )
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


@virtual
async def test_the_first_byte_has_come() -> None:
    """P21: a connection that was used is idle, and that has a limit of its own."""
    async with watched(first_byte_timeout=LIMIT) as client:
        await asyncio.sleep(0.9 * LIMIT)
        await client.ask()
        await asyncio.sleep(LONG)
        await client.ask()


async def test_a_server_that_speaks_first() -> None:
    """P21: whoever is told something need not say anything."""

    class Greets(Connection):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.write(b"welcome\n")

    async with (
        served(partial(Greets, EchoLine), first_byte_timeout=LIMIT) as server,
        dialled(server) as client,
    ):
        assert await client.receive() == b"welcome\n"
        await asyncio.sleep(LONG)
        await client.ask()


# -- the whole message -----------------------------------------------------------------------


@pytest.mark.parametrize("consumer", [EchoLine, Stateless])
async def test_half_a_message_and_silence(consumer: type[ProtocolConsumer]) -> None:
    """P21."""
    factory = partial(Connection, consumer)
    async with served(factory, message_timeout=LIMIT) as server, dialled(server) as client:
        await client.ask()
        await client.send(b"hel")
        await client.is_cut()


@pytest.mark.parametrize("consumer", [EchoLine, Stateless])
async def test_a_message_that_drips(consumer: type[ProtocolConsumer]) -> None:
    """P21: its bytes do not reset the time."""
    factory = partial(Connection, consumer)
    async with served(factory, message_timeout=LIMIT) as server, dialled(server) as client:
        async with asyncio.timeout(20):
            await client.drip()
        await client.is_cut()


async def test_messages_that_drip_are_not_one_message() -> None:
    """P21: each one has its own time."""
    async with served(message_timeout=20.0) as server, dialled(server) as client:
        for _ in range(20):
            await client.send(b"hel")
            await asyncio.sleep(0.001)
            await client.send(b"lo\n")
            assert await client.receive() == b"hello\n"


@virtual
async def test_half_messages_at_every_look_are_not_one_message() -> None:
    """P21: each one begins its own time, though none is ever complete when somebody looks."""
    async with watched(message_timeout=LIMIT) as client:
        client.send(b"hel")
        for _ in range(20):
            await asyncio.sleep(0.9 * LIMIT)
            await client.ask(b"lo\nhel", b"hello\n")


class Works(EchoLine):
    """Answers in a task."""

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.connection.parser.decode(data)
        if line is not None:
            self.create_task(self.answer(line))
        return bytes(rest)

    async def answer(self, line: bytes) -> None:
        await asyncio.sleep(LONG)
        self.write(line + b"\n")
        self.finished()


class Waits(EchoLine):
    """Answers when somebody else says so."""

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.connection.parser.decode(data)
        if line is not None:
            self.request = line
            asyncio.get_running_loop().call_later(LONG, self.answer)
        return bytes(rest)

    def answer(self) -> None:
        self.write(self.request + b"\n")
        self.finished()


class Subscribes(EchoLine):
    """Answers at once, and with more later."""

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.connection.parser.decode(data)
        if line is not None:
            self.write(line[:2])
            asyncio.get_running_loop().call_later(LONG, self.tell, line[2:])
        return bytes(rest)

    def tell(self, rest: bytes) -> None:
        self.write(rest + b"\n")
        self.finished()


@pytest.mark.parametrize("consumer", [Works, Waits, Subscribes])
@virtual
async def test_an_exchange_may_take_its_time(consumer: type[ProtocolConsumer]) -> None:
    """P21: limits are for what the client owes, not for what the server does."""
    factory = partial(Connection, consumer)
    async with watched(
        factory, first_byte_timeout=LIMIT, message_timeout=LIMIT, write_timeout=LIMIT
    ) as client:
        await client.ask()


# -- idle ------------------------------------------------------------------------------------


@virtual
async def test_an_idle_connection() -> None:
    """P21: ``keep_alive`` after the last byte."""
    async with watched(keep_alive=LIMIT) as client:
        await client.ask()
        assert await client.seconds_until_cut() == pytest.approx(LIMIT)


@virtual
async def test_requests_keep_a_connection_alive() -> None:
    """P21, A9: whoever asks now and then is not idle."""
    async with watched(keep_alive=LIMIT) as client:
        for _ in range(10):
            await asyncio.sleep(0.9 * LIMIT)
            await client.ask()
        assert await client.seconds_until_cut() == pytest.approx(LIMIT)


# -- writes ----------------------------------------------------------------------------------


class Pours(ProtocolConsumer):
    """Answers with very much, as fast as it is taken."""

    def data_received(self, data: bytes) -> None:
        if not self._tasks:
            self.create_task(self.pour())

    async def pour(self) -> None:
        while True:
            waiter = self.write(b"x" * 20_000)
            if waiter is not None:
                await waiter


async def test_a_client_that_takes_nothing() -> None:
    """P21: the write stall."""
    factory = partial(Connection, Pours)
    async with (
        served(factory, write_timeout=LIMIT) as server,
        dialled(server, buffer=4096) as client,
    ):
        await client.send(b"?")
        await until(lambda: server.sessions)
        await until(lambda: not server._protocols)


@virtual
async def test_a_client_that_takes_little_is_not_cut() -> None:
    """P21: any progress counts; the sender waits meanwhile."""
    factory = partial(Connection, Pours)
    async with watched(factory, write_timeout=LIMIT) as client:
        client.send(b"?")
        client.transport.incoming.split = 1000
        for count in range(1, 21):
            client.transport.pause_reading()
            await asyncio.sleep(0.9 * LIMIT)
            assert len(client.received) == 1000 * (count - 1)
            client.transport.resume_reading()
            await client.has_received(1000 * count)
        client.transport.pause_reading()
        assert LIMIT <= await client.seconds_until_cut() <= 1.2 * LIMIT


async def test_a_stalled_client_of_a_finished_exchange() -> None:
    """P21: what was written before counts too, below the high-water mark."""

    class Much(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(b"x" * 4_000_000)
            self.finished()

    factory = partial(Connection, Much, high_limit=2**23)
    async with (
        served(factory, write_timeout=LIMIT, keep_alive=LIMIT) as server,
        dialled(server, buffer=4096) as client,
    ):
        await client.send(b"?")
        await until(lambda: server.sessions)
        await until(lambda: not server._protocols)


async def test_without_limits_nobody_looks() -> None:
    async with (
        served(first_byte_timeout=None, message_timeout=0, write_timeout=None) as server,
        dialled(server) as client,
    ):
        assert server._patience is not None
        assert server._patience._handle is None
        await asyncio.sleep(LIMIT)
        await client.ask()


async def test_a_protocol_without_requests() -> None:
    """P21: of a plain protocol only writes can be watched."""

    class Talks(Protocol):
        def data_received(self, data: bytes) -> None:
            self.write(b"x" * 4_000_000)

    async with (
        served(
            partial(Talks, high_limit=2**23),
            first_byte_timeout=LIMIT,
            message_timeout=LIMIT,
            write_timeout=LIMIT,
        ) as server,
        dialled(server, buffer=4096) as client,
    ):
        await asyncio.sleep(LONG)
        await client.send(b"?")
        await until(lambda: server.sessions and not server._protocols)


async def test_many_connections_are_looked_at_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P21: a sweep over many connections does not hold the loop, and misses none."""
    monkeypatch.setattr("pulsar_client.servers.patience._AT_ONCE", 3)
    async with served(first_byte_timeout=LIMIT) as server, contextlib.AsyncExitStack() as stack:
        found = [await stack.enter_async_context(dialled(server)) for _ in range(20)]
        for client in found:
            await client.is_cut()


async def test_a_peer_that_is_cut_is_one_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pulsar_client.servers")
    async with served(first_byte_timeout=LIMIT) as server, dialled(server) as client:
        await client.is_cut()
    lines = [record for record in caplog.records if "first byte" in record.message]
    assert [line.levelno for line in lines] == [logging.DEBUG]


# -- sizes -----------------------------------------------------------------------------------


class Gathers(ProtocolConsumer):
    """Keeps what comes, for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)


MEGABYTE = 2**20


@pytest.mark.parametrize("consumer", [Gathers, Stateless])
async def test_a_message_that_is_too_large(
    consumer: type[ProtocolConsumer], caplog: pytest.LogCaptureFixture
) -> None:
    """P24: a protocol error, which is one debug line, and the memory is bounded."""
    caplog.set_level(logging.DEBUG)
    loop = asyncio.get_running_loop()
    factory = partial(Connection, consumer)
    async with served(factory, max_message=MEGABYTE) as server, dialled(server) as client:
        chunk = b"x" * 16384
        peak = 0
        await until(lambda: server._protocols)  # and the loop has its buffer
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(20):
                    for _ in range(1000):
                        await client.send(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await until(lambda: not server._protocols)
        # What one read of uvloop takes is larger, and not ours to bound.
        chunks = 65536 if isinstance(loop, asyncio.SelectorEventLoop) else 262144
        if consumer is Gathers:
            assert peak - before < MEGABYTE + chunks + 32768  # the interpreter's own things
        else:
            # It has the connection join them.
            assert peak - before < 2 * MEGABYTE + 2 * chunks + 32768
    large = [record for record in caplog.records if "max_message" in record.message]
    assert [record.levelno for record in large] == [logging.DEBUG]
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_a_message_of_exactly_the_limit() -> None:
    """P24: the limit itself is allowed, also when the next message is behind it."""
    async with served(partial(Connection, Stateless), max_message=1000) as server:
        async with dialled(server) as client:
            for size in (999, 1000):
                await client.send(b"x" * (size - 1))
                await asyncio.sleep(0.005)
                await client.send(b"\n" + b"y\n")
                expected = b"x" * (size - 1) + b"\ny\n"
                answer = b""
                while len(answer) < len(expected):
                    answer += await client.receive(5000)
                assert answer == expected
        async with dialled(server) as client:
            await client.send(b"x" * 1001)
            await client.is_cut()


async def test_who_knows_its_request_takes_as_much_as_it_likes() -> None:
    """P24: a consumer of a stream has set its ``request``."""

    class Upload(ProtocolConsumer):
        size = 0

        def data_received(self, data: bytes) -> None:
            self.request = "upload"
            self.size += len(data)
            if self.size == 100_000:
                self.write(b"ok\n")
                self.finished()

    async with (
        served(partial(Connection, Upload), max_message=1000) as server,
        dialled(server) as client,
    ):
        await client.send(b"x" * 100_000)
        assert await client.receive() == b"ok\n"


async def test_a_client_that_does_not_read() -> None:
    """P25: what waits for it stays below the high-water mark plus one message."""
    high, answer, most = 50_000, 10_000, 0

    class Answers(Connection):
        def write(self, data: Any) -> Any:
            nonlocal most
            waiter = super().write(data)
            most = max(most, self._unsent())
            return waiter

    class Large(ProtocolConsumer):
        def data_received(self, data: bytes) -> bytes:
            self.write(b"x" * answer)
            self.finished()
            return data[1:]

    async with (
        served(partial(Answers, Large, high_limit=high)) as server,
        dialled(server, buffer=4096) as client,
    ):
        sending = asyncio.create_task(client.send(b"?" * 5000))
        await until(lambda: any(p.writing_paused for p in server._protocols))
        await asyncio.sleep(LIMIT)
        assert high < most <= high + answer
        received = 0
        while received < 5000 * answer:
            more = await client.receive(2**20)
            assert more
            received += len(more)
        await sending
        assert most <= high + answer
    assert server.requests_processed == 5000


@pytest.mark.parametrize(
    ("kw", "text"),
    [
        ({"handshake_timeout": 0}, "handshake_timeout is 0"),
        ({"first_byte_timeout": -1}, "first_byte_timeout is -1"),
        ({"message_timeout": "1"}, "message_timeout is '1'"),
        ({"write_timeout": float("inf")}, "write_timeout is inf"),
        ({"max_message": 1.5}, r"max_message is 1\.5"),
    ],
)
def test_bad_limits_are_named(kw: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TcpServer(echo, **kw)

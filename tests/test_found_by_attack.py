"""What an adversary found once, each as small as it gets."""

import asyncio
import logging
import socket
import ssl
import struct
from functools import partial
from typing import Any

import pytest

from examples.echo import EchoProtocol, EchoServerProtocol
from pulsar_client import (
    AbstractClient,
    Connection,
    ConnectionClosed,
    DelimitedDecoder,
    Pool,
    PoolClosed,
    PoolUnavailable,
    ProtocolConsumer,
    ProtocolError,
    TcpServer,
)
from pulsar_client.testing import memory_pair

LOOPBACK = ("127.0.0.1", 0)


class Line(ProtocolConsumer):
    """A line for a line, on either side."""

    def start_request(self) -> None:
        self.write(self.request + b"\n")

    def data_received(self, data: bytes) -> bytes:
        line, found, rest = data.partition(b"\n")
        if not found:
            return data
        if self.connection.server_side:
            self.answer(line)
        else:
            self.finished(line)
        return rest

    def answer(self, line: bytes) -> None:
        self.write(line.upper() + b"\n")
        self.finished()


def client_of(consumer: Any = Line) -> AbstractClient:
    return AbstractClient(protocol_factory=partial(Connection, consumer))


def pair(consumer: Any) -> tuple[Connection, Connection]:
    client = client_of().create_protocol()
    server = TcpServer(partial(Connection, consumer)).create_protocol()
    memory_pair(client, server)
    return client, server


@pytest.mark.parametrize("early", [True, False])
async def test_after_starttls_everything_is_encrypted(
    early: bool, server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """The first encrypted request arrives before start_tls returns on the server."""

    class StartTls(Line):
        def answer(self, line: bytes) -> None:
            if line == b"starttls":
                self.write(b"go ahead\n")
                self.create_task(self.encrypt())
            else:
                super().answer(line)

        async def encrypt(self) -> None:
            await self.connection.start_tls(server_ssl)
            self.finished()

    async with (
        TcpServer(partial(Connection, StartTls), address=LOOPBACK) as server,
        client_of() as client,
    ):
        connection = await client.create_connection(server.address)
        assert await connection.request(b"starttls") == b"go ahead"
        await connection.start_tls(client_ssl, server_hostname="localhost")
        if not early:
            await asyncio.sleep(0)
        assert await connection.request(b"secret") == b"SECRET"
        assert connection.is_reusable


async def test_plain_text_in_the_decoder_is_not_taken_for_encrypted(
    server_ssl: ssl.SSLContext,
) -> None:
    connection = Connection(EchoProtocol)
    memory_pair(connection, asyncio.Protocol())
    await connection.event("connection_made")  # type: ignore[misc]
    connection.parser = DelimitedDecoder(b"\n")
    connection.parser.feed(b"DELETE ")
    with pytest.raises(ProtocolError, match="7 bytes of plain text"):
        await connection.start_tls(server_ssl)
    assert not connection.is_reusable
    connection.abort()


@pytest.mark.parametrize("turns", range(4))
async def test_a_start_cancelled_at_any_turn_leaves_no_reader_behind(turns: int) -> None:
    server = TcpServer(partial(Connection, Line), address=LOOPBACK)
    task = asyncio.create_task(server.start_serving())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await server.close()
    async with (
        TcpServer(partial(Connection, Line), address=LOOPBACK) as next_one,
        client_of() as client,
    ):
        connection = await client.create_connection(next_one.address)
        async with asyncio.timeout(5):
            assert await connection.request(b"hi") == b"HI"


async def test_a_reset_behind_pipelined_requests_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with TcpServer(partial(Connection, Line), address=LOOPBACK) as server:
        for _ in range(20):
            with socket.create_connection(server.address) as peer:
                peer.sendall(b"x\n" * 500)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0)
        async with client_of() as client:
            connection = await client.create_connection(server.address)
            assert await connection.request(b"alive") == b"ALIVE"
    assert not [r for r in caplog.records if r.name.startswith(("pulsar_client", "asyncio"))]


async def test_a_reply_on_its_way_is_not_idle() -> None:
    """A9, A10: the idle time-out does not cut it, nor does the grace of a close."""

    class Impatient(Connection):
        close_grace = 0.05

    class Large(Line):
        def answer(self, line: bytes) -> None:
            self.write(b"x" * 3_000_000 + b"\n")
            self.finished()

    async with TcpServer(partial(Impatient, Large), address=LOOPBACK, keep_alive=60) as server:
        reader, writer = await asyncio.open_connection(*server.address, limit=1000)
        writer.write(b"?\n")
        got = 0
        closing = None
        while got < 3_000_001:
            got += len(await reader.read(50_000))
            for connection in server._protocols:
                if connection.timeout == 60:  # from the reply on: the request may come late
                    connection.timeout = 0.05
            await asyncio.sleep(0.003)  # a slow reader, several grace times in all
            if got > 1_500_000 and closing is None:
                closing = asyncio.create_task(server.close(grace=30))
        assert closing is not None
        await closing
        assert await reader.read() == b""
        writer.close()


async def test_a_request_that_is_over_before_it_begins() -> None:
    class Cached(ProtocolConsumer):
        def connection_made(self, connection: Any) -> None:
            self.finished(b"cached")

    connection = Connection(Cached)
    memory_pair(connection, asyncio.Protocol())
    await connection.event("connection_made")  # type: ignore[misc]
    async with asyncio.timeout(5):
        assert await connection.request(b"?") == b"cached"
    connection.abort()


async def test_what_is_written_past_the_connection_counts_as_sent() -> None:
    class Past(Line):
        def start_request(self) -> None:
            self.connection.transport.write(b"pay 100\n")

    connection = Connection(Past)
    memory_pair(connection, asyncio.Protocol())
    await connection.event("connection_made")  # type: ignore[misc]
    request = asyncio.ensure_future(connection.request(b"?"))
    await asyncio.sleep(0)
    connection.abort()
    with pytest.raises(ConnectionClosed) as info:
        await request
    assert info.value.sent


async def test_a_callback_that_raises_cancelled_error_breaks_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def cancelled(sender: object, **kw: object) -> None:
        raise asyncio.CancelledError

    client, server = pair(Line)
    await client.event("connection_made")  # type: ignore[misc]
    for name in ("data_received", "data_processed", "before_write", "after_write"):
        client.bind_event(name, cancelled)
    assert await client.request(b"hi") == b"HI"
    assert len(caplog.records) == 4
    client.abort()
    await server.event("connection_lost")  # type: ignore[misc]


async def test_a_consumer_that_is_done_and_took_nothing_ends_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It never loops."""

    class Takes(Line):
        def data_received(self, data: bytes) -> bytes:
            self.finished()
            return data

    client, server = pair(Takes)
    await client.event("connection_made")  # type: ignore[misc]
    with pytest.raises(ConnectionClosed):
        await client.request(b"?")
    assert "without taking a byte" in caplog.text
    assert server.closed


async def test_half_a_message_behind_a_request_does_not_outlive_the_end_of_file() -> None:
    """A10."""

    class Sized(EchoServerProtocol):
        pass

    async with TcpServer(partial(Connection, Sized), address=LOOPBACK) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"one\r\n\r\nhalf")
        writer.write_eof()
        async with asyncio.timeout(5):
            assert await reader.read() == b"one\r\n\r\n"
        writer.close()


async def test_a_busy_consumer_holds_its_connection_back() -> None:
    """P25: what a client pipelines behind a slow handler does not fill the memory."""
    gate = asyncio.get_running_loop().create_future()

    class Slow(Line):
        busy = False

        def data_received(self, data: bytes) -> bytes:
            if self.busy:
                return data
            return super().data_received(data)

        def answer(self, line: bytes) -> None:
            self.busy = True
            self.create_task(self.later(line))

        async def later(self, line: bytes) -> None:
            await gate
            super().answer(line)

    server = TcpServer(partial(Connection, Slow), address=LOOPBACK)
    async with server:
        reader, writer = await asyncio.open_connection(*server.address)
        sending = asyncio.create_task(_send(writer, b"x" * 999 + b"\n", 20_000))
        for _ in range(300):
            await asyncio.sleep(0)
        (connection,) = server._protocols
        assert len(connection._buffered) < 1_000_000
        gate.set_result(None)
        got = 0
        while got < 20_000_000:
            got += len(await reader.read(2**18))
        await sending
        writer.close()
    assert server.requests_processed == 20_000


async def _send(writer: asyncio.StreamWriter, data: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(data)
        await writer.drain()


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 and later")
def test_many_waiters_and_eager_tasks() -> None:
    """I5, I26: one failed dial tells them all, without recursion."""

    async def refuse() -> Any:
        raise ConnectionRefusedError("nobody listens")

    async def main() -> None:
        factory = asyncio.eager_task_factory  # type: ignore[attr-defined, unused-ignore]
        asyncio.get_running_loop().set_task_factory(factory)
        pool = Pool(refuse, 2)
        outcomes = await asyncio.gather(
            *(pool.connect(timeout=5) for _ in range(3000)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {PoolUnavailable}
        assert pool.stats().size == pool.stats().waiting == 0
        await pool.close()

    asyncio.run(main())


class Foreign:
    """A connection of somebody else's, with faults of its own."""

    closed = False

    def __init__(self, fault: BaseException) -> None:
        self.fault = fault

    def close(self) -> None:
        self.closed = True
        raise self.fault

    def add_closing_callback(self, callback: Any) -> None:
        pass

    def remove_closing_callback(self, callback: Any) -> None:
        raise self.fault


async def test_a_close_that_raises_cancelled_error_loses_no_slot() -> None:
    """I1, I13."""

    async def create() -> Foreign:
        return Foreign(asyncio.CancelledError())

    pool = Pool(create, 1)
    (await pool.connect()).close(discard=True)
    assert pool.stats().size == 0
    await pool.close()


async def test_a_detach_that_fails_still_frees_its_slot() -> None:
    """I5."""

    async def create() -> Foreign:
        return Foreign(ZeroDivisionError())

    pool = Pool(create, 1)
    lease = await pool.connect()
    waiting = asyncio.ensure_future(pool.connect(timeout=5))
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        lease.detach()
    (await waiting).close(discard=True)
    await pool.close()


async def test_a_dial_that_does_not_end_does_not_hold_the_close() -> None:
    """I29."""
    late = asyncio.get_running_loop().create_future()

    async def create() -> Any:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await late

    pool = Pool(create, 1)
    waiting = asyncio.ensure_future(pool.connect())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await pool.close(timeout=0.01)
    with pytest.raises(PoolClosed):
        await waiting
    assert pool.stats().size == 0
    late.set_result(None)
    for _ in range(3):
        await asyncio.sleep(0)

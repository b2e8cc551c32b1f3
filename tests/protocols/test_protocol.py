"""Protocols and their transports: events, address, write, close, abort, TLS in place."""

import asyncio
import contextlib
import logging
import socket
import ssl
from functools import partial
from typing import Any, ClassVar

import pytest
from protocol_kit import (
    Answers,
    Client,
    EchoLine,
    Line,
    Silent,
    connected,
    dialled,
    lost,
    raw_client,
    raw_server,
    served,
    turns,
    until,
)

from pulsar_client import (
    Connection,
    ConnectionClosed,
    Producer,
    Protocol,
    ProtocolConsumer,
    ProtocolError,
    PulsarProtocol,
    TcpServer,
)
from pulsar_client.testing import memory_pair


def test_construction_and_what_it_refuses() -> None:
    producer = Producer()
    logger = logging.getLogger("mine")
    protocol = Protocol(None, 7, producer, logger)
    assert protocol.session == 7
    assert protocol.producer is producer
    assert protocol.logger is logger
    assert protocol.transport is None
    assert protocol.sock is None
    assert protocol.address is None
    assert protocol.closed
    assert repr(protocol) == "<pending> session 7"
    assert PulsarProtocol().session == 1
    assert PulsarProtocol().producer is None
    assert set(protocol.events) == {
        "connection_made",
        "connection_lost",
        "data_received",
        "data_processed",
        "before_write",
        "after_write",
    }
    for kind in (PulsarProtocol, Protocol):
        with pytest.raises(TypeError, match="nonsense"):
            kind(nonsense=1)


async def test_the_life_of_a_protocol() -> None:
    seen: list[Any] = []
    async with raw_server() as (address, accept):
        client = Client(protocol_factory=Protocol)
        protocol = await client.create_connection(address)
        protocol.bind_event("connection_lost", lambda s, exc=None: seen.append((s, exc)))
        assert await protocol.event("connection_made") is protocol
        assert not protocol.closed
        assert protocol.address == address
        assert protocol.sock.getpeername() == address
        assert protocol.transport.get_extra_info("peername") == address
        assert protocol.info()["connection"]["closed"] is False
        assert protocol.info()["producer"]["connections"] == 1
        peer = await accept()
        assert protocol.write(b"hello") is None
        assert await peer.receive_exactly(5) == b"hello"
        event = protocol.close()
        assert protocol.close() is event
        assert protocol.closed
        assert seen == []
        assert await event is protocol
        assert seen == [(protocol, None)]
        assert protocol.address == address  # kept
        assert repr(protocol) == f"{address[0]}:{address[1]} session 1"
        protocol.close()
        protocol.abort()
        await turns()
        assert seen == [(protocol, None)]


async def test_connection_lost_fires_with_the_exception() -> None:
    near, far = await connected()
    seen: list[Any] = []
    near.bind_event("connection_lost", lambda sender, exc=None: seen.append(exc))
    reset = ConnectionResetError("reset")
    near.transport.outgoing.cut(exc=reset)
    await turns()
    assert seen == [reset]
    with pytest.raises(ConnectionResetError):
        await near.close()
    await lost(near, far)


async def test_a_unix_peer_has_the_servers_address(tmp_path: Any) -> None:
    path = tmp_path / "s"
    async with served(address=f"unix:{path}") as server, dialled(server.address) as connection:
        assert connection.address == str(path)
        assert await connection.request(b"x") == b"x"
        (far,) = server._protocols
        assert far.address == str(path)


# -- write -----------------------------------------------------------------------------------


async def test_events_around_a_write() -> None:
    near, far = await connected(server=Silent)
    seen: list[Any] = []
    for name in ("before_write", "after_write"):
        near.bind_event(
            name,
            lambda sender, exc=None, data=None, name=name: seen.append(
                (name, sender, data, near.transport.outgoing.pending)
            ),
        )
    near.write(b"abc")
    assert seen == [("before_write", near, b"abc", 0), ("after_write", near, b"abc", 3)]
    await lost(near, far)


async def test_write_gives_an_awaitable_while_writing_is_paused() -> None:
    near, far = await connected(Silent, Silent, client_kw={"high_limit": 10, "low_limit": 5})
    near.transport.outgoing.pause()
    assert near.write(b"x" * 10) is None
    waits = [near.write(b"x") for _ in range(3)]
    assert near.writing_paused
    assert all(wait is not None for wait in waits)
    tasks = [asyncio.ensure_future(wait) for wait in waits if wait is not None]
    await turns()
    tasks[0].cancel()
    await turns()
    assert tasks[0].cancelled()
    assert not tasks[1].done()
    near.transport.outgoing.resume()
    assert await asyncio.gather(*tasks[1:]) == [None, None]
    assert not near.writing_paused
    assert near.write(b"x") is None
    await lost(near, far)


async def test_the_awaitable_fails_when_the_connection_is_lost() -> None:
    near, far = await connected(Silent, Silent, client_kw={"high_limit": 10, "low_limit": 5})
    near.transport.outgoing.pause()
    early = near.write(b"x" * 11)
    late = near.write(b"x")
    assert early is not None
    assert late is not None
    tasks = [asyncio.ensure_future(early) for _ in range(2)]
    await turns()
    near.abort()
    for task in tasks:
        with pytest.raises(ConnectionClosed):
            await task
    with pytest.raises(ConnectionClosed):
        await late  # also when nobody waited at the time
    await lost(near, far)


async def test_writes_that_nobody_awaits_cost_nothing() -> None:
    near, far = await connected(Silent, Silent, client_kw={"high_limit": 10})
    near.transport.outgoing.pause()
    for _ in range(20_000):  # quadratic work would take minutes
        near.write(b"x" * 11)
    assert not near._drain_waiters
    near.abort()
    await lost(near, far)


async def test_cancelled_waits_cost_no_memory() -> None:
    near, far = await connected(Silent, Silent, client_kw={"high_limit": 10})
    near.transport.outgoing.pause()
    for _ in range(50):
        wait = near.write(b"x" * 11)
        assert wait is not None
        task = asyncio.ensure_future(wait)
        await turns(1)
        task.cancel()
        await turns(1)
    assert not near._drain_waiters
    near.abort()
    await lost(near, far)


@pytest.mark.parametrize("state", ["new", "closing", "aborted", "lost", "transport closing"])
async def test_writing_to_a_connection_that_is_not_open_raises(state: str) -> None:
    if state == "new":
        with pytest.raises(ConnectionClosed):
            Protocol().write(b"x")
        return
    near, far = await connected()
    if state == "transport closing":
        near.transport.close()
    elif state == "aborted":
        near.abort()
    else:
        closed = near.close()
        if state == "lost":
            await closed
    with pytest.raises(ConnectionClosed) as caught:
        near.write(b"x")
    assert caught.value.sent is False
    await lost(near, far)


async def test_data_that_is_no_bytes_is_refused() -> None:
    near, far = await connected()
    with pytest.raises(TypeError):
        near.write("text")  # type: ignore[arg-type]
    assert near.is_reusable
    await lost(near, far)


# -- close and abort -------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_closing_what_never_had_a_transport(end: str) -> None:
    protocol = Connection(Line)
    seen: list[Any] = []
    protocol.bind_event("connection_made", lambda sender, exc=None: seen.append((sender, exc)))
    waiting = asyncio.ensure_future(protocol.close() if end == "close" else never_made(protocol))
    if end == "abort":
        protocol.abort()
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionClosed):
            await waiting
        assert await protocol.close() is protocol
    ((sender, exc),) = seen
    assert sender is protocol
    assert isinstance(exc, ConnectionClosed)
    with pytest.raises(ConnectionClosed):
        await protocol.event("connection_made")


async def never_made(protocol: Connection) -> Any:
    return await protocol.event("connection_made")  # type: ignore[misc]


async def test_closing_before_the_connection_is_made() -> None:
    near, far = Connection(Line), Connection(EchoLine, producer=Answers())
    near.close()
    memory_pair(near, far)
    await turns(1)
    assert near.closed
    async with asyncio.timeout(5):
        await near.close()
    with pytest.raises(ConnectionClosed):
        await near.event("connection_made")  # type: ignore[misc]
    late: list[Any] = []
    fresh = Connection(Line)
    fresh.abort()
    fresh.bind_event("connection_made", lambda sender, exc=None: late.append(sender))
    assert late == [fresh]
    await turns()
    assert far.closed


async def test_a_callback_that_closes_what_is_lost_fires_nothing_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pool that hears of the end closes the connection: that is no second end."""
    near, far = await connected()
    ends: list[Any] = []
    near.add_closing_callback(lambda connection: ends.append(connection.close()))
    near.transport.outgoing.cut(exc=ConnectionResetError())
    await turns()
    assert not caplog.records
    assert ends[0].done()
    with pytest.raises(ConnectionResetError):
        await ends[0]
    await lost(near, far)


async def test_a_failing_closing_callback_hangs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    near, far = await connected()

    def fails(connection: object) -> None:
        raise LookupError("oops")

    near.add_closing_callback(fails)
    near.transport.abort()
    await near.close()
    assert "oops" in caplog.text
    await lost(near, far)


class Bulk(ProtocolConsumer):
    """Server: writes a lot and closes."""

    size = 20_000_000

    def data_received(self, data: bytes) -> None:
        self.write(bytes(self.size))
        self.finished()
        self.connection.close_grace = 30
        self.connection.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_close_delivers_what_was_written_before(
    tls: bool, server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """A5: 20 MB."""

    class Count(ProtocolConsumer):
        received = 0

        def start_request(self) -> None:
            self.write(b"go")

        def data_received(self, data: bytes) -> None:
            self.received += len(data)

        def connection_lost(self, exc: BaseException | None) -> None:
            self.finished(self.received)

    async with (
        served(Bulk, sslcontext=server_ssl if tls else None) as server,
        dialled(server.address, Count, ssl=client_ssl if tls else None) as connection,
    ):
        assert await connection.request(None) == Bulk.size
        await until(lambda: not server._protocols)


async def test_writes_while_paused_arrive_over_tls(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """A5."""
    async with (
        served(EchoLine, sslcontext=server_ssl) as server,
        dialled(server.address, ssl=client_ssl) as connection,
    ):
        for _ in range(3):
            message = b"x" * 3_000_000
            assert await connection.request(message) == message


@pytest.mark.parametrize("tls", [False, True])
async def test_closing_to_a_stuck_peer_ends_with_an_abort(
    tls: bool, server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """A11: bounded by ``close_grace``, and no CancelledError."""

    class Impatient(Connection):
        close_grace = 0.05

    class Deaf(Silent):
        def data_received(self, data: bytes) -> None:
            self.connection.pause_reading()

    async with (
        served(Deaf, sslcontext=server_ssl if tls else None) as server,
        dialled(
            server.address, Silent, connection=Impatient, ssl=client_ssl if tls else None
        ) as connection,
    ):
        connection.write(b"go")
        await until(lambda: server.requests_processed)
        connection.write(bytes(30_000_000))
        async with asyncio.timeout(5):
            assert await connection.close() is connection
        for protocol in tuple(server._protocols):
            protocol.abort()


async def test_the_grace_is_three_seconds() -> None:
    assert Connection.close_grace == 3.0


# -- TLS in place ----------------------------------------------------------------------------


class StartTls(EchoLine):
    """Server: the line ``tls`` starts TLS; the request ends when the handshake did."""

    context: ssl.SSLContext
    failures: ClassVar[list[BaseException]]
    task: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> bytes:
        if self.task is not None:
            return data
        line, rest = self.decoder.decode(data)
        if line == b"tls":
            self.write(b"go ahead\n")
            self.task = asyncio.create_task(self.shake())
            return rest
        if line is not None:
            self.write(line + b"\n")
            self.finished()
        return rest

    async def shake(self) -> None:
        try:
            await self.connection.start_tls(self.context)
        except BaseException as exc:
            self.failures.append(exc)
            self.connection.close()
            self.finished(exc=exc)
            if isinstance(exc, asyncio.CancelledError):
                raise
        else:
            self.finished()


@contextlib.asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> Any:
    class Consumer(StartTls):
        failures: ClassVar[list[BaseException]] = []

    Consumer.context = context
    async with served(Consumer) as server:
        yield server, Consumer.failures


async def test_start_tls_in_place(server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext) -> None:
    async with (
        tls_server(server_ssl) as (server, failures),
        dialled(server.address) as connection,
    ):
        assert await connection.request(b"plain") == b"plain"
        assert await connection.request(b"tls") == b"go ahead"
        before = connection.transport
        await connection.start_tls(client_ssl, "localhost")
        assert connection.transport is not before
        assert connection.transport.get_extra_info("ssl_object") is not None
        assert not connection.closed
        assert await connection.request(b"secret") == b"secret"
        message = b"x" * 2_000_000
        assert await connection.request(message) == message
        assert connection.is_reusable
        await connection.close()
        await until(lambda: not server._protocols)
    assert failures == []


async def test_start_tls_keeps_the_write_limits(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    async with tls_server(server_ssl) as (server, _):
        limited = partial(Connection, low_limit=1000, high_limit=2000)
        async with dialled(server.address, connection=limited) as connection:
            await connection.request(b"tls")
            await connection.start_tls(client_ssl, "localhost")
            assert connection.transport.get_write_buffer_limits() == (1000, 2000)


async def test_a_failed_handshake_closes_both_sides(
    server_ssl: ssl.SSLContext, caplog: pytest.LogCaptureFixture, loop_errors: list[Any]
) -> None:
    """The client does not trust the server."""
    async with (
        tls_server(server_ssl) as (server, failures),
        dialled(server.address) as connection,
    ):
        await connection.request(b"tls")
        with pytest.raises(ssl.SSLCertVerificationError):
            await connection.start_tls(ssl.create_default_context(), "localhost")
        assert connection.closed
        assert not connection.is_reusable
        async with asyncio.timeout(5):
            with contextlib.suppress(OSError):
                await connection.close()
            await until(lambda: not server._protocols and failures)
        assert isinstance(failures[0], OSError)
        with pytest.raises(RuntimeError, match="closed"):
            await connection.start_tls(server_ssl)


@pytest.mark.parametrize("end", ["cancel", "peer", "close", "abort"])
async def test_a_handshake_that_does_not_end(client_ssl: ssl.SSLContext, end: str) -> None:
    """I3, A11: cancelled, lost or closed, nobody waits for ever and nothing is left."""
    async with raw_server() as (address, accept), dialled(address) as connection:
        peer = await accept()
        task = asyncio.create_task(connection.start_tls(client_ssl, "localhost"))
        assert (await peer.receive())[0] == 22  # the handshake has begun
        if end == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            if end == "peer":
                peer.sock.close()
            elif end == "close":
                connection.close()
            else:
                connection.abort()
            with pytest.raises(OSError):  # noqa: PT011
                await task
        assert connection.closed
        async with asyncio.timeout(5):
            with contextlib.suppress(OSError):
                await connection.close()
        assert not connection.producer._protocols


async def test_plain_text_behind_the_request_for_tls_is_refused(
    server_ssl: ssl.SSLContext,
) -> None:
    """Bytes injected before the handshake must not count as encrypted ones."""
    async with (
        tls_server(server_ssl) as (server, failures),
        raw_client(server.address) as client,
    ):
        await client.send(b"tls\ninjected\n")
        assert await client.receive_all() == b"go ahead\n"
        await until(lambda: not server._protocols)
        assert server.requests_processed == 1
    (failure,) = failures
    assert isinstance(failure, ProtocolError)
    assert "plain text" in str(failure)


async def test_start_tls_while_writing_is_paused_goes_on_afterwards(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """The pause must not outlive the transport that asked for it."""

    class Greets(StartTls):
        failures: ClassVar[list[BaseException]] = []
        context = server_ssl

        def data_received(self, data: bytes) -> bytes:
            if data == b"tls\n":
                self.write(b"x" * 5_000_000)
                assert self.connection.writing_paused
            return super().data_received(data)

    async with served(Greets) as server, dialled(server.address) as connection:
        answer = await connection.request(b"tls")
        assert len(answer) == 5_000_000 + len(b"go ahead")
        await connection.start_tls(client_ssl, "localhost")
        assert await connection.request(b"secret") == b"secret"
        (far,) = server._protocols
        assert not far.writing_paused
        assert Greets.failures == []


async def test_start_tls_without_a_connection_is_an_error(client_ssl: ssl.SSLContext) -> None:
    with pytest.raises(RuntimeError, match="closed"):
        await Connection(Line).start_tls(client_ssl)


async def test_a_server_that_only_speaks_protocols_can_be_served() -> None:
    """A plain ``Protocol`` on a ``TcpServer``."""

    class Upper(Protocol):
        def data_received(self, data: bytes) -> None:
            self.write(data.upper())

    server = TcpServer(Upper, address=("127.0.0.1", 0))
    async with server, raw_client(server.address) as client:
        await client.send(b"hello")
        assert await client.receive() == b"HELLO"
        client.sock.shutdown(socket.SHUT_WR)
        assert await client.receive() == b""


@pytest.mark.parametrize("base", [Protocol, Connection])
async def test_a_constructor_may_use_the_protocol_before_that_of_its_base(
    base: type[Protocol],
) -> None:
    told: list[Any] = []

    class Early(base):  # type: ignore[misc,valid-type]
        def __init__(self, **kw: Any) -> None:
            self.timeout = 5
            self.bind_event("before_write", lambda sender, exc=None, data=b"": told.append(data))
            self.event("connection_made").bind(lambda sender, exc=None: told.append("made"))
            assert self.closed
            super().__init__(**kw)

    near = Early()
    far = Connection(Silent, producer=Answers())
    memory_pair(near, far)
    await turns(1)
    assert told == ["made"]
    assert near.timeout == 5
    near.write(b"x")
    assert told == ["made", b"x"]
    near.abort()
    await lost(near, far)

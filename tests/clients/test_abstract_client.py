"""Clients: connections to every kind of address, TLS, time limits, cancellation anywhere."""

import asyncio
import errno
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from pulsar_client import (
    AbortEvent,
    AbstractClient,
    Connection,
    ConnectionClosed,
    Pool,
    ProtocolConsumer,
    TcpServer,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc, and full queues as on Linux")


class Upper(ProtocolConsumer):
    """One line there, the same in capitals back."""

    def start_request(self) -> None:
        self.write(self.request)

    def data_received(self, data: bytes) -> bytes | None:
        if not data.endswith(b"\n"):
            return data
        if self.connection.server_side:
            self.write(data.upper())
            self.finished()
        else:
            self.finished(data)
        return None


class Client(AbstractClient):
    protocol_factory = partial(Connection, Upper)


@asynccontextmanager
async def serving(
    address: Any = ("127.0.0.1", 0), sslcontext: ssl.SSLContext | None = None
) -> AsyncIterator[TcpServer]:
    server = TcpServer(partial(Connection, Upper), address=address)
    await server.start_serving(sslcontext=sslcontext)
    async with server:
        yield server


@pytest.fixture
def deaf() -> Iterator[Any]:
    """Give the address of a listener whose queue is full: a connect to it waits."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        yield listener.getsockname()


@pytest.fixture
def mute() -> Iterator[Any]:
    """Give the address of a listener that connects and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(20)
        yield listener.getsockname()


async def turns(count: int = 1) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await turns()


def descriptors() -> set[str]:
    """The sockets of this process, by what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return {name for name in found if name.startswith("socket:")}


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_tcp(host: str) -> None:
    async with serving((host, 0)) as server, Client() as client:
        connection = await client.create_connection(server.address)
        assert isinstance(connection, Connection)
        assert await connection.request(b"hello\n") == b"HELLO\n"
        assert connection.address[:2] == server.address[:2]
        assert connection.producer is client
        assert (client.sessions, client.requests_processed) == (1, 1)


async def test_a_host_with_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that do not answer are passed over, whatever their family."""
    async with serving() as server, Client() as client:
        port = server.address[1]
        lookups = []

        async def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
            lookups.append((host, port))
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            ]

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        connection = await client.create_connection(("many.example", port))
        assert await connection.request(b"x\n") == b"X\n"
        assert lookups == [("many.example", port)]
        assert client.sessions == 1


async def test_a_host_none_of_whose_addresses_answers(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    async def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port))
            for name in ("127.0.0.2", "127.0.0.3")
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with Client() as client:
        with pytest.raises(ConnectionRefusedError) as info:
            await client.create_connection(("many.example", free_port))
        for name in ("127.0.0.2", "127.0.0.3", "many.example"):
            assert name in str(info.value)
        assert client.sessions == 0


async def test_unix() -> None:
    with tempfile.TemporaryDirectory(prefix="cl-") as folder:
        address = f"unix:{Path(folder, 's')}"
        async with serving(address) as server, Client() as client:
            connection = await client.create_connection(server.address)
            assert await connection.request(b"x\n") == b"X\n"


async def test_a_refused_connection(free_port: int) -> None:
    async with Client() as client:
        with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{free_port}"):
            await client.create_connection(("127.0.0.1", free_port))
        with pytest.raises(FileNotFoundError, match="unix:/nowhere/at/all"):
            await client.create_connection("unix:/nowhere/at/all")


async def test_local_addr(free_port: int) -> None:
    async with serving(("127.0.0.1", 0)) as server, Client() as client:
        connection = await client.create_connection(
            server.address, local_addr=("127.0.0.5", free_port)
        )
        assert connection.transport.get_extra_info("sockname") == ("127.0.0.5", free_port)
        assert await connection.request(b"x\n") == b"X\n"
        with pytest.raises(OSError, match=r"192\.0\.2\.1") as info:
            await client.create_connection(server.address, local_addr=("192.0.2.1", 0))
        assert info.value.errno == errno.EADDRNOTAVAIL


# -- TLS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
async def test_tls_verifies_the_name_that_was_asked_for(
    host: str, server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    where = "::1" if host == "::1" else "127.0.0.1"
    async with serving((where, 0), server_ssl) as server, Client() as client:
        address = (host, server.address[1])
        connection = await client.create_connection(address, ssl=client_ssl)
        assert connection.transport.get_extra_info("ssl_object") is not None
        assert await connection.request(b"x\n") == b"X\n"


async def test_tls_of_another_name_is_refused(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    async with serving(("127.0.0.1", 0), server_ssl) as server, Client() as client:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"other\.example"):
            await client.create_connection(
                server.address, ssl=client_ssl, server_hostname="other.example"
            )
        connection = await client.create_connection(
            server.address, ssl=client_ssl, server_hostname="localhost"
        )
        assert await connection.request(b"x\n") == b"X\n"


async def test_tls_of_another_ip_address_is_refused(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    async with serving(("127.0.0.2", 0), server_ssl) as server, Client() as client:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.2"):
            await client.create_connection(server.address, ssl=client_ssl)


@pytest.mark.parametrize("context", ["system", "other"])
async def test_tls_of_an_unknown_authority_is_refused(
    context: str, server_ssl: ssl.SSLContext
) -> None:
    """By default the authorities of the system are trusted and nobody else."""
    wanted: Any = True
    if context == "other":
        wanted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trustme.CA().configure_trust(wanted)
    async with serving(("127.0.0.1", 0), server_ssl) as server, Client() as client:
        with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
            await client.create_connection(server.address, ssl=wanted)


async def test_tls_over_unix(server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext) -> None:
    with tempfile.TemporaryDirectory(prefix="cl-") as folder:
        address = f"unix:{Path(folder, 's')}"
        async with serving(address, server_ssl) as server, Client() as client:
            with pytest.raises(ValueError, match="server_hostname is needed"):
                await client.create_connection(server.address, ssl=client_ssl)
            connection = await client.create_connection(
                server.address, ssl=client_ssl, server_hostname="localhost"
            )
            assert await connection.request(b"x\n") == b"X\n"
            with pytest.raises(ssl.SSLCertVerificationError):
                await client.create_connection(
                    server.address, ssl=client_ssl, server_hostname="other.example"
                )


async def test_tls_to_a_server_that_speaks_plain_text(client_ssl: ssl.SSLContext) -> None:
    def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example ESMTP\r\n" * 3)
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server, Client() as client:
        with pytest.raises(OSError):  # noqa: PT011 - what OpenSSL says differs
            await client.create_connection(server.sockets[0].getsockname(), ssl=client_ssl)


async def test_a_plain_client_sends_nothing_of_its_own(server_ssl: ssl.SSLContext) -> None:
    async with serving() as server, Client() as client:
        for off in (None, False):
            connection = await client.create_connection(server.address, ssl=off)
            assert connection.transport.get_extra_info("ssl_object") is None


# -- time limits -------------------------------------------------------------------------------


@linux
async def test_a_deaf_listener(deaf: Any) -> None:
    """I12, I3."""
    before = descriptors()
    async with Client() as client:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(TimeoutError, match=f"127.0.0.1:{deaf[1]}: .* 0.1 s"):
            await client.create_connection(deaf, timeout=0.1)
        assert 0.09 <= loop.time() - started < 20.0  # the system would try for two minutes
        assert descriptors() == before
        assert client.sessions == 0


@linux
async def test_a_listener_that_says_nothing_during_the_handshake(
    mute: Any, client_ssl: ssl.SSLContext
) -> None:
    """I12, I3."""
    before = descriptors()
    async with Client() as client:
        with pytest.raises(TimeoutError, match=f"127.0.0.1:{mute[1]}: .* 0.1 s"):
            await client.create_connection(mute, ssl=client_ssl, timeout=0.1)
        await turns(5)
        assert descriptors() == before
        assert len(client._protocols) == 0


async def test_the_time_limit_of_the_class(mute: Any, client_ssl: ssl.SSLContext) -> None:
    class Hasty(Client):
        connect_timeout = 0.05

    async with Hasty() as client:
        with pytest.raises(TimeoutError, match=r"0\.05 s"):
            await client.create_connection(mute, ssl=client_ssl)
    assert Client.connect_timeout == 10.0


async def test_the_time_limit_covers_the_callbacks_of_connection_made(mute: Any) -> None:
    stuck = asyncio.Event()
    async with Client() as client:
        with pytest.raises(TimeoutError):
            await client.create_connection(mute, with_callback(stuck.wait), timeout=0.5)
        await until(lambda: not client._protocols)
        assert client.sessions == 1
    stuck.set()


async def test_the_time_out_of_another_is_not_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = TimeoutError("of the callback")

    async def failing(*args: Any, **kw: Any) -> Any:
        raise own

    async with Client() as client:
        monkeypatch.setattr(client, "_connect", failing)
        with pytest.raises(TimeoutError) as info:
            await client.create_connection(("127.0.0.1", 1))
        assert info.value is own


# -- cancellation ------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("kind", ["plain", "tls", "unix", "name", "callback", "mute tls"])
async def test_cancelled_at_every_turn(
    kind: str, mute: Any, server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """I3, I11: no descriptor, no task, no protocol that waits for its end."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="cl-") as folder:
        address: Any = f"unix:{Path(folder, 's')}" if kind == "unix" else ("127.0.0.1", 0)
        async with serving(address, server_ssl if kind == "tls" else None) as server:
            target: Any = server.address
            kw: dict[str, Any] = {}
            factory = None
            if kind == "name":
                target = ("localhost", server.address[1])
                await loop.getaddrinfo("localhost", 1)
            elif kind in ("tls", "mute tls"):
                kw["ssl"] = client_ssl
                target = mute if kind == "mute tls" else target
            elif kind == "callback":
                factory = with_callback(lambda: turns(5))
            before = descriptors()
            k = finished = 0
            while finished < 3 and k < 400:
                client = Client()
                running = loop.create_task(client.create_connection(target, factory, **kw))
                await turns(k)
                k += 1
                if running.done():
                    finished += 1
                running.cancel()
                await asyncio.wait([running])
                if running.cancelled():
                    assert len(client._protocols) == 0 or kind == "callback"
                else:
                    running.result()
                async with asyncio.timeout(5.0):
                    client.abort()
                    await client.wait_closed()
                assert len(client._protocols) == 0
                # The server's side, accepted or not, goes with the next looks at its sockets.
                await until(lambda: not server._protocols and descriptors() <= before)
            assert k > 3


@linux
async def test_cancelled_while_the_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """I3."""
    before = descriptors()

    async def getaddrinfo(*args: Any, **kw: Any) -> Any:
        await asyncio.sleep(60.0)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    client = Client()
    running = asyncio.create_task(client.create_connection(("some.example", 1)))
    await turns(3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert descriptors() == before


async def test_a_cancelled_connection_does_not_hold_up_the_end_of_the_client() -> None:
    """I29: in particular one that was made, and nobody had been told."""
    async with serving() as server:
        for k in range(12):
            client = Client()
            running = asyncio.create_task(client.create_connection(server.address))
            await turns(k)
            running.cancel()
            await asyncio.wait([running])
            client.close()
            async with asyncio.timeout(2.0):
                await client.wait_closed()
            assert len(client._protocols) == 0


# -- callbacks ---------------------------------------------------------------------------------


def with_callback(callback: Callable[[], Any]) -> Callable[..., Connection]:
    """A protocol factory whose connections call back when they are made."""

    def factory(**kw: Any) -> Connection:
        connection = Connection(Upper, **kw)

        async def made(sender: Any, exc: Any = None) -> None:
            await callback()

        connection.bind_event("connection_made", made)
        return connection

    return factory


async def test_coroutine_callbacks_of_connection_made_are_awaited() -> None:
    seen = []

    async def handshake() -> None:
        await turns(5)
        seen.append("done")

    async with serving() as server, Client() as client:
        connection = await client.create_connection(server.address, with_callback(handshake))
        assert seen == ["done"]
        assert await connection.request(b"x\n") == b"X\n"


async def test_their_abort_event_is_raised_and_the_transport_closed() -> None:
    async def refuse() -> None:
        await turns(2)
        raise AbortEvent("wrong password")

    made = []

    def factory(**kw: Any) -> Connection:
        connection = with_callback(refuse)(**kw)
        made.append(connection)
        return connection

    async with serving() as server, Client() as client:
        with pytest.raises(AbortEvent, match="wrong password"):
            await client.create_connection(server.address, factory)
        assert made[0].closed
        assert made[0].transport.is_closing()
        await until(lambda: not client._protocols and not server._protocols)


async def test_another_exception_of_theirs_is_logged_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async with serving() as server, Client() as client:
        connection = await client.create_connection(server.address, with_callback(fail))
        assert not connection.closed
    assert "ZeroDivisionError" in caplog.text


async def test_the_callbacks_of_the_client_are_called() -> None:
    seen: list[Any] = []
    async with serving() as server, Client() as client:
        client.bind_event("connection_made", lambda sender, exc=None: seen.append(sender))
        client.bind_event("connection_lost", lambda sender, exc=None: seen.append("lost"))
        connection = await client.create_connection(server.address)
        assert seen == [connection]
        await connection.close()
        assert seen == [connection, "lost"]


async def test_a_protocol_factory_that_fails() -> None:
    """I3: its exception reaches the caller."""

    def factory(**kw: Any) -> Any:
        raise ZeroDivisionError

    async with serving() as server, Client() as client:
        with pytest.raises(ZeroDivisionError):
            await client.create_connection(server.address, factory)
        await until(lambda: not server._protocols)
    with pytest.raises(TypeError, match="has no protocol_factory"):
        async with serving() as server, AbstractClient() as bare:
            await bare.create_connection(server.address)


async def test_keywords_for_the_protocol() -> None:
    async with serving() as server, Client() as client:
        connection = await client.create_connection(server.address, timeout=5.0, low_limit=10)
        assert not connection.closed
        with pytest.raises(TypeError, match="colour"):
            await client.create_connection(server.address, colour="blue")


async def test_a_plain_asyncio_protocol() -> None:
    async with serving() as server:
        client = AbstractClient()
        made = []

        def factory(**kw: Any) -> asyncio.Protocol:
            made.append(kw)
            return asyncio.Protocol()

        protocol = await client.create_connection(server.address, factory)
        assert isinstance(protocol, asyncio.Protocol)
        assert made[0]["session"] == 1
        assert made[0]["producer"] is client
        await server.close()


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "abort", "async with"])
async def test_the_end_of_a_client(how: str) -> None:
    async with serving() as server:
        client = Client()
        connections = [await client.create_connection(server.address) for _ in range(3)]
        assert repr(client) == "<Client 'client': 3 connections, 0 requests>"
        if how == "async with":
            async with client as same:
                assert same is client
        else:
            getattr(client, how)()
            assert all(connection.closed for connection in connections)
            await client.wait_closed()
            getattr(client, how)()
            await client.wait_closed()
        assert all(connection.transport.is_closing() for connection in connections)
        assert len(client._protocols) == 0
        await until(lambda: not server._protocols)


async def test_close_sends_what_was_written() -> None:
    received = []
    done = asyncio.Event()

    class Sink(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.append(len(data))

        def connection_lost(self, exc: BaseException | None) -> None:
            done.set()

    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    async with Client() as client:
        connection = await client.create_connection(server.sockets[0].getsockname())
        connection.write(bytes(3_000_000))
        client.close()
        with pytest.raises(ConnectionClosed):
            connection.write(b"more")
        await client.wait_closed()
        async with asyncio.timeout(5.0):
            await done.wait()
    assert sum(received) == 3_000_000
    server.close()
    await server.wait_closed()


async def test_the_end_of_a_client_with_a_pool() -> None:
    """I29: idle ones at once, leased ones at their release; others of its own too."""
    async with serving() as server:
        client = Client()
        client.pool = pool = Pool(partial(client.create_connection, server.address), 2)
        lease = await pool.connect()
        (await pool.connect()).close()
        other = await client.create_connection(server.address)
        client.close()
        assert pool.closed
        assert other.closed
        assert not lease.closed
        assert pool.available == 0
        waiting = asyncio.create_task(client.wait_closed())
        await turns(5)
        assert not waiting.done()
        assert await lease.request(b"x\n") == b"X\n"
        lease.close()
        await waiting
        assert len(client._protocols) == 0


async def test_aborting_a_client_with_a_pool() -> None:
    async with serving() as server:
        client = Client()
        client.pool = pool = Pool(partial(client.create_connection, server.address), 2)
        lease = await pool.connect()
        raw = lease.connection
        client.abort()
        async with asyncio.timeout(20.0):  # for ever, would it wait for the lease
            await client.wait_closed()
        assert raw.closed
        assert pool.stats().size == 0
        lease.close()


# -- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kw"),
    [
        (ValueError, {"timeout": -1}),
        (ValueError, {"timeout": True}),
        (ValueError, {"timeout": "soon"}),
        (TypeError, {"ssl": "yes"}),
        (TypeError, {"ssl": 1}),
        (ValueError, {"server_hostname": "a.example"}),
        (TypeError, {"local_addr": "127.0.0.1"}),
        (ValueError, {"local_addr": ("127.0.0.1", 70_000)}),
        (ValueError, {"address": ("127.0.0.1", 70_000)}),
        (ValueError, {"address": "127.0.0.1:80"}),
        (TypeError, {"address": 80}),
        (TypeError, {"address": None}),
    ],
    ids=repr,
)
async def test_a_bad_argument_is_named(error: type[Exception], kw: dict[str, Any]) -> None:
    client = Client()
    value = next(iter(kw.values()))
    with pytest.raises((TypeError, ValueError)) as info:
        await client.create_connection(**{"address": ("127.0.0.1", 1), **kw})
    assert repr(value) in str(info.value)
    assert isinstance(info.value, error)


async def test_bad_arguments_of_the_constructor() -> None:
    with pytest.raises(TypeError, match="protocol_factory is 3"):
        AbstractClient(protocol_factory=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_requests is -1"):
        AbstractClient(max_requests=-1)
    with pytest.raises(TypeError):
        AbstractClient(colour="blue")  # type: ignore[call-arg]
    with pytest.raises(NotImplementedError, match="AbstractClient does not implement connect"):
        AbstractClient().connect()

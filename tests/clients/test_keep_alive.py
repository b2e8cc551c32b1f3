"""Peers that vanish without a word are noticed within a set bound (I23)."""

import asyncio
import contextlib
import errno
import math
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from vanishing import Network, Unavailable, two_hosts

from pulsar_client import AbstractClient, Connection, ConnectionClosed, Pool, ProtocolConsumer
from pulsar_client.clients.keep_alive import KeepAlive

linux = pytest.mark.skipif(sys.platform != "linux", reason="the names and limits of Linux")

#: Bounds short enough for a test: a probe after one second, lost after one more.
SHORT: dict[str, Any] = {
    "keep_alive": 1,
    "keep_alive_interval": 1,
    "keep_alive_count": 1,
    "user_timeout": 1.5,
}
#: Seconds in which the system must have noticed, on a machine that is busy.
NOTICED = 10.0


class Ask(ProtocolConsumer):
    def start_request(self) -> None:
        self.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.finished(data)


class Client(AbstractClient):
    protocol_factory = partial(Connection, Ask)


@contextlib.contextmanager
def listening(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> Iterator[Any]:
    with socket.socket(family) as sock:
        sock.bind(address)
        sock.listen(16)
        yield sock


def option(sock: Any, name: str) -> int:
    value: int = sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
    return value


def options(sock: Any) -> tuple[int, ...]:
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        *(option(sock, f"TCP_KEEP{name}") for name in ("IDLE", "INTVL", "CNT")),
        option(sock, "TCP_USER_TIMEOUT"),
    )


# -- the options -------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_i23_on_by_default(host: str) -> None:
    """An idle peer and one with unacknowledged data are given half a minute."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with listening(family, (host, 0)) as listener:
        async with Client() as client:
            connection = await client.create_connection(listener.getsockname())
            assert options(connection.sock) == (1, 15, 5, 3, 30_000)
            assert option(connection.sock, "TCP_NODELAY") == 1


@linux
async def test_set_by_the_caller() -> None:
    with listening() as listener:
        async with Client() as client:
            connection = await client.create_connection(
                listener.getsockname(),
                keep_alive=7.2,  # the system counts whole seconds
                keep_alive_interval=2,
                keep_alive_count=4,
                user_timeout=0.25,
            )
            assert options(connection.sock) == (1, 8, 2, 4, 250)


@linux
async def test_none_switches_off() -> None:
    with listening() as listener, socket.socket() as untouched:
        async with Client() as client:
            connection = await client.create_connection(
                listener.getsockname(), keep_alive=None, user_timeout=None
            )
            assert options(connection.sock) == options(untouched)
            assert options(untouched)[0] == options(untouched)[-1] == 0


@linux
async def test_over_tls(server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext) -> None:
    async def serve(reader: Any, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_ssl)
    async with server, Client() as client:
        address = server.sockets[0].getsockname()
        connection = await client.create_connection(address, ssl=client_ssl, keep_alive=9)
        assert options(connection.sock) == (1, 9, 5, 3, 30_000)
        client.close()
        await client.wait_closed()


async def test_a_unix_socket_needs_none() -> None:
    with tempfile.TemporaryDirectory(prefix="ka-") as folder:
        path = str(Path(folder, "s"))
        with listening(socket.AF_UNIX, path):
            async with Client() as client:
                connection = await client.create_connection(f"unix:{path}", keep_alive=1)
                assert not connection.closed


@pytest.mark.parametrize("missing", ["_IDLE", "_INTERVAL", "_COUNT", "_USER_TIMEOUT"])
async def test_a_system_without_an_option(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"pulsar_client.clients.keep_alive.{missing}", None)
    with listening() as listener:
        async with Client() as client:
            connection = await client.create_connection(listener.getsockname())
            assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.mark.parametrize("name", ["keep_alive", "keep_alive_interval", "user_timeout"])
@pytest.mark.parametrize("value", [0, -1, True, "5", math.nan, math.inf, 1e9])
async def test_seconds_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is {value!r}, expected .* seconds"):
        await Client().create_connection(("127.0.0.1", 1), **{name: value})


@pytest.mark.parametrize("value", [0, -1, 128, True, 1.5, None])
async def test_a_count_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^keep_alive_count is {value!r}, expected"):
        await Client().create_connection(("127.0.0.1", 1), keep_alive_count=value)


async def test_an_interval_can_not_be_none() -> None:
    with pytest.raises(ValueError, match=r"^keep_alive_interval is None, expected"):
        await Client().create_connection(("127.0.0.1", 1), keep_alive_interval=None)  # type: ignore[arg-type]


@linux
def test_the_system_takes_the_limits() -> None:
    with socket.socket() as sock:
        KeepAlive(32767, 32767, 127, 2_147_482.0).apply(sock)
        assert options(sock) == (1, 32767, 32767, 127, 2_147_482_000)


async def test_a_refused_option_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulsar_client.clients.keep_alive._COUNT", 9999)
    with listening() as listener:
        async with Client() as client:
            with pytest.raises(OSError, match=errno_text(errno.ENOPROTOOPT)):
                await client.create_connection(listener.getsockname())


def errno_text(number: int) -> str:
    return f"Errno {number}"


# -- peers that vanish -------------------------------------------------------------------------


@pytest.fixture
def network() -> Iterator[Network]:
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(two_hosts())
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield network


async def lost(connection: Any) -> BaseException | None:
    """Wait for the loss; what it was lost with."""
    try:
        async with asyncio.timeout(NOTICED):
            await connection.event("connection_lost")
    except OSError as exc:
        return exc
    return None


def gone(exc: BaseException | None) -> bool:
    """The error of a peer that does not answer, as the system knows it."""
    return isinstance(exc, OSError) and exc.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH)


async def test_i23_an_idle_connection_to_a_vanished_peer_is_lost(network: Network) -> None:
    """aioredis 638 (I23): the next caller blocked for 15 minutes.

    Here it leaves the pool by itself; nobody had to use it.
    """
    with network.listen() as listener:
        async with Client() as client:
            dial = partial(client.create_connection, listener.getsockname(), **SHORT)
            async with Pool(dial) as pool:
                async with pool.connect() as lease:
                    connection = lease.connection
                accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
                with accepted:
                    network.vanish()
                    assert pool.available == 1
                    assert gone(await lost(connection))
                    assert pool.available == 0
                    assert connection not in pool


async def test_i23_without_the_options_nobody_notices(network: Network) -> None:
    """What the options are good for: the same peer, the same time."""
    with network.listen() as listener:
        async with Client() as client:
            connect = client.create_connection
            watched = await connect(listener.getsockname(), **SHORT)
            blind = await connect(listener.getsockname(), keep_alive=None, user_timeout=None)
            network.vanish()
            assert gone(await lost(watched))
            assert not blind.closed
            blind.abort()


async def test_i23_a_request_to_a_vanished_peer_fails(network: Network) -> None:
    """The data is never acknowledged: the user time-out decides, not the keep-alive."""
    with network.listen() as listener:
        async with Client() as client:
            connection = await client.create_connection(
                listener.getsockname(), keep_alive=None, user_timeout=1.0
            )
            network.vanish()
            async with asyncio.timeout(NOTICED):
                with pytest.raises(ConnectionClosed) as info:
                    await connection.request(b"anybody?")
            assert info.value.sent
            assert gone(info.value.__cause__)


async def test_i23_a_lease_that_waits_for_a_vanished_peer_ends(network: Network) -> None:
    """The request has arrived, the reply never comes: it is the probes that tell."""
    with network.listen() as listener:
        async with Client() as client:
            dial = partial(client.create_connection, listener.getsockname(), **SHORT)
            client.pool = Pool(dial)
            asking = asyncio.ensure_future(client.request(b"a long query", attempts=1))
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
            with accepted:
                accepted.setblocking(False)
                received = await asyncio.get_running_loop().sock_recv(accepted, 100)
                assert received == b"a long query"
                network.vanish()
                async with asyncio.timeout(NOTICED):
                    with pytest.raises(ConnectionClosed) as info:
                        await asking
            assert gone(info.value.__cause__)
            assert client.pool.in_use == 0


@pytest.mark.parametrize("end", ["close", "abort", "pool"])
async def test_i23_closing_never_waits_for_a_vanished_peer(network: Network, end: str) -> None:
    """The peer would be given half a minute; whoever closes does not wait for that."""
    with network.listen() as listener:
        client = Client()
        client.pool = Pool(partial(client.create_connection, listener.getsockname()))
        lease = await client.pool.connect()
        connection = lease.connection
        connection.close_grace = 0.3
        network.vanish()
        # More than the system's buffers take: the transport has data left that it can't send.
        lease.write(bytes(2**24))
        assert connection.transport.get_write_buffer_size() > 0
        ending: Callable[[], object] = {
            "close": connection.close,
            "abort": connection.abort,
            "pool": partial(client.pool.close, timeout=0.1),
        }[end]
        started = asyncio.get_running_loop().time()
        ending()
        with contextlib.suppress(OSError):
            await connection.event("connection_lost")
        lease.close()
        client.close()
        await client.wait_closed()
        assert asyncio.get_running_loop().time() - started < NOTICED


@linux
async def test_the_user_timeout_also_ends_a_peer_that_takes_nothing() -> None:
    """A peer that lives and does not read: as documented, the same limit holds for it."""
    with listening() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with Client() as client:
            connection = await client.create_connection(
                listener.getsockname(), keep_alive=None, user_timeout=1.0
            )
            accepted, _ = listener.accept()
            with accepted:
                connection.write(bytes(2**24))
                assert gone(await lost(connection))

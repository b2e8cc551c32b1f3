"""The TCP server: addresses, life, graceful stop, limits, arguments."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pulsar_client import (
    AbstractClient,
    Connection,
    ConnectionClosed,
    DelimitedDecoder,
    ProtocolConsumer,
    TcpServer,
)


class Line(ProtocolConsumer):
    """Client: writes a line, the result is the line that comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = DelimitedDecoder(b"\n")

    def start_request(self) -> None:
        self.write(self.request + b"\n")

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.finished(line)
        return rest


class EchoLine(Line):
    """Server: answers a line with itself, the line ``wait`` when the test says so."""

    waiting: ClassVar[list["EchoLine"]] = []

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line == b"wait":
            self.waiting.append(self)
        elif line is not None:
            self.write(line + b"\n")
            self.finished()
        return rest

    def answer(self) -> None:
        self.write(b"waited\n")
        self.finished()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[EchoLine]:
    """Return the server's consumers that wait to be told to answer."""
    consumers: list[EchoLine] = []
    monkeypatch.setattr(EchoLine, "waiting", consumers)
    return consumers


class Client(AbstractClient):
    protocol_factory = partial(Connection, Line)


LOOPBACK = ("127.0.0.1", 0)
echo = partial(Connection, EchoLine)


@contextlib.asynccontextmanager
async def dialled(address: Any, **kw: Any) -> AsyncIterator[Connection]:
    client = Client()
    try:
        yield await client.create_connection(address, **kw)
    finally:
        client.abort()
        await client.wait_closed()


async def ask(address: Any, message: bytes = b"hello", **kw: Any) -> Any:
    async with dialled(address, **kw) as connection:
        return await connection.request(message)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


# -- addresses -------------------------------------------------------------------------------


async def test_before_during_and_after() -> None:
    server = TcpServer(echo, address=LOOPBACK, name="mine")
    assert server.address is None
    assert server.addresses == []
    assert server.sockets is None
    assert repr(server) == "<TcpServer 'mine' not serving 127.0.0.1:0: 0 connections, 0 requests>"
    await server.start_serving()
    sockets: Any = server.sockets
    assert [sock.getsockname() for sock in sockets] == server.addresses == [server.address]
    address: Any = server.address
    assert address[1] != 0
    assert await ask(address) == b"hello"
    assert f"127.0.0.1:{address[1]}" in repr(server)
    await server.close()
    assert server.address is None
    assert server.addresses == []
    assert server.sockets is None
    with pytest.raises(OSError):  # noqa: PT011
        await ask(address)


async def test_ipv6() -> None:
    async with TcpServer(echo, address=("::1", 0)) as server:
        assert server.address[0] == "::1"
        assert await ask(server.address[:2]) == b"hello"


async def test_every_interface_of_both_families_on_one_port() -> None:
    async with TcpServer(echo, address=("", 0)) as server:
        assert len(server.addresses) == 2
        assert len({address[1] for address in server.addresses}) == 1
        port = server.address[1]
        assert await ask(("127.0.0.1", port)) == b"hello"
        assert await ask(("::1", port)) == b"hello"


async def test_a_unix_socket_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with TcpServer(echo, address=f"unix:{path}") as server:
        assert server.address == f"unix:{path}"
        assert path.is_socket()
        assert await ask(server.address) == b"hello"
        other = TcpServer(echo, address=f"unix:{path}")
        with pytest.raises(OSError, match="answers on it"):
            await other.start_serving()
        await other.close()
        assert path.is_socket()
    assert not path.exists()


async def test_a_stale_unix_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    assert path.is_socket()
    async with TcpServer(echo, address=f"unix:{path}") as server:
        assert await ask(server.address) == b"hello"
    assert not path.exists()


async def test_the_file_of_another_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = TcpServer(echo, address=f"unix:{path}")
    await server.start_serving()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        await server.close()
        assert path.is_socket()


async def test_ready_made_sockets(tmp_path: Path) -> None:
    tcp = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    address = tcp.getsockname()
    async with TcpServer(echo, sockets=[tcp, unix]) as server:
        assert server.addresses == [address, f"unix:{tmp_path / 's'}"]
        for served in server.addresses:
            assert await ask(served) == b"hello"
    assert tcp.fileno() == unix.fileno() == -1
    assert (tmp_path / "s").exists()  # whoever bound it removes it


async def test_sockets_that_were_never_served_are_closed_with_the_server() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    await TcpServer(echo, sockets=[sock]).close()
    assert sock.fileno() == -1


async def test_tls(server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext) -> None:
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving(sslcontext=server_ssl)
    assert await ask(server.address, ssl=client_ssl) == b"hello"
    async with dialled(server.address, ssl=client_ssl) as connection:
        assert await connection.request(b"one") == b"one"
        closing = asyncio.create_task(server.close())
        await asyncio.wait_for(connection.event("connection_lost"), 20)  # type: ignore[arg-type]
        await closing


async def test_a_port_is_free_after_the_close() -> None:
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving()
    address = server.address
    await server.close()
    async with TcpServer(echo, address=address) as again:
        assert again.address == address
        assert await ask(address) == b"hello"


# -- arguments and failures ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kw", "error", "text"),
    [
        ({"address": 5}, TypeError, "5"),
        ({"address": ("127.0.0.1", 70000)}, ValueError, "70000"),
        ({"address": "nonsense"}, ValueError, "nonsense"),
        ({"keep_alive": -1}, ValueError, "keep_alive is -1"),
        ({"max_requests": -1}, ValueError, "max_requests is -1"),
        ({"sockets": ["nonsense"]}, TypeError, "nonsense"),
        ({"loop": "nonsense"}, TypeError, "nonsense"),
        ({"protocol_factory": "nonsense"}, TypeError, "nonsense"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_bad_arguments_are_named(kw: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        TcpServer(**{"protocol_factory": echo, **kw})


def test_a_datagram_socket_is_refused() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(TypeError, match="stream sockets"),
    ):
        TcpServer(echo, sockets=[sock])


@pytest.mark.parametrize(
    ("kw", "error", "text"),
    [
        ({"backlog": 0}, ValueError, "backlog is 0"),
        ({"backlog": "many"}, ValueError, "'many'"),
        ({"sslcontext": "nonsense"}, TypeError, "'nonsense'"),
    ],
)
async def test_bad_arguments_of_start_serving(kw: Any, error: Any, text: str) -> None:
    server = TcpServer(echo, address=LOOPBACK)
    with pytest.raises(error, match=text):
        await server.start_serving(**kw)
    await server.start_serving()
    await server.close()
    with pytest.raises(ValueError, match="-1"):
        await server.close(grace=-1)


@pytest.mark.parametrize("sockets", [None, []])
async def test_neither_an_address_nor_sockets(sockets: Any) -> None:
    server = TcpServer(echo, sockets=sockets)
    with pytest.raises(ValueError, match="neither an address nor sockets"):
        await server.start_serving()


async def test_a_failed_bind_leaves_nothing() -> None:
    """A13."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = TcpServer(echo, address=taken.getsockname())
        seen: list[Any] = []
        server.bind_event("start", lambda sender, exc=None: seen.append(sender))
        with pytest.raises(OSError, match="can't listen on"):
            await server.start_serving()
        assert server.address is None
        assert server.sockets is None
        assert seen == []
        with pytest.raises(OSError, match="can't listen on"):
            async with server:
                raise AssertionError
    await server.start_serving()  # the address is free now
    await server.close()


async def test_a_failed_start_on_given_sockets_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as third:
        first = socket.create_server(("127.0.0.1", 0))
        second = socket.create_connection(third.getsockname())  # it can't listen
        server = TcpServer(echo, sockets=[first, second])
        with pytest.raises(OSError, match="Invalid argument"):
            await server.start_serving()
    assert server.address is None
    assert server.sockets is None
    assert first.fileno() == second.fileno() == -1


async def test_a_server_serves_once() -> None:
    server = TcpServer(echo, address=LOOPBACK)
    first, second = await asyncio.gather(
        server.start_serving(), server.start_serving(), return_exceptions=True
    )
    assert first is None
    assert isinstance(second, RuntimeError)
    with pytest.raises(RuntimeError, match="serving already"):
        await server.start_serving()
    async with server:  # serves already: only closes
        assert await ask(server.address) == b"hello"
    with pytest.raises(RuntimeError, match="closed"):
        await server.start_serving()
    with pytest.raises(RuntimeError, match="closed"):
        async with server:
            raise AssertionError


async def test_closing_while_it_starts() -> None:
    server = TcpServer(echo, address=("", 0))
    starting, closing = await asyncio.gather(
        server.start_serving(), server.close(), return_exceptions=True
    )
    assert closing is None
    assert starting is None or isinstance(starting, RuntimeError)
    assert server.sockets is None
    assert server.address is None


# -- events and information ------------------------------------------------------------------


async def test_start_and_stop_fire_once() -> None:
    seen: list[Any] = []
    server = TcpServer(echo, address=LOOPBACK)
    server.bind_events(
        start=lambda sender, exc=None: seen.append(("start", sender, sender.address)),
        stop=lambda sender, exc=None: seen.append(("stop", sender, sender.address)),
    )
    await server.start_serving()
    address = server.address
    assert seen == [("start", server, address)]
    assert await server.event("start") is server  # type: ignore[misc]
    await server.close()
    await server.close()
    assert seen[1:] == [("stop", server, None)]
    assert await server.event("stop") is server
    never = TcpServer(echo, address=LOOPBACK)
    await never.close()
    assert await never.event("stop") is never  # type: ignore[misc]


async def test_many_times_events_of_connections_and_requests() -> None:
    seen: list[str] = []
    async with TcpServer(echo, address=LOOPBACK) as server:
        for name in ("connection_made", "pre_request", "post_request", "connection_lost"):
            server.bind_event(name, lambda sender, exc=None, name=name: seen.append(name))
        async with dialled(server.address) as connection:
            await connection.request(b"one")
            await connection.request(b"two")
        await until(lambda: len(seen) == 6)
    assert seen == [
        "connection_made",
        "pre_request",
        "post_request",
        "pre_request",
        "post_request",
        "connection_lost",
    ]


async def test_info() -> None:
    server = TcpServer(echo, address=LOOPBACK, max_requests=100, keep_alive=30)
    assert server.info()["server"]["sockets"] == []
    async with server:
        async with dialled(server.address) as connection:
            await connection.request(b"one")
            info = server.info()
            (far,) = server._protocols
            uptimes = [told["server"].pop("uptime_in_seconds") for told in (info, far.info())]
            assert all(0 <= uptime < 60 for uptime in uptimes)
            assert far.info()["server"].keys() - info["server"].keys() == {"uptime_in_seconds"}
            assert far.info()["server"].items() >= info["server"].items()
            assert far.info()["connection"]["requests_processed"] == 1
        host, port = server.address
        await until(lambda: not server._protocols)
    assert set(info) == {"server", "clients"}
    assert info["server"] == {
        "sockets": [{"address": f"{host}:{port}"}],
        "max_requests": 100,
        "keep_alive": 30,
    }
    assert info["clients"] == {
        "processed_clients": 1,
        "connected_clients": 1,
        "requests_processed": 1,
    }
    assert server.info()["clients"]["connected_clients"] == 0


async def test_create_protocol_can_be_overridden() -> None:
    made: list[Any] = []

    class Mine(TcpServer):
        def create_protocol(self, **kw: Any) -> Any:
            made.append(super().create_protocol(**kw))
            return made[-1]

    async with Mine(echo, address=LOOPBACK, keep_alive=7) as server:
        assert await ask(server.address) == b"hello"
    (protocol,) = made
    assert protocol.timeout == 7
    assert protocol.session == 1
    assert protocol.producer is server


# -- the stop --------------------------------------------------------------------------------


async def test_idle_connections_close_at_once() -> None:
    server = TcpServer(echo, address=LOOPBACK)
    server.first_byte_grace = 0.05
    await server.start_serving()
    async with dialled(server.address) as idle, dialled(server.address) as used:
        await used.request(b"one")
        async with asyncio.timeout(20):
            await server.close(grace=60.0)
        await until(lambda: idle.closed and used.closed)


async def test_a_request_in_flight_finishes(waiting: list[EchoLine]) -> None:
    """A10."""
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving()
    address = server.address
    async with dialled(address) as busy, dialled(address) as half:
        request = asyncio.create_task(busy.request(b"wait"))
        await until(lambda: waiting)
        consumer = half.current_consumer()
        half.write(b"hal")  # a request is in flight from its first byte
        await until(lambda: server.requests_processed == 2)
        closing = asyncio.create_task(server.close())
        assert server.sockets is not None
        listener = server.sockets[0]
        await until(lambda: listener.fileno() == -1)
        with pytest.raises(OSError):  # noqa: PT011
            await ask(address)
        assert not busy.closed
        assert not half.closed
        waiting[0].answer()
        assert await request == b"waited"
        assert not closing.done()
        consumer.request = b"f"
        consumer.start(b"f")
        assert await consumer.on_finished == b"half"
        await closing
        await until(lambda: busy.closed and half.closed)


async def test_after_the_grace_it_aborts(waiting: list[EchoLine]) -> None:
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving()
    async with dialled(server.address) as connection:
        request = asyncio.create_task(connection.request(b"wait"))
        await until(lambda: waiting)
        async with asyncio.timeout(20):
            await server.close(grace=0.05)
        with pytest.raises(ConnectionClosed):
            await request
    assert not server._protocols


async def test_closing_is_idempotent_and_cannot_be_cancelled(waiting: list[EchoLine]) -> None:
    """I29: a cancelled ``close()`` still completes."""
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving()
    async with dialled(server.address) as connection:
        request = asyncio.create_task(connection.request(b"wait"))
        await until(lambda: waiting)
        first, second = (asyncio.create_task(server.close()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not second.done()
        waiting[0].answer()
        assert await request == b"waited"
        await second
        await server.close()
    assert server.sockets is None


async def test_the_context_manager_closes_after_an_error() -> None:
    server = TcpServer(echo, address=LOOPBACK)

    async def fails() -> None:
        async with server:
            assert await ask(server.address) == b"hello"
            raise LookupError

    with pytest.raises(LookupError):
        await fails()
    assert server.sockets is None


async def test_keep_alive_closes_idle_connections() -> None:
    """A9."""
    async with TcpServer(echo, address=LOOPBACK, keep_alive=60) as server:
        async with dialled(server.address) as connection:
            assert await connection.request(b"one") == b"one"
            (far,) = server._protocols
            assert far.timeout == 60
            assert not connection.closed
            far.timeout = 0.05  # from now on: before it might have been too short for the request
            await until(lambda: connection.closed)
        assert TcpServer(echo, keep_alive=0).keep_alive is None


# -- max_requests (A6) -----------------------------------------------------------------------


async def test_max_requests_are_exact_and_graceful() -> None:
    """A6: the last one is answered, no more are."""
    server = TcpServer(echo, address=LOOPBACK, max_requests=5)
    await server.start_serving()
    address = server.address
    async with dialled(address) as first, dialled(address) as second:
        for number in range(4):
            connection = first if number % 2 else second
            assert await connection.request(b"%d" % number) == b"%d" % number
        assert server.sockets
        assert await first.request(b"last") == b"last"
        await server.event("stop")  # type: ignore[misc]
        await until(lambda: first.closed and second.closed)
    assert server.requests_processed == 5
    assert server.sockets is None
    with pytest.raises(OSError):  # noqa: PT011
        await ask(address)
    await server.close()


async def test_the_last_request_may_take_its_time(waiting: list[EchoLine]) -> None:
    """A6, A10."""
    async with (
        TcpServer(echo, address=LOOPBACK, max_requests=1) as server,
        dialled(server.address) as connection,
    ):
        request = asyncio.create_task(connection.request(b"wait"))
        await until(lambda: waiting and server._close_task is not None)
        assert not connection.closed
        waiting[0].answer()
        assert await request == b"waited"
        await server.event("stop")  # type: ignore[misc]


async def test_no_max_requests() -> None:
    async with TcpServer(echo, address=LOOPBACK, max_requests=0) as server:
        assert server.max_requests is None
        async with dialled(server.address) as connection:
            for _ in range(20):
                await connection.request(b"x")
        assert server.sockets


async def test_a_server_logs_to_its_logger(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("mine")
    caplog.set_level(logging.DEBUG, logger="mine")
    async with (
        TcpServer(echo, address=LOOPBACK, logger=logger) as server,
        dialled(server.address),
    ):
        await until(lambda: server._protocols)
        (far,) = server._protocols
        assert far.logger is logger
    assert any(record.name == "mine" for record in caplog.records)


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_accepted_just_before_the_close_is_closed(turns: int) -> None:
    """A10: whoever got through the door is not left standing there."""
    loop = asyncio.get_running_loop()
    server = TcpServer(echo, address=LOOPBACK)
    server.first_byte_grace = 0.05
    await server.start_serving()
    with socket.create_connection(server.address) as client:
        client.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.close()
        with contextlib.suppress(ConnectionResetError):
            assert await loop.sock_recv(client, 1) == b""

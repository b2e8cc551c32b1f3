"""The echo example from end to end: counters of its pool, dropped connections, big messages."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from examples.echo import Echo, EchoProtocol, EchoServerProtocol
from examples.echo.manage import server as echo_server
from pulsar_client import Connection, ConnectionClosed, PoolClosed, TcpServer
from pulsar_client.testing import FaultProxy


@pytest.fixture
async def server() -> AsyncIterator[TcpServer]:
    async with echo_server() as running:
        yield running


@contextlib.asynccontextmanager
async def echo_to(address: Any, **kw: Any) -> AsyncIterator[Echo]:
    echo = Echo(address, pool_size=2, **kw)
    async with echo:
        yield echo


def counters(echo: Echo) -> tuple[int, int, int, int]:
    return echo.pool.in_use, echo.pool.available, echo.sessions, echo.requests_processed


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0)


def idle(echo: Echo) -> Any:
    """The idle connection that the next call would use."""
    return next(reversed(echo.pool._ledger.idle)).connection


async def drop_close(echo: Echo, server: TcpServer) -> None:
    await idle(echo).close()


async def drop_close_without_waiting(echo: Echo, server: TcpServer) -> None:
    idle(echo).close()


async def drop_transport_close(echo: Echo, server: TcpServer) -> None:
    idle(echo).transport.close()


async def drop_transport_abort(echo: Echo, server: TcpServer) -> None:
    idle(echo).transport.abort()


async def drop_by_server(echo: Echo, server: TcpServer) -> None:
    name = idle(echo).transport.get_extra_info("sockname")
    theirs = next(one for one in server._protocols if one.address == name)
    theirs.close()
    await until(lambda: echo.pool.available == 1)


async def drop_by_lease(echo: Echo, server: TcpServer) -> None:
    async with echo.pool.connect() as lease:
        lease.close(discard=True)


DROPS = [
    drop_close,
    drop_close_without_waiting,
    drop_transport_close,
    drop_transport_abort,
    drop_by_server,
    drop_by_lease,
]


@pytest.mark.parametrize("drop", DROPS)
async def test_the_counters(server: TcpServer, drop: Any) -> None:
    """I1, I5, I18, I21: in_use, available, sessions, requests_processed."""
    async with echo_to(server.address) as echo:
        assert counters(echo) == (0, 0, 0, 0)
        assert await echo(b"Hello!") == b"Hello!"
        assert counters(echo) == (0, 1, 1, 1)
        assert await echo(b"ciao!") == b"ciao!"
        assert counters(echo) == (0, 1, 1, 2)
        messages = [b"one", b"two", b"three"]
        assert await asyncio.gather(*map(echo, messages)) == messages
        assert counters(echo) == (0, 2, 2, 5)
        await drop(echo, server)
        assert echo.pool.in_use == 0
        assert await asyncio.gather(*map(echo, messages)) == messages
        assert counters(echo) == (0, 2, 3, 8)
        await echo.pool.close()
        assert counters(echo) == (0, 0, 3, 8)
        with pytest.raises(PoolClosed):
            await echo(b"too late")
        assert counters(echo) == (0, 0, 3, 8)


async def test_a_raw_connection_dropped_while_it_is_leased(server: TcpServer) -> None:
    """A3: the request ends with an error that says that it was sent."""
    async with echo_to(server.address) as echo:
        async with echo.pool.connect() as lease:
            consumer = lease.current_consumer()
            consumer.start(b"lost")
            lease.connection.transport.abort()
            with pytest.raises(ConnectionClosed) as info:
                await consumer.on_finished
        assert info.value.sent
        assert await echo(b"next") == b"next"
        assert counters(echo) == (0, 1, 2, 2)


async def test_three_megabytes(server: TcpServer) -> None:
    async with echo_to(server.address) as echo:
        message = bytes(range(256)).replace(b"\r", b"") * 12_000
        assert len(message) > 3_000_000
        assert await echo(message) == message
        both: list[bytes] = await asyncio.gather(echo(message), echo(b"small"))
        assert both == [message, b"small"]
        assert echo.pool.in_use == 0


class Dribble(Connection):
    """Hands each byte over alone, whatever the socket gave."""

    pieces = 0

    def data_received(self, data: bytes) -> None:
        for index in range(len(data)):
            type(self).pieces += 1
            super().data_received(data[index : index + 1])


class DribbleEcho(Echo):
    protocol_factory: Any = partial(Dribble, EchoProtocol)


async def test_byte_by_byte() -> None:
    """Framing does not depend on how the bytes are cut."""
    async with (
        TcpServer(partial(Dribble, EchoServerProtocol), address=("127.0.0.1", 0)) as server,
        FaultProxy(server.address) as proxy,
        DribbleEcho(proxy.address, pool_size=2) as echo,
    ):
        before = Dribble.pieces
        for part in (b"", b"\r", b"\n", b"\r\n\r", b"x\r\n", b"a\r\n\rb"):
            assert await echo(b"m" + part + b"m") == b"m" + part + b"m"
        assert Dribble.pieces - before == 2 * (6 * 6 + 13)
        proxy.rate = 4000.0
        assert await echo(b"slow" * 20) == b"slow" * 20
        assert echo.sessions == 1


@pytest.mark.parametrize("after", range(1, 12, 3))
async def test_a_reply_cut_in_the_middle_is_an_error(server: TcpServer, after: int) -> None:
    """A3: never an empty or a short reply; the next call has a new connection."""
    async with FaultProxy(server.address) as proxy, echo_to(proxy.address) as echo:
        proxy.cut_after(after, "to_client", once=True)
        with pytest.raises(ConnectionClosed):
            await echo(b"12345678")
        assert await echo(b"next") == b"next"
        assert counters(echo) == (0, 1, 2, 2)


async def test_two_messages_in_one_segment(server: TcpServer) -> None:
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(b"one\r\n\r\ntwo\r\n\r\nthr")
    assert await reader.readexactly(14) == b"one\r\n\r\ntwo\r\n\r\n"
    writer.write(b"ee\r\n\r\n")
    assert await reader.readexactly(9) == b"three\r\n\r\n"
    writer.close()
    await writer.wait_closed()
    assert server.requests_processed == 3


async def test_two_replies_in_one_segment_are_one_too_many() -> None:
    """I16: the second one is nobody's."""

    def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def answer() -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    message = await reader.readuntil(b"\r\n\r\n")
                    writer.write(message + b"nobody's\r\n\r\n")
            writer.close()

        tasks.append(asyncio.get_running_loop().create_task(answer()))

    tasks: list[asyncio.Task[None]] = []
    raw = await asyncio.start_server(twice, "127.0.0.1", 0)
    async with echo_to(raw.sockets[0].getsockname()) as echo:
        assert await echo(b"one") == b"one"
        await until(lambda: echo.pool.stats().size == 0)
        assert await echo(b"two") == b"two"
        assert echo.sessions == 2
    await asyncio.wait(tasks)
    raw.close()
    await raw.wait_closed()


async def test_quit_closes_the_connection_and_the_next_call_reconnects(server: TcpServer) -> None:
    """A16: also when it comes at once, before the server's end of file does."""
    async with echo_to(server.address) as echo:
        for number in range(1, 6):
            assert await echo(b"QUIT") == b"QUIT"
            assert echo.pool.available == 0
            assert await echo(b"again") == b"again"
            assert echo.sessions == number + 1
        await until(lambda: len(server._protocols) == 1)


async def test_full_response_and_a_bad_message(server: TcpServer) -> None:
    async with echo_to(server.address, full_response=True) as echo:
        consumer = await echo(b"x")
        assert consumer.request == b"x"
        assert consumer.done()
        with pytest.raises(ValueError, match="separator"):
            await echo(b"a\r\n\r\nb")
        assert echo.pool.in_use == 0


# -- without a running loop --------------------------------------------------------------------


class ServerThread:
    """An echo server with a loop of its own."""

    def __init__(self) -> None:
        self.address: Any = None
        self.lost = threading.Semaphore(0)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self) -> "ServerThread":
        self._thread.start()
        assert self._ready.wait(10.0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10.0)
        assert not self._thread.is_alive()

    def call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with echo_server() as self.server:
            self.server.bind_event("connection_lost", self._lost)
            self.address = self.server.address
            self._ready.set()
            await self._stop.wait()

    def _lost(self, sender: Any, exc: Any = None) -> None:
        # The socket is closed when this callback has returned.
        self._loop.call_soon(self.lost.release)


@pytest.fixture
def remote() -> Iterator[ServerThread]:
    with ServerThread() as thread:
        yield thread


def test_the_counters_without_a_loop(remote: ServerThread) -> None:
    echo = Echo(remote.address, pool_size=2)
    assert counters(echo) == (0, 0, 0, 0)
    assert echo(b"Hello!") == b"Hello!"
    assert counters(echo) == (0, 1, 1, 1)
    assert echo(b"ciao!") == b"ciao!"
    assert counters(echo) == (0, 1, 1, 2)
    idle(echo).transport.abort()
    assert echo(b"again") == b"again"
    assert counters(echo) == (0, 1, 2, 3)
    message = b"m" * 3_000_000
    assert echo(message) == message
    echo.close()
    assert counters(echo) == (0, 0, 2, 4)


def test_quit_without_a_loop(remote: ServerThread) -> None:
    """A16: between the calls nobody looks at the sockets."""
    echo = Echo(remote.address, pool_size=2)
    for number in range(1, 4):
        assert echo(b"QUIT") == b"QUIT"
        assert echo.sessions == number
    assert echo(b"x") == b"x"
    assert echo.sessions == 4
    echo.close()


def test_the_server_closes_an_idle_connection_without_a_loop(remote: ServerThread) -> None:
    """I21."""
    echo = Echo(remote.address, pool_size=2)
    assert echo(b"x") == b"x"
    remote.call(lambda: [protocol.close() for protocol in remote.server._protocols])
    assert remote.lost.acquire(timeout=10.0)
    assert echo(b"y") == b"y"
    assert echo.sessions == 2
    echo.close()


def test_an_error_without_a_loop() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        echo = Echo(sock.getsockname(), pool_size=1)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                echo(b"x")
        assert counters(echo) == (0, 0, 0, 0)
        echo.close()


def test_closing_what_was_never_used() -> None:
    echo = Echo(("127.0.0.1", 1))
    echo.close()
    assert echo.pool.closed

"""Accepting connections: a few at a time, while there is room, and never in circles."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pulsar_client import Connection, DelimitedDecoder, ProtocolConsumer, TcpServer
from pulsar_client.servers.acceptor import ACCEPTS_A_WAKEUP, Acceptor

LOOPBACK = ("127.0.0.1", 0)


class EchoLine(ProtocolConsumer):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = DelimitedDecoder(b"\n")

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.decoder.decode(data)
        if line is not None:
            self.write(line + b"\n")
            self.finished()
        return rest


echo = partial(Connection, EchoLine)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


@contextlib.contextmanager
def clients(address: Any, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(address[:2]))
            sock.setblocking(False)
            found.append(sock)
        yield found


async def answered(sock: socket.socket) -> None:
    """Send a line and wait for its echo."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        await loop.sock_sendall(sock, b"hello\n")
        assert await loop.sock_recv(sock, 100) == b"hello\n"


async def test_a_few_accepts_a_wake_up() -> None:
    """P3: however many connections wait, the others get their turn in between."""
    listener = socket.create_server(LOOPBACK, backlog=128)
    turn = 0
    accepted: dict[int, int] = {}

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        if sum(accepted.values()) < 100:
            loop.call_soon(next_turn)

    def count(connections: int) -> None:
        accepted[turn] = accepted.get(turn, 0) + 1

    with clients(listener.getsockname(), 100) as waiting:
        loop = asyncio.get_running_loop()
        async with TcpServer(echo, sockets=[listener], on_connections=count) as server:
            loop.call_soon(next_turn)
            await until(lambda: server.connections == 100)
            assert max(accepted.values()) <= ACCEPTS_A_WAKEUP
            for sock in waiting:
                await answered(sock)


async def test_at_its_limit_a_server_stops_accepting() -> None:
    """P4: it does not even look at its socket, and goes on when a connection is gone."""
    loop = asyncio.get_running_loop()
    async with TcpServer(echo, address=LOOPBACK, max_connections=3) as server:
        with clients(server.address, 5) as found:
            for sock in found[:3]:
                await answered(sock)
            await loop.sock_sendall(found[3], b"hello\n")
            await loop.sock_sendall(found[4], b"hello\n")
            for _ in range(20):
                await asyncio.sleep(0.001)
                assert server.connections == 3
            assert server.sockets is not None
            assert not loop.remove_reader(server.sockets[0])
            for leaving, coming in ((0, 3), (1, 4)):
                found[leaving].close()
                async with asyncio.timeout(20):
                    assert await loop.sock_recv(found[coming], 100) == b"hello\n"
                assert server.connections == 3
            for sock in found[2:]:
                await answered(sock)
        await until(lambda: server.connections == 0)
        with clients(server.address, 1) as (sock,):
            await answered(sock)


async def test_a_handshake_counts_as_a_connection(server_ssl: ssl.SSLContext) -> None:
    """P4: connections that never get through their handshake are bounded too."""

    changes: list[int] = []
    server = TcpServer(
        echo,
        address=LOOPBACK,
        max_connections=2,
        handshake_timeout=0.3,
        on_connections=changes.append,
    )
    await server.start_serving(sslcontext=server_ssl)
    with clients(server.address, 6):
        await until(lambda: server.connections == 2)
        await until(lambda: len(changes) == 12 and server.connections == 0)
    assert max(changes) == 2
    await server.close()


async def test_the_gate_holds_connections_back() -> None:
    waits = [0.02, 0.0, 0.01, 0.03, 0.0]
    asked: list[float] = []
    loop = asyncio.get_running_loop()

    def gate() -> float:
        asked.append(loop.time())
        return waits[len(asked) - 1] if len(asked) <= len(waits) else 0.0

    async with TcpServer(echo, address=LOOPBACK, accept_gate=gate) as server:
        with clients(server.address, 2) as found:
            for sock in found:
                await answered(sock)
    assert len(asked) >= 5
    # The clock of the loop may be coarser than its timers: half of the wait is certain.
    assert asked[1] - asked[0] >= 0.01


async def test_a_gate_that_fails_does_not_turn_in_circles(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = 0

    def gate() -> float:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError("no such counter")
        return 0.0

    async with TcpServer(echo, address=LOOPBACK, accept_gate=gate) as server:
        with clients(server.address, 1) as (sock,):
            await answered(sock)
    assert len(caplog.records) == 1
    assert "no such counter" in caplog.text


async def test_on_connections_gets_each_change(caplog: pytest.LogCaptureFixture) -> None:
    changes: list[int] = []
    async with TcpServer(echo, address=LOOPBACK, on_connections=changes.append) as server:
        with clients(server.address, 2) as (first, second):
            await answered(first)
            await answered(second)
        await until(lambda: server.connections == 0)
    assert changes == [1, 2, 1, 0]
    async with TcpServer(echo, address=LOOPBACK, on_connections=lambda n: 1 / 0) as server:
        with clients(server.address, 1) as (sock,):
            await answered(sock)
        await until(lambda: server.connections == 0)
    assert "on_connections failed" in caplog.text


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Leave this process without a descriptor to give away."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def test_without_descriptors_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    """P5: no busy loop, one log line a second, clients served, and it recovers by itself."""
    loop = asyncio.get_running_loop()
    async with TcpServer(echo, address=LOOPBACK) as server:
        with clients(server.address, 1) as (old,), clients(server.address, 3) as late:
            await answered(old)
            await until(lambda: server.connections == 4)
            address = server.address
            waiting = [socket.socket() for _ in range(3)]
            try:
                with no_descriptors():
                    for sock in waiting:
                        sock.setblocking(False)
                        await loop.sock_connect(sock, address)
                        await loop.sock_sendall(sock, b"hello\n")
                    began, used = time.monotonic(), time.process_time()
                    while time.monotonic() < began + 1.2:
                        await answered(old)
                        await asyncio.sleep(0.05)
                    await until(lambda: "can't accept" in caplog.text)
                    elapsed = time.monotonic() - began
                    used = time.process_time() - used
                    lines = [r for r in caplog.records if "can't accept" in r.message]
                    assert 1 <= len(lines) <= elapsed + 2
                    assert "Too many open files" in lines[0].message
                    assert used < 0.6 * elapsed  # in circles it would be all of it
                    assert server.connections == 4
                for sock in waiting:
                    async with asyncio.timeout(20):
                        assert await loop.sock_recv(sock, 100) == b"hello\n"
            finally:
                for sock in waiting:
                    sock.close()
            for sock in late:
                await answered(sock)


async def test_without_descriptors_a_lost_connection_makes_room() -> None:
    """P5: whoever leaves is followed by the next in the queue."""
    loop = asyncio.get_running_loop()
    async with TcpServer(echo, address=LOOPBACK) as server:
        with clients(server.address, 1) as (old,), socket.socket() as waiting:
            await answered(old)
            waiting.setblocking(False)
            with no_descriptors():
                await loop.sock_connect(waiting, server.address)
                await loop.sock_sendall(waiting, b"hello\n")
                await asyncio.sleep(0.01)
                assert server.connections == 1
                old.close()  # which leaves two descriptors, the server's and its own
                async with asyncio.timeout(20):
                    assert await loop.sock_recv(waiting, 100) == b"hello\n"


class NoReaders(asyncio.SelectorEventLoop):
    """A loop that can't watch sockets for its users, as Windows' own."""

    def add_reader(self, *args: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError

    def remove_reader(self, fd: Any) -> Any:
        raise NotImplementedError


def test_a_loop_that_watches_no_sockets() -> None:
    async def serve() -> None:
        async with TcpServer(echo, address=LOOPBACK) as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            writer.close()
            await writer.wait_closed()
        held = TcpServer(echo, address=LOOPBACK, max_connections=1)
        with pytest.raises(RuntimeError, match="max_connections"):
            await held.start_serving()
        assert held.sockets is None

    with asyncio.Runner(loop_factory=NoReaders) as runner:
        runner.run(serve())


async def test_draining_is_bounded() -> None:
    """P14: what waits is accepted, but not for ever."""
    loop = asyncio.get_running_loop()
    made: list[asyncio.Protocol] = []

    def make() -> asyncio.Protocol:
        made.append(asyncio.Protocol())
        return made[-1]

    with socket.create_server(LOOPBACK, backlog=16) as listener:
        listener.setblocking(False)
        acceptor = Acceptor(
            loop,
            [listener],
            make,
            admit=lambda: 60.0,
            on_change=None,
            logger=logging.getLogger("test"),
            options={},
        )
        await acceptor.start(16)
        with clients(listener.getsockname(), 5):
            acceptor.stop()
            acceptor.resume()
            assert acceptor.drain(3) == 3
            assert acceptor.arriving == 3
            assert acceptor.drain(16) == 2
            await acceptor.abort()
            assert acceptor.arriving == 0
            assert len(made) == 5
            for _ in range(5):
                await asyncio.sleep(0)


@pytest.mark.parametrize("turns", range(4))
async def test_a_connection_that_is_cut_while_it_arrives(turns: int) -> None:
    """I3: nothing is left of it, whenever that happens."""
    loop = asyncio.get_running_loop()
    with socket.create_server(LOOPBACK) as listener:
        listener.setblocking(False)
        acceptor = Acceptor(
            loop,
            [listener],
            asyncio.Protocol,
            admit=None,
            on_change=None,
            logger=logging.getLogger("test"),
            options={},
        )
        await acceptor.start(16)
        with clients(listener.getsockname(), 1) as (sock,):
            for _ in range(turns):
                await asyncio.sleep(0)
            acceptor.stop()
            acceptor.drain(1)
            await acceptor.abort()
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(20):
                    assert await loop.sock_recv(sock, 1) == b""


@pytest.mark.parametrize(
    ("kw", "error", "text"),
    [
        ({"max_connections": -1}, ValueError, "max_connections is -1"),
        ({"max_connections": True}, ValueError, "max_connections is True"),
        ({"accept_gate": 1.0}, TypeError, r"accept_gate is 1\.0"),
        ({"on_connections": []}, TypeError, r"on_connections is \[\]"),
    ],
)
def test_bad_arguments_are_named(kw: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        TcpServer(echo, **kw)

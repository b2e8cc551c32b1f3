"""The graceful close: who is still served, who is closed at once, and when it ends."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pulsar_client import (
    AbstractClient,
    Connection,
    DelimitedDecoder,
    Protocol,
    ProtocolConsumer,
    TcpServer,
)

LOOPBACK = ("127.0.0.1", 0)


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


class AskLine(EchoLine):
    def start_request(self) -> None:
        self.write(self.request + b"\n")

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.connection.parser.decode(data)
        if line is not None:
            self.finished(line)
        return bytes(rest)


echo = partial(Connection, EchoLine)


@contextlib.contextmanager
def clients(address: Any, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(address[:2]))
            sock.setblocking(False)
            found.append(sock)
        yield found


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket) -> bytes:
    async with asyncio.timeout(20):
        return await asyncio.get_running_loop().sock_recv(sock, 1000)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def held() -> float:
    """A gate that accepts nothing: connections stay in the kernel's queue."""
    return 60.0


async def test_what_is_queued_is_served() -> None:
    """P14: a client whose connect() has succeeded gets its answer."""
    server = TcpServer(echo, address=LOOPBACK, accept_gate=held)
    server.first_byte_grace = 60.0
    await server.start_serving()
    with clients(server.address, 20) as queued:
        for sock in queued[:10]:
            await send(sock, b"before\n")
        closing = asyncio.create_task(server.close())
        await until(lambda: server.connections)
        for sock in queued[10:]:
            await send(sock, b"after\n")
        for sock in queued[:10]:
            assert await receive(sock) == b"before\n"
        for sock in queued[10:]:
            assert await receive(sock) == b"after\n"
        for sock in queued:
            assert await receive(sock) == b""
        await closing
    assert server.requests_processed == 20


async def test_what_is_queued_is_served_over_a_unix_socket(tmp_path: Any) -> None:
    """P14."""
    server = TcpServer(echo, address=f"unix:{tmp_path / 's'}", accept_gate=held)
    server.first_byte_grace = 60.0
    await server.start_serving()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect(str(tmp_path / "s"))
        await send(sock, b"before\n")
        closing = asyncio.create_task(server.close())
        assert await receive(sock) == b"before\n"
        await closing


async def test_what_is_queued_is_served_over_tls(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """P14: the handshake of a queued connection has yet to begin."""
    server = TcpServer(echo, address=LOOPBACK, accept_gate=held)
    server.first_byte_grace = 60.0
    await server.start_serving(sslcontext=server_ssl)
    with clients(server.address, 1) as (sock,):
        dialling = asyncio.create_task(
            asyncio.open_connection(sock=sock, ssl=client_ssl, server_hostname="localhost")
        )
        await asyncio.sleep(0)
        closing = asyncio.create_task(server.close())
        reader, writer = await dialling
        writer.write(b"after\n")
        assert await reader.readline() == b"after\n"
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await closing


async def test_the_queue_can_be_left_to_another_server() -> None:
    """P14: on a shared socket the others serve what waits."""
    listener = socket.create_server(LOOPBACK)
    address = listener.getsockname()
    first = TcpServer(echo, sockets=[listener.dup()], accept_gate=held)
    await first.start_serving()
    with clients(address, 3) as queued:
        await first.close(accept_queued=False)
        assert first.sessions == 0
        async with TcpServer(echo, sockets=[listener]):
            for sock in queued:
                await send(sock, b"hello\n")
                assert await receive(sock) == b"hello\n"


async def test_without_a_grace_nothing_is_accepted() -> None:
    server = TcpServer(echo, address=LOOPBACK, accept_gate=held)
    await server.start_serving()
    with clients(server.address, 3) as queued:
        await server.close(grace=0)
        assert server.sessions == 0
        for sock in queued:
            with contextlib.suppress(ConnectionResetError):
                assert await receive(sock) == b""


async def test_an_idle_connection_is_closed_at_once() -> None:
    """P15: it has had its answer, and nothing is on its way."""
    server = TcpServer(echo, address=LOOPBACK)
    server.first_byte_grace = 60.0
    await server.start_serving()
    with clients(server.address, 1) as (sock,):
        await send(sock, b"hello\n")
        assert await receive(sock) == b"hello\n"
        await server.close(grace=60.0)
        assert await receive(sock) == b""


async def test_a_last_look_finds_what_has_arrived() -> None:
    """P15: a request that is in the socket when the close begins is answered."""
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving()
    with clients(server.address, 50) as found:
        for sock in found:
            await send(sock, b"first\n")
            assert await receive(sock) == b"first\n"
        closing = asyncio.create_task(server.close())
        for sock in found:
            sock.send(b"second\n")  # in this very turn of the loop: the server has not seen it
        for sock in found:
            assert await receive(sock) == b"second\n"
            assert await receive(sock) == b""
        await closing


@pytest.mark.parametrize("turns", range(6))
async def test_the_last_look_is_not_a_turn_too_early(turns: int) -> None:
    """P15: a request either is answered, or came after the connection was closed."""
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving()
    with clients(server.address, 1) as (sock,):
        await send(sock, b"first\n")
        assert await receive(sock) == b"first\n"
        closing = asyncio.create_task(server.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        open_yet = bool(server._protocols) and not any(p.closed for p in server._protocols)
        sock.send(b"second\n")
        if open_yet:
            assert await receive(sock) == b"second\n"
        with contextlib.suppress(ConnectionResetError):
            assert await receive(sock) == b""
        await closing


async def test_a_new_connection_has_a_moment_for_its_first_byte() -> None:
    """P15, P16: it was made before the close began, and its client can't know."""
    server = TcpServer(echo, address=LOOPBACK)
    server.first_byte_grace = 60.0
    await server.start_serving()
    with clients(server.address, 2) as (quick, slow):
        await until(lambda: len(server._protocols) == 2)
        closing = asyncio.create_task(server.close(grace=60.0))
        await until(lambda: server._farewell is not None)
        await asyncio.sleep(0.01)
        await send(quick, b"hello\n")
        assert await receive(quick) == b"hello\n"
        assert await receive(quick) == b""  # and that was that
        await send(slow, b"hel")
        await asyncio.sleep(0.01)
        await send(slow, b"lo\n")
        assert await receive(slow) == b"hello\n"
        assert await receive(slow) == b""
        await closing


async def test_that_moment_is_short() -> None:
    """P15: the silent are closed after one second, not after the grace."""
    server = TcpServer(echo, address=LOOPBACK)
    assert server.first_byte_grace == 1.0
    server.first_byte_grace = 0.1
    await server.start_serving()
    with clients(server.address, 1) as (sock,):
        await until(lambda: server._protocols)
        began = time.monotonic()
        await server.close(grace=60.0)
        assert time.monotonic() - began >= 0.05
        assert await receive(sock) == b""


async def test_a_half_message_may_be_completed() -> None:
    """A10: in flight from its first byte, and beyond the moment that a new connection has."""
    server = TcpServer(echo, address=LOOPBACK)
    server.first_byte_grace = 0.0
    await server.start_serving()
    with clients(server.address, 1) as (sock,):
        await send(sock, b"hel")
        await until(lambda: server.requests_processed)
        closing = asyncio.create_task(server.close(grace=60.0))
        await asyncio.sleep(0.01)
        await send(sock, b"lo\n")
        assert await receive(sock) == b"hello\n"
        assert await receive(sock) == b""
        await closing


async def test_a_stuck_handshake_does_not_outlive_the_grace(server_ssl: ssl.SSLContext) -> None:
    """P13: a connection without a protocol is cut at the deadline like any other."""
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving(sslcontext=server_ssl)
    with clients(server.address, 1) as (sock,):
        await until(lambda: server.connections)
        await server.close(grace=0.05)
        assert server.connections == 0
        with contextlib.suppress(ConnectionResetError):
            assert await receive(sock) == b""


async def test_a_stuck_handshake_does_not_hold_the_others(server_ssl: ssl.SSLContext) -> None:
    """P15: idle connections are closed at once, whoever else is there."""
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving(sslcontext=server_ssl)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(*server.address, ssl=context)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    with clients(server.address, 1):
        await until(lambda: server.connections == 2)
        closing = asyncio.create_task(server.close(grace=60.0))
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        assert not closing.done()
    await closing
    writer.close()
    await writer.wait_closed()


async def test_protocols_without_requests_are_closed() -> None:
    server = TcpServer(Protocol, address=LOOPBACK)
    await server.start_serving()
    with clients(server.address, 1) as (sock,):
        await until(lambda: server._protocols)
        await server.close(grace=60.0)
        assert await receive(sock) == b""


async def test_the_pool_of_a_client_sees_an_orderly_end() -> None:
    """P15: between two requests the end of the connection is no error."""
    server = TcpServer(echo, address=LOOPBACK)
    await server.start_serving()
    async with AbstractClient(protocol_factory=partial(Connection, AskLine)) as client:
        connection = await client.create_connection(server.address)
        assert await connection.request(b"one") == b"one"
        await server.close()
        await connection.event("connection_lost")
        assert connection.closed

"""What a loop's connections receive, by way of one buffer."""

import asyncio
import contextlib
import os
import ssl
from functools import partial
from typing import Any

import pytest

from pulsar_client import Connection, Protocol, ProtocolConsumer, TcpServer

LOOPBACK = ("127.0.0.1", 0)


class Collects(Protocol):
    """Keeps what it received; answers the whole when the peer has ended."""

    received = b""
    chunks: tuple[int, ...] = ()

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.received += data
        self.chunks += (len(data),)

    def eof_received(self) -> bool:
        self.write(self.received)
        self.close()
        return True


@pytest.mark.parametrize("size", [1, 1000, 65535, 65536, 65537, 500_000])
async def test_every_byte_arrives_in_order(size: int) -> None:
    sent = os.urandom(size)
    made: list[Collects] = []

    def make(**kw: Any) -> Collects:
        made.append(Collects(**kw))
        return made[-1]

    async with TcpServer(make, address=LOOPBACK) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent
        writer.close()
        await writer.wait_closed()
    if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        assert max(made[0].chunks) <= 65536


async def test_connections_do_not_see_each_others_bytes() -> None:
    """I16: there is one buffer, and what is received is copied before anything else happens."""
    count, size = 30, 200_000
    sent = [bytes([number]) * size for number in range(count)]
    async with TcpServer(Collects, address=LOOPBACK) as server:
        pairs = [await asyncio.open_connection(*server.address) for _ in range(count)]

        async def exchange(number: int) -> bytes:
            reader, writer = pairs[number]
            for begin in range(0, size, 7000):
                writer.write(sent[number][begin : begin + 7000])
                await writer.drain()
            writer.write_eof()
            return await reader.read()

        assert await asyncio.gather(*(exchange(number) for number in range(count))) == sent
        for _, writer in pairs:
            writer.close()
            await writer.wait_closed()


async def test_over_tls(server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext) -> None:
    class Echo(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.write(data)

    sent = os.urandom(500_000)
    server = TcpServer(partial(Connection, Echo), address=LOOPBACK)
    await server.start_serving(sslcontext=server_ssl)
    reader, writer = await asyncio.open_connection(
        *server.address, ssl=client_ssl, server_hostname="localhost"
    )
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await server.close(grace=1)

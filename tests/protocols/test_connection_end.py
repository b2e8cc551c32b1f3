"""A reply with the end of the connection right behind it."""

import asyncio
import socket
from functools import partial

from protocol_kit import Silent, turns

from examples.echo import EchoProtocol
from pulsar_client import AbstractClient, Connection, ConnectionClosed
from pulsar_client.testing import memory_pair


async def test_p16_an_end_behind_the_reply_is_seen_before_the_next_request() -> None:
    """P16: the task that gets the reply runs before the loop looks at the socket again."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with AbstractClient(protocol_factory=partial(Connection, EchoProtocol)) as client:
            connection = await client.create_connection(listening.getsockname())
            server, _ = await loop.sock_accept(listening)
            with server:
                server.setblocking(False)
                asked = asyncio.ensure_future(connection.request(b"one"))
                assert await loop.sock_recv(server, 100) == b"one\r\n\r\n"
                server.sendall(b"one\r\n\r\n")
                assert await asked == b"one"
                assert connection.is_reusable

                asked = asyncio.ensure_future(connection.request(b"two"))
                assert await loop.sock_recv(server, 100) == b"two\r\n\r\n"
                server.sendall(b"two\r\n\r\n")
            # Both are there before the client's loop turns.
            assert await asked == b"two"
            assert not connection.is_reusable


async def test_a_consumer_that_does_not_end_with_its_connection_lets_nobody_wait() -> None:
    class Forgetful(Silent):
        def connection_lost(self, exc: BaseException | None) -> None:
            """What the base does is forgotten."""

    near = Connection(Forgetful)
    memory_pair(near, asyncio.Protocol())
    await turns(1)
    asked = asyncio.ensure_future(near.request(b"0", timeout=30.0))
    await turns()
    near.abort()
    await turns()
    assert asked.done()
    assert isinstance(asked.exception(), ConnectionClosed)

"""What a user gets wrong gives one clear error, and nobody waits for ever."""

import asyncio
import logging
import ssl
from functools import partial
from typing import Any

import pytest

from examples.echo import EchoProtocol, EchoServerProtocol
from pulsar_client import AbstractClient, Connection, ConnectionClosed, ProtocolConsumer, TcpServer

LOOPBACK = ("127.0.0.1", 0)


class Forgetful(ProtocolConsumer):
    """Does not call ``super().__init__()``."""

    def __init__(self) -> None:
        self.mine = True

    def start_request(self) -> None:
        self.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.connection.server_side:
            self.write(data)
        self.finished(data)


class Asynchronous(Forgetful):
    async def start_request(self) -> None:  # type: ignore[override]
        raise AssertionError("nobody awaits it")


class AsynchronousAnswer(Forgetful):
    async def data_received(self, data: bytes) -> None:  # type: ignore[override]
        raise AssertionError("nobody awaits it")


class BadEnd(Forgetful):
    def data_received(self, data: bytes) -> None:
        self.finished(exc="text")  # type: ignore[arg-type]


async def ask(client: Any, server: Any = EchoServerProtocol) -> Any:
    async with (
        TcpServer(partial(Connection, server), address=LOOPBACK) as running,
        AbstractClient(protocol_factory=partial(Connection, client)) as made,
    ):
        connection = await made.create_connection(running.address)
        async with asyncio.timeout(5):
            return await connection.request(b"hello\r\n\r\n")


async def test_a_consumer_that_forgot_its_super_works() -> None:
    assert await ask(Forgetful, Forgetful) == b"hello\r\n\r\n"


async def test_a_coroutine_function_as_start_request_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"Asynchronous\.start_request\(\) is a coroutine function"
    ):
        await ask(Asynchronous)


async def test_a_coroutine_function_as_data_received_is_refused() -> None:
    with pytest.raises(TypeError, match=r"data_received\(\) returned .*create_task"):
        await ask(AsynchronousAnswer)


async def test_finishing_with_something_that_is_no_exception() -> None:
    with pytest.raises(TypeError, match="exc='text', expected an exception"):
        await ask(BadEnd)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda **kw: None, "returned None, expected a protocol"),
        (lambda: None, "unexpected keyword argument"),
    ],
)
async def test_a_server_says_why_it_can_make_no_protocol(
    factory: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="pulsar_client")
    async with (
        TcpServer(factory, address=LOOPBACK) as server,
        AbstractClient(protocol_factory=partial(Connection, EchoProtocol)) as client,
    ):
        connection = await client.create_connection(server.address)
        with pytest.raises(ConnectionClosed):
            await connection.request(b"?")
    (record,) = caplog.records
    assert message in str(record.exc_info)


async def test_a_server_without_a_factory_does_not_start() -> None:
    with pytest.raises(TypeError, match=r"not serving 127\.0\.0\.1:0: .*no protocol_factory"):
        await TcpServer(address=LOOPBACK).start_serving()


async def test_a_clients_factory_that_makes_no_protocol() -> None:
    async with TcpServer(partial(Connection, EchoServerProtocol), address=LOOPBACK) as server:
        client = AbstractClient()
        with pytest.raises(TypeError, match="returned None, expected a protocol"):
            await client.create_connection(server.address, lambda **kw: None)
        with pytest.raises(TypeError, match="protocol_factory is 3, expected a callable"):
            await client.create_connection(server.address, 3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="server_hostname is 3, expected a str"):
            await client.create_connection(
                server.address,
                ssl=True,
                server_hostname=3,  # type: ignore[arg-type]
            )


def test_an_unknown_keyword_is_blamed_on_the_class_that_was_called() -> None:
    with pytest.raises(TypeError, match="Connection got an unexpected keyword argument 'nope'"):
        Connection(EchoProtocol, nope=1)


def test_a_server_of_an_address_or_of_sockets() -> None:
    with pytest.raises(TypeError, match="sockets is 3, expected bound stream sockets"):
        TcpServer(address=LOOPBACK, sockets=3)  # type: ignore[arg-type]


async def test_a_request_on_a_connection_that_is_not_made_yet() -> None:
    with pytest.raises(RuntimeError, match="not made yet"):
        await Connection(EchoProtocol).request(b"early")


async def test_a_second_request_while_one_is_in_flight() -> None:
    class Silent(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            pass

        def eof_received(self) -> bool:
            return False  # nothing is due to a client that is gone: the server need not wait

    async with (
        TcpServer(partial(Connection, Silent), address=LOOPBACK) as server,
        AbstractClient(protocol_factory=partial(Connection, EchoProtocol)) as client,
    ):
        connection = await client.create_connection(server.address)
        first = asyncio.ensure_future(connection.request(b"first"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another request is in flight"):
            await connection.request(b"second")
        connection.abort()
        with pytest.raises(ConnectionClosed, match=r"after \(part of\) it was sent"):
            await first


async def test_a_refused_certificate_says_whose(server_ssl: ssl.SSLContext) -> None:
    server = TcpServer(partial(Connection, EchoServerProtocol), address=LOOPBACK)
    await server.start_serving(sslcontext=server_ssl)
    host, port = server.address
    async with AbstractClient(protocol_factory=partial(Connection, EchoProtocol)) as client:
        with pytest.raises(ssl.SSLCertVerificationError, match=f"{host}:{port}: the TLS") as info:
            await client.create_connection(server.address, ssl=True)
        assert info.value.verify_code
        assert info.value.reason == "CERTIFICATE_VERIFY_FAILED"
    await server.close()


async def test_a_peer_that_closes_in_the_handshake_is_named() -> None:
    def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, *LOOPBACK) as server:
        address = server.sockets[0].getsockname()
        with pytest.raises(ConnectionError, match=f":{address[1]}: the TLS handshake failed"):
            await AbstractClient(
                protocol_factory=partial(Connection, EchoProtocol)
            ).create_connection(address, ssl=True)


def test_a_consumer_shows_what_it_is_about() -> None:
    consumer = EchoProtocol()
    assert repr(consumer) == "<EchoProtocol not started, request None, on None>"
    consumer.request = b"x" * 1000
    assert len(repr(consumer)) < 120

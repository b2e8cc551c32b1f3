"""The line example: its demonstration, and client and server over real sockets."""

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from examples.line import LineClient, LineError, LineServer
from examples.line.protocol import MAX_KEY, MAX_LINE, MAX_VALUE
from pulsar_client import (
    Connection,
    ConnectionClosed,
    MessageTooLarge,
    PoolUnavailable,
    ProtocolConsumer,
    ProtocolError,
    RequestTimeout,
    TcpServer,
)
from pulsar_client.testing import FaultProxy, Link, memory_pair

ROOT = Path(__file__).resolve().parents[2]

BAD_KEYS = ["", "two words", "new\nline", "return\r", "tab\t", "nul\0", "\u2028", "k" * 65]
BAD_VALUES = ["new\nline", "OK\nSET other value", "return\r", "nul\0", "\x85", "\ud800", "v" * 956]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.line", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_demonstration() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("get greeting: Hello, world!", "get nothing: None", "the store is full"):
        assert line in done.stdout


def test_wrong_use_of_the_demonstration() -> None:
    done = run("--faster")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m examples.line ")


# -- client and server together --------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[LineServer]:
    async with LineServer(max_keys=3) as running:
        yield running


@pytest.fixture
async def client(server: LineServer) -> AsyncIterator[LineClient]:
    async with LineClient(server.address, 2) as client:
        yield client


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k", "v"),
        ("k", ""),
        ("k", " two  words "),
        ("ключ", "значение"),
        ("GET", "SET k v"),
        ("k" * MAX_KEY, "v" * MAX_VALUE),
    ],
)
async def test_what_is_set_is_got(client: LineClient, key: str, value: str) -> None:
    assert await client.get(key) is None
    await client.set(key, value)
    assert await client.get(key) == value


async def test_many_tasks_share_the_pool(server: LineServer, client: LineClient) -> None:
    async def work(number: int) -> None:
        key = f"key{number % 3}"
        await client.set(key, "value")
        assert await client.get(key) == "value"

    await asyncio.gather(*(work(number) for number in range(30)))
    assert server.requests_processed == 60
    assert client.pool.stats().opened <= 2


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_a_bad_key_is_not_sent(client: LineClient, key: str) -> None:
    with pytest.raises(ValueError, match="a key has"):
        await client.get(key)
    with pytest.raises(ValueError, match="a key has"):
        await client.set(key, "value")
    assert client.pool.stats().opened == 0


@pytest.mark.parametrize("value", BAD_VALUES)
async def test_a_bad_value_is_not_sent(client: LineClient, value: str) -> None:
    with pytest.raises(ValueError, match="a value has"):
        await client.set("key", value)
    assert client.pool.stats().opened == 0


async def test_an_error_reply_leaves_the_connection_usable(client: LineClient) -> None:
    for key in "abc":
        await client.set(key, "1")
    with pytest.raises(LineError, match=r"^the store is full$"):
        await client.set("d", "1")
    await client.set("a", "2")
    assert await client.get("a") == "2"
    assert client.pool.stats().opened == 1


async def test_quit_ends_one_connection(server: LineServer, client: LineClient) -> None:
    async with client.pool.connect() as lease:
        connection = lease.connection
    await client.quit()
    assert not connection.is_reusable
    await connection.event("connection_lost")
    assert await client.get("key") is None
    assert server.sessions == 2


async def test_the_client_goes_on_when_its_server_was_replaced() -> None:
    async with LineServer() as first, LineClient(first.address) as client:
        await client.set("key", "first")
        async with client.pool.connect() as lease:
            connection = lease.connection
        await first.close()
        await connection.event("connection_lost")
        address = client.address
        with pytest.raises(PoolUnavailable):
            await client.get("key")
        async with LineServer(address):
            assert await client.get("key") is None
            assert client.pool.stats().opened == 2


async def test_a_reply_that_is_cut_fails_its_request_only(server: LineServer) -> None:
    async with FaultProxy(server.address) as proxy, LineClient(proxy.address, 1) as client:
        proxy.cut_after(2, "to_client", once=True)
        with pytest.raises(ConnectionClosed) as error:
            await client.set("key", "value")
        assert error.value.sent  # and it was indeed carried out
        assert await client.get("key") == "value"


async def test_a_late_reply_is_never_the_next_one(server: LineServer) -> None:
    async with (
        FaultProxy(server.address) as proxy,
        LineClient(proxy.address, 1) as client,
    ):
        assert await client.get("key") is None  # connected, however long that took
        client.timeout = 0.1
        proxy.stall("to_client")
        with pytest.raises(RequestTimeout, match="no reply within"):
            await client.set("key", "value")
        proxy.resume()
        client.timeout = 20.0
        assert await client.get("key") == "value"


async def test_one_byte_at_a_time() -> None:
    answering = LineServer().create_protocol()
    asking = LineClient(("127.0.0.1", 1)).create_protocol()
    memory_pair(asking, answering, to_server=Link(split=1), to_client=Link(split=1))
    await asking.event("connection_made")
    assert await asking.request("SET key значение") is None
    assert await asking.request("GET key") == "значение"
    assert asking.is_reusable
    await asking.close()
    await answering.event("connection_lost")


# -- the server and bad clients --------------------------------------------------------------


async def exchange(server: TcpServer, sent: bytes) -> bytes:
    """Send bytes and the end; return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        writer.write(sent)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_pipelined_lines_are_answered_in_order(server: LineServer) -> None:
    assert await exchange(server, b"SET a 1\nGET a\nGET b\nSET a 2\nGET a\n") == (
        b"OK\nVALUE 1\nNONE\nOK\nVALUE 2\n"
    )


async def test_nothing_is_answered_behind_quit(server: LineServer) -> None:
    assert await exchange(server, b"GET a\nQUIT\nSET a 1\n") == b"NONE\nBYE\n"
    assert server.store == {}


@pytest.mark.parametrize(
    "line",
    [b"", b"HELLO", b"get a", b"SET", b"SET a", b"GET", b"GET a b", b"QUIT now", b"QUIT\r"],
)
async def test_a_line_that_is_no_command_gets_an_error(server: LineServer, line: bytes) -> None:
    assert await exchange(server, line + b"\nGET a\n") == (
        b"ERROR the commands are SET key value, GET key and QUIT\nNONE\n"
    )


@pytest.mark.parametrize("line", [b"SET  v", b"SET a\t v", b"SET a v\r", b"SET a \x1b[2J"])
async def test_the_server_checks_what_it_stores(server: LineServer, line: bytes) -> None:
    assert (await exchange(server, line + b"\n")).startswith(b"ERROR a ")
    assert server.store == {}


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (b"GET " + b"a" * MAX_LINE + b"\nGET a\n", b"ERROR a line has at most 1024 bytes\n"),
        (b"x" * (MAX_LINE + 1), b"ERROR a line has at most 1024 bytes\n"),
        (b"GET \xff\nGET a\n", b"ERROR a line is UTF-8\n"),
        (b"\x16\x03\x01\x02\x00\x01\x00\xfc\n", b"ERROR a line is UTF-8\n"),  # TLS
    ],
)
async def test_garbage_gets_one_error_and_the_end(
    server: LineServer, sent: bytes, reply: bytes
) -> None:
    assert await exchange(server, sent) == reply
    assert await exchange(server, b"GET a\n") == b"NONE\n"


async def test_half_a_line_gets_no_answer(server: LineServer) -> None:
    reader, writer = await asyncio.open_connection(*server.address)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    writer.write(b"GET a\nSET a")
    assert await reader.readline() == b"NONE\n"
    writer.transport.abort()
    assert await exchange(server, b"GET a\n") == b"NONE\n"
    assert server.store == {}


# -- the client and bad servers --------------------------------------------------------------


class Says(ProtocolConsumer):
    """Answers whatever it gets with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self.reply = reply

    def data_received(self, data: bytes) -> None:
        self.write(self.reply)
        self.finished()


@asynccontextmanager
async def client_of(reply: bytes) -> AsyncIterator[LineClient]:
    """A client of a server that always says the same."""
    factory = partial(Connection, partial(Says, reply))
    async with (
        TcpServer(factory, address=("127.0.0.1", 0)) as bad,
        LineClient(bad.address, 1) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "reply", [b"\n", b"OK\n", b"BYE\n", b"VALUES v\n", b"NONE of it\n", b"VALUE \xff\n"]
)
async def test_a_reply_that_is_none_is_a_protocol_error(reply: bytes) -> None:
    async with client_of(reply) as client:
        with pytest.raises(ProtocolError):
            await client.get("key")
        assert client.pool.available == 0


async def test_a_reply_that_is_too_long_is_a_protocol_error() -> None:
    async with client_of(b"VALUE " + b"v" * MAX_LINE) as client:
        with pytest.raises(MessageTooLarge):
            await client.get("key")
        assert client.pool.available == 0


async def test_bytes_behind_a_reply_end_the_connection() -> None:
    async with client_of(b"VALUE mine\nVALUE forged\n") as client:
        assert await client.get("key") == "mine"
        assert client.pool.available == 0

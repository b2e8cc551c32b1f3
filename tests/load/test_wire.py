"""Protocols that are known by name: each reads its replies however their bytes are cut."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from load_kit import echo_target, plan

from pulsar_client import AbstractClient, ConfigError, Connection, ProtocolError, load
from pulsar_client.load.recorder import Interval, Totals
from pulsar_client.load.wire import PROTOCOLS, find_wire
from pulsar_client.testing import Link, memory_pair

REPLIES = {
    "echo": (b"hello\r\n\r\n", b"hello"),
    "line": (b"hello\n", b"hello"),
    "http": (b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "redis-ping": (b"$5\r\nhello\r\n", b"hello"),
}


class Canned(asyncio.Protocol):
    """Sends what it was made with once it was asked."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        reply, self.reply = self.reply, b""
        self.transport.write(reply)


@pytest.mark.parametrize("split", [1, 2, 7, None])
@pytest.mark.parametrize("name", REPLIES)
async def test_a_reply_may_be_cut_anywhere(name: str, split: int | None) -> None:
    reply, result = REPLIES[name]
    client = AbstractClient(
        protocol_factory=partial(Connection, PROTOCOLS[name].consumer)
    ).create_protocol()
    memory_pair(client, Canned(reply), to_client=Link(split=split))
    await client.event("connection_made")
    assert await client.request(b"hello") == result
    assert client.is_reusable
    await client.close()


@pytest.mark.parametrize(
    ("name", "reply", "message"),
    [
        ("http", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "HTTP status 500"),
        ("http", b"SSH-2.0-x\r\n\r\n", "no HTTP reply"),
        ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "without a content-le"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "without a content-length"),
        ("redis-ping", b"-NOAUTH who are you\r\n", "Redis said b'-NOAUTH"),
    ],
)
async def test_a_reply_that_is_none(name: str, reply: bytes, message: str) -> None:
    client = AbstractClient(
        protocol_factory=partial(Connection, PROTOCOLS[name].consumer)
    ).create_protocol()
    memory_pair(client, Canned(reply))
    await client.event("connection_made")
    with pytest.raises(ProtocolError, match=message):
        await client.request(b"hello")
    await client.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "expected echo, line, http, redis-ping or module:Consumer"),
        ("no_such_module:X", "can't be imported: No module named"),
        ("json:Nope", "has no attribute 'Nope'"),
        ("json:__name__", "expected a ProtocolConsumer class"),
    ],
)
def test_protocols_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_wire(name)


async def test_pipelined_connections() -> None:
    pytest.importorskip("hdrh", reason="hdrhistogram is not installed")
    stop = load.Stop()

    def watch(interval: Interval, totals: Totals) -> None:
        if totals.counts.ok > 50:
            stop.request()

    async with echo_target() as url:
        piped = plan(url, in_flight=16, connections=1, pipeline=16, duration=50, interval=0.1)
        result = await load.run(piped, watch=watch, stop=stop)
    counts = result.counts
    assert counts.balanced
    assert counts.sent == counts.ok + counts.in_flight
    assert counts.ok > 50
    assert result.histogram("connect").count == 1
    with pytest.raises(ConfigError, match="only streams can be pipelined"):
        plan("udp://127.0.0.1:1", rate=1, pipeline=2)


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    path = directory / "s"
    process = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(path)]
        + ["--save", "", "--appendonly", "no"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        next(line for line in process.stdout if "eady to accept" in line)
        yield f"unix:{path}"
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
@pytest.mark.parametrize("pipeline", [1, 8])
async def test_a_real_redis(tmp_path: Path, pipeline: int) -> None:
    pytest.importorskip("hdrh", reason="hdrhistogram is not installed")
    with redis(tmp_path) as url:
        result = await load.run(plan(url, rate=200, protocol="redis-ping", pipeline=pipeline))
    assert result.counts.ok == 100

"""Whose reply does each get, on connections that many tasks share (I16)?"""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from line_codec import LineCodec

from pulsar_client import (
    AbstractClient,
    Connection,
    ConnectionClosed,
    DelimitedDecoder,
    ProtocolConsumer,
    RequestTimeout,
    TcpServer,
)
from pulsar_client.testing import FaultProxy, explore_cancellation, storm

LONG = bool(os.environ.get("PULSAR_CLIENT_LONG"))
CHANCE = random.Random(20)


class Line(ProtocolConsumer):
    def connection_made(self, connection: Any) -> None:
        if connection.parser is None:
            connection.parser = DelimitedDecoder(b"\n")

    def start_request(self) -> None:
        self.write(self.request + b"\n")

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.connection.parser.decode(data)
        if line is not None:
            self.take(line)
        rest_of_it: bytes = rest
        return rest_of_it

    def take(self, line: bytes) -> None:
        self.finished(line)


class Answer(Line):
    """Answers at once, or a few turns of the loop later and out of order."""

    def take(self, line: bytes) -> None:
        if CHANCE.random() < 0.5:
            self.write(line + b"\n")
            self.finished()
        else:
            self.create_task(self.answer(line))

    async def answer(self, line: bytes) -> None:
        for _ in range(CHANCE.randrange(4)):
            await asyncio.sleep(0)
        self.write(line)
        self.write(b"\n")
        self.finished()


KINDS = {"consumers": partial(Connection, Line), "codec": partial(Connection, codec=LineCodec)}


class Shared(AbstractClient):
    """One connection for everybody, dialled again when it is lost."""

    def __init__(self, address: Any, factory: Any) -> None:
        super().__init__(protocol_factory=factory)
        self.address = address
        self.dial: asyncio.Task[Any] | None = None

    async def connection(self) -> Any:
        if self.dial is None or (self.dial.done() and not self.usable(self.dial)):
            self.dial = asyncio.ensure_future(self.create_connection(self.address))
        dial = self.dial
        await asyncio.wait({dial})
        return dial.result()

    @staticmethod
    def usable(dial: "asyncio.Task[Any]") -> bool:
        return dial.exception() is None and dial.result().is_shareable

    async def ask(self, message: bytes, timeout: float | None = None) -> Any:
        return await (await self.connection()).request(message, timeout)


@contextlib.asynccontextmanager
async def proxied() -> AsyncIterator[FaultProxy]:
    """A server behind a network that misbehaves."""
    async with server() as running, FaultProxy(running.address) as proxy:
        yield proxy


def server() -> TcpServer:
    return TcpServer(partial(Connection, Answer, pipeline=32), address=("127.0.0.1", 0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_each_gets_its_own_reply_i16(kind: str) -> None:
    factory = partial(KINDS[kind], pipeline=40)
    async with proxied() as proxy, Shared(proxy.address, factory) as client:

        async def exchange(message: bytes) -> Any:
            return await client.ask(message, CHANCE.choice((None, 5.0, 0.001)))

        report = await storm(
            exchange,
            tasks=100,
            exchanges=50_000 if LONG else 3000,
            faults=[proxy.reset, proxy.close_all],
            fault_every=500,
        )
        assert report.ok > report.exchanges / 10
        assert report.cancelled
        assert report.failed["RequestTimeout"]
        client.abort()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_many_at_once_with_time_outs_and_cancellations_i16(kind: str) -> None:
    count = 100_000 if LONG else 5000
    chance = random.Random(7)
    ends: Counter[str] = Counter()
    factory = partial(KINDS[kind], pipeline=500)
    async with proxied() as proxy, Shared(proxy.address, factory) as client:
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                message = b"message %d" % number
                timeout = chance.choice((None, None, 10.0, 0.0, 0.02))
                task = asyncio.ensure_future(client.ask(message, timeout))
                if chance.random() < 0.2:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    task.cancel()
                if number % 2500 == 2499:
                    proxy.reset()
                try:
                    assert await task == message
                    ends["ok"] += 1
                except asyncio.CancelledError:
                    ends["cancelled"] += 1
                except RequestTimeout:
                    ends["timed out"] += 1
                except ConnectionClosed as exc:
                    ends["sent" if exc.sent else "unsent"] += 1
                except OSError:
                    ends["dial"] += 1

        await asyncio.gather(*(work() for _ in range(200)))
        assert ends.total() == count
        assert ends["ok"] > count / 10
        assert ends["cancelled"]
        assert ends["timed out"]
        connection = await client.connection()
        async with asyncio.timeout(20):
            assert await connection.drained()
        info = connection.info()["connection"]["pipeline"]
        assert (info["in_flight"], info["abandoned"], info["waiting"]) == (0, 0, 0)
        assert connection.is_reusable
        client.abort()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [1, 40])
async def test_cancelled_at_every_await_i11_i16(kind: str, limit: int) -> None:
    factory = partial(KINDS[kind], pipeline=limit)
    async with server() as running, Shared(running.address, factory) as client:
        connection = await client.connection()

        async def scenario() -> None:
            assert await connection.request(b"mine", 30.0) == b"mine"
            assert await connection.drained()

        async def check(_: int) -> None:
            assert connection.is_shareable
            assert await connection.request(b"next") == b"next"
            assert await connection.drained()
            assert connection.is_reusable

        found = await explore_cancellation(scenario, check=check)
        assert found.points >= 2
        client.abort()

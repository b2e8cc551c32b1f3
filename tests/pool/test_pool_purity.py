"""No caller ever gets another's reply (I16), on real sockets."""

import asyncio
import random
import struct
from functools import partial
from typing import Any

import pytest
from pool_kit import at_rest, conserved, task, turns

from pulsar_client import (
    AbstractClient,
    Connection,
    ConnectionClosed,
    Pool,
    PoolTimeout,
    ProtocolConsumer,
    TcpServer,
)

EXCHANGES = 10_000
TASKS = 50
SIZE = 10


class Exchange(ProtocolConsumer):
    """Eight bytes there, eight bytes back."""

    def start_request(self) -> None:
        self.write(struct.pack("!Q", self.request))

    def data_received(self, data: bytes) -> bytes | None:
        if len(data) < 8:
            return data
        self.finished(struct.unpack("!Q", data[:8])[0])
        return data[8:]


class LateServer(ProtocolConsumer):
    """Answers some requests at once, most of them later, a few in two pieces."""

    choose = random.Random(3)

    def data_received(self, data: bytes) -> bytes | None:
        if len(data) < 8:
            return data
        reply, rest = data[:8], data[8:]
        kind = self.choose.random()
        loop = asyncio.get_running_loop()
        if kind < 0.3:
            self.reply(reply)
        elif kind < 0.9:
            loop.call_later(self.choose.random() * 0.004, self.reply, reply)
        else:
            self.write(reply[:3])
            loop.call_later(self.choose.random() * 0.004, self.reply, reply[3:])
        return rest

    def reply(self, data: bytes) -> None:
        if not self.connection.closed and not self.done():
            self.write(data)
            self.finished()


class Client(AbstractClient):
    protocol_factory = partial(Connection, Exchange)

    def __init__(self, address: Any, size: int) -> None:
        super().__init__()
        self.address = address
        self.pool: Pool = Pool(self.connect, size, name="purity")

    async def connect(self) -> Any:
        return await self.create_connection(self.address)

    def open_sockets(self) -> int:
        """Count transports that have a socket: those being closed too."""
        return len(self._protocols)


async def exchange(client: Client, number: int, choose: random.Random) -> int:
    """Make one exchange in one of several styles."""
    style = choose.random()
    if style < 0.4:
        async with client.pool.connect() as lease:
            reply: int = await lease.request(number)
            if choose.random() < 0.2:
                raise ZeroDivisionError
    elif style < 0.6:
        async with client.pool.connect() as lease, asyncio.timeout(choose.random() * 0.004):
            reply = await lease.request(number)
    elif style < 0.8:
        held = await client.pool.connect()
        try:
            consumer = held.current_consumer()
            consumer.start(number)
            async with asyncio.timeout(choose.random() * 0.008):
                reply = await consumer.on_finished
        finally:
            # Whatever happened, it is simply given back.
            held.close()
    elif style < 0.9:
        reply = await asyncio.wait_for(in_block(client, number), choose.random() * 0.01)
    else:
        async with client.pool.connect(timeout=choose.random() * 0.005) as lease:
            reply = await lease.request(number)
    return reply


async def in_block(client: Client, number: int) -> int:
    async with client.pool.connect() as lease:
        reply: int = await lease.request(number)
        return reply


async def test_no_caller_gets_the_reply_of_another() -> None:
    """I16, I2: 10,000 exchanges, 50 tasks on 10 connections, cancelled and late at random."""
    choose = random.Random(17)
    wrong: list[tuple[int, int]] = []
    counts = {"right": 0, "late": 0, "cancelled": 0, "failed": 0}
    numbers = iter(range(EXCHANGES))
    most = 0

    async with TcpServer(partial(Connection, LateServer), address=("127.0.0.1", 0)) as server:
        client = Client(server.address, SIZE)

        async def one(number: int) -> None:
            nonlocal most
            try:
                reply = await exchange(client, number, choose)
            except TimeoutError:
                counts["late"] += 1
            except ZeroDivisionError:
                counts["failed"] += 1
            else:
                counts["right"] += 1
                if reply != number:
                    wrong.append((number, reply))
            most = max(most, client.open_sockets())

        async def worker() -> None:
            loop = asyncio.get_running_loop()
            for number in numbers:
                running = task(one(number))
                if choose.random() < 0.25:
                    loop.call_later(choose.random() * 0.006, running.cancel)
                await asyncio.wait([running])
                if running.cancelled():
                    counts["cancelled"] += 1
                else:
                    running.result()

        await asyncio.gather(*(worker() for _ in range(TASKS)))
        assert wrong == []
        assert sum(counts.values()) == EXCHANGES
        assert min(counts.values()) > EXCHANGES // 100, counts
        assert most <= SIZE
        conserved(client.pool)
        stats = client.pool.stats()
        assert (stats.in_use, stats.waiting) == (0, 0)
        # Dials without an asker and closes under way come to an end by themselves.
        async with asyncio.timeout(5.0):
            while client.pool.stats().dialling or client.pool.stats().closing:
                await turns()
        at_rest(client.pool)
        assert client.open_sockets() == client.pool.available
        client.close()
        await client.wait_closed()
        assert client.open_sockets() == 0


@pytest.mark.parametrize("how", ["cancel", "timeout", "error", "no reply awaited"])
async def test_an_exchange_without_its_reply_closes_the_connection(how: str) -> None:
    """I16, I17: one of each, seen closely."""
    gate = asyncio.Event()

    class Gated(LateServer):
        def data_received(self, data: bytes) -> bytes | None:
            task(self.later(data))
            return None

        async def later(self, data: bytes) -> None:
            await gate.wait()
            self.reply(data)

    async with TcpServer(partial(Connection, Gated), address=("127.0.0.1", 0)) as server:
        client = Client(server.address, 1)

        async def first() -> None:
            async with client.pool.connect() as lease:
                consumer = lease.current_consumer()
                consumer.start(1)
                if how == "error":
                    raise ZeroDivisionError
                if how == "no reply awaited":
                    return
                async with asyncio.timeout(0.01 if how == "timeout" else None):
                    await consumer.on_finished

        running = task(first())
        while not client.pool.in_use and not running.done():
            await turns()
        if how == "cancel":
            await turns(2)
            running.cancel()
        await asyncio.wait([running])
        assert running.cancelled() or how == "no reply awaited" or running.exception()
        gate.set()
        assert client.pool.available == 0
        async with client.pool.connect() as lease:
            assert await lease.request(2) == 2
        assert client.sessions == 2
        at_rest(client.pool)
        client.close()
        await client.wait_closed()


@pytest.mark.parametrize("what", ["byte", "eof", "reset"])
async def test_whatever_arrives_on_an_idle_connection_evicts_it_in_that_turn(what: str) -> None:
    """I18: seen by the pool before the loop turns again."""
    async with TcpServer(partial(Connection, LateServer), address=("127.0.0.1", 0)) as server:
        client = Client(server.address, 1)
        (await client.pool.connect()).close()
        assert client.pool.available == 1
        connection: Any = next(iter(client._protocols))
        available = []
        name = "eof_received" if what == "eof" else "data_received"
        if what == "reset":
            name = "connection_lost"
        inner = getattr(connection, name)

        def spy(*args: Any) -> Any:
            result = inner(*args)
            available.append(client.pool.available)
            return result

        connection.__dict__[name] = spy
        protocol: Any = connection
        if what == "byte":
            protocol.data_received(b"x")
        elif what == "eof":
            protocol.eof_received()
        else:
            protocol.transport.abort()
        while not available:
            await turns()
        assert available == [0]
        while client.pool.stats().closing:
            await turns()
        async with client.pool.connect() as lease:
            assert await lease.request(5) == 5
        client.close()
        await client.wait_closed()


async def test_bytes_nobody_asked_for_never_become_a_reply() -> None:
    """I16, I18: the server answers twice; the second answer is nobody's."""

    class Twice(LateServer):
        def data_received(self, data: bytes) -> bytes | None:
            self.write(data)
            self.finished()
            self.connection.transport.write(struct.pack("!Q", 666))
            return None

    async with TcpServer(partial(Connection, Twice), address=("127.0.0.1", 0)) as server:
        client = Client(server.address, 1)
        for number in range(50):
            try:
                async with client.pool.connect() as lease:
                    assert await lease.request(number) == number
            except ConnectionClosed:
                pass
        client.close()
        await client.wait_closed()


async def test_the_wait_in_the_queue_ends_with_its_time() -> None:
    """I16: late in the queue, nothing was written."""
    async with TcpServer(partial(Connection, LateServer), address=("127.0.0.1", 0)) as server:
        client = Client(server.address, 1)
        async with client.pool.connect():
            with pytest.raises(PoolTimeout):
                async with client.pool.connect(timeout=0.01):
                    pass
        assert client.requests_processed == 0
        client.close()
        await client.wait_closed()

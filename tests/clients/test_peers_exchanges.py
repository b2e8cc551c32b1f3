"""What broke in other clients, made to happen in ours: exchanges, staleness, the end of things.

The docstrings name the project and the number of the issue, and the property that it broke.  All
over real sockets, against a peer that does what the test tells it; only where a time-out must not
be reached are the clock virtual and the connection in memory.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from scripted_peer import Client, Line, MemoryClient, Peer, fill, open_client, peer, until

from pulsar_client import (
    AbstractClient,
    Connection,
    ConnectionClosed,
    LeaseReleased,
    Pool,
    PoolTimeout,
    PoolUnavailable,
    RequestTimeout,
    TcpServer,
)
from pulsar_client.testing import VirtualClockLoop

__all__ = ["peer"]  # a fixture


# -- whose reply is it ---------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["answer later", "answer half", "answer"])
@pytest.mark.parametrize("how", ["cancel", "time-out", "exception"])
@pytest.mark.parametrize("turns", range(4))
async def test_the_reply_to_one_who_left(peer: Peer, action: str, how: str, turns: int) -> None:
    """redis-py 2624, 2665 and 166, go-redis 1113, aiomysql 614, asyncmy 108 (I16).

    A request was cancelled, or timed out, after it was sent and before it was answered, or in the
    middle of its answer; the connection went back, and the next caller got what was still to come.
    """
    async with open_client(peer, pool_size=1) as client:

        async def ask() -> None:
            async with client.pool.connect() as lease:
                match how:
                    case "time-out":
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.001 * turns):
                                await lease.request(b"alice")
                    case "exception":
                        asking = asyncio.ensure_future(lease.request(b"alice"))
                        await asyncio.sleep(0)
                        try:
                            raise ValueError("in the caller's own code")
                        finally:
                            asking.cancel()
                    case _:
                        await lease.request(b"alice")

        peer.plan = [action]
        asking = asyncio.ensure_future(ask())
        if action != "answer":
            await until(lambda: peer.lines or asking.done())
        for _ in range(turns):
            await asyncio.sleep(0)
        if how == "cancel":
            asking.cancel()
        await asyncio.wait([asking])
        peer.plan = []
        peer.released.set()
        for number in range(3):
            answer = await client.request(b"bob %d" % number, idempotent=True)
            assert answer == b"BOB %d" % number
        if not asking.cancelled():
            asking.exception()


async def test_a_reply_that_was_read_half(peer: Peer) -> None:
    """bb8 246 (I17): a stream whose reply was read half went back to the pool."""

    class First(Line):
        """Is content with the first line of two."""

    async with open_client(peer, pool_size=1) as client:
        client.protocol_factory = partial(Connection, First)
        peer.plan = ["answer twice"]
        async with client.pool.connect() as lease:
            connection = lease.connection
            assert await lease.request(b"list") == b"LIST"
            assert not connection.is_reusable
        assert connection not in client.pool
        assert await client.request(b"next") == b"NEXT"


async def test_a_handle_that_is_kept(peer: Peer) -> None:
    """aiomysql 371 (I17, I20): results were read through a handle whose lease had ended."""
    async with open_client(peer, pool_size=1) as client:
        async with client.pool.connect() as lease:
            await lease.request(b"mine")
        async with client.pool.connect() as other:
            with pytest.raises(LeaseReleased):
                await lease.request(b"not mine any more")
            assert await other.request(b"other") == b"OTHER"
        assert b"not mine any more" not in peer.lines


# -- stale connections ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["end of file", "reset", "bytes"])
async def test_what_arrives_on_an_idle_connection(peer: Peer, what: str) -> None:
    """aiohttp 631, httpx 327, redis-py 886 (I18): dead connections were leased, and kept.

    redis-py had them in CLOSE_WAIT: the descriptor must go as well, without anybody's asking.
    """
    async with open_client(peer) as client:
        connections = await fill(client, 5)
        descriptors = [connection.sock.fileno() for connection in connections]
        for sock in list(peer.connections):
            match what:
                case "end of file":
                    sock.shutdown(socket.SHUT_WR)
                case "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.shutdown(socket.SHUT_RD)  # ends the wait for data, then it is closed
                case _:
                    sock.send(b"I close in a second\n")
        await until(lambda: not client.pool.available)
        await until(lambda: not client.pool.stats().size)
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)
        assert await client.request(b"x") == b"X"
        assert client.retries == 0


async def test_a_connection_that_its_user_closes(peer: Peer) -> None:
    """aiohttp 4587 (I18): reused although its transport was closing."""
    async with open_client(peer, pool_size=1) as client:
        async with client.pool.connect() as lease:
            first = lease.connection
            await lease.request(b"x")
            first.close()
        async with client.pool.connect() as lease:
            assert lease.connection is not first
            assert await lease.request(b"y") == b"Y"


async def test_the_server_times_idle_connections_out(peer: Peer) -> None:
    """aiohttp 850, 2867, 3507 and 4923, httpx 1478 (I21): a visible error every so often."""
    async with open_client(peer) as client:
        for round_ in range(10):
            await fill(client, 5)
            peer.close_idle()
            answers = await asyncio.gather(
                *(client.request(b"%d" % number, idempotent=True) for number in range(10))
            )
            assert len(answers) == 10, round_


async def test_a_repetition_can_be_refused(peer: Peer) -> None:
    """aiohttp 10790 (I21): the built-in retry could not be switched off."""
    async with open_client(peer) as client:
        client.attempts = 1
        await fill(client, 1)
        peer.plan = ["drop"]
        with pytest.raises(ConnectionClosed):
            await client.request(b"once", idempotent=True)
        assert peer.lines.count(b"once") == 1


async def test_after_a_restart_of_the_server(free_port: int) -> None:
    """redis-py 3034, go-redis 3289, psycopg 370, fecfile-web-api 2208 (I22).

    They never came back, or stumbled over one stale connection after the other.
    """

    @contextlib.asynccontextmanager
    async def serving() -> AsyncIterator[TcpServer]:
        server = TcpServer(partial(Connection, Echo), address=("127.0.0.1", free_port))
        async with server:
            yield server

    class Echo(Line):
        def data_received(self, data: bytes) -> bytes:
            line, rest = self.decoder.decode(data)
            if line is not None:
                self.write(line.upper() + b"\n")
                self.finished()
            return rest

    async with Client(("127.0.0.1", free_port)) as client:
        async with serving():
            await fill(client, 10)
        with pytest.raises((PoolUnavailable, ConnectionClosed)):
            await client.request(b"anybody?")
        async with serving():
            # One whose turn in the backoff has not come is told so; soon nobody is.
            async with asyncio.timeout(20.0):
                while True:
                    try:
                        await client.request(b"again", idempotent=True)
                    except PoolUnavailable:
                        await asyncio.sleep(0.01)
                    else:
                        break
            retries = client.retries
            answers = await asyncio.gather(*(client.request(b"x") for _ in range(50)))
            assert answers == [b"X"] * 50
            assert client.retries == retries


async def test_a_server_that_is_half_open(peer: Peer) -> None:
    """psycopg 1371 (I11, I23): a cancellation waited for a server that said nothing any more."""
    async with open_client(peer, pool_size=2) as client:
        peer.plan = ["stay silent"] * 10
        asking = asyncio.ensure_future(client.request(b"x"))
        await until(lambda: peer.lines)
        asking.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asking.cancelled()
        lease = await client.pool.connect()
        waiting = asyncio.ensure_future(lease.request(b"y"))
        await until(lambda: len(peer.lines) == 2)
        async with asyncio.timeout(5.0):
            await client.pool.close(timeout=0)
        with pytest.raises(ConnectionClosed):
            await waiting


async def test_time_outs_leave_healthy_connections_alone(peer: Peer) -> None:
    """pymongo 2192 (I27): a time-out in the queue cleared the pool, a self-made outage."""
    async with open_client(peer, pool_size=3) as client:
        connections = await fill(client, 3)
        leases = [await client.pool.connect() for _ in range(3)]
        for _ in range(20):
            with pytest.raises(PoolTimeout):
                await client.pool.connect(timeout=0.001)
        for lease in leases:
            lease.close()
        assert all(connection in client.pool for connection in connections)
        assert client.pool.stats().opened == 3


async def test_a_refused_dial_leaves_healthy_connections_alone(peer: Peer) -> None:
    """mongo-java-driver 1900 (I27): a refused dial cleared what was open."""
    async with open_client(peer, pool_size=3) as client:
        connections = await fill(client, 2)
        await peer.stop_listening()
        leases = [await client.pool.connect() for _ in range(2)]
        with pytest.raises(PoolUnavailable):
            await client.pool.connect(timeout=5.0)
        for lease in leases:
            assert await lease.request(b"still there") == b"STILL THERE"
            lease.close()
        assert all(connection in client.pool for connection in connections)


# -- timers and deadlines ------------------------------------------------------------------------


def test_a_time_out_of_a_request_ends_with_it() -> None:
    """aiohttp 12953 and 13000 (I15): re-armed on the idle connection, it hit the next request."""

    async def main() -> None:
        async with MemoryClient(1) as client:
            for message in (b"one", b"two", b"three"):
                assert await client.request(message, timeout=0.2) == message.upper()
                await asyncio.sleep(0.15)
                assert await client.request(message) == message.upper()
                await asyncio.sleep(0.1)
            assert client.pool.stats().opened == 1

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("stuck", ["queue", "dial", "reply"])
def test_one_deadline_whatever_is_stuck(stuck: str) -> None:
    """HikariCP 588, httpcore 823 (I12): asked for 2 s, waited for 38 s."""

    async def never() -> Any:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with MemoryClient(1, answers=False) as client:
            if stuck == "dial":
                client.pool = Pool(never, 1)
            holding = await client.pool.connect() if stuck == "queue" else None
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(RequestTimeout if stuck == "reply" else PoolTimeout):
                await client.request(b"x", timeout=0.1, idempotent=True)
            assert loop.time() - started == pytest.approx(0.1)
            if holding is not None:
                holding.close()
            await client.pool.close(timeout=0)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


async def test_a_release_waits_for_nothing(peer: Peer) -> None:
    """asyncpg 431, 1356 (I13): a release waited for ever for a server that did not answer."""
    async with open_client(peer, pool_size=1) as client:
        lease = await client.pool.connect()
        peer.plan = ["stay silent"]
        asking = asyncio.ensure_future(lease.request(b"x"))
        await until(lambda: peer.lines)
        asking.cancel()
        lease.close()  # not a coroutine: there is nothing to wait for
        assert client.pool.in_use == 0
        await asyncio.wait([asking])


async def test_a_clean_up_under_constant_cancellation(peer: Peer) -> None:
    """SQLAlchemy 8145, 12077 (I13): the awaits of the clean-up were cancelled too, as anyio does.

    The block's end must not await at all: driven by hand, it ends in the very step in which the
    cancellation is thrown in.
    """
    async with open_client(peer, pool_size=1) as client:
        await fill(client, 1)

        async def work() -> None:
            async with client.pool.connect() as lease:
                await lease.request(b"x")

        coroutine = work()
        coroutine.send(None)
        with pytest.raises(asyncio.CancelledError):
            coroutine.throw(asyncio.CancelledError())
        assert client.pool.in_use == 0
        assert client.pool.available == 0


@pytest.mark.parametrize("how", ["blocking command", "listening"])
async def test_a_cancellation_is_a_cancellation(peer: Peer, how: str) -> None:
    """redis-py 2666, 2633 and 2717 (I11): shielded, so that BLPOP could not be cancelled at all;
    or it came out as a ConnectionError."""
    async with open_client(peer) as client:
        peer.plan = ["stay silent"]
        if how == "blocking command":
            waiting = asyncio.ensure_future(client.request(b"pop", idempotent=True))
        else:

            async def listen() -> Any:
                async with client.pool.connect() as lease:
                    return await lease.request(b"subscribe")

            waiting = asyncio.ensure_future(listen())
        await until(lambda: peer.lines)
        waiting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waiting.cancelled()


# -- dials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_connect_leaves_nothing(peer: Peer, turns: int) -> None:
    """cpython 81839 and 131728, asyncpg 464 (I3): the socket stayed open, its fd registered."""
    async with AbstractClient(protocol_factory=partial(Connection, Line)) as client:
        for _ in range(5):
            dialling = asyncio.ensure_future(client.create_connection(peer.address))
            for _ in range(turns):
                await asyncio.sleep(0)
            dialling.cancel()
            await asyncio.wait([dialling])
            if not dialling.cancelled():
                dialling.result().abort()
        # The peer sees each of them end; ours are looked for when the test is over.
        await until(lambda: not peer.connections)


async def test_the_server_never_sees_too_many(peer: Peer) -> None:
    """pgx 2425, aiohttp 4936 (I2): with many cancellations the sockets snowballed."""
    async with open_client(peer, pool_size=3) as client:
        for round_ in range(40):
            peer.plan = ["stay silent"] * 3
            callers = [asyncio.ensure_future(client.request(b"%d" % n)) for n in range(9)]
            for _ in range(round_ % 10):
                await asyncio.sleep(0)
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)
        peer.plan = []
        assert await client.request(b"x") == b"X"
        stats = client.pool.stats()
        assert stats.size <= 3
        # What we have closed the peer may not have heard of yet, and it accepts what was given up.
        assert peer.peak <= 3 + 3


async def test_an_identity_is_not_shared(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext
) -> None:
    """aiohttp 12835 (I19): the key of the pool lacked server_hostname."""

    class Named(Client):
        def __init__(self, address: Any, name: str) -> None:
            super().__init__(address)
            self.hostname = name

        async def connect(self) -> Any:
            return await self.create_connection(
                self.address, ssl=client_ssl, server_hostname=self.hostname
            )

    server = TcpServer(partial(Connection, Line), address=("127.0.0.1", 0))
    await server.start_serving(sslcontext=server_ssl)
    async with server, Named(server.address, "localhost") as right:
        async with right.pool.connect() as lease:
            assert not lease.closed
        async with Named(server.address, "other.example") as wrong:
            with pytest.raises(PoolUnavailable, match="Hostname mismatch"):
                await wrong.pool.connect()
        right.abort()


# -- the end -------------------------------------------------------------------------------------


async def test_closing_ends_in_time(peer: Peer) -> None:
    """asyncpg 290, encode/databases 477 (I29): close waited for every lease, for ever."""
    async with open_client(peer, pool_size=2) as client:
        kept = [await client.pool.connect() for _ in range(2)]
        waiting = [asyncio.ensure_future(client.pool.connect()) for _ in range(3)]
        await asyncio.sleep(0)
        async with asyncio.timeout(10.0):
            await client.pool.close(timeout=0.05)
        assert [type(one.exception()).__name__ for one in waiting] == ["PoolClosed"] * 3
        assert all(lease.connection.closed for lease in kept)
        assert client.pool.stats().size == 0


async def test_closing_while_a_dial_is_under_way(peer: Peer) -> None:
    """psycopg 784, aiohttp 12497 (I29): it waited for a worker that was connecting."""
    stuck = socket.create_server(("127.0.0.1", 0), backlog=0)
    with stuck, socket.create_connection(stuck.getsockname()):
        async with Client(stuck.getsockname()) as client:
            waiting = asyncio.ensure_future(client.pool.connect())
            await until(lambda: client.pool.stats().dialling)
            async with asyncio.timeout(5.0):
                await client.pool.close()
            assert type(waiting.exception()).__name__ == "PoolClosed"
            assert client.pool.stats().dialling == 0


def test_a_client_that_outlives_its_loop(free_port: int) -> None:
    """httpx 2473, httpcore 525, SQLAlchemy 6409 (I31): "Event loop is closed", somewhere deep."""
    client = Client(("127.0.0.1", free_port))

    async def use() -> None:
        with contextlib.suppress(PoolUnavailable):
            await client.request(b"x")

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(use())


async def test_the_error_tells_which_pool_and_why(peer: Peer) -> None:
    """db_connection 325 and 333, HikariCP 4 (I35): which of the pools, and what was it doing?"""
    async with open_client(peer, pool_size=1) as client, client.pool.connect():
        with pytest.raises(PoolTimeout) as info:
            await client.request(b"x", timeout=0.01)
        for part in ("'lines'", "1 in use", "0 available", "no connection within"):
            assert part in str(info.value)

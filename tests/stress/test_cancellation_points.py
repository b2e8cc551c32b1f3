"""The pool, an exchange and a connection attempt, cancelled at every point there is.

Real sockets on both loops; what can be done on a virtual clock is done there as well, where the
points are the same in each run.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from examples.echo import Echo
from examples.echo.manage import server
from pulsar_client import AbstractClient, Connection, Pool, ProtocolConsumer
from pulsar_client.testing import (
    Exploration,
    Gate,
    VirtualClockLoop,
    conservation,
    explore_cancellation,
    settled,
)


class Conn:
    """The least that can be pooled; its dial and its close take turns and time."""

    def __init__(self) -> None:
        self.closed = False

    @classmethod
    async def dial(cls) -> "Conn":
        await asyncio.sleep(0)
        await Gate.SLOW.pass_through(delay=0.001)
        return cls()

    def close(self) -> Awaitable[None]:
        self.closed = True
        return Gate.SLOW.pass_through(delay=0.001)


class Bench:
    """A pool for each run of a scenario, and the check that it is whole afterwards."""

    def __init__(
        self, scenario: Callable[[Pool], Awaitable[object]], creator: Any = Conn.dial
    ) -> None:
        self.scenario = scenario
        self.creator = creator
        self.pool: Pool | None = None

    async def run(self) -> None:
        self.pool = Pool(self.creator, 1)
        await self.scenario(self.pool)

    async def check(self, _point: int) -> None:
        assert self.pool is not None
        conservation(self.pool)
        await settled(self.pool)
        if not self.pool.closed:
            # Its one slot can be had.
            async with self.pool.connect(timeout=20.0):
                pass
        await self.pool.close()
        await settled(self.pool)
        assert self.pool.stats().size == 0

    async def explore(self, **kw: Any) -> Exploration:
        return await explore_cancellation(self.run, check=self.check, **kw)


async def lease_idle(pool: Pool) -> None:
    async with pool.connect():
        pass
    async with pool.connect():
        await asyncio.sleep(0)
    await asyncio.sleep(0)


async def lease_dialled(pool: Pool) -> None:
    lease = await pool.connect()
    lease.close()


async def lease_after_a_wait(pool: Pool) -> None:
    lease = await pool.connect()
    asyncio.get_running_loop().call_later(0.001, lease.close)
    async with pool.connect():
        pass


async def lease_after_another_was_dropped(pool: Pool) -> None:
    """The slot is free only when the connection is closed, and then there is a dial."""
    lease = await pool.connect()
    asyncio.get_running_loop().call_soon(lambda: lease.close(discard=True))
    async with pool.connect():
        pass


async def close_with_a_lease(pool: Pool) -> None:
    lease = await pool.connect()
    asyncio.get_running_loop().call_later(0.001, lease.close)
    await pool.close()


async def close_while_dialling(pool: Pool) -> None:
    asking = asyncio.ensure_future(lease_dialled(pool))
    asking.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.sleep(0)
    await pool.close()


async def close_with_a_time_out(pool: Pool) -> None:
    lease = await pool.connect()
    try:
        await pool.close(timeout=0.001)
    finally:
        lease.close()


SCENARIOS = [
    lease_idle,
    lease_dialled,
    lease_after_a_wait,
    lease_after_another_was_dropped,
    close_with_a_lease,
    close_while_dialling,
    close_with_a_time_out,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_leases_and_closes(scenario: Callable[[Pool], Awaitable[None]]) -> None:
    """I1, I3, I6, I11, I14, I29."""
    assert (await Bench(scenario).explore(turns=6)).points >= 5


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_leases_and_closes_on_a_virtual_clock(
    scenario: Callable[[Pool], Awaitable[None]],
) -> None:
    """The same, with the same points each time."""

    def run() -> Exploration:
        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            return runner.run(Bench(scenario).explore(turns=6))

    report = run()
    assert report.points >= 5
    assert run() == report


@pytest.mark.parametrize("ends", [True, False], ids=["a-future", "endless"])
@pytest.mark.parametrize("turns", range(5))
async def test_the_pool_is_closed_whatever_its_dial_does(ends: bool, turns: int) -> None:
    """I29, I3: a dial that never ends, or a future that has its connection by then."""
    loop = asyncio.get_running_loop()
    made: list[Conn] = []
    pools: list[Pool] = []

    def resolve(future: asyncio.Future[Conn]) -> None:
        if not future.done():
            made.append(Conn())
            future.set_result(made[-1])

    def creator() -> asyncio.Future[Conn]:
        future: asyncio.Future[Conn] = loop.create_future()
        if ends:
            loop.call_soon(loop.call_soon, resolve, future)
        return future

    async def close() -> None:
        pools.append(Pool(creator, 1, timeout=None))
        asking = asyncio.ensure_future(lease_dialled(pools[-1]))
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        for _ in range(turns):
            await asyncio.sleep(0)
        await pools[-1].close()

    async def check(_point: int) -> None:
        await asyncio.wait_for(pools[-1].close(), 20.0)
        assert pools[-1].stats().size == 0
        assert all(conn.closed for conn in made)

    report = await explore_cancellation(close, check=check, timeout=20.0)
    assert report.points >= turns


# -- with sockets ------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False], ids=["idle", "dialled"])
async def test_an_echo_exchange(kept: bool) -> None:
    """I1, I3, I11, I17: over a connection that is there, and one that is dialled for it."""
    async with server() as running:
        echo = Echo(running.address, 2)

        async def exchange() -> None:
            nonlocal echo
            if not kept:
                echo = Echo(running.address, 2)
            assert await echo(b"Hello!") == b"Hello!"

        async def check(_point: int) -> None:
            conservation(echo.pool)
            await settled(echo.pool)
            if not kept:
                echo.close()
                await echo.wait_closed()

        report = await explore_cancellation(exchange, check=check)
        assert report.points >= 3
        echo.close()
        await echo.wait_closed()


async def test_closing_a_client_with_an_exchange_in_flight() -> None:
    """I29, I11: cancelling the wait does not stop the close."""
    async with server() as running:
        echo = Echo(running.address, 2)
        asking: asyncio.Task[Any] | None = None

        async def close() -> None:
            nonlocal echo, asking
            echo = Echo(running.address, 2)
            assert await echo(b"warm") == b"warm"
            asking = asyncio.ensure_future(echo(b"x" * 10_000))
            await asyncio.sleep(0)
            await echo.pool.close()

        async def check(_point: int) -> None:
            if asking is not None:
                await asyncio.wait([asking])
            await echo.pool.close()
            await settled(echo.pool)
            assert echo.pool.stats().size == 0

        assert (await explore_cancellation(close, check=check)).points >= 5


class Client(AbstractClient):
    """Connects; its connection has a callback that takes time."""

    def connect(self) -> Any:
        raise NotImplementedError


async def slowly(_connection: Connection, exc: BaseException | None = None) -> None:
    await asyncio.sleep(0.0005)


class SlowStart(Connection):
    """Its ``connection_made`` callbacks are part of the connection attempt."""

    def __init__(self, **kw: Any) -> None:
        super().__init__(ProtocolConsumer, **kw)
        self.bind_event("connection_made", slowly)


@pytest.mark.parametrize("kind", ["tcp", "name", "tls", "unix"])
async def test_create_connection(
    kind: str, server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext, tmp_path: Path
) -> None:
    """I3, I11: no socket and no task is left at any point of a connection attempt."""
    async with AsyncExitStack() as stack:
        context = server_ssl if kind == "tls" else None
        address: Any = f"unix:{tmp_path / 'socket'}" if kind == "unix" else ("127.0.0.1", 0)
        running = server(address)
        await running.start_serving(sslcontext=context)
        stack.push_async_callback(running.close)
        address = running.address
        kw: dict[str, Any] = {}
        if kind == "name":
            address = ("localhost", address[1])
        if kind == "tls":
            kw = {"ssl": client_ssl, "server_hostname": "localhost"}
        made: list[Connection] = []

        async def connect() -> None:
            made.append(await Client().create_connection(address, SlowStart, **kw))

        async def check(_point: int) -> None:
            while made:
                made[-1].abort()
                await made.pop().close()

        report = await explore_cancellation(connect, check=check)
        # Connected (a unix socket is at once), the protocol, its callback.
        assert report.suspensions >= 2
        assert report.points > report.suspensions


async def test_a_connection_attempt_that_is_never_answered() -> None:
    """I3, I11: a listener whose queue is full, cancelled at a few turns of the wait."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)

            async def connect() -> None:
                with pytest.raises(TimeoutError):
                    await Client().create_connection(address, SlowStart, timeout=0.02)

            assert (await explore_cancellation(connect)).points >= 4

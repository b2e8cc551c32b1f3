"""Dials: what creators give and raise, who learns of it, and what is left of a cancelled one."""

import asyncio
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pool_kit import Fake, Judging, Source, Watched, at_rest, conserved, task, turns, virtual

from pulsar_client import AbstractClient, Connection, Pool, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate


@pytest.mark.parametrize("gives", [None, 3, Fake(), [], "connection"])
@virtual
async def test_a_creator_that_returns_no_awaitable(gives: Any) -> None:
    pool = Pool(lambda: gives, 1)
    with pytest.raises(TypeError, match="awaitable") as info:
        await pool.connect()
    assert repr(gives) in str(info.value)
    at_rest(pool)
    await pool.close()


class NoClosed:
    def close(self) -> None:
        pass


class NoClose:
    closed = False


class CloseIsNoMethod:
    closed = close = False


@pytest.mark.parametrize("kind", [NoClosed, NoClose, CloseIsNoMethod, object])
@virtual
async def test_a_creator_that_gives_no_connection(kind: type[Any]) -> None:
    given = kind()

    async def creator() -> Any:
        return given

    pool = Pool(creator, 1)
    with pytest.raises(TypeError, match=r"'closed' and 'close\(\)'") as info:
        await pool.connect()
    assert repr(given) in str(info.value)
    assert "creator" in str(info.value)
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_creator_that_gives_a_closed_connection() -> None:
    """A dial that failed, not a bug: the peer may have been quick."""

    def kind(number: int) -> Fake:
        fake = Fake(number)
        fake.closed = True
        return fake

    pool = Pool(Source(kind), 1)
    with pytest.raises(PoolUnavailable, match="which is closed"):
        await pool.connect()
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_creator_that_gives_the_same_connection_twice() -> None:
    """I8."""
    only = Fake()
    pool = Pool(Source(lambda _: only), 2)
    lease = await pool.connect()
    with pytest.raises(ValueError, match="twice"):
        await pool.connect()
    assert (pool.in_use, pool.stats().size) == (1, 1)
    assert lease.close() is only
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("error", [OSError("no"), ZeroDivisionError("no")])
@virtual
async def test_a_creator_that_raises_before_it_returns(error: Exception) -> None:
    def creator() -> Any:
        raise error

    pool = Pool(creator, 1)
    with pytest.raises(PoolUnavailable if isinstance(error, OSError) else type(error)) as info:
        await pool.connect()
    assert error in (info.value, info.value.__cause__)
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_creator_that_is_cancelled_by_its_own() -> None:
    """I11: the caller was not cancelled, so it gets an error."""
    source = Source(Fake, Gate.ERROR, error=asyncio.CancelledError())
    pool = Pool(source, 1)
    with pytest.raises(PoolUnavailable) as info:
        await pool.connect()
    assert isinstance(info.value.__cause__, asyncio.CancelledError)
    at_rest(pool)
    await pool.close()


@virtual
async def test_creators_of_every_kind() -> None:
    loop = asyncio.get_running_loop()

    class Awaitable:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return Fake()

    async def coroutine() -> Fake:
        return Fake()

    def future() -> "asyncio.Future[Fake]":
        result = loop.create_future()
        loop.call_later(1.0, result.set_result, Fake())
        return result

    for creator in (Awaitable, coroutine, future, lambda: task(coroutine())):
        pool = Pool(creator, 1)
        async with pool.connect() as lease:
            assert isinstance(lease.connection, Fake)
        at_rest(pool)
        await pool.close()


class FailingReusable(Fake):
    @property
    def is_reusable(self) -> bool:
        raise ZeroDivisionError


@virtual
async def test_an_is_reusable_that_fails_does_not_lose_the_caller() -> None:
    """I5, I17: leased, and closed at its release."""
    source = Source(FailingReusable)
    pool = Pool(source, 1)
    lease = await asyncio.wait_for(pool.connect(timeout=5.0), 1.0)
    lease.close()
    assert source.made[0].closed
    at_rest(pool)
    await pool.close()


class Unwatchable(Judging):
    def add_closing_callback(self, callback: Any) -> None:
        raise ZeroDivisionError


@virtual
async def test_a_connection_that_cannot_be_watched(caplog: pytest.LogCaptureFixture) -> None:
    """I18 could not hold: it is not used; its slot comes back."""
    source = Source(lambda number: Unwatchable() if number == 0 else Watched(number))
    pool = Pool(source, 1)
    async with pool.connect() as lease:
        assert lease.connection is source.made[1]
    assert source.made[0].closed
    assert "can't watch" in caplog.text
    await pool.close()


@virtual
async def test_a_connection_that_dies_before_its_first_lease() -> None:
    """I5: its waiter gets another dial."""

    class DeadOnArrival(Watched):
        def add_closing_callback(self, callback: Any) -> None:
            # Open when the dial looked at it, gone when the pool begins to watch.
            super().add_closing_callback(callback)
            self.die()

    source = Source(lambda number: Watched(number) if number else DeadOnArrival(number))
    pool = Pool(source, 1)
    async with pool.connect() as lease:
        assert lease.connection is source.made[1]
    at_rest(pool)
    await pool.close()


@virtual
async def test_failed_dials_do_not_touch_healthy_connections() -> None:
    """I27: nor does a time-out."""
    source = Source(Fake, Gate.OK, Gate.OK, Gate.ERROR, Gate.NEVER)
    pool = Pool(source, 3)
    one, two = await pool.connect(), await pool.connect()
    with pytest.raises(PoolUnavailable):
        await pool.connect()
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=1.0)
    one.close()
    two.close()
    assert pool.available == 2
    assert source.open == 2
    await pool.close()


@virtual
async def test_a_failed_dial_without_an_asker_gives_its_slot_to_the_next() -> None:
    """I5, I14."""
    source = Source(Fake, Gate.NEVER, Gate.OK)
    pool = Pool(source, 1)
    first = task(pool.connect(timeout=1.0))
    second = task(pool.connect(timeout=5.0))
    await turns(2)
    first.cancel()
    (await second).close()
    assert asyncio.get_running_loop().time() == pytest.approx(1.0, abs=0.05)
    assert source.dials == 2
    at_rest(pool)
    await pool.close()


@virtual
async def test_never_more_dials_than_slots_or_callers() -> None:
    """I1, I2."""
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 5)
    waiting = [task(pool.connect()) for _ in range(3)]
    await turns(2)
    assert source.dialling == 3
    waiting += [task(pool.connect()) for _ in range(10)]
    await turns(2)
    assert source.dialling == 5
    conserved(pool)
    for waiter in waiting:
        (await waiter).close()
    assert source.dials == 5
    assert source.peak == 5
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_bug_whose_caller_left_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 1)

    async def creator() -> Fake:
        await asyncio.sleep(1.0)
        raise ZeroDivisionError("a bug")

    pool = Pool(creator, 1, name="redis")
    waiter = task(pool.connect())
    await turns(2)
    waiter.cancel()
    await asyncio.sleep(2.0)
    assert "a bug" in caplog.text
    assert "'redis'" in caplog.text
    at_rest(pool)
    await pool.close()


# -- real sockets ------------------------------------------------------------------------------


def descriptors() -> set[str]:
    """The sockets of this process, by what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return {name for name in found if name.startswith("socket:")}


@pytest.fixture
def deaf() -> Iterator[Any]:
    """Give the address of a listener that never accepts, and whose queue is full."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        yield listener.getsockname()


async def test_dials_to_a_deaf_listener_are_cancelled_with_the_pool(deaf: Any) -> None:
    """I3, I29: no descriptor, no task, in bounded time."""
    client = AbstractClient(protocol_factory=Connection)
    pool = Pool(lambda: client.create_connection(deaf), 5)
    before = descriptors()
    waiting = [task(pool.connect()) for _ in range(8)]
    while len(descriptors()) < len(before) + 5:
        await turns()
    await turns(3)
    assert len(descriptors()) == len(before) + 5
    closing = pool.close()
    await asyncio.wait(waiting)
    async with asyncio.timeout(5.0):
        await closing
    assert descriptors() == before
    at_rest(pool)
    assert [type(waiter.exception()).__name__ for waiter in waiting] == ["PoolClosed"] * 8


async def test_one_deadline_over_a_deaf_listener(deaf: Any) -> None:
    """I12, I3: the dial ends with the time of its caller."""
    client = AbstractClient(protocol_factory=Connection)
    pool = Pool(lambda: client.create_connection(deaf, timeout=None), 1)
    before = descriptors()
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=0.1)
    async with asyncio.timeout(5.0):
        while pool.stats().dialling:
            await turns()
    assert descriptors() == before
    await pool.close()


@pytest.mark.parametrize("size", [1, 3])
async def test_a_counting_server_never_sees_more_than_the_pool_may_have(size: int) -> None:
    """I2: what is being closed keeps its slot until its transport is closed."""
    client = AbstractClient(protocol_factory=Connection)
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    before = descriptors()
    most = 0

    async def creator() -> Any:
        nonlocal most
        # Sockets of this client that exist in the moment of a dial, itself included.
        most = max(most, len(client._protocols) + 1)
        connection = await client.create_connection(address)
        most = max(most, len(client._protocols))
        return connection

    pool = Pool(creator, size)

    async def one(number: int) -> None:
        lease = await pool.connect()
        await turns(number % 3)
        if number % 7 == 0:
            lease.connection.transport.abort()
        if number % 11 == 0:
            lease.connection.close()
        lease.close(discard=number % 2 == 0)

    await asyncio.gather(*(one(number) for number in range(100)))
    assert client.sessions > 50
    assert most == size
    await pool.close()
    at_rest(pool)
    server.close()
    await server.wait_closed()
    client.close()
    await client.wait_closed()
    await turns(3)
    assert len(client._protocols) == 0
    assert descriptors() <= before


@pytest.mark.parametrize("own", [None, 5.0])
@virtual
async def test_a_dial_whose_asker_had_no_time_out_and_left_frees_its_slot_i5(
    own: float | None,
) -> None:
    """I5, I14: it goes on for whoever comes next, but not for ever when it hangs."""
    source = Source(Fake, Gate.NEVER, Gate.OK)
    pool = Pool(source, 1, timeout=own)
    gone = task(pool.connect(timeout=None))
    await turns(3)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    async with asyncio.timeout(60), pool.connect(timeout=60.0) as lease:
        assert lease.connection is source.made[0]
    assert source.dials == 2
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_dial_goes_on_as_long_as_its_asker_waits_i14() -> None:
    """I14: one without a time-out gets its connection however long the dial takes."""
    source = Source(Fake, Gate.SLOW, delay=1000.0)
    pool = Pool(source, 1, timeout=None)
    async with pool.connect() as lease:
        assert lease.connection is source.made[0]
    assert source.dials == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_time_out_tells_of_the_dial_that_hung_i35() -> None:
    """I35: the dial ends with its asker's time, maybe before, and would not show otherwise."""
    pool = Pool(Source(Fake, Gate.NEVER), 1, timeout=1.5, name="redis")
    with pytest.raises(PoolTimeout, match=r"'redis'.*(1 dialling|not open after 1\.5 s)"):
        await pool.connect()
    with pytest.raises(PoolTimeout, match=r"'redis'.*not open after 1\.5 s"):
        await pool.connect()
    at_rest(pool)
    assert not pool._leases.dialler.backoff.down
    await pool.close()


@virtual
async def test_i26_a_target_that_drops_every_connection_at_once() -> None:
    """I26, I35: its callers learn of it soon, and do not dial until their deadline."""
    loop = asyncio.get_running_loop()

    def dropped(number: int) -> Watched:
        connection = Watched(number)
        loop.call_soon(connection.die)
        return connection

    source = Source(dropped)
    pool = Pool(source, 2, name="dropping")
    with pytest.raises(PoolUnavailable, match=r"'dropping'.* were lost before they could be used"):
        await pool.connect()
    assert loop.time() < 1.0
    assert source.dials <= 4
    await turns(4)
    at_rest(pool)
    await pool.close()

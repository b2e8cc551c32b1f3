"""The idle time-out: lazily re-armed, never during a request (A9)."""

import asyncio
from typing import Any

import pytest
from protocol_kit import Line, Silent, SlowLine, connected, dialled, lost, served, turns, until
from virtual_clock import virtual

from pulsar_client import Connection, ConnectionClosed


@pytest.mark.parametrize("value", [-1, "soon", True, float("inf"), float("nan")])
def test_bad_time_outs_are_named(value: Any) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        Connection(Line, timeout=value)
    connection = Connection(Line)
    with pytest.raises(ValueError, match="timeout is"):
        connection.timeout = value


@pytest.mark.parametrize("value", [None, 0, 0.0])
def test_none_and_zero_are_off(value: Any) -> None:
    assert Connection(Line, value).timeout is None


@virtual
async def test_an_idle_connection_is_closed() -> None:
    near, far = await connected(client_kw={"timeout": 10})
    await asyncio.sleep(9.9)
    assert not near.closed
    await asyncio.sleep(0.2)
    assert near.closed
    await lost(near, far)


@virtual
async def test_traffic_in_either_direction_re_arms_it_lazily() -> None:
    """One timer a connection: reads and writes only store the time."""
    near, far = await connected(client_kw={"timeout": 10}, server=Silent)
    handle = near._idle_handle
    for step in range(6):
        await asyncio.sleep(3)
        if step % 2:
            near.write(b"x")
        else:
            assert await no_request(near)
        if step < 3:
            assert near._idle_handle is handle
    await asyncio.sleep(9.5)
    assert not near.closed
    await asyncio.sleep(1)
    assert near.closed
    await lost(near, far)


async def no_request(connection: Connection) -> bool:
    connection.write(b"y")
    await turns()
    return not connection.closed


@virtual
async def test_received_bytes_count() -> None:
    near, far = await connected(server=Silent, server_kw={"timeout": 10})
    consumer = near.current_consumer()
    assert consumer is not None
    for _ in range(5):
        await asyncio.sleep(8)
        far.upgrade(Silent)  # no request in flight: only the bytes keep it
        near.write(b"x")
        await turns()
    assert not far.closed
    near.abort()
    await lost(near, far)


@virtual
async def test_a_request_in_flight_is_never_cut() -> None:
    """A9: however long the handler works; the idle time begins when it has ended."""
    near, far = await connected(
        server=SlowLine, server_kw={"timeout": 10}, client_kw={"timeout": 5}
    )
    task = asyncio.create_task(near.request(b"x"))
    await asyncio.sleep(1000)
    assert not near.closed
    assert not far.closed
    far.current_consumer().answer()  # type: ignore[attr-defined]
    assert await task == b"x"
    await asyncio.sleep(4)
    assert not near.closed
    await asyncio.sleep(12)
    assert near.closed
    assert far.closed
    await lost(near, far)


@virtual
async def test_it_can_be_set_at_any_time() -> None:
    near, far = await connected()
    assert near._idle_handle is None
    await asyncio.sleep(100)
    near.timeout = 10
    await asyncio.sleep(9)
    near.timeout = 20  # counts from now
    await asyncio.sleep(15)
    assert not near.closed
    near.timeout = None
    assert near._idle_handle is None
    await asyncio.sleep(1000)
    assert not near.closed
    near.timeout = 1
    await asyncio.sleep(1.1)
    assert near.closed
    await lost(near, far)
    assert near._idle_handle is None
    near.timeout = 5  # too late, harmless
    assert near._idle_handle is None


@virtual
async def test_a_lost_connection_has_no_timer() -> None:
    near, far = await connected(client_kw={"timeout": 10})
    near.abort()
    await turns()
    assert near._idle_handle is None
    await lost(near, far)


async def test_keep_alive_of_a_server_on_real_sockets() -> None:
    """A9."""
    async with (
        served(SlowLine, keep_alive=50) as server,
        dialled(server.address) as connection,
    ):
        await until(lambda: server._protocols)
        (far,) = server._protocols
        assert far.timeout == 50
        task = asyncio.create_task(connection.request(b"x"))
        await until(lambda: far.requests_processed)
        far.timeout = 0.05  # not before: a busy machine may need more until the request is there
        await asyncio.sleep(0.15)  # the request is older than the time-out
        assert not far.closed
        far.current_consumer().answer()
        assert await task == b"x"
        await until(lambda: connection.closed)
        with pytest.raises(ConnectionClosed):
            await connection.request(b"y")

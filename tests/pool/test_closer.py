"""Closing: in a bounded time, whatever the connection does, and its slot until then (I2)."""

import asyncio
import logging
from typing import Any

import pytest
from pool_kit import (
    Fake,
    Slow,
    Source,
    Stubborn,
    Watched,
    at_rest,
    conserved,
    task,
    turns,
    virtual,
)

from pulsar_client import Pool, PoolTimeout
from pulsar_client.testing import Gate


def gated(gate: Gate, base: type[Slow] = Slow) -> type[Slow]:
    return type("Gated", (base,), {"gate": gate})


@virtual
async def test_a_connection_that_closes_at_once_frees_its_slot_at_once() -> None:
    pool = Pool(Source(Fake), 1)
    (await pool.connect()).close(discard=True)
    assert pool.stats().size == 0
    await pool.close()


@pytest.mark.parametrize(
    ("base", "gate", "seconds"),
    [
        (Slow, Gate.OK, 0.0),
        (Slow, Gate.ERROR, 0.0),
        (Slow, Gate.SLOW, 1.0),
        (Slow, Gate.NEVER, 10.0),
        (Stubborn, Gate.NEVER, 11.0),
    ],
)
@virtual
async def test_a_closing_connection_holds_its_slot_until_it_is_gone(
    base: type[Slow], gate: Gate, seconds: float
) -> None:
    """I2, I5: the next in line is served when it is gone; never later than the limit."""
    loop = asyncio.get_running_loop()
    source = Source(gated(gate, base))
    pool = Pool(source, 1, timeout=None)
    (await pool.connect()).close(discard=True)
    assert pool.stats().closing == pool.stats().size == 1
    waiter = task(pool.connect())
    await turns(2)
    conserved(pool)
    lease = await waiter
    assert loop.time() == pytest.approx(seconds)
    assert source.dials == 2
    lease.close()
    await pool.close()
    at_rest(pool)


@virtual
async def test_a_connection_that_never_ends_is_aborted_and_then_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source(gated(Gate.NEVER, Stubborn))
    pool = Pool(source, 1, name="redis")
    (await pool.connect()).close(discard=True)
    await asyncio.sleep(9.9)
    assert not source.made[0].aborted
    await asyncio.sleep(0.2)
    assert source.made[0].aborted
    assert pool.stats().closing == 1
    await asyncio.sleep(1.0)
    at_rest(pool)
    assert "does not close, forgotten" in caplog.text
    assert "'redis'" in caplog.text
    await pool.close()


@virtual
async def test_a_close_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """I13: logged with its traceback, aborted, gone."""

    class Raises(Watched):
        def close(self) -> Any:
            raise ZeroDivisionError("a bug")

    source = Source(Raises)
    pool = Pool(source, 1)
    (await pool.connect()).close(discard=True)
    assert source.made[0].aborted
    assert "a bug" in caplog.text
    at_rest(pool)
    assert pool.stats().size == 0
    await pool.close()


@pytest.mark.parametrize(
    "error", [ConnectionResetError, asyncio.CancelledError, ZeroDivisionError]
)
@virtual
async def test_a_close_whose_wait_raises(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is gone either way."""

    class Raises(Fake):
        async def close(self) -> None:
            self.closed = True
            raise error

    caplog.set_level(logging.INFO)
    pool = Pool(Source(Raises), 1)
    for _ in range(3):
        (await pool.connect(timeout=1.0)).close(discard=True)
    await pool.close()
    at_rest(pool)
    assert not caplog.records


@virtual
async def test_a_close_that_returns_a_future() -> None:
    loop = asyncio.get_running_loop()

    class Future(Fake):
        def close(self) -> Any:
            super().close()
            self.ended = loop.create_future()
            return self.ended

    source = Source(Future)
    pool = Pool(source, 1)
    (await pool.connect()).close(discard=True)
    await turns(3)
    assert pool.stats().closing == 1
    source.made[0].ended.set_result(None)
    await turns(3)
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_future_of_a_close_that_is_cancelled_by_others() -> None:
    loop = asyncio.get_running_loop()

    class Future(Fake):
        def close(self) -> Any:
            super().close()
            self.ended = loop.create_future()
            return self.ended

    source = Source(Future)
    pool = Pool(source, 1)
    (await pool.connect()).close(discard=True)
    await turns(3)
    source.made[0].ended.cancel()
    await turns(4)
    at_rest(pool)
    await pool.close()


@virtual
async def test_the_end_of_the_pool_hurries() -> None:
    """I29: what was being closed before, and what begins to close after."""
    loop = asyncio.get_running_loop()
    source = Source(gated(Gate.NEVER))
    pool = Pool(source, 2)
    one, two = await pool.connect(), await pool.connect()
    one.close(discard=True)
    closing = pool.close(2.0)
    loop.call_later(1.0, two.close)
    await closing
    assert loop.time() == pytest.approx(2.0)
    assert all(connection.aborted for connection in source.made)


@virtual
async def test_the_end_of_the_pool_while_none_is_closing() -> None:
    """I29: a lease cut at the time-out of a pool that had never closed anything."""
    loop = asyncio.get_running_loop()
    source = Source(gated(Gate.NEVER, Stubborn))
    pool = Pool(source, 1)
    lease = await pool.connect()
    await pool.close(0)
    assert loop.time() == pytest.approx(1.0)
    assert lease.close() is source.made[0]
    at_rest(pool)


@virtual
async def test_an_abort_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    class Raises(Slow):
        gate = Gate.NEVER

        def abort(self) -> None:
            raise ZeroDivisionError("a bug")

    pool = Pool(Source(Raises), 1)
    (await pool.connect()).close(discard=True)
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=10.5)
    assert "a bug" in caplog.text
    (await pool.connect(timeout=1.0)).close()
    await pool.close(0)
    at_rest(pool)


@virtual
async def test_a_thousand_closes_at_once() -> None:
    """I2, I29."""
    source = Source(gated(Gate.SLOW))
    pool = Pool(source, 1000)
    for lease in [await pool.connect() for _ in range(1000)]:
        lease.close(discard=lease.connection.number % 2 == 0)
    assert pool.stats().closing == 500
    await pool.close()
    assert asyncio.get_running_loop().time() == pytest.approx(1.0)
    at_rest(pool)

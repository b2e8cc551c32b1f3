"""The pool on a virtual clock: leases, time-outs, errors, its end."""

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
from pool_kit import (
    Fake,
    Judging,
    Slow,
    Source,
    Stubborn,
    Watched,
    at_rest,
    conserved,
    hold,
    run,
    task,
    turns,
    virtual,
)

from pulsar_client import (
    LeaseReleased,
    Pool,
    PoolClosed,
    PoolConnection,
    PoolTimeout,
    PoolUnavailable,
)
from pulsar_client.testing import Gate, VirtualClockLoop

# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, True, "3", 2.0, None])
def test_a_bad_pool_size(size: Any) -> None:
    with pytest.raises(ValueError, match="pool_size") as info:
        Pool(Source(), size)
    assert repr(size) in str(info.value)


@pytest.mark.parametrize("seconds", [-1, -0.001, True, "3", float("nan"), float("inf")])
def test_a_bad_time_out(seconds: Any) -> None:
    pool = Pool(Source())
    for call in (
        lambda: Pool(Source(), timeout=seconds),
        lambda: pool.connect(timeout=seconds),
        lambda: pool.close(seconds),
    ):
        with pytest.raises(ValueError, match="timeout") as info:
            call()
        assert repr(seconds) in str(info.value)


@pytest.mark.parametrize("creator", [None, "creator", 3])
def test_a_creator_that_is_not_callable(creator: Any) -> None:
    with pytest.raises(TypeError, match="creator") as info:
        Pool(creator)
    assert repr(creator) in str(info.value)


def test_a_loop_that_is_none() -> None:
    with pytest.raises(TypeError, match="loop is 'uvloop'"):
        Pool(Source(), loop="uvloop")  # type: ignore[arg-type]


def test_options_are_keyword_only_and_known() -> None:
    with pytest.raises(TypeError):
        Pool(Source(), 1, None, 1.0, "name")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Pool(Source(), colour="blue")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Pool(Source()).connect(3.0)  # type: ignore[call-arg]


def test_the_signature_of_the_manual() -> None:
    loop = asyncio.new_event_loop()
    pool = Pool(Source(), 3, loop, 7.0)
    assert pool.pool_size == 3
    loop.close()


def test_the_name_is_that_of_the_creator_unless_given() -> None:
    async def connect() -> Fake:
        return Fake()

    assert Pool(connect).name.endswith("connect")
    assert Pool(Source()).name == "Source"
    assert Pool(connect, name="redis").name == "redis"


# -- leases ------------------------------------------------------------------------------------


@virtual
async def test_both_forms_of_connect() -> None:
    source = Source()
    pool = Pool(source, 2)
    async with pool.connect() as one:
        assert isinstance(one, PoolConnection)
        assert one.connection is source.made[0]
        assert (pool.in_use, pool.available) == (1, 0)
        two = await pool.connect()
        assert isinstance(two, PoolConnection)
        assert two.connection is source.made[1]
        assert (pool.in_use, pool.available) == (2, 0)
        two.close()
        assert (pool.in_use, pool.available) == (1, 1)
    assert (pool.in_use, pool.available) == (0, 2)
    async with await pool.connect() as three:
        assert three.pool is pool
        assert pool.in_use == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_repr_and_stats_tell_state_and_counts() -> None:
    source = Source(Slow, Gate.OK, Gate.OK, Gate.SLOW)
    pool = Pool(source, 3, name="redis")
    assert repr(pool) == "<Pool 'redis' open: 0 in use, 0 available, 0 waiting>"
    one, two = await pool.connect(), await pool.connect()
    two.close(discard=True)
    waiting = [task(pool.connect()) for _ in range(2)]
    await turns(3)
    assert repr(pool) == (
        "<Pool 'redis' open: 1 in use, 0 available, 1 dialling, 1 closing, 2 waiting>"
    )
    stats = pool.stats()
    assert (stats.size, stats.available, stats.in_use) == (3, 0, 1)
    assert (stats.dialling, stats.closing, stats.waiting) == (1, 1, 2)
    assert (stats.leases, stats.opened, stats.closed, stats.timeouts) == (2, 2, 0, 0)
    assert stats.pool_size == pool.pool_size == 3
    for waiter in waiting:
        (await waiter).close()
    one.close()
    assert pool.stats().leases == 4
    closing = pool.close()
    assert repr(pool).startswith("<Pool 'redis' closing: ")
    assert pool.closed
    await closing
    assert repr(pool) == "<Pool 'redis' closed: 0 in use, 0 available, 0 waiting>"
    assert pool.stats().closed == pool.stats().opened


@virtual
async def test_a_connection_in_the_pool() -> None:
    source = Source(Slow)
    pool = Pool(source, 2)
    lease = await pool.connect()
    assert source.made[0] in pool
    lease.close()
    assert source.made[0] in pool
    assert Fake() not in pool
    assert None not in pool
    other = (await pool.connect()).detach()
    assert other not in pool
    (await pool.connect()).close(discard=True)
    assert source.made[1] not in pool
    await pool.close()


@virtual
async def test_a_dead_idle_connection_is_replaced_not_leased() -> None:
    """I10, I27: found out at the lease where nobody told; the healthy ones stay."""
    source = Source()
    pool = Pool(source, 3)
    for lease in [await pool.connect() for _ in range(3)]:
        lease.close()
    source.made[2].closed = source.made[1].closed = True
    async with pool.connect(timeout=0) as lease:
        assert lease.connection is source.made[0]
        assert pool.stats().size == 1
    assert source.made[1].close_calls == source.made[2].close_calls == 1
    await pool.close()


@virtual
async def test_a_connection_whose_closed_fails_is_not_leased(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Fake):
        broken = False

        @property
        def closed(self) -> bool:
            if self.broken:
                raise ZeroDivisionError
            return False

        @closed.setter
        def closed(self, value: bool) -> None:
            pass

    source = Source(Broken)
    pool = Pool(source, 1)
    (await pool.connect()).close()
    broken = source.made.pop()
    broken.broken = True
    async with pool.connect() as lease:
        assert lease.connection is source.made[0]
    assert broken.close_calls == 1
    assert "can't tell whether" in caplog.text
    await pool.close()


@pytest.mark.parametrize("where", ["idle", "leased"])
@virtual
async def test_a_connection_that_dies_is_out_in_that_turn(where: str) -> None:
    """I18, I5: the next in line gets a dial at once."""
    source = Source(Watched)
    pool = Pool(source, 1)
    lease = await pool.connect()
    if where == "idle":
        lease.close()
    waiter = None if where == "idle" else task(pool.connect())
    await turns()
    source.made[0].die()
    assert (pool.available, pool.in_use, pool.stats().closing) == (0, 0, 1)
    assert source.made[0] not in pool
    conserved(pool)
    await turns()
    assert pool.stats().closing == 0
    if waiter is not None:
        assert pool.stats().dialling == 1
        (await waiter).close()
        lease.close()  # of the dead one: nothing happens
    assert pool.available == (waiter is not None)
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_connection_that_dies_while_it_is_asked_how_it_is() -> None:
    """I13: asking may be what finds it dead, and closes it."""

    class Curious(Watched):
        used = False

        @property
        def is_reusable(self) -> bool:  # type: ignore[override]
            if self.used:
                self.die()
            return not self.used

    source = Source(Curious)
    pool = Pool(source, 1)
    lease = await pool.connect()
    source.made[0].used = True
    lease.close()
    await turns()
    at_rest(pool)
    assert pool.stats().size == 0
    await pool.close()


@virtual
async def test_connections_that_end_together() -> None:
    """I29: closing one idle connection ends another, of the same parent say."""
    source = Source(Watched)
    pool = Pool(source, 2)
    for lease in [await pool.connect(), await pool.connect()]:
        lease.close()
    one, two = source.made
    one.add_closing_callback(lambda _: two.die())
    two.add_closing_callback(lambda _: one.die())
    await pool.close()
    at_rest(pool)
    assert pool.stats().size == 0


# -- time-outs ---------------------------------------------------------------------------------


@virtual
async def test_time_out_zero_does_not_wait() -> None:
    """I12, I10: an idle connection or nothing."""
    source = Source()
    pool = Pool(source, 1)
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=0)
    assert source.dials == 0
    (await pool.connect()).close()
    async with pool.connect(timeout=0) as lease:
        assert lease.connection is source.made[0]
        with pytest.raises(PoolTimeout):
            async with pool.connect(timeout=0):
                pass
    assert pool.stats().timeouts == 2
    assert asyncio.get_running_loop().time() == 0.0
    await pool.close()


@virtual
async def test_time_out_none_waits_for_ever() -> None:
    loop = asyncio.get_running_loop()
    pool = Pool(Source(), 1, timeout=None)
    lease = await pool.connect()
    waiting = [task(pool.connect()), task(pool.connect(timeout=None))]
    await asyncio.sleep(100_000.0)
    lease.close()
    for waiter in waiting:
        (await waiter).close()
    assert loop.time() == 100_000.0
    await pool.close()


@pytest.mark.parametrize("stuck", ["queue", "dial", "closing"])
@virtual
async def test_one_deadline_for_queue_and_dial(stuck: str) -> None:
    """I12: over by the deadline + 50 ms, whichever is stuck."""
    loop = asyncio.get_running_loop()
    source = Source(Stubborn, *([Gate.NEVER] if stuck == "dial" else [Gate.OK]))
    pool = Pool(source, 1, timeout=5.0)
    lease = None
    if stuck != "dial":
        lease = await pool.connect()
    if stuck == "closing":
        Stubborn.gate = Gate.NEVER
        assert lease is not None
        lease.close(discard=True)
    for request, expected in (
        (pool.connect(timeout=2.0), 2.0),
        (pool.connect(), 5.0),  # the pool's own
        (pool.connect(timeout=0.25), 0.25),
    ):
        started = loop.time()
        with pytest.raises(PoolTimeout):
            await request
        assert loop.time() - started == pytest.approx(expected, abs=0.05)
    Stubborn.gate = Gate.SLOW
    if stuck == "queue":
        assert lease is not None
        lease.close()
    await pool.close(1.0)
    at_rest(pool)


@virtual
async def test_the_deadline_covers_the_queue_and_then_the_dial() -> None:
    """I12: half of the time in the queue, the other half dialling."""
    loop = asyncio.get_running_loop()
    source = Source(Fake, Gate.OK, Gate.NEVER)
    pool = Pool(source, 1)
    lease = await pool.connect()
    waiter = task(pool.connect(timeout=2.0))
    await asyncio.sleep(1.0)
    lease.close(discard=True)
    await turns(2)
    assert pool.stats().dialling == 1
    with pytest.raises(PoolTimeout):
        await waiter
    assert loop.time() == pytest.approx(2.0, abs=0.05)
    await turns(4)
    at_rest(pool)
    await pool.close()


@virtual
async def test_the_timer_of_a_wait_does_not_touch_the_lease() -> None:
    """I15: nor the idle connection, nor the next lease."""
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 1)
    async with pool.connect(timeout=1.5) as lease:
        await asyncio.sleep(10.0)
        assert lease.connection is source.made[0]
    await asyncio.sleep(10.0)
    async with pool.connect(timeout=0.5) as lease:
        await asyncio.sleep(1.0)
        assert lease.connection is source.made[0]
    assert not source.made[0].closed
    at_rest(pool)
    await pool.close()


@virtual
async def test_time_outs_in_any_order() -> None:
    """I12: a shorter one that comes later is not held up by a longer one."""
    loop = asyncio.get_running_loop()
    pool = Pool(Source(Fake, Gate.NEVER), 2)
    ended: list[float] = []

    async def one(timeout: float) -> None:
        with pytest.raises(PoolTimeout):
            await pool.connect(timeout=timeout)
        assert loop.time() == pytest.approx(timeout, abs=0.05)
        ended.append(timeout)

    await asyncio.gather(*(one(seconds) for seconds in (9.0, 3.0, 6.0, 1.0, 1.0, 12.0)))
    assert ended == [1.0, 1.0, 3.0, 6.0, 9.0, 12.0]
    await pool.close()


# -- errors ------------------------------------------------------------------------------------


@virtual
async def test_the_time_out_names_pool_counts_time_and_last_dial_error() -> None:
    """I35."""
    source = Source(Fake, Gate.ERROR, Gate.OK, Gate.NEVER)
    pool = Pool(source, 2, name="redis")
    with pytest.raises(PoolUnavailable):
        await pool.connect()
    lease = await pool.connect()
    with pytest.raises(PoolTimeout) as info:
        await pool.connect(timeout=1.5)
    text = str(info.value)
    assert "<Pool 'redis' open: 1 in use, 0 available, " in text
    assert "1.5 s" in text
    assert "last dial error, 1.5 s ago, was ConnectionRefusedError('nobody listens')" in text
    assert info.value.__cause__ is None  # dials succeed again
    assert isinstance(info.value, TimeoutError)
    lease.close()
    await pool.close()


@virtual
async def test_the_cause_of_a_time_out_is_the_last_dial_error() -> None:
    """I35: while dials fail."""
    source = Source(Fake, Gate.OK, Gate.ERROR, Gate.NEVER)
    pool = Pool(source, 2)
    lease = await pool.connect()
    with pytest.raises(PoolUnavailable):
        await pool.connect()
    with pytest.raises(PoolTimeout, match=r"last dial failed with ConnectionRefused") as info:
        await pool.connect(timeout=1.5)
    assert info.value.__cause__ is source.error
    lease.close()
    await pool.close()


@virtual
async def test_a_refused_dial() -> None:
    """I26, I35: the caller learns why."""
    source = Source(Fake, Gate.ERROR)
    pool = Pool(source, 2, name="redis")
    with pytest.raises(PoolUnavailable) as info:
        await pool.connect()
    assert "<Pool 'redis' open: 0 in use, 0 available" in str(info.value)
    assert "nobody listens" in str(info.value)
    assert info.value.__cause__ is source.error
    assert isinstance(info.value, ConnectionError)
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_time_out_of_the_dial_itself_is_a_refusal() -> None:
    source = Source(Fake, Gate.ERROR, error=TimeoutError("no answer"))
    pool = Pool(source, 1)
    with pytest.raises(PoolUnavailable) as info:
        await pool.connect()
    assert info.value.__cause__ is source.error
    await pool.close()


@virtual
async def test_with_no_open_connection_all_who_wait_learn_of_the_failed_dial() -> None:
    """I26: they would wait for something that can't come."""
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 1)
    waiting = [task(pool.connect()) for _ in range(5)]
    await turns(2)
    source.gates = [Gate.ERROR]

    async def creator() -> Fake:
        raise AssertionError

    for dial in pool._leases.dialler._tasks:
        dial.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, PoolUnavailable) for result in results), results
    assert source.dials == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_with_an_open_connection_only_the_asker_learns_of_the_failed_dial() -> None:
    """I27, I5: the others wait for the connection that there is."""
    source = Source(Fake, Gate.OK, Gate.ERROR, Gate.NEVER)
    pool = Pool(source, 2)
    lease = await pool.connect()
    asker, other = task(pool.connect()), task(pool.connect())
    await turns(4)
    assert isinstance(asker.exception(), PoolUnavailable)
    assert not other.done()
    assert source.dials == 3  # the free slot has a dial for the other
    lease.close()
    (await other).close()
    await pool.close()
    at_rest(pool)


@virtual
async def test_a_bug_of_the_creator_reaches_its_caller_as_it_is() -> None:
    """Nobody else's wait ends with it."""
    error = ZeroDivisionError("bug")
    source = Source(Fake, Gate.OK, Gate.ERROR, Gate.OK, error=error)
    pool = Pool(source, 2)
    lease = await pool.connect()
    first, second = task(pool.connect()), task(pool.connect())
    await turns(6)
    assert first.exception() is error
    assert second.done()
    second.result().close()
    lease.close()
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_closed_pool() -> None:
    """I29, I35."""
    pool = Pool(Source(), name="redis")
    await pool.close()
    for timeout in (0, 1.0, None):
        with pytest.raises(PoolClosed, match="<Pool 'redis' closed: 0 in use"):
            await pool.connect(timeout=timeout)


# -- the end of the pool -----------------------------------------------------------------------


@virtual
async def test_close() -> None:
    """I29: waiters fail at once, idle ones close, leased ones at their release."""
    source = Source()
    pool = Pool(source, 2, name="redis")
    one, two = await pool.connect(), await pool.connect()
    two.close()
    two = await pool.connect()
    waiter = task(pool.connect(timeout=None))
    await turns()
    two_raw = two.close()
    served = await waiter
    assert served.connection is two_raw
    late = task(pool.connect(timeout=None))
    await turns()
    served.close()
    (await late).close()
    assert (pool.in_use, pool.available) == (1, 1)
    last = task(pool.connect(timeout=None))
    await turns()
    blocked = task(pool.connect(timeout=None))
    await turns()
    closing = pool.close()
    assert pool.closed
    await turns()
    assert isinstance(blocked.exception(), PoolClosed)
    assert "'redis' closing" in str(blocked.exception())
    assert pool.in_use == 2
    assert not closing.done()
    (await last).close()
    assert not source.made[0].closed
    assert source.made[1].closed
    one.close()
    assert source.made[0].closed
    await closing
    at_rest(pool)


@virtual
async def test_close_closes_idle_connections_at_once() -> None:
    source = Source()
    pool = Pool(source, 3)
    for lease in [await pool.connect() for _ in range(3)]:
        lease.close()
    closing = pool.close()
    assert [connection.close_calls for connection in source.made] == [1, 1, 1]
    assert closing.done()
    await closing


@pytest.mark.parametrize("kind", [Fake, Judging, Watched, Slow, Stubborn])
@virtual
async def test_what_is_left_at_the_time_out_is_aborted(kind: type[Fake]) -> None:
    """I29: leased ones and those that take long to close."""
    loop = asyncio.get_running_loop()
    source = Source(kind)
    pool = Pool(source, 2)
    leased = await pool.connect()
    (await pool.connect()).close()
    await pool.close(timeout=0.5)
    assert loop.time() <= 0.5 + 1.0 + 0.05  # a second more for those that do not even abort
    assert all(connection.closed for connection in source.made)
    if isinstance(source.made[0], Judging):
        assert source.made[0].aborted
    at_rest(pool)
    with pytest.raises(AttributeError):
        _ = leased.connection.nothing
    leased.close()
    at_rest(pool)


@virtual
async def test_closing_with_time_out_none_waits_for_the_leases() -> None:
    loop = asyncio.get_running_loop()
    source = Source()
    pool = Pool(source, 1)
    lease = await pool.connect()
    loop.call_later(10_000.0, lease.close)
    await pool.close(timeout=None)
    assert loop.time() == 10_000.0


@virtual
async def test_a_later_close_may_shorten_the_time_out_and_never_lengthens_it() -> None:
    """I29: idempotent."""
    loop = asyncio.get_running_loop()
    for timeouts, expected in (
        ((None, 3.0), 3.0),
        ((10.0, 3.0), 3.0),
        ((3.0, 10.0), 3.0),
        ((3.0, None), 3.0),
        ((10.0, 0), 0.0),
    ):
        source = Source(Judging)
        pool = Pool(source, 1)
        lease = await pool.connect()
        started = loop.time()
        first, second = pool.close(timeouts[0]), pool.close(timeouts[1])
        assert first is second
        await asyncio.gather(task(first), task(second))
        assert loop.time() - started == expected
        assert source.made[0].aborted
        assert lease.close() is source.made[0]
        await pool.close()
        at_rest(pool)


def test_closing_a_pool_that_was_never_used() -> None:
    """I29: with and without a loop."""
    pool = Pool(Source())
    closing = pool.close()
    assert closing.done()
    assert pool.close() is closing

    async def main() -> None:
        await pool.close()
        await Pool(Source()).close()
        async with Pool(Source()) as unused:
            assert not unused.closed
        assert unused.closed

    run(main())


@pytest.mark.parametrize("kind", [Fake, Judging, Watched])
def test_closing_between_two_runs_of_the_loop(kind: type[Fake]) -> None:
    source = Source(kind)
    pool = Pool(source, 2)
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:

        async def use() -> None:
            (await pool.connect()).close()

        async def wait() -> None:
            await pool.close()

        runner.run(use())
        pool.close()
        assert source.made[0].closed
        runner.run(wait())
    at_rest(pool)


@virtual
async def test_async_with_pool() -> None:
    source = Source(Slow)
    async with Pool(source, 2) as pool, pool.connect():
        pass
    assert source.made[0].closed
    assert asyncio.get_running_loop().time() == 1.0
    at_rest(pool)
    with pytest.raises(ZeroDivisionError):
        async with Pool(source, 2) as pool:
            raise ZeroDivisionError
    assert pool.closed


@virtual
async def test_close_cancels_dials() -> None:
    """I29, I3."""
    source = Source(Fake, Gate.NEVER)
    pool = Pool(source, 3)
    waiting = [task(pool.connect()) for _ in range(5)]
    await turns(3)
    assert source.dialling == 3
    closing = pool.close()
    for waiter in waiting:
        with pytest.raises(PoolClosed):
            await waiter
    await closing
    assert source.dialling == 0
    at_rest(pool)


@virtual
async def test_no_timer_is_left() -> None:
    """I29: of waits, dials, closes and of the close itself."""
    loop = asyncio.get_running_loop()
    handles: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def recorded(*args: Any, **kw: Any) -> asyncio.TimerHandle:
        handle = call_at(*args, **kw)
        handles.append(handle)
        return handle

    loop.__dict__["call_at"] = recorded
    source = Source(Slow, Gate.OK, Gate.SLOW)
    pool = Pool(source, 2)
    lease = await pool.connect(timeout=20.0)
    waiting = [task(pool.connect(timeout=20.0)) for _ in range(3)]
    await asyncio.sleep(0.1)
    closing = pool.close(30.0)
    await asyncio.wait(waiting)
    lease.close()
    await closing
    await turns(2)
    now = loop.time()
    left = [handle for handle in handles if not handle.cancelled() and handle.when() > now]
    assert left == []
    assert len(handles) > 3
    assert all(isinstance(waiter.exception(), PoolClosed) for waiter in waiting)


# -- the loop ----------------------------------------------------------------------------------


def test_another_loop_is_refused_at_once() -> None:
    """I31: and it says so."""
    source = Source()
    pool = Pool(source, 2, name="redis")
    first = VirtualClockLoop()

    async def use() -> None:
        (await pool.connect()).close()

    async def use_elsewhere() -> None:
        actions: list[Callable[[], Any]] = [
            pool.connect().__aenter__,
            lambda: task(pool.connect()),
            pool.close,
            pool.__aexit__,
        ]
        for action in actions:
            with pytest.raises(RuntimeError, match=r"'redis'.*another event loop"):
                await action()

    with asyncio.Runner(loop_factory=lambda: first) as runner:
        runner.run(use())
        run(use_elsewhere())
        assert not pool.closed
        assert not source.made[0].closed
        runner.run(use())
        runner.run(pool.__aexit__())
    assert source.dials == 1


def test_a_loop_given_is_the_only_one() -> None:
    """I31: before the first use too."""
    loop = VirtualClockLoop()
    pool = Pool(Source(), 1, loop)

    async def use() -> None:
        await pool.connect()

    with pytest.raises(RuntimeError, match="another event loop"):
        run(use())

    async def right() -> None:
        (await pool.connect()).close()
        await pool.close()

    run(right(), loop)


def test_no_constructor_needs_a_loop() -> None:
    pool = Pool(Source(), 3)
    assert (pool.in_use, pool.available, pool.closed) == (0, 0, False)
    assert pool.stats().size == 0


@pytest.mark.parametrize("kind", [Fake, Watched, Slow])
def test_a_release_after_the_end_of_the_loop(
    kind: type[Fake], caplog: pytest.LogCaptureFixture
) -> None:
    """I13: it can't fail, whatever state the loop is in."""
    source = Source(kind)
    pool = Pool(source, 1)
    leases = []

    class Async(Fake):
        async def close(self) -> None:
            self.closed = True

    async def use() -> None:
        leases.append(await pool.connect())

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(use())
    raw = leases[0].close(discard=True)
    assert raw is source.made[0]
    assert raw.closed
    at_rest(pool)

    async_source = Source(Async)
    pool = Pool(async_source, 1)
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(use())
    leases[1].close(discard=True)
    at_rest(pool)
    gc.collect()


def test_the_loop_ends_while_a_connection_is_closing() -> None:
    """I29: whatever the end of the loop cancels, no slot is lost."""
    source = Source(Stubborn)

    async def use() -> None:
        (await pool.connect()).close(discard=True)
        # Its close has not had its first turn.

    async def use_longer() -> None:
        (await pool.connect()).close(discard=True)
        await turns(3)

    for main in (use, use_longer):
        pool = Pool(source, 1)
        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            runner.run(main())
        at_rest(pool)
    gc.collect()


def test_the_loop_ends_while_a_dial_is_under_way() -> None:
    for before in (0, 1, 3):
        pool = Pool(Source(Fake, Gate.NEVER), 1)

        async def use(pool: Pool = pool, before: int = before) -> None:
            waiter = task(pool.connect())
            await turns(1 + before)
            assert not waiter.done()

        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            runner.run(use())
        at_rest(pool)


@virtual
async def test_the_clock_jumps() -> None:
    """I34: time is the loop's; a jump evicts nothing."""
    source = Source()
    pool = Pool(source, 1)
    async with pool.connect():
        pass
    await asyncio.sleep(400_000.0)
    async with pool.connect(timeout=0) as lease:
        assert lease.connection is source.made[0]
    await pool.close()


@virtual
async def test_nothing_is_logged_of_a_healthy_life(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pool = Pool(Source(Slow, Gate.OK, Gate.ERROR, Gate.OK), 2)
    event = asyncio.Event()
    holders = [task(hold(pool, event)) for _ in range(4)]
    await turns(4)
    event.set()
    await asyncio.wait(holders)
    assert any(isinstance(holder.exception(), PoolUnavailable) for holder in holders)
    await pool.close()
    assert caplog.records == []


@virtual
async def test_a_request_that_was_never_awaited_costs_nothing() -> None:
    pool = Pool(Source(), 1)
    request = pool.connect()
    with pytest.raises(LeaseReleased):
        _ = request.connection
    assert request.close() is None
    at_rest(pool)
    await pool.close()

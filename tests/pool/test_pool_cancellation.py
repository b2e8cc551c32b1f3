"""Cancellation and time-outs at every turn of the loop: nothing is lost, nobody is forgotten."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from pool_kit import (
    Fake,
    Judging,
    Slow,
    Source,
    Stubborn,
    TurnLoop,
    Watched,
    at_rest,
    conserved,
    run,
    task,
    turns,
    virtual,
)

from pulsar_client import Pool, PoolClosed, PoolError, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate, gate_matrix

Steps = Callable[[Pool, list[asyncio.Task[Any]]], Coroutine[Any, Any, None]]


def kind_of(gate: Gate, base: type[Slow] = Slow) -> type[Slow]:
    return type(f"{base.__name__}{gate.name.title()}", (base,), {"gate": gate})


async def use(pool: Pool, timeout: float | None, seconds: float, *, discard: bool = False) -> Any:
    """Lease, hold, give back; what the pool raised is returned, a cancellation is not."""
    try:
        lease = await pool.connect(timeout=timeout)
    except PoolError as exc:
        return exc
    try:
        assert not lease.connection.closed
        await asyncio.sleep(seconds)
        assert pool.in_use or pool.closed
    finally:
        lease.close(discard=discard)
    return lease


def walk(source: Source, size: int, steps: Steps, disturb: Callable[[Any], object]) -> int:
    """Run the steps once for each loop turn k, disturbing the first task before turn k.

    After each turn the books must balance, and in the end the pool must be able to close.
    Returns the number of turns that could be disturbed.
    """
    total = None
    k = 0
    while total is None or k < total:
        source.made.clear()
        source.dials = 0
        gates = list(source.gates)
        loop = TurnLoop()

        async def main(loop: TurnLoop = loop, k: int = k) -> None:
            pool = Pool(source, size, timeout=5.0, name="walk")
            tasks: list[asyncio.Task[Any]] = []
            loop.hooks[loop.turn + k] = lambda: disturb((pool, tasks))
            await steps(pool, tasks)
            await asyncio.wait(tasks)
            for done in tasks:
                # I11: cancelled or not, nothing else, and nothing was lost on the way.
                assert done.cancelled() or done.exception() is None
            conserved(pool)
            loop.hooks.clear()
            # Never-ending dials end at the deadline they had, closes at their limit.
            await asyncio.sleep(30.0)
            at_rest(pool)
            assert pool.available == source.open <= size
            assert source.peak <= size
            await pool.close()
            at_rest(pool)
            assert pool.available == source.open == 0

        started = loop.turn
        run(main(), loop)
        if total is None:
            total = loop.turn - started
        source.gates = gates
        k += 1
    return k


def cancel_first(state: Any) -> None:
    pool, tasks = state
    conserved(pool)
    if tasks:
        tasks[0].cancel()


@pytest.mark.parametrize(
    ("dial", "closing"), list(gate_matrix(2)), ids=lambda gate: str(gate.value)
)
def test_a_caller_is_cancelled_at_every_turn(dial: Gate, closing: Gate) -> None:
    """I1, I5, I6, I14: {ok, error, slow, never} of dial and close, every turn of the loop."""

    async def steps(pool: Pool, tasks: list[asyncio.Task[Any]]) -> None:
        tasks.append(task(use(pool, 2.0, 0.5, discard=True)))
        tasks.append(task(use(pool, 3.0, 0.5)))
        tasks.append(task(use(pool, 2.5, 0.5)))
        await turns()

    source = Source(kind_of(closing), dial, dial, Gate.OK)
    assert walk(source, 1, steps, cancel_first) > 5
    assert walk(source, 2, steps, cancel_first) > 5


@pytest.mark.parametrize("closing", list(Gate), ids=lambda gate: str(gate.value))
@pytest.mark.parametrize("size", [1, 2])
def test_two_callers_are_cancelled_at_every_turn(closing: Gate, size: int) -> None:
    """I1, I6: a hand-over to one who is gone, handed on to another who is gone."""

    async def steps(pool: Pool, tasks: list[asyncio.Task[Any]]) -> None:
        tasks.extend(
            task(use(pool, 3.0, seconds, discard=seconds == 0.25))
            for seconds in (0.5, 0.25, 0.0, 0.5)
        )
        await turns()

    def cancel_two(state: Any) -> None:
        cancel_first(state)
        if len(state[1]) > 2:
            state[1][2].cancel()

    source = Source(kind_of(closing), Gate.OK, Gate.SLOW, Gate.ERROR, Gate.OK)
    walk(source, size, steps, cancel_two)


@pytest.mark.parametrize(
    ("dial", "closing"), list(gate_matrix(2)), ids=lambda gate: str(gate.value)
)
@pytest.mark.parametrize("base", [Slow, Stubborn], ids=["abortable", "stubborn"])
def test_the_pool_is_closed_at_every_turn(dial: Gate, closing: Gate, base: type[Slow]) -> None:
    """I29: whatever is under way when the pool closes, the close completes and nobody hangs."""

    async def steps(pool: Pool, tasks: list[asyncio.Task[Any]]) -> None:
        tasks.append(task(use(pool, None, 0.5, discard=True)))
        tasks.append(task(use(pool, None, 0.5)))
        if Gate.NEVER is dial:
            # Nothing else would ever end their wait.
            asyncio.get_running_loop().call_later(4.0, lambda: pool.close(0.25))
        await turns()

    def close(state: Any) -> None:
        pool, _ = state
        conserved(pool)
        pool.close(0.25)
        assert pool.stats().waiting == 0
        assert pool.available == 0

    for size in (1, 2):
        walk(Source(kind_of(closing, base), dial, dial, Gate.OK), size, steps, close)


@pytest.mark.parametrize("closing", [Gate.OK, Gate.SLOW], ids=["ok", "slow"])
def test_a_connection_dies_at_every_turn(closing: Gate) -> None:
    """I5, I10: idle, leased, or on its way from one to the other."""

    async def one(pool: Pool) -> None:
        lease = await pool.connect(timeout=8.0)
        await asyncio.sleep(0.25)
        lease.close()

    async def steps(pool: Pool, tasks: list[asyncio.Task[Any]]) -> None:
        tasks.extend(task(one(pool)) for _ in range(4))
        await turns()

    def die(state: Any) -> None:
        pool, _ = state
        conserved(pool)
        for connection in source.made[:1]:
            connection.die()
        conserved(pool)

    source = Source(kind_of(closing), Gate.OK)
    for size in (1, 2):
        walk(source, size, steps, die)


# -- the same turn -----------------------------------------------------------------------------


@virtual
async def test_cancelled_in_the_turn_of_the_hand_over() -> None:
    """I6: the connection passes to the next; cancel after and before the hand-over."""
    for early in (True, False):
        source = Source()
        pool = Pool(source, 1)
        lease = await pool.connect()
        first, second = task(pool.connect()), task(pool.connect())
        await turns()
        assert pool.stats().waiting == 2
        if early:
            first.cancel()
        lease.close()
        if not early:
            first.cancel()
        conserved(pool)
        with pytest.raises(asyncio.CancelledError):
            await first
        next_lease = await second
        assert next_lease.connection is source.made[0]
        next_lease.close()
        at_rest(pool)
        await pool.close()


@virtual
async def test_all_waiters_are_cancelled_in_the_turn_of_the_hand_over() -> None:
    """I6, I1: with nobody left it lies idle."""
    pool = Pool(Source(), 1)
    lease = await pool.connect()
    waiting = [task(pool.connect()) for _ in range(5)]
    await turns()
    waiting[0].cancel()
    lease.close()
    for waiter in waiting:
        waiter.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert all(waiter.cancelled() for waiter in waiting)
    at_rest(pool)
    assert pool.available == 1
    await pool.close()


@pytest.mark.parametrize("before", [True, False], ids=["release-first", "release-last"])
@virtual
async def test_a_time_out_in_the_turn_of_the_hand_over(before: bool) -> None:
    """I6: served or late, never both; what is not taken goes to the next."""
    loop = asyncio.get_running_loop()
    source = Source()
    pool = Pool(source, 1)
    lease = await pool.connect()
    if before:
        loop.call_at(1.0, lease.close)
    first = task(pool.connect(timeout=1.0))
    second = task(pool.connect(timeout=2.0))
    await turns()
    if not before:
        loop.call_at(1.0, lease.close)
    await asyncio.wait([first, second], timeout=1.5)
    conserved(pool)
    if first.exception() is None:
        first.result().close()
    else:
        assert isinstance(first.exception(), PoolTimeout)
    (await second).close()
    at_rest(pool)
    assert len(source.made) == 1
    await pool.close()


@virtual
async def test_cancelled_and_late_in_the_same_turn() -> None:
    """I6, I11: a cancellation stays one."""
    loop = asyncio.get_running_loop()
    pool = Pool(Source(Fake, Gate.NEVER), 1)
    waiter = task(pool.connect(timeout=1.0))
    await turns()
    loop.call_at(1.0, waiter.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    at_rest(pool)
    await pool.close()


@virtual
async def test_released_to_one_who_is_cancelled_while_the_pool_closes() -> None:
    """I6, I29: handed over, cancelled and closed in one turn."""
    for order in itertools.permutations(range(3)):
        source = Source()
        pool = Pool(source, 1)
        lease = await pool.connect()
        waiter = task(pool.connect())
        await turns()
        steps: list[Callable[[], object]] = [lease.close, waiter.cancel, pool.close]
        for index in order:
            steps[index]()
            conserved(pool)
        with pytest.raises((asyncio.CancelledError, PoolClosed)):
            await waiter
        await pool.close()
        at_rest(pool)
        assert source.open == 0


@virtual
async def test_one_who_got_a_dead_connection_takes_the_idle_one() -> None:
    """I10: nobody waits while a usable connection is idle."""
    source = Source(Watched)
    pool = Pool(source, 2)
    first, second = await pool.connect(), await pool.connect()
    source.gates = [Gate.NEVER]
    waiter = task(pool.connect(timeout=1.0))
    await turns()
    first.close()  # to the waiter
    second.close()  # idle
    source.made[0].die()
    lease = await waiter
    assert lease.connection is source.made[1]
    lease.close()
    at_rest(pool)
    await pool.close()


@virtual
async def test_one_who_got_a_dead_connection_learns_that_the_pool_is_closed() -> None:
    """I29: it was neither waiting nor served when the pool closed."""
    source = Source(Watched)
    pool = Pool(source, 1)
    lease = await pool.connect()
    waiter = task(pool.connect(timeout=None))
    await turns()
    lease.close()
    source.made[0].die()
    closing = pool.close()
    with pytest.raises(PoolClosed, match=r"Pool .* clos"):
        await asyncio.wait_for(waiter, 1.0)
    await closing


@virtual
async def test_one_who_got_a_dead_connection_is_first_again() -> None:
    """I7: those behind do not overtake."""
    source = Source(Watched)
    pool = Pool(source, 1)
    lease = await pool.connect()
    first, second = task(pool.connect()), task(pool.connect())
    await turns()
    lease.close()
    source.made[0].die()
    await turns(6)
    assert first.done()
    assert not second.done()
    first.result().close()
    (await second).close()
    at_rest(pool)
    await pool.close()


# -- dials -------------------------------------------------------------------------------------


@virtual
async def test_the_pool_closes_before_a_dial_had_its_first_turn() -> None:
    """I29: a task that is cancelled before it began runs no code of its own."""
    source = Source()
    pool = Pool(source, 1)
    waiter = task(pool.connect())
    await turns()
    assert pool.stats().dialling == 1
    assert source.dials == 0
    closing = pool.close()
    with pytest.raises(PoolClosed):
        await waiter
    async with asyncio.timeout(1.0):
        await closing
    at_rest(pool)
    assert source.dials == 0


@virtual
async def test_a_dial_outlives_its_caller_and_serves_the_next_waiter() -> None:
    """I14."""
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 1)
    first = task(pool.connect())
    await asyncio.sleep(0.5)
    second = task(pool.connect())
    await turns()
    first.cancel()
    lease = await second
    assert source.dials == 1
    assert asyncio.get_running_loop().time() == 1.0
    lease.close()
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_dial_outlives_its_caller_and_lies_idle() -> None:
    """I14."""
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 1)
    first = task(pool.connect())
    await asyncio.sleep(0.5)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert pool.stats().dialling == 1
    await asyncio.sleep(1.0)
    at_rest(pool)
    assert pool.available == 1
    await pool.close()


@virtual
async def test_an_orphaned_dial_ends_at_the_deadline_it_had() -> None:
    """I14: within the deadline of the caller that left."""
    pool = Pool(Source(Fake, Gate.NEVER), 1)
    first = task(pool.connect(timeout=3.0))
    await turns(3)
    first.cancel()
    await asyncio.sleep(2.9)
    assert pool.stats().dialling == 1
    await asyncio.sleep(0.2)
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_waiter_takes_what_comes_first() -> None:
    """I14: a released connection before its own dial; the dial then serves the next."""
    source = Source(Fake, Gate.OK, Gate.SLOW)
    pool = Pool(source, 2)
    lease = await pool.connect()
    second = task(pool.connect())
    await turns(2)
    assert pool.stats().dialling == 1
    lease.close()
    assert (await second).connection is source.made[0]
    assert asyncio.get_running_loop().time() == 0.0
    third = await pool.connect()
    assert third.connection is source.made[1]
    assert source.dials == 2
    third.close()
    second.result().close()
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_connection_that_is_done_when_its_dial_is_cancelled_is_closed() -> None:
    """I3: a creator that returns a future has no code of its own that could close it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Fake] = loop.create_future()
    pool = Pool(lambda: future, 1)
    waiter = task(pool.connect())
    await turns(3)
    connection = Fake()
    future.set_result(connection)
    closing = pool.close()
    with pytest.raises(PoolClosed):
        await waiter
    await closing
    assert connection.closed


@virtual
async def test_a_dial_that_does_not_hear_its_cancellation() -> None:
    """I29: what it opens after the pool's close is closed."""
    made = []

    async def creator() -> Fake:
        try:
            await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            await asyncio.sleep(1.0)
        made.append(Fake())
        return made[0]

    pool = Pool(creator, 1)
    waiter = task(pool.connect())
    await asyncio.sleep(0.5)
    closing = pool.close()
    with pytest.raises(PoolClosed):
        await waiter
    await closing
    assert made[0].closed
    at_rest(pool)


@virtual
async def test_cancelled_within_one_turn_whatever_it_waits_for() -> None:
    """I11."""
    for gates, size in (((Gate.NEVER,), 1), ((Gate.OK, Gate.NEVER), 1), ((Gate.SLOW,), 2)):
        pool = Pool(Source(Stubborn, *gates), size)
        holder = task(pool.connect())
        waiter = task(pool.connect())
        await turns(3)
        waiter.cancel()
        await turns(2)
        assert waiter.cancelled()
        if holder.done():
            holder.result().close()
        else:
            holder.cancel()
            await turns(2)
            assert holder.cancelled()
        pool.close(0)
        await pool.close()


@virtual
async def test_a_request_that_two_tasks_wait_for_loses_no_connection() -> None:
    """I1, I8: one request is one lease, however it is awaited."""
    pool = Pool(Source(Fake, Gate.SLOW), 2)
    request = pool.connect()
    both = await asyncio.gather(task(request), task(request), return_exceptions=True)
    for lease in both:
        if not isinstance(lease, BaseException):
            lease.close()
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_request_can_be_awaited_again_after_a_time_out() -> None:
    pool = Pool(Source(Fake, Gate.SLOW), 1)
    request = pool.connect(timeout=0.5)
    with pytest.raises(PoolTimeout):
        await request
    await asyncio.sleep(1.0)
    with pytest.raises(PoolTimeout):
        await request
    await pool.close()


# -- the block ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Fake, Judging, Watched])
@virtual
async def test_a_cancelled_block(kind: type[Fake]) -> None:
    """I17: an object that can't judge itself is closed, one that can decides."""
    source = Source(kind)
    pool = Pool(source, 1)

    async def block() -> None:
        async with pool.connect():
            await asyncio.sleep(60.0)

    running = task(block())
    await asyncio.sleep(1.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    at_rest(pool)
    assert source.made[0].closed is (kind is Fake)
    assert pool.available == (kind is not Fake)
    await pool.close()


@virtual
async def test_cancelling_the_wait_for_the_close_does_not_stop_it() -> None:
    """I29."""
    source = Source(kind_of(Gate.SLOW))
    pool = Pool(source, 1)
    (await pool.connect()).close()
    waiting = task(pool.close())
    await asyncio.sleep(0.5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await pool.close()
    assert asyncio.get_running_loop().time() == 1.0
    at_rest(pool)


@virtual
async def test_cancelling_async_with_pool() -> None:
    """I29: the pool closes all the same."""
    source = Source(kind_of(Gate.SLOW))
    pool = Pool(source, 1)

    async def block() -> None:
        async with pool, pool.connect():
            await asyncio.sleep(60.0)

    running = task(block())
    await asyncio.sleep(1.0)
    running.cancel()
    await turns(3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pool.closed
    await pool.close()
    at_rest(pool)


@virtual
async def test_storm() -> None:
    """I1: random cancellations, time-outs, deaths and errors; then nothing is left."""
    import random

    random.seed(7)
    gates = random.choices(list(Gate), [6, 1, 2, 1], k=400)
    closings = [kind_of(gate) for gate in Gate]
    source = Source(lambda number: closings[number % 4](number), *gates, Gate.OK, delay=0.05)
    pool = Pool(source, 5, name="storm")
    choose = random.Random(11)

    async def caller() -> None:
        for _ in range(20):
            try:
                lease = await pool.connect(timeout=choose.choice([0, 0.01, 0.1, 1.0]))
            except (PoolTimeout, PoolUnavailable):
                continue
            try:
                await asyncio.sleep(choose.random() * 0.05)
                if choose.random() < 0.1:
                    lease.connection.die()
                if choose.random() < 0.1:
                    lease.detach().close().close()
                    continue
            finally:
                lease.close(discard=choose.random() < 0.2)
                conserved(pool)

    callers: list[asyncio.Task[None]] = [task(caller()) for _ in range(50)]
    while not all(one.done() for one in callers):
        await asyncio.sleep(choose.random() * 0.02)
        choose.choice(callers).cancel()
        conserved(pool)
    for result in await asyncio.gather(*callers, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError)
    await asyncio.sleep(30.0)
    at_rest(pool)
    assert source.peak <= 5 + 50  # detached ones count there
    await pool.close()
    at_rest(pool)

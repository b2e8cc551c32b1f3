"""One lease: what it gives access to, and every way in which it ends."""

import asyncio
import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest
from pool_kit import Fake, Judging, Slow, Source, Watched, at_rest, conserved, task, turns, virtual

from pulsar_client import LeaseReleased, Pool, PoolConnection, PoolError


@virtual
async def test_attribute_access_reaches_the_connection() -> None:
    source = Source(Judging)
    pool = Pool(source, 1, name="redis")
    async with pool.connect() as lease:
        raw = source.made[0]
        assert lease.connection is raw
        assert lease.pool is pool
        assert lease.number == 0
        raw.colour = "blue"
        assert lease.colour == "blue"
        assert lease.abort.__self__ is raw
        with pytest.raises(AttributeError, match="shape"):
            _ = lease.shape
        assert repr(lease) == "<PoolConnection of 'redis': <Judging 0>>"
    await pool.close()


ENDS: dict[str, Callable[[Any], Any]] = {
    "close": lambda lease: lease.close(),
    "discard": lambda lease: lease.close(discard=True),
    "detach": lambda lease: lease.detach(),
}


@pytest.mark.parametrize("end", ENDS)
@virtual
async def test_use_after_the_end_raises(end: str) -> None:
    """I20."""
    source = Source(Judging)
    pool = Pool(source, 1, name="redis")
    lease = await pool.connect()
    assert ENDS[end](lease) is source.made[0]
    uses: list[Callable[[], Any]] = [
        lambda: lease.connection,
        lambda: lease.number,
        lambda: lease.closed,
        lambda: lease.nothing,
        lambda: lease.detach(),
        lambda: lease.detach(discard=False),
    ]
    for use in uses:
        with pytest.raises(LeaseReleased, match=r"PoolConnection of 'redis'.*after its release"):
            use()
    assert issubclass(LeaseReleased, PoolError)
    assert issubclass(LeaseReleased, RuntimeError)
    assert lease.close() is None
    assert lease.close(discard=True) is None
    assert repr(lease) == "<PoolConnection of 'redis': released>"
    assert lease.pool is pool
    assert source.made[0].close_calls == (end == "discard")
    await pool.close()


@virtual
async def test_use_after_the_block_raises() -> None:
    """I20."""
    pool = Pool(Source(), 1)
    async with pool.connect() as lease:
        pass
    with pytest.raises(LeaseReleased):
        _ = lease.number
    assert lease.close() is None
    await pool.close()
    with pytest.raises(LeaseReleased):
        _ = lease.number


@virtual
async def test_a_second_release_never_puts_twice() -> None:
    """I20: also when another holds the connection meanwhile."""
    source = Source()
    pool = Pool(source, 1)
    async with pool.connect() as first:
        raw = first.close()
        second = await pool.connect()
        assert second.connection is raw
        assert first.close() is None
        assert first.close(discard=True) is None
        assert pool.in_use == 1
        assert not raw.closed
    assert pool.in_use == 1
    assert second.connection is raw
    second.close()
    assert (pool.in_use, pool.available) == (0, 1)
    await pool.close()


@virtual
async def test_release_gives_it_back_and_discard_closes_it() -> None:
    source = Source()
    pool = Pool(source, 1)
    lease = await pool.connect()
    assert lease.close() is source.made[0]
    assert (pool.available, source.made[0].close_calls) == (1, 0)
    lease = await pool.connect()
    assert lease.close(discard=True) is source.made[0]
    assert (pool.available, source.made[0].close_calls) == (0, 1)
    at_rest(pool)
    await pool.close()


@virtual
async def test_detach_frees_the_slot_and_leaves_the_connection_open() -> None:
    """I5: for those who wait too."""
    source = Source(Watched)
    pool = Pool(source, 1)
    async with pool.connect() as lease:
        waiter = task(pool.connect())
        await turns()
        raw = lease.detach()
        assert raw is source.made[0]
        assert raw not in pool
        assert (pool.in_use, pool.stats().dialling) == (0, 1)
    other = await waiter
    assert other.connection is source.made[1]
    assert not raw.closed
    assert raw.callbacks == []
    raw.die()  # nothing to the pool
    conserved(pool)
    other.close()
    await pool.close()
    assert raw.close_calls == 0


@virtual
async def test_detach_without_discard_keeps_the_lease_beyond_the_block() -> None:
    source = Source()
    pool = Pool(source, 1)
    async with pool.connect() as lease:
        assert lease.detach(discard=False) is lease
        assert lease.connection is source.made[0]
    assert pool.in_use == 1
    assert lease.number == 0
    assert source.made[0] in pool
    assert lease.detach(discard=False) is lease
    assert lease.close() is source.made[0]
    at_rest(pool)
    assert pool.available == 1
    await pool.close()


@virtual
async def test_a_kept_lease_can_be_detached_for_good() -> None:
    source = Source()
    pool = Pool(source, 1)
    lease = await pool.connect()
    with pytest.raises(ZeroDivisionError):
        async with lease.detach(discard=False):
            raise ZeroDivisionError
    assert pool.in_use == 1
    assert lease.detach() is source.made[0]
    at_rest(pool)
    assert not source.made[0].closed
    await pool.close()


@virtual
async def test_a_kept_lease_when_the_pool_closes() -> None:
    """I29: closed at its release."""
    source = Source()
    pool = Pool(source, 1)
    async with pool.connect() as lease:
        lease.detach(discard=False)
    closing = pool.close()
    await turns()
    assert not closing.done()
    lease.close()
    assert source.made[0].closed
    await closing


class BlockError(Exception):
    pass


@pytest.mark.parametrize("end", ["normal", "exception", "cancelled"])
@pytest.mark.parametrize("reusable", [None, True, False])
@virtual
async def test_what_goes_back(end: str, reusable: bool | None) -> None:
    """I17: is_reusable decides; without it a block that ended well and an open connection."""

    def kind(number: int) -> Fake:
        if reusable is None:
            return Fake(number)
        judging = Judging(number)
        judging.is_reusable = reusable
        return judging

    source = Source(kind)
    pool = Pool(source, 1)

    async def block() -> None:
        async with pool.connect():
            if end == "exception":
                raise BlockError
            if end == "cancelled":
                await asyncio.sleep(60.0)

    running = task(block())
    await turns(4)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled() == (end == "cancelled")
    if end == "exception":
        assert isinstance(running.exception(), BlockError)
    back = end == "normal" if reusable is None else reusable
    assert pool.available == back
    assert source.made[-1].close_calls == (not back)
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_closed_connection_does_not_go_back() -> None:
    """I17."""
    source = Source()
    pool = Pool(source, 1)
    lease = await pool.connect()
    source.made[0].closed = True
    lease.close()
    assert pool.available == 0
    assert source.made[0].close_calls == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_is_reusable_decides_also_for_discard_free_close() -> None:
    source = Source(Judging)
    pool = Pool(source, 1)
    lease = await pool.connect()
    source.made[0].is_reusable = False
    lease.close()
    assert source.made[0].closed
    assert pool.available == 0
    await pool.close()


class FailingReusable(Fake):
    @property
    def is_reusable(self) -> bool:
        raise ZeroDivisionError


class FailingClose(Fake):
    def close(self) -> Any:
        super().close()
        raise ZeroDivisionError

    def abort(self) -> None:
        raise ZeroDivisionError


class FailingRepr(Slow):
    is_reusable = False

    def __repr__(self) -> str:
        raise ZeroDivisionError


class FailingAwait(Fake):
    async def close(self) -> None:
        self.closed = True
        raise ZeroDivisionError


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", [FailingReusable, FailingClose, FailingRepr, FailingAwait])
@virtual
async def test_a_release_cannot_fail(kind: type[Fake], end: str) -> None:
    """I13: whatever the connection does."""
    source = Source(kind)
    pool = Pool(source, 1)
    lease = await pool.connect()
    assert ENDS[end](lease) is source.made[0]
    assert pool.in_use == 0
    await asyncio.sleep(5.0)
    at_rest(pool)
    expected = end == "close" and kind in (FailingClose, FailingAwait)
    assert pool.available == expected
    await pool.close()
    at_rest(pool)


@virtual
async def test_a_release_is_synchronous() -> None:
    """I13: the next lease has it before the loop turns."""
    pool = Pool(Source(), 1)
    lease = await pool.connect()
    lease.close()
    coroutine = pool.connect(timeout=0).__aenter__()
    with pytest.raises(StopIteration) as info:
        coroutine.send(None)
    info.value.value.close()
    await pool.close()


@virtual
async def test_release_from_a_cancelled_task_needs_no_turn() -> None:
    """I13, I11."""
    source = Source(Judging)
    pool = Pool(source, 1)

    async def block() -> None:
        async with pool.connect():
            try:
                await asyncio.sleep(60.0)
            finally:
                running.cancel()  # once more, in the middle of it

    running = task(block())
    await turns(4)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    at_rest(pool)
    assert pool.available == 1
    await pool.close()


@virtual
async def test_the_end_of_a_generator_that_holds_a_lease() -> None:
    """I17: aclose() of the generator is the end of its block."""
    source = Source()
    pool = Pool(source, 1)

    async def rows() -> Any:
        async with pool.connect() as lease:
            while True:
                yield lease.number

    generator = rows()
    assert await anext(generator) == 0
    await generator.aclose()
    at_rest(pool)
    assert source.made[0].closed
    await pool.close()


@virtual
async def test_a_lease_made_by_hand() -> None:
    source = Source()
    pool = Pool(source, 1, name="redis")
    lease = await pool.connect()
    raw = lease.connection
    by_hand = PoolConnection(pool, raw)
    assert by_hand.number == 0
    assert by_hand.close() is raw
    lease.close()
    assert (pool.in_use, pool.available) == (0, 1)
    with pytest.raises(ValueError, match="is not a connection of <Pool 'redis'"):
        PoolConnection(pool, Fake())
    await pool.close()


@virtual
async def test_a_lease_whose_connection_died_is_released_quietly() -> None:
    """I5: its slot was free before."""
    source = Source(Watched)
    pool = Pool(source, 1)
    for end in ENDS.values():
        lease = await pool.connect()
        raw = lease.connection
        raw.die()
        await turns()
        assert pool.stats().size == 0
        other = await pool.connect()
        assert end(lease) is raw
        assert pool.in_use == 1
        other.close(discard=True)
        at_rest(pool)
    await pool.close()


def test_a_lease_that_is_collected() -> None:
    """I30: one warning that says where it was taken; no task, no I/O; its slot comes back."""
    source = Source()

    @functools.partial(virtual)
    async def main() -> None:
        pool = Pool(source, 1)
        lease = await pool.connect()
        before = asyncio.all_tasks()
        holders = [lease]
        del lease
        with pytest.warns(ResourceWarning, match="it was taken at .*test_pool_conn") as info:
            holders.clear()
        gc.collect()
        assert len(info) == 1
        assert "in test_a_lease_that_is_collected.<locals>.main" in str(info[0].message)
        assert asyncio.all_tasks() == before
        assert source.made[0].close_calls == 0
        async with pool.connect() as lease:  # one slot: it must be free again
            assert lease.connection is source.made[1]
        assert source.made[0].close_calls == 1
        stats = pool.stats()
        assert (stats.leaked, stats.closed_by["leaked"]) == (1, 1)
        await pool.close(0)

    main()


@virtual
async def test_a_lease_that_was_never_awaited_says_so_i20() -> None:
    """I20: forgetting the ``await`` is not a use after the release."""
    pool = Pool(Source(Judging), 1, name="redis")
    lease = pool.connect()
    uses: list[Callable[[], Any]] = [lambda: lease.number, lambda: lease.detach()]
    for use in uses:
        with pytest.raises(LeaseReleased, match=r"'redis'.*not leased yet.*await connect\(\)"):
            use()
    assert lease.close() is None
    async with lease:
        assert lease.number == 0
    await pool.close()


@virtual
async def test_a_name_or_a_condition_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="name is 3, expected a str"):
        Pool(Source(), name=3)  # type: ignore[arg-type]
    pool = Pool(Source())
    with pytest.raises(TypeError, match="condition is 3, expected a callable"):
        pool.expire(3)  # type: ignore[arg-type]
    await pool.close()

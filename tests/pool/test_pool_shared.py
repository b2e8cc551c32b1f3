"""Pools that share connections, and leases that do not."""

import asyncio
import gc
from typing import Any

import pytest
from pool_kit import Source, Watched, at_rest, conserved, task, turns, virtual

from pulsar_client import Pool, PoolConnection, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate, explore_cancellation, settled


class Piped(Watched):
    """A pipelined connection: `busy` replies are still to come."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(number)
        self.busy = 0
        self.quiet = asyncio.Event()
        self.healthy = True

    @property
    def is_reusable(self) -> bool:  # type: ignore[override]
        return not self.busy and not self.closed and self.healthy

    @property
    def is_shareable(self) -> bool:
        return not self.closed and self.healthy

    async def drained(self) -> bool:
        """Wait until nothing is in flight."""
        while self.busy:
            self.quiet.clear()
            await self.quiet.wait()
        return True

    def reply(self) -> None:
        """One reply comes."""
        self.busy -= 1
        self.quiet.set()

    def die(self) -> None:
        """Lost: nothing is in flight any more."""
        self.busy = 0
        self.quiet.set()
        super().die()


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_as_many_as_may_share_do() -> None:
    source = Source(Piped, Gate.SLOW)
    pool = Pool(source, 2, share=3)
    waiting = [task(pool.connect()) for _ in range(7)]
    await asyncio.sleep(3.0)
    assert [one.done() for one in waiting] == [True] * 6 + [False]
    leases = [await one for one in waiting[:6]]
    users: dict[Any, int] = {}
    for lease in leases:
        users[lease.connection] = users.get(lease.connection, 0) + 1
    assert list(users.values()) == [3, 3]
    assert (pool.in_use, source.dials) == (2, 2)
    leases[0].close()
    last = await waiting[6]
    assert last.connection is source.made[0]
    for lease in (*leases[1:], last):
        lease.close()
    at_rest(pool)
    assert pool.available == 2
    await pool.close()


@virtual
async def test_i33_one_alone_is_joined_by_nobody() -> None:
    pool = Pool(Source(Piped), 2, share=5)
    alone = await pool.connect(exclusive=True)
    others = [await pool.connect() for _ in range(5)]
    assert {lease.connection for lease in others} != {alone.connection}
    assert alone.connection not in [lease.connection for lease in others]
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=1.0)
    second = task(pool.connect(exclusive=True, timeout=5.0))
    await turns(3)
    conserved_shared(pool)
    alone.close()
    (await second).close()
    for lease in others:
        lease.close()
    at_rest(pool)
    await pool.close()


def conserved_shared(pool: Pool) -> None:
    stats = pool.stats()
    counts = (stats.available, stats.in_use, stats.dialling, stats.closing)
    assert sum(counts) == stats.size <= stats.pool_size, stats


@pytest.mark.parametrize("wrong", ["no", 1, None])
@pytest.mark.parametrize("share", [1, 4])
async def test_exclusive_is_yes_or_no(wrong: Any, share: int) -> None:
    """A text that means no would be taken for yes, and hold a connection alone."""
    async with Pool(Source(), 2, share=share) as pool:
        with pytest.raises(TypeError, match="expected True or False"):
            await pool.connect(exclusive=wrong)


@virtual
async def test_exclusive_waits_for_replies_that_nobody_waits_for() -> None:
    source = Source(Piped)
    pool = Pool(source, 1, share=2)
    lease = await pool.connect()
    lease.connection.busy = 1
    lease.close()  # given up: its reply is still to come
    assert pool.available == 1
    with pytest.raises(PoolTimeout):
        await pool.connect(exclusive=True, timeout=0)
    assert (pool.available, source.open) == (1, 1)  # and that did it no harm
    alone = task(pool.connect(exclusive=True))
    await turns(3)
    assert not alone.done()
    source.made[0].reply()
    (await alone).close()
    async with pool.connect(exclusive=True, timeout=0):
        pass
    at_rest(pool)
    await pool.close()


@virtual
async def test_i12_a_reply_that_never_comes_ends_with_the_deadline() -> None:
    """And with its connection: what comes later on it belongs to nobody."""
    source = Source(Piped)
    pool = Pool(source, 1, share=2)
    lease = await pool.connect()
    lease.connection.busy = 1
    lease.close()
    with pytest.raises(PoolTimeout):
        await pool.connect(exclusive=True, timeout=2.0)
    assert now() == pytest.approx(2.0, abs=0.05)
    assert source.open == 0
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("stage", ["queue", "dial", "drain", "check"])
@virtual
async def test_i11_one_who_wants_to_be_alone_is_cancelled(stage: str, after: int) -> None:
    """I6: what was reserved or promised is everybody's again."""
    gate = Gate.OK

    async def check(connection: Any) -> None:
        await gate.pass_through()

    source = Source(Piped)
    pool = Pool(source, 1, share=2, check=check)
    held = None
    if stage == "dial":
        source.gates = [Gate.SLOW, Gate.OK]
    else:
        held = await pool.connect()
        if stage != "queue":
            held.connection.busy = stage == "drain"
            held.close()
    if stage == "check":
        gate = Gate.SLOW
    alone = task(pool.connect(exclusive=True))
    await turns(after)
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    gate = Gate.OK
    async with pool.connect(timeout=3.0):
        assert pool.in_use == 1
    if held is not None:
        held.close()
    await asyncio.sleep(2.0)
    at_rest(pool)
    assert not pool._leases.ledger.reserved  # type: ignore[attr-defined]
    await pool.close()


@virtual
async def test_a_reservation_ends_with_the_time_of_its_waiter() -> None:
    """I5: those who share wait for it no longer than that."""
    pool = Pool(Source(Piped), 1, share=2)
    lease = await pool.connect()
    alone = task(pool.connect(exclusive=True, timeout=1.0))
    await turns(2)
    sharing = task(pool.connect())
    await asyncio.sleep(0.9)
    assert not sharing.done()
    await asyncio.sleep(0.2)
    (await sharing).close()
    with pytest.raises(PoolTimeout):
        await alone
    lease.close()
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("size", [1, 2, 4])
@virtual
async def test_i7_neither_kind_starves(size: int) -> None:
    """All of both loop without a pause; nobody waits for longer than a few turns of all."""
    pool = Pool(Source(Piped), size, share=2)
    longest = {True: 0.0, False: 0.0}
    counts = {True: 0, False: 0}

    async def loop(alone: bool) -> None:
        while now() < 60:
            began = now()
            async with pool.connect(exclusive=alone, timeout=None):
                longest[alone] = max(longest[alone], now() - began)
                counts[alone] += 1
                await asyncio.sleep(0.1)

    await asyncio.gather(*(loop(number % 2 == 0) for number in range(16)))
    assert min(counts.values()) > 100
    assert max(longest.values()) <= 2.0
    at_rest(pool)
    await pool.close()


@virtual
async def test_detaching_a_connection_that_others_use() -> None:
    source = Source(Piped)
    pool = Pool(source, 2, share=3)
    one, two = await pool.connect(), await pool.connect()
    with pytest.raises(RuntimeError, match="has 2 users"):
        one.detach()
    assert one.connection is two.connection is source.made[0]  # nothing has changed
    two.close()
    assert one.detach() is source.made[0]
    assert pool.stats().size == 0
    alone = await pool.connect(exclusive=True)
    assert alone.detach() is source.made[1]
    at_rest(pool)
    await pool.close()


@virtual
async def test_i20_a_shared_lease_is_not_taken_over() -> None:
    pool = Pool(Source(Piped), 1, share=2)
    lease = await pool.connect()
    with pytest.raises(ValueError, match="is in use"):
        PoolConnection(pool, lease.connection)
    lease.close()
    PoolConnection(pool, pool._ledger.idle[0].connection).close()
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("why", ["discard", "unhealthy", "expired", "age", "uses"])
@virtual
async def test_one_that_is_to_end_is_joined_by_nobody_and_ends_with_its_last_user(
    why: str,
) -> None:
    options: dict[str, dict[str, Any]] = {"age": {"max_age": 10.0}, "uses": {"max_uses": 2}}
    source = Source(Piped)
    pool = Pool(source, 2, share=3, **options.get(why, {}))
    one, two = await pool.connect(), await pool.connect()
    if why == "unhealthy":
        one.connection.healthy = False
    elif why == "expired":
        pool.expire()
    elif why == "age":
        await asyncio.sleep(11.0)
    one.close(discard=why == "discard")
    assert source.open == 1
    async with pool.connect() as three:
        assert three.connection is source.made[1]
    two.close()
    assert source.made[0].closed
    at_rest(pool)
    await pool.close()


@virtual
async def test_one_that_dies_ends_all_its_leases() -> None:
    source = Source(Piped)
    pool = Pool(source, 1, share=3)
    leases = [await pool.connect() for _ in range(3)]
    waiting = task(pool.connect())
    source.made[0].die()
    (await waiting).close()
    for lease in leases:
        lease.close()
        lease.close()
    assert pool.stats().closed_by == {"lost": 1}
    at_rest(pool)
    await pool.close()


@virtual
async def test_one_that_dies_while_somebody_waits_to_be_alone_on_it() -> None:
    source = Source(Piped)
    pool = Pool(source, 1, share=2)
    lease = await pool.connect()
    lease.connection.busy = 1
    lease.close()
    alone = task(pool.connect(exclusive=True))
    await turns(3)
    source.made[0].die()
    async with await alone as new:
        assert new.connection is source.made[1]
    at_rest(pool)
    await pool.close()


class Odd(Watched):
    """May be shared, and fails when it is asked anything else."""

    is_shareable = True

    @property
    def is_reusable(self) -> bool:  # type: ignore[override]
        raise ZeroDivisionError

    def drained(self) -> Any:
        raise ZeroDivisionError


class Mute(Watched):
    """May be shared, is not reusable, and has nothing to wait for."""

    is_shareable = True
    is_reusable = False


@pytest.mark.parametrize("kind", [Odd, Mute])
@virtual
async def test_one_that_can_not_tell_how_it_is_loses_no_slot(kind: type[Watched]) -> None:
    """I1, I17."""
    pool = Pool(Source(kind), 2, share=2)
    for _ in range(3):
        with pytest.raises(PoolTimeout):
            await pool.connect(exclusive=True, timeout=0)
        async with pool.connect():
            pass
        async with pool.connect(exclusive=True, timeout=5.0):
            pass
    at_rest(pool)
    await pool.close()


@virtual
async def test_i30_a_forgotten_share_seals_its_connection() -> None:
    source = Source(Piped)
    pool = Pool(source, 1, share=2)
    kept = await pool.connect()

    async def forget() -> None:
        await pool.connect()

    with pytest.warns(ResourceWarning, match="garbage collected"):
        await forget()
    gc.collect()
    waiting = task(pool.connect())
    await turns(3)
    assert source.open == 1
    kept.close()
    (await waiting).close()
    assert source.made[0].closed
    assert pool.stats().leaked == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_what_was_reserved_in_a_larger_pool_is_shared_again() -> None:
    """After a resize to less nothing stays reserved for nobody."""
    pool = Pool(Source(Piped), 2, share=2)
    leases = [await pool.connect() for _ in range(3)]
    alone = task(pool.connect(exclusive=True))
    await turns(3)
    pool.resize(1)
    alone.cancel()
    await turns(3)
    assert not pool._leases.ledger.reserved  # type: ignore[attr-defined]
    for lease in leases:
        lease.close()
    async with pool.connect(timeout=1.0):
        pass
    at_rest(pool)
    await pool.close()


@virtual
async def test_shared_connections_that_can_not_be_shared() -> None:
    """A mistake of the creator's author, named at once."""

    class Single(Watched):
        is_shareable = False

    source = Source(Single)
    pool = Pool(source, 1, share=2)
    with pytest.raises(TypeError, match="pipeline=N"):
        await pool.connect()
    assert source.open == 0
    at_rest(pool)
    await pool.close()


@virtual
async def test_i26_a_dead_host_and_both_kinds_of_waiters() -> None:
    source = Source(Piped, Gate.SLOW, Gate.ERROR)
    source.gates = [Gate.ERROR]
    pool = Pool(source, 2, share=2)
    calls = [pool.connect(exclusive=number % 2 == 0) for number in range(20)]
    results = await asyncio.gather(*(call.__aenter__() for call in calls), return_exceptions=True)
    assert {type(result) for result in results} == {PoolUnavailable}
    assert source.dials <= 3
    at_rest(pool)
    await pool.close()


@virtual
async def test_i11_every_point_of_an_exclusive_lease() -> None:
    """I1, I6: cancelled at each, among those who share."""
    pools: list[Pool] = []
    held: list[Any] = []

    async def check(connection: Any) -> None:
        await asyncio.sleep(0.01)

    async def scenario() -> None:
        pool = Pool(Source(Piped, Gate.SLOW, delay=0.1), 1, share=2, check=check)
        pools.append(pool)
        lease = await pool.connect()
        held.append(lease)
        connection = lease.connection
        connection.busy = 1
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, lease.close)
        loop.call_later(0.2, connection.reply)
        async with pool.connect(exclusive=True):
            await asyncio.sleep(0.01)

    async def whole(_point: int) -> None:
        pool = pools.pop()
        if held:
            held.pop().close()
        await settled(pool)
        async with pool.connect(timeout=5.0):
            pass
        await pool.close()
        assert pool.stats().size == 0

    explored = await explore_cancellation(scenario, check=whole)
    assert explored.points >= 12


def test_the_kind_of_the_pool() -> None:
    assert Pool(Source(), 1)._leases.shares is False
    assert Pool(Source(), 1, share=2)._leases.shares is True
    with pytest.raises(ValueError, match="share is 0"):
        Pool(Source(), 1, share=0)


@virtual
async def test_resets_run_after_exclusive_leases() -> None:
    seen: list[Any] = []

    async def reset(connection: Any) -> None:
        await asyncio.sleep(0.1)
        seen.append(connection)

    pool = Pool(Source(Piped), 1, share=2, reset=reset)
    async with pool.connect():
        pass
    async with pool.connect(exclusive=True, timeout=0) as alone:
        connection = alone.connection
    async with pool.connect():
        assert seen == [connection]
    conserved(pool)
    await pool.close()


@virtual
async def test_a_time_out_says_how_many_are_exclusive_i35() -> None:
    """I35: else it would look as if one waited in vain beside a connection that is idle."""
    pool = Pool(Source(Piped), 2, share=5, name="redis")
    async with pool.connect(exclusive=True), pool.connect():
        pass
    async with pool.connect(exclusive=True):
        for timeout in (0, 1.0):
            with pytest.raises(PoolTimeout, match=r"for exclusive use \(1 of at most 1 are\)"):
                await pool.connect(exclusive=True, timeout=timeout)
        assert pool.available == 1
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("end", ["discarded", "unfit"])
@virtual
async def test_i8_i17_one_given_up_in_the_turn_of_its_hand_over_is_not_leased(end: str) -> None:
    """I8, I17: it goes to nobody, and who waited is the next to be served."""
    source = Source(Piped)
    pool = Pool(source, 1, share=2)
    first, second = await pool.connect(), await pool.connect()
    waiting = [task(pool.connect()) for _ in range(2)]
    await turns(3)
    first.close()  # handed over to the first who waits
    second.connection.healthy = end != "unfit"
    second.close(discard=end == "discarded")
    leases = [await one for one in waiting]
    assert [lease.connection for lease in leases] == [source.made[1]] * 2
    assert source.made[0].closed
    assert pool.stats().leases == 4
    for lease in leases:
        lease.close()
    at_rest(pool)
    await pool.close()

"""The options of a pool that count and measure: sizes, ages, uses, order, the queue, dials."""

import asyncio
import logging
import random
from itertools import pairwise
from typing import Any

import pytest
from pool_kit import (
    Fake,
    Judging,
    Slow,
    Source,
    Watched,
    at_rest,
    conserved,
    task,
    turns,
    virtual,
)
from tenacity import AsyncRetrying, Retrying, stop_after_attempt, wait_fixed

from pulsar_client import Pool, PoolOverloaded, PoolTimeout, PoolUnavailable
from pulsar_client.testing import Gate


def now() -> float:
    return asyncio.get_running_loop().time()


async def fill(pool: Pool, count: int) -> list[Any]:
    """Open that many connections and put them back, the first one first."""
    leases = [await pool.connect() for _ in range(count)]
    return [lease.close() for lease in leases]


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("min_size", value) for value in (-1, 1.5, "1", True, None)],
        *[("max_waiting", value) for value in (-1, 0.5, "1", False)],
        *[
            (option, value)
            for option in ("max_idle", "max_age", "leak_after", "queue_target")
            for value in (0, -1, float("nan"), float("inf"), "1", True)
        ],
        *[("queue_interval", value) for value in (0, -1, float("nan"), None, "1")],
        *[("max_uses", value) for value in (0, -1, 1.5, "1", True)],
        *[("max_dialling", value) for value in (0, -1, 1.5, "1", True)],
        *[("share", value) for value in (0, -1, 1.5, "1", True, None)],
    ],
)
def test_a_value_out_of_range_is_named(option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=f"{option} is ") as info:
        Pool(Source(), 5, **options)
    assert repr(value) in str(info.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lifo", 1),
        ("lifo", None),
        ("check", 3),
        ("reset", "reset"),
        ("on_connect", object()),
        ("retry", 3),
        ("retry", Retrying()),
    ],
)
def test_a_value_of_the_wrong_type_is_named(option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(TypeError, match=f"{option} is ") as info:
        Pool(Source(), 5, **options)
    assert repr(value) in str(info.value)


def test_the_floor_is_not_above_the_ceiling() -> None:
    with pytest.raises(ValueError, match=r"min_size is 4, .*pool_size, which is 3"):
        Pool(Source(), 3, min_size=4)
    pool = Pool(Source(), 3, min_size=3)
    with pytest.raises(ValueError, match=r"min_size is 3, .*pool_size, which is 2"):
        pool.resize(2)
    assert pool.pool_size == 3


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", True, None])
def test_a_bad_new_size(size: Any) -> None:
    pool = Pool(Source(), 3)
    with pytest.raises(ValueError, match="pool_size is ") as info:
        pool.resize(size)
    assert repr(size) in str(info.value)
    assert pool.pool_size == 3


# -- min_size ------------------------------------------------------------------------------------


@virtual
async def test_i25_the_floor_is_opened_without_being_asked() -> None:
    source = Source(Watched, Gate.SLOW)
    pool = Pool(source, 5, min_size=3)
    await asyncio.sleep(2.0)
    assert (pool.available, source.dials) == (3, 3)
    assert pool.stats().opened_by == {"min_size": 3}
    assert pool.stats().min_size == 3
    await pool.close()


def test_i25_the_floor_of_a_pool_made_before_its_loop() -> None:
    """Opened from its first use on."""
    source = Source(Watched)
    pool = Pool(source, 5, min_size=3)

    async def main() -> None:
        async with pool:
            await turns(5)
            assert pool.available == 3

    asyncio.run(main())
    assert source.dials == 3


@pytest.mark.parametrize("how", ["die idle", "die leased", "discard", "detach", "unusable"])
@virtual
async def test_i25_the_floor_is_refilled_after_each_loss(how: str) -> None:
    source = Source(Watched)
    pool = Pool(source, 3, min_size=3)
    await turns(5)
    for _ in range(10):
        lease = await pool.connect()
        connection = lease.connection
        if how == "die idle":
            lease.close()
            connection.die()
        elif how == "die leased":
            connection.die()
            lease.close()
        elif how == "discard":
            lease.close(discard=True)
        elif how == "detach":
            lease.detach()
        else:
            connection.is_reusable = False
            lease.close()
        await turns(5)
        assert pool.available == 3
        conserved(pool)
    assert source.dials == 13
    await pool.close()


@virtual
async def test_i25_all_of_the_floor_dies_at_once() -> None:
    source = Source(Watched, Gate.SLOW)
    pool = Pool(source, 6, min_size=4)
    await asyncio.sleep(2.0)
    for connection in tuple(source.made):
        connection.die()
    await asyncio.sleep(2.0)
    assert (pool.available, source.dials) == (4, 8)
    await pool.close()


@pytest.mark.parametrize("discard", [True, False])
@virtual
async def test_i25_the_floor_does_not_wait_for_a_slow_close(discard: bool) -> None:
    """Where there is a slot for the successor."""
    source = Source(Slow)
    pool = Pool(source, 2, min_size=1)
    await turns(4)
    lease = await pool.connect()
    if not discard:
        lease.connection.die()
    lease.close(discard=discard)
    await turns(4)
    assert (pool.available, pool.stats().closing, source.peak) == (1, 1, 1)
    await asyncio.sleep(2.0)
    at_rest(pool)
    assert pool.available == 1
    await pool.close()


@virtual
async def test_i25_a_floor_that_can_not_be_opened_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """I22, I26: it is there a backoff step after the server, and cost few dials until then."""
    source = Source(Watched, Gate.ERROR)
    pool = Pool(source, 4, min_size=4)
    await asyncio.sleep(60.0)
    assert pool.available == 0
    assert 60 / 2 < source.dials < 150
    assert "can't open a connection" in caplog.text
    source.gates = [Gate.OK]
    await asyncio.sleep(2.1)
    assert pool.available == 4
    await pool.close()


@virtual
async def test_i25_min_size_survives_idleness_and_age() -> None:
    source = Source(Watched)
    pool = Pool(source, 5, min_size=2, max_idle=1.0, max_age=10.0)
    await fill(pool, 5)
    for _ in range(100):
        await asyncio.sleep(0.5)
        assert source.open >= 2
        conserved(pool)
    assert source.open == 2
    assert pool.stats().closed_by["idle"] == 3
    assert pool.stats().closed_by["age"] >= 6
    await pool.close()


# -- max_waiting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0, 1, 5])
@virtual
async def test_i9_one_more_than_may_wait(bound: int) -> None:
    pool = Pool(Source(), 1, max_waiting=bound)
    lease = await pool.connect()
    waiting = [task(pool.connect()) for _ in range(bound)]
    await turns(2)
    with pytest.raises(PoolOverloaded, match=f"max_waiting is {bound}"):
        await pool.connect()
    assert (pool.stats().overloads, pool.stats().waiting) == (1, bound)
    lease.close()
    for one in waiting:
        (await one).close()
    async with pool.connect():  # idle: nobody has to wait
        pass
    at_rest(pool)
    await pool.close()


@virtual
async def test_i9_no_bound() -> None:
    pool = Pool(Source(), 1)
    lease = await pool.connect()
    waiting = [task(pool.connect()) for _ in range(2000)]
    await turns(2)
    assert pool.stats().waiting == 2000
    lease.close()
    for one in waiting:
        (await one).close()
    assert pool.stats().overloads == 0
    await pool.close()


@virtual
async def test_i9_those_with_a_dial_of_their_own_do_not_count() -> None:
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 3, max_waiting=2)
    waiting = [task(pool.connect()) for _ in range(5)]
    await turns(2)
    assert (pool.stats().waiting, pool.stats().dialling) == (5, 3)
    with pytest.raises(PoolOverloaded):
        await pool.connect()
    waiting[4].cancel()
    await turns(2)
    waiting.append(task(pool.connect()))
    await turns(2)
    assert pool.stats().waiting == 5
    for one in (*waiting[:4], waiting[5]):
        (await one).close()
    at_rest(pool)
    await pool.close()


@virtual
async def test_i9_a_place_in_the_queue_is_free_after_a_time_out() -> None:
    pool = Pool(Source(), 1, max_waiting=1)
    lease = await pool.connect()
    for _ in range(3):
        with pytest.raises(PoolTimeout):
            await pool.connect(timeout=1.0)
    lease.close()
    await pool.close()


@virtual
async def test_i9_one_whose_connection_failed_its_check_is_not_turned_away() -> None:
    """It has waited already, and had its turn."""
    bad: set[Any] = set()

    async def check(connection: Any) -> bool:
        await asyncio.sleep(0)
        return connection not in bad

    source = Source(Judging)
    pool = Pool(source, 1, max_waiting=1, check=check)
    bad.update(await fill(pool, 1))
    first = task(pool.connect())
    await turns(1)
    second = task(pool.connect())
    await turns(1)
    (await first).close()
    (await second).close()
    assert source.dials == 2
    at_rest(pool)
    await pool.close()


# -- max_idle ------------------------------------------------------------------------------------


@virtual
async def test_max_idle() -> None:
    source = Source(Watched)
    pool = Pool(source, 3, max_idle=10.0)
    await fill(pool, 3)
    await asyncio.sleep(9.0)
    assert source.open == 3
    async with pool.connect() as lease:  # the last one: lifo
        kept = lease.connection
    await asyncio.sleep(1.1)
    assert [c for c in source.made if not c.closed] == [kept]
    await asyncio.sleep(9.0)
    assert source.open == 0
    assert pool.stats().closed_by == {"idle": 3}
    at_rest(pool)
    await pool.close()


@virtual
async def test_max_idle_does_not_touch_what_is_leased() -> None:
    source = Source(Watched)
    pool = Pool(source, 1, max_idle=1.0)
    async with pool.connect():
        await asyncio.sleep(100.0)
        assert source.open == 1
    await asyncio.sleep(0.9)
    assert source.open == 1
    await asyncio.sleep(0.2)
    assert source.open == 0
    await pool.close()


@virtual
async def test_max_idle_of_one_that_becomes_spare_late() -> None:
    """It lay there as a part of the floor; another one makes it superfluous."""
    source = Source(Watched)
    pool = Pool(source, 3, min_size=1, max_idle=5.0)
    await asyncio.sleep(100.0)
    assert source.open == 1
    await fill(pool, 2)
    await asyncio.sleep(6.0)
    assert source.open == 1
    await pool.close()


@virtual
async def test_i4_a_release_looks_at_no_others() -> None:
    """However many lie idle, and were closed where they lay."""

    pool = Pool(Source(Watched), 400, max_idle=100.0)
    connections = await fill(pool, 400)
    for connection in connections[:190]:
        connection.die()
    ledger = pool._ledger
    steps = 0

    class Shelf(list[Any]):
        def __iter__(self) -> Any:
            nonlocal steps
            for one in super().__iter__():
                steps += 1
                yield one

    await turns(3)
    assert ledger.dead > 100
    ledger.shelf = Shelf(ledger.shelf)
    for _ in range(10):
        (await pool.connect()).close()
    assert steps == 0
    await pool.close()


# -- max_age -------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["idle", "busy", "waited for"])
@virtual
async def test_i24_no_lease_begins_on_an_older_connection(use: str) -> None:
    born: dict[Any, float] = {}
    source = Source(Watched)
    pool = Pool(source, 2, max_age=10.0)
    pool.bind_event("on_open", lambda _, connection, **kw: born.update({connection: now()}))

    async def user() -> None:
        while now() < 100:
            async with pool.connect() as lease:
                assert now() - born[lease.connection] <= 10.0
                await asyncio.sleep(0.3)
            if use == "idle":
                await asyncio.sleep(3.0)

    await asyncio.gather(*(user() for _ in range(2 if use != "waited for" else 5)))
    assert 16 <= source.dials <= 40
    assert set(pool.stats().closed_by) == {"age"}
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("count", [2, 3, 10, 50])
@virtual
async def test_i24_those_born_together_do_not_die_together(count: int) -> None:
    """Spread over at least 10 % of the age, and never later than it."""
    random.seed(count)
    died: list[float] = []
    pool = Pool(Source(Watched), count, max_age=100.0)
    pool.bind_event("on_close", lambda _, cause, **kw: died.append(now()))
    await fill(pool, count)
    await asyncio.sleep(101.0)
    assert len(died) == count
    assert 74.9 <= min(died) <= max(died) <= 100.1
    assert max(died) - min(died) >= (9.0 if count == 2 else 10.0)
    await pool.close()


@pytest.mark.parametrize("way", ["age", "expire"])
@virtual
async def test_i24_at_the_floor_the_successor_is_open_before_the_old_one_closes(way: str) -> None:
    source = Source(Watched, Gate.SLOW)
    pool = Pool(source, 4, min_size=2, max_age=10.0 if way == "age" else None)
    await asyncio.sleep(2.0)
    for step in range(100):
        if way == "expire" and step % 20 == 0:
            assert pool.expire() == 2
        await asyncio.sleep(0.5)
        assert source.open >= 2
        conserved(pool)
    assert source.dials >= 10
    assert set(pool.stats().closed_by) == {"age" if way == "age" else "expired"}
    await pool.close()


@virtual
async def test_i24_where_there_is_no_slot_for_a_successor_the_old_one_closes_first() -> None:
    source = Source(Watched)
    pool = Pool(source, 2, min_size=2, max_age=10.0)
    await asyncio.sleep(100.0)
    assert source.dials >= 16
    assert source.peak == 2
    assert pool.available == 2
    await pool.close()


@virtual
async def test_i24_a_successor_that_can_not_be_opened() -> None:
    """I25: the old one is no longer leased, but the floor comes back with the server."""
    source = Source(Watched)
    pool = Pool(source, 4, min_size=2, max_age=10.0)
    await turns(5)
    source.gates = [Gate.ERROR]
    await asyncio.sleep(30.0)
    source.gates = [Gate.OK]
    await asyncio.sleep(2.5)
    assert pool.available == 2
    await pool.close()


# -- max_uses, lifo ------------------------------------------------------------------------------


@pytest.mark.parametrize("uses", [1, 2, 5])
@pytest.mark.parametrize("timeout", [None, 0])
@pytest.mark.parametrize("checked", [False, True])
@virtual
async def test_max_uses(uses: int, timeout: float | None, checked: bool) -> None:
    """Whichever way the lease is taken."""

    async def check(connection: Any) -> None:
        pass

    source = Source(Judging)
    pool = Pool(source, 1, max_uses=uses, check=check if checked else None)
    counts: dict[Any, int] = {}
    for _ in range(20):
        if not pool.available:
            lease = await pool.connect()
        else:
            lease = await pool.connect(timeout=timeout)
        counts[lease.connection] = counts.get(lease.connection, 0) + 1
        lease.close()
    assert set(counts.values()) == {uses}
    assert pool.stats().closed_by == {"uses": 20 // uses}
    await pool.close()


@virtual
async def test_max_uses_of_a_connection_that_is_waited_for() -> None:
    source = Source(Judging)
    pool = Pool(source, 1, max_uses=3)
    leases = [task(pool.connect()) for _ in range(9)]
    for one in leases:
        (await one).close()
    assert source.dials == 3
    await pool.close()


@pytest.mark.parametrize(("lifo", "order"), [(True, [2, 1, 0]), (False, [0, 1, 2])])
@virtual
async def test_lifo(lifo: bool, order: list[int]) -> None:
    pool = Pool(Source(), 3, lifo=lifo)
    await fill(pool, 3)
    leases = [await pool.connect() for _ in range(3)]
    assert [lease.connection.number for lease in leases] == order
    for lease in leases:
        lease.close()
    await pool.close()


@virtual
async def test_fifo_uses_all_and_lifo_the_fewest() -> None:
    for lifo, expected in ((True, 1), (False, 4)):
        pool = Pool(Source(), 4, lifo=lifo)
        await fill(pool, 4)
        used = set()
        for _ in range(20):
            async with pool.connect() as lease:
                used.add(lease.connection)
        assert len(used) == expected
        await pool.close()


# -- dials and backoff ---------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "peak"), [(1, 1), (3, 3), (None, 8), (50, 20)])
@virtual
async def test_i26_max_dialling(limit: int | None, peak: int) -> None:
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 20, max_dialling=limit)
    most = 0

    async def call() -> None:
        async with pool.connect():
            await asyncio.sleep(5.0)

    calls = [task(call()) for _ in range(40)]
    while not all(one.done() for one in calls):
        most = max(most, source.dialling)
        conserved(pool)
        await asyncio.sleep(0.25)
    assert most == peak
    at_rest(pool)
    await pool.close()


@virtual
async def test_i26_after_one_failure_the_next_caller_may_try_at_once() -> None:
    """One refusal may be chance, or a restart that is over."""
    source = Source(Fake, Gate.ERROR, Gate.OK)
    pool = Pool(source, 5)
    with pytest.raises(PoolUnavailable):
        await pool.connect()
    async with pool.connect():
        assert now() == 0
    await pool.close()


@virtual
async def test_i26_while_the_target_is_left_alone_new_callers_fail_with_the_cause() -> None:
    random.seed(3)
    source = Source(Fake, Gate.ERROR)
    pool = Pool(source, 5)
    for _ in range(2):
        with pytest.raises(PoolUnavailable):
            await pool.connect()
    before = source.dials
    for _ in range(1000):
        with pytest.raises(PoolUnavailable, match="nobody listens") as info:
            await pool.connect()
        assert info.value.__cause__ is source.error
    assert (now(), source.dials) == (0, before)
    at_rest(pool)
    await pool.close()


@virtual
async def test_i26_one_probe_at_a_time_and_all_at_once_when_it_is_back() -> None:
    """I22: at full speed within one backoff step."""
    random.seed(4)
    source = Source(Fake, Gate.ERROR)
    pool = Pool(source, 8)
    for _ in range(30):
        with pytest.raises(PoolUnavailable):
            await pool.connect()
        await asyncio.sleep(0.3)
    assert 5 <= source.dials <= 30
    source.gates = [Gate.SLOW]
    back = now()
    await asyncio.sleep(2.0)  # the longest step
    calls = [task(pool.connect()) for _ in range(8)]
    await turns(3)
    assert source.dialling == 1
    await asyncio.sleep(1.1)
    assert source.dialling == 7
    leases = [await one for one in calls]
    assert now() - back <= 2.0 + 2 * source.delay + 0.1
    for lease in leases:
        lease.close()
    await pool.close()


@pytest.mark.parametrize("failing", ["dial", "on_connect"])
@virtual
async def test_i26_many_who_wait_are_not_many_dials(failing: str) -> None:
    """All who wait fail with the first failure: nothing is open that they could wait for."""
    failures = 0

    async def on_connect(connection: Any) -> None:
        nonlocal failures
        await asyncio.sleep(0.1)
        failures += 1
        raise ConnectionResetError("refused")

    if failing == "dial":
        source = Source(Watched, Gate.ERROR)
        pool = Pool(source, 2)
    else:
        source = Source(Watched)
        pool = Pool(source, 2, on_connect=on_connect)
    results = await asyncio.gather(
        *(pool.connect().__aenter__() for _ in range(100)), return_exceptions=True
    )
    assert {type(result) for result in results} == {PoolUnavailable}
    assert source.dials <= 4
    assert now() < 1.0
    await asyncio.sleep(1.0)
    at_rest(pool)
    await pool.close()


@virtual
async def test_i26_the_pauses_are_jittered_and_grow() -> None:
    """No two pools of a fleet probe in step."""
    times: list[list[float]] = []
    for seed in range(10):
        random.seed(seed)
        source = Source(Fake, Gate.ERROR)
        began = now()
        dialled: list[float] = []

        async def dial(source: Source = source, dialled: list[float] = dialled) -> Any:
            dialled.append(now())
            return await source()

        pool = Pool(dial, 2, min_size=1)
        await asyncio.sleep(30.0)
        await pool.close()
        times.append([round(one - began, 4) for one in dialled])
    pauses = [b - a for one in times for a, b in pairwise(one[2:])]
    assert max(pauses) <= 2.0
    assert max(pauses) - min(pauses) > 1.0
    assert len({tuple(one[:5]) for one in times}) == 10


@virtual
async def test_retry_within_one_dial() -> None:
    source = Source(Fake, Gate.ERROR, Gate.ERROR, Gate.OK)
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(1.0))
    pool = Pool(source, 1, retry=retry)
    async with pool.connect():
        assert (now(), source.dials) == (2.0, 3)
    assert pool.stats().failed_dials == 0
    await pool.close()


@virtual
async def test_retry_given_up_gives_the_dials_own_error() -> None:
    """I35."""
    source = Source(Fake, Gate.ERROR)
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(1.0))
    pool = Pool(source, 1, retry=retry)
    with pytest.raises(PoolUnavailable) as info:
        await pool.connect()
    assert info.value.__cause__ is source.error
    assert source.dials == 3
    assert pool.stats().failed_dials == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_i12_retry_ends_with_the_callers_deadline() -> None:
    """I35: and the error has what the attempts failed with."""
    source = Source(Fake, Gate.ERROR)
    pool = Pool(source, 1, retry=AsyncRetrying(wait=wait_fixed(1.0)))
    with pytest.raises(PoolTimeout, match="nobody listens") as info:
        await pool.connect(timeout=3.5)
    assert info.value.__cause__ is source.error
    assert now() == pytest.approx(3.5, abs=0.05)
    await asyncio.sleep(0.1)
    at_rest(pool)
    await pool.close()


@virtual
async def test_i11_closing_ends_a_retry_at_once() -> None:
    source = Source(Fake, Gate.ERROR)
    pool = Pool(source, 1, retry=AsyncRetrying(wait=wait_fixed(100.0)))
    waiting = task(pool.connect(timeout=None))
    await asyncio.sleep(1.0)
    await pool.close()
    assert now() == pytest.approx(1.0, abs=0.3)
    with pytest.raises(Exception, match="closed"):
        await waiting
    at_rest(pool)


# -- resize and expire ---------------------------------------------------------------------------


@virtual
async def test_resize_up_serves_those_who_wait() -> None:
    """I5: in that loop turn."""
    source = Source()
    pool = Pool(source, 1)
    lease = await pool.connect()
    waiting = [task(pool.connect()) for _ in range(5)]
    await turns(2)
    pool.resize(4)
    assert pool.stats().dialling == 3
    await turns(4)
    assert [one.done() for one in waiting] == [True] * 3 + [False] * 2
    lease.close()
    for one in waiting:
        (await one).close()
    assert source.peak == 4
    at_rest(pool)
    await pool.close()


@virtual
async def test_resize_down_closes_idle_ones_now_and_leased_ones_at_their_release() -> None:
    source = Source()
    pool = Pool(source, 5)
    leases = [await pool.connect() for _ in range(5)]
    leases[0].close()
    leases[1].close()
    pool.resize(2)
    assert (source.open, pool.available, pool.in_use) == (3, 0, 3)
    for lease in leases[2:]:
        lease.close()
    assert (source.open, pool.available) == (2, 2)
    assert pool.stats().closed_by == {"resize": 3}
    at_rest(pool)
    await pool.close()


@virtual
async def test_resize_down_closes_no_more_than_it_must() -> None:
    """What is on its way out already does not count twice."""
    source = Source(Slow)
    pool = Pool(source, 4)
    leases = [await pool.connect() for _ in range(4)]
    pool.resize(2)
    for lease in leases:
        lease.close()
    assert (source.open, pool.available) == (2, 2)
    await asyncio.sleep(2.0)
    at_rest(pool)
    await pool.close()


@virtual
async def test_resize_down_while_dials_are_under_way() -> None:
    source = Source(Fake, Gate.SLOW)
    pool = Pool(source, 5)
    waiting = [task(pool.connect()) for _ in range(5)]
    await turns(2)
    pool.resize(2)
    for one in waiting:
        (await one).close()
    assert source.open == 2
    at_rest(pool)
    await pool.close()


@virtual
async def test_expire_replaces_all_that_are_there() -> None:
    source = Source()
    pool = Pool(source, 3)
    await fill(pool, 3)
    lease = await pool.connect()
    assert pool.expire() == 3
    assert (pool.available, pool.in_use, source.open) == (0, 1, 1)
    lease.close()
    assert source.open == 0
    assert pool.stats().closed_by == {"expired": 3}
    async with pool.connect() as new:
        assert new.connection.number == 3
    assert pool.expire() == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_expire_with_a_condition() -> None:
    source = Source()
    pool = Pool(source, 4)
    await fill(pool, 4)
    assert pool.expire(lambda connection: connection.number % 2 == 0) == 2
    assert [c.number for c in source.made if not c.closed] == [1, 3]
    assert pool.expire(lambda connection: False) == 0
    await pool.close()


@virtual
async def test_expired_while_leased_and_taken_over_by_hand() -> None:
    """The new lease inherits the verdict, and its cause."""
    from pulsar_client import PoolConnection

    source = Source()
    pool = Pool(source, 1)
    lease = await pool.connect()
    pool.expire()
    heir = PoolConnection(pool, lease.connection)
    lease.close()
    assert source.open == 1
    heir.close()
    assert source.open == 0
    assert pool.stats().closed_by == {"expired": 1}
    await pool.close()


def test_a_pool_without_connections_can_expire_them() -> None:
    assert Pool(Source(), 1).expire() == 0


# -- time ----------------------------------------------------------------------------------------


@virtual
async def test_i34_only_the_loops_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that jumps evicts nothing and times nobody out."""
    import time

    source = Source(Watched)
    pool = Pool(source, 3, max_idle=100.0, max_age=100.0, leak_after=100.0, queue_target=1.0)
    await fill(pool, 3)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    await asyncio.sleep(1.0)
    async with pool.connect() as lease:
        assert lease.connection in source.made[:3]
    assert source.open == 3
    monkeypatch.undo()
    await pool.close()


def test_i34_a_clock_that_was_put_in_the_place_of_asyncios_own_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        pool = Pool(Source(Watched), 1)
        async with pool.connect():
            assert pool._leases.time() == asyncio.get_running_loop().time()
        await pool.close()

    real = asyncio.BaseEventLoop.time
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: real(loop) // 1000 * 1000)
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(run())


@virtual
async def test_nothing_is_logged_of_a_healthy_life(caplog: pytest.LogCaptureFixture) -> None:
    async def fine(connection: Any) -> None:
        await asyncio.sleep(0.01)

    caplog.set_level(logging.DEBUG, "pulsar_client")
    pool = Pool(
        Source(Watched),
        3,
        min_size=1,
        max_idle=1.0,
        max_age=5.0,
        max_uses=10,
        check=fine,
        reset=fine,
        on_connect=fine,
        leak_after=10.0,
        queue_target=1.0,
    )
    for _ in range(50):
        async with pool.connect():
            await asyncio.sleep(0.2)
    await pool.close()
    assert not caplog.records

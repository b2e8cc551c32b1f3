"""What users hang into a pool: check, reset, on_connect, events, the watch for leaks."""

import asyncio
import gc
import logging
import warnings
from itertools import product
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

from pulsar_client import (
    LeaseReleased,
    Pool,
    PoolClosed,
    PoolConnection,
    PoolTimeout,
    PoolUnavailable,
)
from pulsar_client.testing import Gate


def now() -> float:
    return asyncio.get_running_loop().time()


class Hook:
    """A user's coroutine function behind a gate; it counts its calls and their ends."""

    def __init__(self, gate: Gate = Gate.OK, delay: float = 1.0, gives: Any = None) -> None:
        self.gate, self.delay, self.gives = gate, delay, gives
        self.error: BaseException = ValueError("the hook's own")
        self.calls: list[Any] = []
        self.running = 0

    async def __call__(self, connection: Any) -> Any:
        self.calls.append(connection)
        self.running += 1
        try:
            await self.gate.pass_through(delay=self.delay, error=self.error)
        finally:
            self.running -= 1
        return self.gives


async def used(pool: Pool, count: int = 1) -> list[Any]:
    """Connections that have been leased before and are idle now."""
    leases = [await pool.connect() for _ in range(count)]
    connections = [lease.close() for lease in leases]
    await asyncio.sleep(2.0)
    return connections


# -- check ---------------------------------------------------------------------------------------


@virtual
async def test_check_is_run_before_each_lease_but_the_first() -> None:
    check = Hook()
    pool = Pool(Source(Judging), 1, check=check)
    for number in range(5):
        async with pool.connect() as lease:
            assert check.calls == [lease.connection] * number
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("gives", [None, True, 0, "yes"])
@virtual
async def test_a_check_that_does_not_return_false_has_passed(gives: Any) -> None:
    source = Source(Judging)
    pool = Pool(source, 1, check=Hook(gives=gives))
    await used(pool)
    async with pool.connect():
        pass
    assert source.dials == 1
    await pool.close()


@pytest.mark.parametrize("how", ["false", "raises", "kills"])
@virtual
async def test_a_check_that_fails(how: str) -> None:
    """All stale ones are found by one caller, within one lease; it gets a new one."""
    check = Hook(Gate.ERROR if how == "raises" else Gate.OK, gives=how != "false")

    async def kill(connection: Any) -> None:
        connection.closed = True

    source = Source(Fake)
    pool = Pool(source, 3, check=kill if how == "kills" else check)
    stale = await used(pool, 3)
    async with pool.connect() as lease:
        assert lease.connection not in stale
    assert all(connection.closed for connection in stale)
    assert pool.stats().closed_by == {"check": 3}
    assert (source.dials, pool.stats().leases) == (4, 4)
    at_rest(pool)
    await pool.close()


@virtual
async def test_a_slow_check_holds_up_its_caller_only() -> None:
    check = Hook(Gate.SLOW)
    pool = Pool(Source(Judging), 2, check=check)
    await used(pool, 2)
    began = now()
    leases = await asyncio.gather(*(pool.connect().__aenter__() for _ in range(2)))
    assert now() - began == pytest.approx(1.0)
    for lease in leases:
        lease.close()
    await pool.close()


@virtual
async def test_i12_a_check_that_never_ends_ends_with_the_deadline() -> None:
    source = Source(Judging)
    pool = Pool(source, 1, check=Hook(Gate.NEVER))
    await used(pool)
    began = now()
    with pytest.raises(PoolTimeout, match="no connection within"):
        await pool.connect(timeout=3.0)
    assert now() - began == pytest.approx(3.0, abs=0.05)
    assert source.open == 0  # who knows what is on its way to it
    at_rest(pool)
    await pool.close()


@virtual
async def test_i12_i10_the_deadline_covers_queue_and_check_together() -> None:
    pool = Pool(Source(Judging), 1, check=Hook(Gate.SLOW, delay=2.0))
    lease = await pool.connect()
    began = now()
    asyncio.get_running_loop().call_later(2.0, lease.close)
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=3.0)
    assert now() - began == pytest.approx(3.0, abs=0.05)
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize("gate", [Gate.SLOW, Gate.NEVER])
@pytest.mark.parametrize("after", range(4))
@virtual
async def test_i11_i1_cancelled_in_a_check(gate: Gate, after: int) -> None:
    check = Hook(gate)
    pool = Pool(Source(Judging), 1, check=check)
    await used(pool)
    caller = task(pool.connect())
    await turns(after)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    conserved(pool)
    assert check.running == 0
    check.gate = Gate.OK
    async with pool.connect(timeout=1.0):
        pass
    at_rest(pool)
    await pool.close()


@virtual
async def test_time_out_zero_goes_without_a_check() -> None:
    check = Hook(Gate.NEVER)
    pool = Pool(Source(Judging), 1, check=check)
    await used(pool)
    async with pool.connect(timeout=0):
        assert not check.calls
    await pool.close()


@virtual
async def test_a_lease_without_waiting_is_a_use_like_others() -> None:
    """What was leased so is checked before the next lease, and reset after this one."""
    check, reset = Hook(), Hook()
    pool = Pool(Source(Judging), 1, check=check, reset=reset, min_size=1)
    await turns(4)
    async with pool.connect(timeout=0) as lease:
        connection = lease.connection
    await turns(3)
    assert reset.calls == [connection]
    async with pool.connect():
        pass
    assert check.calls == [connection]
    await pool.close()


@pytest.mark.parametrize("timeout", [None, 100.0])
@pytest.mark.parametrize("gate", [Gate.SLOW, Gate.NEVER])
@virtual
async def test_i29_the_pool_is_closed_during_a_check(gate: Gate, timeout: float | None) -> None:
    """The caller has no lease yet, and gets none, at once."""
    check = Hook(gate)
    pool = Pool(Source(Judging), 1, check=check)
    await used(pool)
    caller = task(pool.connect(timeout=timeout))
    await turns(3)
    assert check.running == 1
    closing = pool.close()
    await turns(4)
    assert caller.done()
    with pytest.raises(PoolClosed):
        await caller
    await closing
    assert check.running == 0
    assert pool.stats().size == 0


@virtual
async def test_the_pool_is_closed_by_its_check() -> None:
    async def check(connection: Any) -> None:
        pool.close()

    pool = Pool(Source(Judging), 1, check=check)
    await used(pool)
    with pytest.raises(PoolClosed):
        await pool.connect()
    await pool.close()
    assert pool.stats().closed_by == {"pool closed": 1}


# -- reset ---------------------------------------------------------------------------------------


@virtual
async def test_i13_reset_does_not_delay_the_release_but_the_next_lease() -> None:
    reset = Hook(Gate.SLOW)
    source = Source(Judging)
    pool = Pool(source, 1, reset=reset)
    lease = await pool.connect()
    began = now()
    lease.close()
    assert now() == began
    assert (pool.in_use, pool.available) == (1, 0)
    async with pool.connect() as again:
        assert again.connection is source.made[0]
        assert now() - began == pytest.approx(1.0)
    await asyncio.sleep(1.1)
    at_rest(pool)
    await pool.close()


@virtual
async def test_i13_a_reset_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    source = Source(Judging)
    pool = Pool(source, 1, reset=Hook(Gate.ERROR))
    (await pool.connect()).close()
    await turns(3)
    assert source.open == 0
    assert "the hook's own" in caplog.text
    assert pool.stats().closed_by == {"reset": 1}
    at_rest(pool)
    await pool.close()


@virtual
async def test_i13_a_reset_that_never_ends_is_given_five_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, reset = Source(Judging), Hook(Gate.NEVER)
    pool = Pool(source, 1, reset=reset)
    (await pool.connect()).close()
    began = now()
    async with pool.connect() as lease:
        assert now() - began == pytest.approx(5.0, abs=0.05)
        assert lease.connection is source.made[1]
    assert "took more than 5 s" in caplog.text
    await asyncio.sleep(6.0)
    assert reset.running == 0
    at_rest(pool)
    await pool.close()


@virtual
async def test_i13_a_reset_that_ignores_its_cancellation_holds_no_slot() -> None:
    stop = asyncio.Event()

    async def reset(connection: Any) -> None:
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue

    pool = Pool(Source(Judging), 1, reset=reset)
    (await pool.connect()).close()
    async with pool.connect(timeout=6.0) as lease:
        lease.detach()
    assert pool.stats().size == 0
    stop.set()
    await pool.close()


@pytest.mark.parametrize("gate", list(Gate))
@virtual
async def test_i29_the_pool_is_closed_during_a_reset(gate: Gate) -> None:
    source, reset = Source(Judging), Hook(gate)
    pool = Pool(source, 1, reset=reset)
    (await pool.connect()).close()
    await turns(1)
    began = now()
    await pool.close()
    assert (now(), reset.running, source.open, pool.stats().size) == (began, 0, 0, 0)


@virtual
async def test_no_reset_of_what_is_not_kept() -> None:
    reset = Hook()
    pool = Pool(Source(Judging), 1, reset=reset)
    (await pool.connect()).close(discard=True)
    lease = await pool.connect()
    lease.connection.is_reusable = False
    lease.close()
    (await pool.connect()).detach()
    await pool.close()
    assert not reset.calls


@virtual
async def test_one_that_dies_during_its_reset() -> None:
    source, reset = Source(Watched), Hook(Gate.SLOW)
    pool = Pool(source, 1, reset=reset)
    (await pool.connect()).close()
    await turns(2)
    source.made[0].die()
    async with pool.connect() as lease:
        assert lease.connection is source.made[1]
    await asyncio.sleep(2.0)
    assert pool.stats().closed_by == {"lost": 1}
    at_rest(pool)
    await pool.close()


@virtual
async def test_i20_a_connection_that_is_being_reset_can_not_be_taken_over() -> None:
    """The reset would go on under the hands of its new user."""
    source, reset = Source(Judging), Hook(Gate.SLOW)
    pool = Pool(source, 1, reset=reset)
    (await pool.connect()).close()
    with pytest.raises(ValueError, match="is being reset"):
        PoolConnection(pool, source.made[0])
    await asyncio.sleep(1.1)
    PoolConnection(pool, source.made[0]).close()
    await asyncio.sleep(1.1)
    at_rest(pool)
    await pool.close()


# -- on_connect ----------------------------------------------------------------------------------


@virtual
async def test_on_connect_is_run_once_a_connection_before_anybody_has_it() -> None:
    greet = Hook(Gate.SLOW)
    source = Source(Judging)
    pool = Pool(source, 1, on_connect=greet)
    waiting = task(pool.connect())
    await turns(3)
    assert (pool.stats().dialling, source.made[0] in pool) == (1, False)
    (await waiting).close()
    for _ in range(3):
        async with pool.connect():
            pass
    assert greet.calls == source.made == [source.made[0]]
    await pool.close()


@pytest.mark.parametrize("kind", [Judging, Slow])
@virtual
async def test_i2_i3_an_on_connect_that_fails_is_a_failed_dial(kind: type[Fake]) -> None:
    """The connection is closed, and holds its slot until it is."""
    source, greet = Source(kind), Hook(Gate.ERROR)
    closes: list[str] = []
    pool = Pool(source, 1, on_connect=greet)
    pool.bind_event("on_close", lambda _, cause, **kw: closes.append(cause))
    with pytest.raises(PoolUnavailable) as info:
        await pool.connect()
    assert info.value.__cause__ is greet.error
    assert source.made[0].closed
    assert pool.stats().size == pool.stats().closing == (kind is Slow)
    assert pool.stats().failed_dials == 1
    await asyncio.sleep(2.0)
    assert not closes  # nobody was told that it is open
    assert pool.stats().closed_by == {"on_connect": 1}
    greet.gate = Gate.OK
    async with pool.connect():
        assert source.open == source.peak == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_i12_an_on_connect_that_never_ends() -> None:
    source, greet = Source(Judging), Hook(Gate.NEVER)
    pool = Pool(source, 1, on_connect=greet)
    with pytest.raises(PoolTimeout):
        await pool.connect(timeout=2.0)
    assert now() == pytest.approx(2.0, abs=0.05)
    await asyncio.sleep(0.1)
    assert (source.open, greet.running) == (0, 0)
    at_rest(pool)
    await pool.close()


@virtual
async def test_i14_an_on_connect_goes_on_without_its_caller() -> None:
    source, greet = Source(Judging), Hook(Gate.SLOW)
    pool = Pool(source, 1, on_connect=greet)
    caller = task(pool.connect())
    await turns(3)
    caller.cancel()
    await asyncio.sleep(1.1)
    assert (pool.available, source.dials) == (1, 1)
    await pool.close()


@virtual
async def test_i29_the_pool_is_closed_during_on_connect() -> None:
    source, greet = Source(Judging), Hook(Gate.NEVER)
    pool = Pool(source, 1, on_connect=greet)
    caller = task(pool.connect())
    await turns(3)
    await pool.close()
    assert (source.open, greet.running, pool.stats().size) == (0, 0, 0)
    with pytest.raises(PoolClosed):
        await caller


# -- leases by hand ------------------------------------------------------------------------------


@virtual
async def test_i20_a_lease_by_hand_takes_over() -> None:
    pool = Pool(Source(Judging), 2)
    old = await pool.connect()
    new = PoolConnection(pool, old.connection)
    assert old.close() is new.connection
    assert (pool.in_use, pool.available) == (1, 0)
    with pytest.raises(LeaseReleased):
        old.number  # noqa: B018
    assert new.number == 0
    new.close()
    new.close()
    assert (pool.in_use, pool.available) == (0, 1)
    at_rest(pool)
    await pool.close()


@virtual
async def test_i20_the_old_handle_can_not_end_the_new_lease_by_any_way() -> None:
    for way in ("close", "discard", "detach", "exit", "fail"):
        pool = Pool(Source(Judging), 1)
        request = pool.connect()
        old = await request
        new = PoolConnection(pool, old.connection)
        if way == "close":
            old.close()
        elif way == "discard":
            old.close(discard=True)
        elif way == "detach":
            assert old.detach() is new.connection
        else:
            await old.__aexit__(ValueError if way == "fail" else None, None, None)
        assert (pool.in_use, new.closed) == (1, False), way
        new.close()
        at_rest(pool)
        assert pool.available == 1
        await pool.close()


@virtual
async def test_i20_a_lease_by_hand_of_an_idle_connection() -> None:
    source = Source(Judging)
    pool = Pool(source, 2, max_uses=3, min_size=1)
    await turns(4)
    lease = PoolConnection(pool, source.made[0])
    assert (pool.in_use, pool.available) == (1, 0)
    lease.close()
    assert (pool.in_use, pool.available) == (0, 1)
    with pytest.raises(ValueError, match="is not a connection of"):
        PoolConnection(pool, Fake())
    await pool.close()
    with pytest.raises(ValueError, match="is not a connection of"):
        PoolConnection(pool, source.made[0])


# -- leases that are forgotten, or held for long -------------------------------------------------


async def forget(pool: Pool) -> None:
    await pool.connect()


def collected(**options: Any) -> None:
    with pytest.warns(ResourceWarning, match="was garbage collected") as caught:
        gc.collect()
    assert len(caught) == 1
    assert __file__ in str(caught[0].message)


@pytest.mark.parametrize("timeout", [None, 10.0])
@virtual
async def test_i30_a_forgotten_lease_comes_back_to_one_who_waits(timeout: float | None) -> None:
    """Also to one who would wait for ever: within half a second."""
    source = Source(Judging)
    pool = Pool(source, 1, timeout=timeout)
    cycle: list[Any] = [await pool.connect()]
    cycle.append(cycle)
    waiting = task(pool.connect(timeout=timeout))
    await asyncio.sleep(3.0)
    del cycle
    collected()
    began = now()
    async with await waiting:
        assert now() - began <= 0.5
    assert source.made[0].closed
    assert (pool.stats().leaked, pool.stats().closed_by) == (1, {"leaked": 1})
    at_rest(pool)
    await pool.close()


@pytest.mark.parametrize(
    "options", [{}, {"leak_after": 60.0}, {"max_uses": 5}, {"max_waiting": 0}]
)
@virtual
async def test_i30_a_forgotten_lease_comes_back_with_the_next_use(options: dict[str, Any]) -> None:
    pool = Pool(Source(Judging), 1, **options)
    with pytest.warns(ResourceWarning, match="was garbage collected") as caught:
        await forget(pool)
    text = str(caught[0].message)
    assert __file__ in text
    assert "forget" in text
    async with pool.connect(timeout=1.0):
        assert pool.stats().leaked == 1
    at_rest(pool)
    await pool.close()


@virtual
async def test_i30_a_lease_that_was_released_is_not_missed() -> None:
    pool = Pool(Source(Judging), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in ("close", "detach", "die"):
            lease = await pool.connect()
            if end == "close":
                lease.close()
            elif end == "detach":
                lease.detach()
            else:
                lease.close(discard=True)
            del lease
            gc.collect()
    assert pool.stats().leaked == 0
    await pool.close()


@virtual
async def test_leak_after(caplog: pytest.LogCaptureFixture) -> None:
    """Where it was taken, where its task stands, and that it came back."""
    pool = Pool(Source(Judging), 1, name="db", leak_after=10.0)
    done = asyncio.Event()

    async def inner_wait() -> None:
        await done.wait()

    async def forgetful() -> None:
        async with pool.connect():
            await inner_wait()

    user = asyncio.get_running_loop().create_task(forgetful(), name="the forgetful")
    await asyncio.sleep(9.9)
    assert not caplog.records
    await asyncio.sleep(0.2)
    (record,) = caplog.records
    text = record.getMessage()
    assert record.levelno == logging.WARNING
    for part in ("'db'", "held since 10 s", "in forgetful", "the forgetful", "inner_wait"):
        assert part in text, text
    assert "async with pool.connect()" in text
    assert "await done.wait()" in text
    await asyncio.sleep(100.0)
    assert len(caplog.records) == 1
    done.set()
    await user
    assert "came back after 110 s" in caplog.records[1].getMessage()
    async with pool.connect():
        await asyncio.sleep(5.0)
    assert len(caplog.records) == 2
    await pool.close()


@virtual
async def test_leak_after_of_a_lease_without_its_task(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(Source(Judging), 2, leak_after=1.0)

    async def take() -> Any:
        return await pool.connect()

    lease = await task(take())
    gc.collect()
    mine = await pool.connect()
    await asyncio.sleep(2.0)
    assert "its task is" in caplog.records[0].getMessage()
    assert "stands at" in caplog.records[1].getMessage()
    assert len(caplog.records) == 2
    lease.close()
    mine.close()
    await pool.close()


@virtual
async def test_i30_a_lease_that_was_collected_is_not_reported_as_held(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(Source(Judging), 1, leak_after=10.0)
    with pytest.warns(ResourceWarning, match="garbage collected"):
        await forget(pool)
    assert pool.stats().leaked == 1
    await asyncio.sleep(20.0)
    assert not caplog.records
    leaks = pool._leases.leaks
    assert leaks is not None
    assert not leaks._holds
    assert not leaks._reported
    await pool.close()


# -- events --------------------------------------------------------------------------------------


class Log:
    """Every event of a pool."""

    def __init__(self, pool: Pool) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.durations: list[float] = []
        for name in pool.MANY_TIMES_EVENTS:
            pool.bind_event(name, self.recorder(name))

    def recorder(self, name: str) -> Any:
        def record(
            pool: Pool, exc: Any = None, *, connection: Any, cause: str = "", duration: float = -1
        ) -> None:
            assert exc is None
            self.seen.append((name, cause or connection.number))
            if name != "on_close":
                assert duration >= 0
                self.durations.append(duration)

        return record

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


@virtual
async def test_the_events_of_a_life() -> None:
    pool = Pool(Source(Judging, Gate.SLOW), 1)
    log = Log(pool)
    lease = await pool.connect()
    waiting = task(pool.connect())
    await asyncio.sleep(2.0)
    lease.close()
    (await waiting).close(discard=True)
    assert log.seen == [
        ("on_open", "demand"),
        ("on_lease", 0),
        ("on_release", 0),
        ("on_lease", 0),
        ("on_release", 0),
        ("on_close", "discarded"),
    ]
    assert log.durations == pytest.approx([1.0, 1.0, 2.0, 2.0, 0.0])
    await pool.close()


async def close_by(cause: str) -> Pool:
    """Make a connection end for that cause."""
    causes: dict[str, dict[str, Any]] = {
        "idle": {"max_idle": 1.0},
        "age": {"max_age": 1.0},
        "uses": {"max_uses": 1},
        "check": {"check": Hook(gives=False)},
        "reset": {"reset": Hook(Gate.ERROR)},
    }
    options = causes.get(cause, {})
    source = Source(Watched)
    pool = Pool(source, 2, **options)
    other = await pool.connect()
    lease = await pool.connect()
    connection = lease.connection
    if cause not in ("resize", "detached"):
        other.detach()
    if cause == "lost":
        connection.die()
    elif cause == "unusable":
        connection.is_reusable = False
    elif cause == "expired":
        pool.expire()
    elif cause == "resize":
        pool.resize(1)
        lease.close()
        other.close()
    elif cause in ("pool closed", "aborted"):
        pool.close(1.0)
    if cause == "detached":
        lease.detach()
        other.close()
    elif cause == "leaked":
        del lease
        gc.collect()
    elif cause != "aborted":
        lease.close(discard=cause == "discarded")
        if cause == "check":
            await turns(1)
            await pool.connect(timeout=2)
    await asyncio.sleep(2.0)
    return pool


CAUSES = (
    *("lost", "unusable", "discarded", "detached", "idle", "age", "uses", "expired", "resize"),
    *("check", "reset", "leaked", "pool closed", "aborted"),
)


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.allow_loop_errors
def test_the_causes_of_an_end(cause: str) -> None:
    """Those of the hook, of the statistics and of the documentation are the same."""
    from pool_kit import run

    assert f"``{cause}``" in (Pool.__doc__ or "")

    async def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            pool = await close_by(cause)
            assert pool.stats().closed_by[cause] == 1
            await pool.close(0.0)
            gc.collect()

    run(main())


@virtual
async def test_the_hooks_are_told_each_cause_once() -> None:
    pool = Pool(Source(Watched), 3, min_size=1)
    log = Log(pool)
    await turns(4)
    assert log.seen == [("on_open", "min_size")]
    for discard, _ in product((True, False), range(2)):
        async with pool.connect() as lease:
            if discard:
                lease.connection.die()
        await turns(4)
    assert log.names.count("on_open") - log.names.count("on_close") == 1
    assert log.names.count("on_lease") == log.names.count("on_release") == 4
    await pool.close()
    assert log.names.count("on_open") == log.names.count("on_close")


@virtual
async def test_a_hook_that_fails_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(Source(Judging), 1)

    def fail(*args: Any, **kw: Any) -> None:
        raise ZeroDivisionError("a bad hook")

    for name in pool.MANY_TIMES_EVENTS:
        pool.bind_event(name, fail)
    async with pool.connect():
        pass
    await pool.close()
    assert caplog.text.count("ZeroDivisionError: a bad hook") == 4
    assert pool.stats().size == 0


def act(pool: Pool, how: str, connection: Any) -> None:
    if how == "close the pool":
        pool.close()
    elif how == "close the connection":
        connection.die()
    elif how == "expire":
        pool.expire()
    elif how == "resize":
        pool.resize(1)
    else:
        pool.stats()


@pytest.mark.parametrize("name", Pool.MANY_TIMES_EVENTS)
@pytest.mark.parametrize(
    "how", ["close the pool", "close the connection", "expire", "resize", "stats"]
)
@virtual
async def test_a_hook_that_acts_upon_the_pool(name: str, how: str) -> None:
    """I1: whatever it does in the middle of what the pool is doing."""
    pool = Pool(Source(Watched), 2)
    times = iter([True])

    def once(_: Pool, connection: Any, **kw: Any) -> None:
        if next(times, False):
            act(pool, how, connection)

    pool.bind_event(name, once)
    for _ in range(3):
        try:
            async with pool.connect(timeout=1.0):
                pass
        except (PoolClosed, PoolTimeout):
            pass
        await turns(3)
        at_rest(pool)
    await pool.close()
    assert pool.stats().size == 0


@virtual
async def test_nothing_is_measured_when_nobody_listens() -> None:
    """Unused hooks cost nothing: no event exists, no lease is observed."""
    pool = Pool(Source(Judging), 1)
    for _ in range(63):
        async with pool.connect() as lease:
            assert lease._since is None
    assert pool._many_times is None
    assert not pool._leases.observed
    pool.bind_event("on_lease", lambda *args, **kw: None)
    async with pool.connect() as lease:
        assert lease._since is not None
    await pool.close()

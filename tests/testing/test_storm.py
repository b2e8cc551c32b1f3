"""`storm`: what it counts, what it finds, and that it always ends."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from toy_pools import Converts, CrossTalk, LosesSlots, Swallows, ToyPool, Wire

from pulsar_client.exceptions import ConfigError, PoolTimeout
from pulsar_client.testing import (
    StormFailure,
    StormReport,
    VirtualClockLoop,
    conservation,
    settled,
    storm,
)


async def echo(request_id: bytes) -> bytes:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return b"re:" + request_id


def consistent(report: StormReport) -> bool:
    ended = report.ok + report.cancelled + report.timed_out + report.interrupted
    return ended + report.failures == report.exchanges


# -- what it counts ----------------------------------------------------------------------------


async def test_a_pool_that_is_right() -> None:
    """I16, I1: every kind of disturbance happened and did no harm."""
    pool = ToyPool(3)
    report = await storm(
        pool.ask, tasks=8, exchanges=2000, seed=1, invariant=lambda: conservation(pool)
    )
    await settled(pool)
    assert report.exchanges == 2000
    assert consistent(report)
    assert min(report.ok, report.cancelled, report.timed_out, report.interrupted) > 20
    assert not report.failed
    assert not report.foreign
    assert not report.swallowed


async def test_ids_are_unique() -> None:
    seen: Counter[bytes] = Counter()

    async def exchange(request_id: bytes) -> bytes:
        seen[request_id] += 1
        return await echo(request_id)

    await storm(exchange, exchanges=500, cancel=0, interrupt=0, time_out=0)
    assert len(seen) == 500
    assert set(seen.values()) == {1}
    assert len({len(request_id) for request_id in seen}) == 1


async def test_failures_are_counted_by_cause() -> None:
    chances = random.Random(5)

    async def exchange(request_id: bytes) -> bytes:
        await asyncio.sleep(0)
        if chances.random() < 0.3:
            raise chances.choice([ConnectionResetError, PoolTimeout, EOFError])("planted")
        return request_id

    report = await storm(exchange, exchanges=300)
    assert consistent(report)
    assert set(report.failed) == {"ConnectionResetError", "PoolTimeout", "EOFError"}
    assert report.failures == report.failed.total() > 30
    for part in ("300 exchanges", "PoolTimeout", f"{report.ok} ok", f"{report.cancelled} canc"):
        assert part in repr(report)


async def test_a_part_of_0_is_none() -> None:
    report = await storm(echo, exchanges=200, cancel=0, time_out=0, interrupt=0)
    assert report.ok == report.exchanges == 200


@pytest.mark.parametrize("part", ["cancel", "interrupt"])
async def test_a_part_of_1_is_all_that_are_still_under_way(part: str) -> None:
    async def exchange(request_id: bytes) -> bytes:
        await Wire().ask(request_id)  # one suspension of several turns: every moment is there
        return request_id

    parts: dict[str, Any] = {"cancel": 0, "time_out": 0, "interrupt": 0, part: 1}
    report = await storm(exchange, exchanges=200, **parts)
    assert report.cancelled + report.interrupted > 60
    assert bool(report.cancelled) is (part == "cancel")
    assert consistent(report)


def test_the_same_seed_is_the_same_storm() -> None:
    """On a virtual clock and without faults of the network everything repeats."""

    async def once(seed: int) -> str:
        pool = ToyPool(2)
        return repr(await storm(pool.ask, exchanges=300, seed=seed))

    def run(seed: int) -> str:
        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            return runner.run(once(seed))

    assert run(1) == run(1)
    assert run(1).replace("Storm 1", "Storm 2") != run(2)


async def test_exchanges_run_at_the_same_time() -> None:
    running = peak = 0

    async def exchange(request_id: bytes) -> bytes:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        try:
            return await echo(request_id)
        finally:
            running -= 1

    await storm(exchange, tasks=7, exchanges=100, cancel=0, interrupt=0)
    assert peak == 7


# -- faults ------------------------------------------------------------------------------------


async def test_faults_are_called_one_after_the_other() -> None:
    calling = 0

    async def restart() -> None:
        nonlocal calling
        assert not calling
        calling += 1
        for _ in range(3):
            await asyncio.sleep(0)
        calling -= 1

    def reset() -> None:
        assert not calling

    report = await storm(echo, exchanges=2000, faults=[restart, reset], fault_every=20)
    assert set(report.faults) == {"restart", "reset"}
    assert 50 < report.faults.total() < 200
    assert not calling


async def test_a_fault_under_way_comes_to_its_end() -> None:
    """A server that is being restarted is there when the storm is over."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def restart() -> None:
        begun.set()
        await asyncio.sleep(0.02)
        ended.set()

    async def exchange(request_id: bytes) -> bytes:
        await begun.wait()
        return request_id

    await storm(exchange, exchanges=5, faults=[restart], cancel=0, interrupt=0, time_out=0)
    assert ended.is_set()


async def test_when_nothing_ends_the_next_fault_is_due() -> None:
    """A stall would otherwise never see its resume."""
    open_ = asyncio.Event()

    def stall() -> None:
        open_.clear()

    def resume() -> None:
        open_.set()

    async def exchange(request_id: bytes) -> bytes:
        await open_.wait()
        return await echo(request_id)

    quiet: dict[str, Any] = {"cancel": 0, "interrupt": 0, "time_out": 0}
    report = await storm(exchange, exchanges=50, faults=[stall, resume], fault_every=20, **quiet)
    assert report.ok == 50
    assert report.faults["resume"]


async def test_a_fault_that_raises() -> None:
    def broken() -> None:
        raise LookupError("planted")

    with pytest.raises(StormFailure, match="a fault raised LookupError") as caught:
        await storm(echo, exchanges=10_000_000, faults=[broken], fault_every=10)
    assert isinstance(caught.value.__cause__, LookupError)


# -- planted bugs ------------------------------------------------------------------------------


async def test_cross_talk() -> None:
    """I16: both ids are named."""
    pool = CrossTalk(3)
    with pytest.raises(StormFailure, match="not the caller's own") as caught:
        await storm(pool.ask, exchanges=2000, tasks=8)
    report = caught.value.report
    assert report.exchanges == 2000
    assert report.seconds > 0
    assert report.foreign > 10
    assert len(report.mixed_up) == 10
    for asked, got in report.mixed_up:
        assert len(asked) == len(got) == 17
        assert asked != got
        assert repr(asked) in str(caught.value)
        assert repr(got) in str(caught.value)


async def test_a_reply_with_two_ids() -> None:
    """I16: the caller's own reply with another's behind it."""
    last = b"00000000.00000000"

    async def exchange(request_id: bytes) -> bytes:
        nonlocal last
        reply, last = request_id + b" " + last, request_id
        await asyncio.sleep(0)
        return reply

    with pytest.raises(StormFailure, match="not the caller's own"):
        await storm(exchange, exchanges=10, cancel=0)


async def test_what_belongs_together_is_the_users_choice() -> None:
    async def reverse(request_id: bytes) -> bytes:
        await asyncio.sleep(0)
        return request_id[::-1]

    report = await storm(reverse, exchanges=50, belongs=lambda ask, got: ask == got[::-1])
    assert report.ok
    with pytest.raises(StormFailure):
        await storm(reverse, exchanges=50)


async def test_a_pool_that_loses_slots_is_not_at_rest() -> None:
    """I6, I1: the storm ends, by its patience, or the pool does not settle."""
    pool = LosesSlots(3)

    async def prove() -> None:
        await storm(pool.ask, tasks=8, exchanges=2000, patience=0.2)
        await settled(pool, timeout=0.2)

    with pytest.raises(AssertionError, match=r"no exchange has ended|is not at rest"):
        await prove()
    assert pool.in_use


async def test_nothing_ends_any_more() -> None:
    """The message tells where all of them wait."""

    async def exchange(request_id: bytes) -> bytes:
        if random.random() < 0.1:
            await asyncio.Event().wait()
        return await echo(request_id)

    with pytest.raises(StormFailure, match=r"4 times:\n.*\n.*fut") as caught:
        await storm(exchange, tasks=4, exchanges=10**6, patience=0.1, cancel=0, time_out=0)
    assert caught.value.report.exchanges < 10**6


async def test_a_cancellation_that_is_swallowed() -> None:
    """I11."""
    pool = Swallows(3)
    with pytest.raises(StormFailure, match="cancellations were swallowed") as caught:
        await storm(pool.ask, tasks=8, exchanges=500, time_out=0)
    assert caught.value.report.swallowed > 10
    assert not caught.value.report.cancelled


async def test_a_time_out_that_is_swallowed() -> None:
    """I11: a time-out of the caller's is a cancellation inside."""
    pool = Swallows(3)
    with pytest.raises(StormFailure, match="cancellations were swallowed"):
        await storm(pool.ask, tasks=8, exchanges=500, time_out=1, cancel=0, interrupt=0)


async def test_a_cancellation_that_is_turned_into_an_error() -> None:
    """I11."""
    pool = Converts(3)
    with pytest.raises(StormFailure, match=r"swallowed, one was turned into ConnectionError"):
        await storm(pool.ask, tasks=8, exchanges=500, time_out=0)


async def test_a_cancellation_nobody_asked_for() -> None:
    async def exchange(request_id: bytes) -> bytes:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    with pytest.raises(StormFailure, match="ended with CancelledError"):
        await storm(exchange, exchanges=20, cancel=0)


async def test_an_exception_that_is_not_expected() -> None:
    async def exchange(request_id: bytes) -> bytes:
        await asyncio.sleep(0)
        raise RuntimeError("planted")

    with pytest.raises(StormFailure, match=r"ended with RuntimeError\('planted'\)") as caught:
        await storm(exchange, exchanges=20)
    assert isinstance(caught.value.__cause__, RuntimeError)
    report = await storm(exchange, exchanges=20, expected=(RuntimeError,))
    assert report.failed["RuntimeError"]


async def test_an_invariant_that_does_not_hold() -> None:
    """I1: the storm ends with it."""
    calls = 0

    def invariant() -> None:
        nonlocal calls
        calls += 1
        assert calls < 50, "planted"

    with pytest.raises(StormFailure, match=r"the invariant raised .*planted") as caught:
        await storm(echo, exchanges=10_000_000, invariant=invariant)
    assert isinstance(caught.value.__cause__, AssertionError)


# -- its own manners ---------------------------------------------------------------------------


async def test_cancelling_a_storm_ends_its_exchanges() -> None:
    running = 0
    begun = asyncio.Event()

    async def exchange(request_id: bytes) -> bytes:
        nonlocal running
        running += 1
        try:
            if running == 16:
                begun.set()
            await asyncio.Event().wait()
        finally:
            running -= 1
        return request_id

    task = asyncio.ensure_future(storm(exchange, time_out=0, interrupt=0, cancel=0))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 0}, "tasks is 0"),
        ({"fault_every": 0}, "fault_every is 0"),
        ({"cancel": 1.5}, r"cancel is 1\.5"),
        ({"interrupt": -0.1}, r"interrupt is -0\.1"),
        ({"cancel": 0.5, "interrupt": 0.5}, "more than 1 in all"),
    ],
)
async def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await storm(echo, **options)

"""What a run counts and how long things took, exactly: on a clock that waits for nobody."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import pytest
from load_kit import LENIENT

from pulsar_client import load
from pulsar_client.load.callers import Callers
from pulsar_client.load.recorder import Counts, Interval, Totals
from pulsar_client.testing import VirtualClockLoop

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")

Behaviour = Callable[[load.Context], Awaitable[None]]


def on_virtual_clock(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)


def simulate(
    *behaviours: Behaviour | load.Scenario,
    stop_at: float | None = None,
    intervals: list[Interval] | None = None,
    **kw: Any,
) -> load.Result:
    """Run scenarios on a virtual clock."""
    scenarios = [
        b if isinstance(b, load.Scenario) else load.Scenario(b, f"s{number}")
        for number, b in enumerate(behaviours)
    ]
    plan = load.Plan(scenarios=scenarios, limits=LENIENT, **kw)

    async def main() -> load.Result:
        loop = asyncio.get_running_loop()
        stop = load.Stop()
        if stop_at is not None:
            loop.call_later(stop_at, stop.request)

        def watch(interval: Interval, totals: Totals) -> None:
            if intervals is not None:
                intervals.append(interval)

        return await load.run(plan, stop=stop, watch=watch, clock=loop.time)

    result: load.Result = on_virtual_clock(main())
    return result


def takes(seconds: float) -> Behaviour:
    async def behaviour(ctx: load.Context) -> None:
        await asyncio.sleep(seconds)

    return behaviour


def close(value: float, wanted: float, share: float = 0.01) -> bool:
    return abs(value - wanted) <= share * wanted


# -- L4: the identities ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_l4_every_request_is_in_exactly_one_place_at_any_moment(seed: int) -> None:
    random = Random(seed)
    fast, failing, hanging = random.random(), 0.2 * random.random(), 0.1 * random.random()

    async def behaviour(ctx: load.Context) -> None:
        if ctx.rng.random() < 0.5:
            ctx.sending()
        await asyncio.sleep(ctx.rng.expovariate(1 / (0.3 * fast + 0.001)))
        if ctx.rng.random() < failing:
            raise random.choice([OSError, ValueError, TimeoutError, KeyError])("planted")
        if ctx.rng.random() < hanging:
            await asyncio.sleep(3600)

    is_open = random.random() < 0.75
    intervals: list[Interval] = []
    stop_at = random.uniform(0, 8) if random.random() < 0.4 else None
    result = simulate(
        behaviour,
        stop_at=stop_at,
        intervals=intervals,
        rate=random.uniform(5, 80) if is_open else None,
        arrivals=random.choice(["constant", "poisson"]),
        in_flight=random.randint(1, 12),
        on_full=random.choice(["queue", "drop"]),
        duration=random.uniform(0.5, 5),
        warmup=random.choice([0.0, random.uniform(0, 2)]),
        timeout=random.uniform(0.05, 2),
        seed=seed,
    )
    assert all(interval.counts.balanced for interval in intervals), intervals
    counts = result.counts
    assert counts.balanced, counts
    assert counts == intervals[-1].counts
    assert sum(result.causes.values()) == counts.error + counts.timeout
    # Every end is in the percentiles (L7).
    assert result.response.count == counts.finished
    if stop_at is None:
        assert not result.interrupted
        # Only what came from a queue that was there behind the schedule can outlive the time for
        # the last answers.
        over = float(result.plan["warmup"] + result.plan["duration"])
        queued = any(interval.counts.queued for interval in intervals if interval.end > over)
        assert counts.in_flight == 0 or queued


def test_l4_at_the_cap_requests_are_dropped() -> None:
    # Each caller is busy for a second: of 10 due in it, 2 are sent.
    result = simulate(takes(0.95), rate=10, in_flight=2, on_full="drop", duration=4, timeout=5)
    assert result.counts == Counts(scheduled=40, sent=8, dropped=32, ok=8)
    assert close(result.response.max, 0.95)


def test_l4_at_the_cap_requests_are_queued_and_their_wait_counts() -> None:
    result = simulate(takes(0.2), rate=10, in_flight=1, on_full="queue", duration=2, timeout=5)
    assert result.counts == Counts(scheduled=20, sent=20, ok=20)
    # The k-th was due at 0.1 k and answered at 0.2 (k + 1).
    assert close(result.response.max, 0.2 * 20 - 0.1 * 19)
    assert close(result.service.max, 0.2)


def test_l4_what_is_queued_at_the_end_is_counted() -> None:
    result = simulate(takes(10.0), rate=10, in_flight=1, duration=1, timeout=60, stop_at=0.95)
    assert result.interrupted
    assert result.counts == Counts(scheduled=9, sent=1, queued=8, in_flight=1)
    assert any("1 requests had no end" in text for text in result.warnings)


# -- L2: four times --------------------------------------------------------------------------


def test_l2_each_time_is_what_it_is_called() -> None:
    async def behaviour(ctx: load.Context) -> None:
        await asyncio.sleep(0.2)  # for a connection, say
        ctx.sending()
        await asyncio.sleep(0.5)

    result = simulate(behaviour, rate=1, in_flight=1, duration=1)
    assert close(result.response.max, 0.7)
    assert close(result.histogram("pool_wait").max, 0.2)
    assert close(result.service.max, 0.5)
    # The second waits in the queue as well, which is in its response time only.
    result = simulate(behaviour, rate=2, in_flight=1, duration=1)
    assert close(result.response.max, 0.7 + 0.2)
    assert close(result.histogram("pool_wait").max, 0.2)


def test_l2_labels_are_reported_apart_and_chosen_by_weight() -> None:
    slow = load.Scenario(takes(0.4), "slow", 1)
    quick = load.Scenario(takes(0.1), "quick", 3)
    result = simulate(slow, quick, rate=200, duration=10)
    assert result.labels == ["quick", "slow"]
    assert close(result.p(50, "slow"), 0.4)
    assert close(result.p(99, "quick"), 0.1)
    assert abs(result.histogram("response", "slow").count - 500) < 80
    data = result.as_json()["labels"]
    assert data["slow"]["response_time"]["count"] + data["quick"]["response_time"]["count"] == 2000


# -- L7: errors and time-outs ----------------------------------------------------------------


def test_l7_errors_and_timeouts_are_in_the_percentiles_at_their_elapsed_time() -> None:
    async def behaviour(ctx: load.Context) -> None:
        if ctx.number % 4 == 0:
            await asyncio.sleep(0.3)
            raise ConnectionResetError("planted")
        if ctx.number % 4 == 1:
            ctx.sending()
            await asyncio.sleep(3600)
        if ctx.number % 4 == 2:
            await asyncio.sleep(3600)

    result = simulate(behaviour, rate=40, duration=1, timeout=2)
    assert result.counts == Counts(scheduled=40, sent=40, ok=10, error=10, timeout=20)
    assert result.causes == {
        "ConnectionResetError": 10,
        "timeout: no answer": 10,
        "timeout: not sent": 10,
    }
    assert result.response.count == 40
    q = result.response.quantiles((0.2, 0.45, 0.6, 1.0))
    assert q[0] == 0
    assert close(q[1], 0.3)
    assert close(q[2], 2.0)
    assert close(q[3], 2.0)
    sample = r"test_accounting\.py:\d+: ConnectionResetError: planted"
    assert re.fullmatch(sample, result.samples["ConnectionResetError"])


def test_l7_a_scenario_that_swallows_its_cancellation_timed_out_all_the_same() -> None:
    async def behaviour(ctx: load.Context) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return

    result = simulate(behaviour, rate=5, duration=1, timeout=0.5)
    assert result.counts == Counts(scheduled=5, sent=5, timeout=5)


def test_l7_causes_without_end_are_bounded() -> None:
    async def behaviour(ctx: load.Context) -> None:
        raise type(f"Error{ctx.number}", (Exception,), {})("x" * 10_000)

    result = simulate(behaviour, rate=200, duration=1)
    assert result.counts.error == 200
    assert len(result.causes) == 65
    assert result.causes["other"] == 136
    assert max(len(text) for text in result.samples.values()) <= 500


# -- L10: warm-up ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{"rate": 20}, {"in_flight": 2}])
def test_l10_the_warm_up_is_in_no_number(model: dict[str, Any]) -> None:
    called = []

    async def behaviour(ctx: load.Context) -> None:
        called.append(ctx.intended)
        await asyncio.sleep(0.1 if len(called) > 25 else 0.6)

    result = simulate(behaviour, warmup=2, duration=3, **model)
    start = called[0]
    behind = [moment for moment in called if moment - start >= 2 - 1e-9]
    assert 0 < len(behind) < len(called)
    counts = result.counts
    assert counts.scheduled == counts.sent == counts.ok == len(behind)
    assert result.response.count == len(behind)
    assert sum(point.counts.ok for point in result.points) == len(behind)
    assert result.as_json()["warmup"] == 2


# -- L3: closed loops ------------------------------------------------------------------------


def test_l3_callers_of_a_closed_loop_think() -> None:
    result = simulate(takes(0.25), in_flight=3, duration=9.9, think=0.75)
    assert result.counts.sent == 30
    assert close(result.response.max, 0.25)
    assert result.loop == "closed"


def test_a_scenario_that_never_waits_does_not_keep_the_loop() -> None:
    async def behaviour(ctx: load.Context) -> None:
        if ctx.number > 5000:
            raise AssertionError("the loop never got its turn")

    async def main() -> load.Result:
        loop = asyncio.get_running_loop()
        stop = load.Stop()
        loop.call_later(0.1, stop.request)
        scenarios = [load.Scenario(behaviour, "sync")]
        plan = load.Plan(scenarios=scenarios, in_flight=1, duration=60, limits=LENIENT)
        # A clock that goes on by itself: on the virtual one no time passes without a wait.
        return await load.run(plan, stop=stop)

    result = asyncio.run(main())
    assert result.interrupted
    assert result.counts.balanced


# -- L18: stopping ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{"rate": 100}, {"in_flight": 5}, {"rate": 100, "in_flight": 2}])
def test_l18_nothing_is_sent_behind_a_stop(model: dict[str, Any]) -> None:
    called = []

    async def behaviour(ctx: load.Context) -> None:
        called.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.15)

    result = simulate(behaviour, duration=60, stop_at=2.0, **model)
    assert result.interrupted
    assert result.counts.balanced
    assert result.counts.in_flight == 0  # they had the time to end
    assert max(called) <= 2.0 + 0.05
    assert result.elapsed < 3.1


def test_l18_a_stop_before_the_start() -> None:
    result = simulate(takes(0.1), rate=10, duration=5, stop_at=0.0)
    assert result.interrupted
    assert result.counts == Counts()


def test_requests_that_cannot_be_handed_out_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the exception handler of the loop alone, it would have hung for ever."""

    def none_left(callers: Callers) -> None:
        raise OSError("planted")

    monkeypatch.setattr(Callers, "add", none_left)
    with pytest.raises(OSError, match="planted"):
        simulate(takes(0.1), rate=10, duration=5)


# -- the proof -------------------------------------------------------------------------------


class StallingServer:
    """Answers at once, except while it is stopped."""

    def __init__(self, start: float, stop: float) -> None:
        self.start, self.stop = start, stop
        self.began: float | None = None

    async def __call__(self, ctx: load.Context) -> None:
        loop = asyncio.get_running_loop()
        if self.began is None:
            self.began = loop.time()
        now = loop.time() - self.began
        if self.start <= now < self.stop:
            await asyncio.sleep(self.stop - now)
        await asyncio.sleep(0.0002)


def test_proof_an_open_loop_shows_a_stall_as_its_users_would_see_it() -> None:
    server = StallingServer(4.0, 5.0)
    result = simulate(server.__call__, rate=1000, duration=10)
    # A tenth of the requests waits, for between 0 and 1 s.
    p50, p95, p99 = result.response.quantiles((0.5, 0.95, 0.99))
    assert p50 < 0.001
    assert close(p95, 0.5)
    assert close(p99, 0.9)
    assert close(result.response.max, 1.0)


def test_proof_a_closed_loop_hides_the_same_stall() -> None:
    server = StallingServer(4.0, 5.0)
    result = simulate(server.__call__, in_flight=10, duration=10)
    assert result.response.quantile(0.99) < 0.001
    assert result.counts.ok > 10_000

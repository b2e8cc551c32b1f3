"""The client checks itself: on time, on its loop, on its core."""

import asyncio
import time

import pytest
from load_kit import echo_target, plan

from pulsar_client import load
from pulsar_client.load.calibration import calibrate
from pulsar_client.load.maximum import find_maximum
from pulsar_client.load.self_check import Health, Probe, verdict
from pulsar_client.load.thresholds import Threshold
from pulsar_client.load.ticker import CallAtTicker, TimerfdTicker, make_ticker

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")


# -- L5 --------------------------------------------------------------------------------------


async def test_l5_a_scenario_that_blocks_the_loop_makes_the_run_invalid() -> None:
    async def behaviour(ctx: load.Context) -> None:
        if ctx.number % 10 == 5:
            time.sleep(0.1)  # noqa: ASYNC251 - this is what must be found

    limits = load.Limits(cpu=1000.0)
    scenarios = [load.Scenario(behaviour, "x")]
    result = await load.run(load.Plan(scenarios=scenarios, rate=100, duration=1, limits=limits))
    assert not result.valid
    text = " ".join(result.invalid)
    assert "requests were dispatched" in text
    assert "the event loop was" in text
    assert result.counts.ok == 100  # the numbers are shown all the same
    assert result.response.quantile(0.99) > 0.05


def test_l5_each_limit() -> None:
    limits = load.Limits(lateness=0.01, loop_lag=0.05, cpu=0.9)
    fine = Health(0, 0.01, 0.2, 0.5, 10, 100)
    assert verdict(limits, [fine], 0.009, open_loop=True) == ([], [])
    (late,), _ = verdict(limits, [fine], 0.02, open_loop=True)
    assert late == "requests were dispatched 20 ms late at p99, at most 10 ms are allowed"
    (lag,), _ = verdict(limits, [Health(0, 0.06, 0.2, 0.5)], 0.0, open_loop=True)
    assert lag == "the event loop was 60 ms late at p99, at most 50 ms are allowed"
    (cpu,), _ = verdict(limits, [fine, Health(1, 0, 0, 0.95)], 0.0, open_loop=True)
    assert cpu == "worker 1: the client used 95% of a core, at most 90% are allowed"
    # A closed loop has no schedule that it could miss.
    invalid, warnings = verdict(limits, [Health(0, 0, 0, 0.99)], 0.0, open_loop=False)
    assert invalid == []
    assert "the rate may be its limit" in warnings[0]
    (files,), _ = verdict(limits, [Health(0, 0, 0, 0, 95, 100)], 0.0, open_loop=True)
    assert "95 of 100 file descriptors" in files


async def test_l5_the_probe_sees_a_blocked_loop_and_cpu_time() -> None:
    probe = Probe(0, time.monotonic)
    started = time.monotonic()
    probe.start()
    await asyncio.sleep(0.1)
    began = time.process_time()
    while time.process_time() - began < 0.2:
        pass
    used = time.process_time() - began
    await asyncio.sleep(0.05)
    health = probe.finish()
    elapsed = time.monotonic() - started
    assert health.lag_max > 0.15
    assert health.cpu >= used / elapsed
    assert health.descriptors > 0


# -- dispatch (F10) --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["best", "call_at"])
async def test_f10_a_ticker_calls_back_in_time(kind: str) -> None:
    loop = asyncio.get_running_loop()
    lateness: list[float] = []
    due = 0.0
    over = asyncio.Event()

    def tick() -> None:
        nonlocal due
        late = time.monotonic() - due
        if late >= 0:
            lateness.append(late)
            due = time.monotonic() + 0.002
        if len(lateness) == 100:
            over.set()
        else:
            ticker.arm(due)

    if kind == "best":
        ticker = make_ticker(loop, tick, time.monotonic)
    else:
        ticker = CallAtTicker(loop, tick, time.monotonic)
    try:
        due = time.monotonic() + 0.002
        ticker.arm(due)
        async with asyncio.timeout(30):
            await over.wait()
        # Armed for a moment that is over, it calls back at once; closed, never.
        over.clear()
        lateness.pop()
        due = time.monotonic() - 5
        ticker.arm(due)
        async with asyncio.timeout(30):
            await over.wait()
        lateness.clear()
        ticker.arm(time.monotonic() + 0.01)
    finally:
        ticker.close()
        ticker.close()
    await asyncio.sleep(0.03)
    assert lateness == []


async def test_f10_the_kernels_timer_beats_that_of_the_loop() -> None:
    async with echo_target() as url:
        result = await load.run(plan(url, rate=500, duration=1))
    # 0.1 ms on an idle machine; the loop's own timer is 0.5 ms late even there.
    if isinstance(make_closed_ticker(), TimerfdTicker):
        # Of those that a machine with other things to do did not hold up.
        assert result.histogram("lateness").quantile(0.05) < 0.01


def make_closed_ticker() -> object:
    ticker = make_ticker(asyncio.get_running_loop(), lambda: None, time.monotonic)
    ticker.close()
    return ticker


# -- L6 and L17 ------------------------------------------------------------------------------


async def test_l6_calibrate_shows_the_ceiling_of_this_machine() -> None:
    found = await calibrate(1.0, load.Stop())
    assert found.loop in ("asyncio", "uvloop")
    assert found.rate > 50  # some 10,000 on an idle machine
    assert 0 < found.lateness_p50 <= found.lateness_p99
    assert 0 < found.recording < 1e-4
    assert found.text().splitlines()[1].startswith("rate            ")
    assert not found.interrupted


class Target:
    """A target that keeps its objective up to a rate; runs on no clock at all."""

    def __init__(self, capacity: float, invalid_from: float = 1e9) -> None:
        self.capacity, self.invalid_from = capacity, invalid_from
        self.rates: list[float] = []

    async def run(self, plan: load.Plan, **kw: object) -> load.Result:
        from test_reports import result_with

        from pulsar_client.load.recorder import Counts

        assert plan.rate is not None
        self.rates.append(plan.rate)
        number = int(plan.rate * plan.measured)
        slow = 0.001 if plan.rate <= self.capacity else 1.0
        result = result_with(
            {"x/response": [slow] * 100},
            counts=Counts(scheduled=number, sent=number, ok=number),
            plan=plan.as_json(),
            elapsed=plan.duration,
            invalid=["planted"] if plan.rate >= self.invalid_from else [],
        )
        result.judge(kw["thresholds"])  # type: ignore[arg-type]
        return result


@pytest.mark.parametrize("capacity", [100, 137, 1000, 5432, 77_777])
async def test_l17_find_max_comes_close(capacity: float) -> None:
    target = Target(capacity)
    found = await find_maximum(
        plan("tcp://127.0.0.1:1", rate=100.0),
        [Threshold.parse("p99<20ms")],
        limit=1e6,
        precision=0.02,
        runner=target.run,
    )
    assert found.rate is not None
    assert 0.97 * capacity <= found.rate <= capacity
    assert found.limited_by == "target"
    assert len(target.rates) < 25
    assert target.rates.count(found.rate) >= 2  # it was repeated
    assert f"maximum {found.rate:.0f}/s (limited by the target)" in found.text()


async def test_l17_find_max_at_its_limits() -> None:
    async def find(target: Target, limit: float = 1e6) -> tuple[float | None, str]:
        found = await find_maximum(
            plan("tcp://127.0.0.1:1", rate=100.0),
            [Threshold.parse("p99<20ms")],
            limit=limit,
            precision=0.05,
            runner=target.run,
        )
        return found.rate, found.limited_by

    assert await find(Target(50)) == (None, "target")
    assert await find(Target(1e9), limit=3000) == (3000, "limit")
    rate, by = await find(Target(1e9, invalid_from=2000))
    assert rate is not None
    assert 1800 < rate < 2000
    assert by == "client"

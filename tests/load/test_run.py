"""Runs against real servers: what is counted, and what a user sees."""

import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from load_kit import echo_process, echo_target, plan, run_load

from pulsar_client import load
from pulsar_client.load.faults import Fault
from pulsar_client.load.recorder import Interval, Totals

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")


async def test_l1_l4_an_open_loop_sends_its_schedule() -> None:
    async with echo_target() as url:
        result = await load.run(plan(url, rate=400))
    counts = result.counts
    assert counts.balanced
    assert (counts.scheduled, counts.sent, counts.ok) == (200, 200, 200)
    assert (counts.dropped, counts.queued, counts.in_flight) == (0, 0, 0)
    assert result.loop == "open"
    assert result.valid
    assert abs(result.planned_rate - 400) < 1e-6


async def test_a_target_that_is_down_is_not_counted_by_the_thousand() -> None:
    """In a closed loop: each caller tries again 100 times a second at most."""
    served, stop = asyncio.Event(), load.Stop()

    def watch(interval: Interval, totals: Totals) -> None:
        if totals.counts.ok:
            served.set()
        if totals.counts.error > 100:
            stop.request()

    async with asyncio.TaskGroup() as group, echo_target() as url:
        running = group.create_task(
            load.run(plan(url, in_flight=4, duration=50, interval=0.1), watch=watch, stop=stop)
        )
        await served.wait()
    counts = running.result().counts
    assert counts.balanced
    assert counts.ok
    assert 100 < counts.error <= 4 * (100 * running.result().elapsed + 2)


async def test_l2_four_times_a_request() -> None:
    async with echo_target() as url:
        result = await load.run(plan(url, rate=200))
    for metric in ("response", "service", "pool_wait", "lateness"):
        assert result.histogram(metric).count == 100, metric
    assert 1 <= result.histogram("connect").count <= 4
    # From when it was due, from when it was dequeued, from when it was sent: each contains the
    # one after it.
    assert result.response.mean > result.service.mean
    assert result.response.mean > result.histogram("pool_wait").mean


async def test_l3_a_closed_loop_is_called_so() -> None:
    stop = load.Stop()

    def watch(interval: Interval, totals: Totals) -> None:
        if totals.counts.ok > 10:
            stop.request()

    async with echo_target() as url:
        the_plan = plan(url, in_flight=3, duration=50, interval=0.1)
        result = await load.run(the_plan, watch=watch, stop=stop)
    counts = result.counts
    assert counts.balanced
    assert counts.scheduled == counts.sent == counts.ok + counts.in_flight
    assert counts.ok > 10
    assert result.as_json()["loop"] == "closed"
    assert any(text.startswith("closed loop") for text in result.warnings)


def test_l15_the_command_as_the_documentation_shows_it(tmp_path: Path) -> None:
    with echo_process() as (url, _):
        file = tmp_path / "run.json"
        done = run_load(
            *(url, "--protocol", "echo", "--rate", "1000", "--duration", "1"),
            *("--connections", "10", "--json", str(file), "--threshold", "p99(response)<20s"),
        )
    assert done.returncode == 0
    # Without a terminal there is a plain line a second: more than one where it took longer.
    line = r" +\d\.\d s  open  due \d+/s  answered \d+/s  failed 0  in flight \d+  p50 .*\n"
    assert re.fullmatch(f"({line})+", done.stderr)
    assert "open loop, constant arrivals, 1000/s for 1 s" in done.stdout
    data = json.loads(file.read_text())
    assert data["schema"] == "pulsar_client.load/1"
    assert data["valid"] is True
    assert done.stderr.count("\n") <= data["elapsed"] / 0.9
    assert data["requests"] == {
        "scheduled": 1000,
        "sent": 1000,
        "dropped": 0,
        "queued": 0,
        "ok": 1000,
        "error": 0,
        "timeout": 0,
        "in_flight": 0,
    }
    for name in ("response_time", "service_time"):
        figures = data[name]
        assert set(figures) == {
            *("p50", "p90", "p95", "p99", "p99.9", "max", "mean", "count"),
        }
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["max"]
        assert figures["count"] == 1000


async def test_a_result_can_be_read_again() -> None:
    async with echo_target() as url:
        before = datetime.now(UTC)
        result = await load.run(plan(url, rate=100, duration=1.5), thresholds=["errors<1%"])
        after = datetime.now(UTC)
    # The start, and not the end; in whole milliseconds.
    started = datetime.fromisoformat(result.started)
    assert (started - before).total_seconds() >= -0.001
    assert (after - started).total_seconds() >= 1.5 - 0.001
    data = json.loads(json.dumps(result.as_json()))
    again = load.Result.from_json(data)
    assert again.as_json() == data
    assert again.p(99) == result.p(99)


def of_the_harness(task: "asyncio.Task[Any]") -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and "pulsar_client/load/" in code.co_filename


@pytest.mark.parametrize("model", [{"rate": 300}, {"in_flight": 3}])
async def test_a_cancelled_run_leaves_nothing_behind(model: dict[str, Any]) -> None:
    random = Random(7)
    faults = [Fault.parse("stall@0.02s+0.03s")]
    async with echo_target() as url:
        for _ in range(15):
            the_plan = plan(url, duration=0.1, timeout=5, faults=faults, **model)
            task = asyncio.create_task(load.run(the_plan))
            await asyncio.sleep(random.uniform(0, 0.2))  # anywhere from the first dial to the end
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
            # What is left by now never ends: the loop had no turn to tidy up by itself.
            assert [task for task in asyncio.all_tasks() if of_the_harness(task)] == []


async def test_a_view_that_fails_is_told() -> None:
    def watch(interval: Interval, totals: Totals) -> None:
        raise ZeroDivisionError("planted")

    async with echo_target() as url:
        with pytest.raises(ZeroDivisionError, match="planted"):
            await load.run(plan(url, rate=100), watch=watch)

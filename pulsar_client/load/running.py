"""Run a plan, in this process or in many, and give its result."""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from pulsar_client.load.coordinator import Coordinator, WorkerLink
from pulsar_client.load.dask_engine import dask_links
from pulsar_client.load.histogram import Histogram
from pulsar_client.load.plan import Plan
from pulsar_client.load.processes import process_links
from pulsar_client.load.recorder import Interval, Totals
from pulsar_client.load.result import Result
from pulsar_client.load.session import Session, SessionEnd, Stop
from pulsar_client.load.thresholds import Threshold
from pulsar_client.load.timeline import Timeline

__all__ = ["run"]

Watch = Callable[[Interval, Totals], None]


async def run(
    plan: Plan,
    *,
    thresholds: Iterable[Threshold | str] = (),
    stop: Stop | None = None,
    watch: Watch | None = None,
    totals: Totals | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Run a load test: in the running loop, or in as many processes as the plan has workers.

    Args:
        plan: what to do.
        thresholds: what the result is compared with, such as ``"p99(response)<20ms"``.
        stop: ends the run early; the result then has what was measured until then.
        watch: called with each interval as it ends, and the totals so far.
        totals: where to add up; for those who look at them while the run goes on.
        clock: gives the moment in seconds; for tests, and for a run in this process only.

    Raises:
        TargetUnreachable: the target can't be reached at the start.
        ConfigError: the plan or a threshold is wrong, or a package is missing.

    Cancelling it ends every request at once and leaves nothing open.
    """
    Histogram()  # a package that is missing is told before the run, and not behind it
    conditions = [Threshold.parse(t) if isinstance(t, str) else t for t in thresholds]
    totals = Totals() if totals is None else totals
    timeline = Timeline(plan.point)
    stop = stop or Stop()
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    many = plan.workers > 1 or plan.engine is not None
    labelled = [condition for condition in conditions if condition.label is not None]
    session = Session(plan, stop=stop, clock=clock) if labelled or not many else None
    for condition in labelled:
        assert session is not None
        condition.check_label(session.labels)

    def emit(interval: Interval) -> None:
        totals.add(interval)
        timeline.add(interval)
        if watch is not None:
            watch(interval, totals)

    ends: Sequence[SessionEnd]
    lost: list[str] = []
    if many:
        async with _links(plan) as links:
            coordinator = Coordinator(plan, links, emit, stop)
            await coordinator.run()
        ends, lost = coordinator.ends, coordinator.lost
    else:
        assert session is not None
        async with session.prepared():
            ends = [await session.run(emit)]
    result = Result.of(plan, totals, timeline, ends, lost=lost, started=started)
    result.interrupted |= stop.requested
    result.judge(conditions)
    return result


@asynccontextmanager
async def _links(plan: Plan) -> AsyncIterator[Sequence[WorkerLink]]:
    """Start the processes of a plan where its engine says."""
    if plan.engine is None:
        async with process_links(plan.workers, plan.loop_name) as processes:
            yield processes
    else:
        async with dask_links(plan) as slots:
            yield slots

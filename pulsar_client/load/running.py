"""Run a plan in this process, and give its result."""

from collections.abc import Callable, Iterable

from pulsar_client.load.plan import Plan
from pulsar_client.load.recorder import Interval, Totals
from pulsar_client.load.result import Result
from pulsar_client.load.session import Session, Stop
from pulsar_client.load.thresholds import Threshold
from pulsar_client.load.timeline import Timeline

__all__ = ["run"]


async def run(
    plan: Plan,
    *,
    thresholds: Iterable[Threshold | str] = (),
    stop: Stop | None = None,
    watch: Callable[[Interval], None] | None = None,
) -> Result:
    """Run a load test in the running loop.

    Args:
        plan: what to do.
        thresholds: what the result is compared with, such as ``"p99(response)<20ms"``.
        stop: ends the run early; the result then has what was measured until then.
        watch: called with each interval as it ends.

    Raises:
        TargetUnreachable: the target can't be reached at the start.
        ConfigError: the plan or a threshold is wrong, or a package is missing.

    Cancelling it ends every request at once and leaves nothing open.
    """
    conditions = [Threshold.parse(t) if isinstance(t, str) else t for t in thresholds]
    totals, timeline = Totals(), Timeline(plan.point)

    def emit(interval: Interval) -> None:
        totals.add(interval)
        timeline.add(interval)
        if watch is not None:
            watch(interval)

    session = Session(plan, stop=stop)
    async with session.prepared():
        end = await session.run(emit)
    result = Result.of(plan, totals, timeline, [end])
    result.judge(conditions)
    return result

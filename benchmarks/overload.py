"""Twice as much work as can be done: how much of it is done in time, by each way to queue.

What is compared are policies, not speed.  So it runs on a virtual clock, on which the work of the
loop itself takes no time: the figures are the same on every machine and in every run.
"""

import asyncio
import random
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any

from pulsar_client import Pool, PoolOverloaded, PoolTimeout
from pulsar_client.testing import VirtualClockLoop

__all__ = ["POLICIES", "Outcome", "overload", "table"]

SIZE = 10
#: Seconds that each caller holds its connection.
HOLD = 0.01
#: What the pool can do, in operations a second.
CAPACITY = SIZE / HOLD
#: Seconds after which a caller has no use for its result any more.
PATIENCE = 0.1

#: Options of the pool.  Each caller's time-out is its patience, but for the first.
POLICIES: dict[str, dict[str, Any]] = {
    "no limit": {"timeout": None},
    "time-out": {},
    "max_waiting": {"max_waiting": 20},
    "CoDel": {"queue_target": 0.02, "queue_interval": 0.1},
}


@dataclass(frozen=True)
class Outcome:
    """What became of the callers of one policy.

    Attributes:
        policy: its name.
        load: offered work, in units of the capacity.
        goodput: operations that ended within the patience, in units of the capacity.
        late: operations that ended too late for anybody, in units of the capacity.
        turned_away: callers that were refused, in units of the capacity.
        told_after: seconds until half of those who got nothing knew it.
        p50: seconds that half of the timely ones took at most.
        p99: the same of 99 in 100.
    """

    policy: str
    load: float
    goodput: float
    late: float
    turned_away: float
    told_after: float
    p50: float
    p99: float

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


class Connection:
    closed = False

    def close(self) -> None:
        self.closed = True


async def connect() -> Connection:
    return Connection()


async def offer(policy: str, load: float, seconds: float) -> Outcome:
    """Offer load, by independent callers, and count what becomes of them."""
    options = {"timeout": PATIENCE, **POLICIES[policy]}
    loop = asyncio.get_running_loop()
    arrivals = random.Random(1)
    good: list[float] = []
    refused: list[float] = []
    late = 0

    async def call(pool: Pool) -> None:
        nonlocal late
        arrived = loop.time()
        try:
            async with pool.connect():
                await asyncio.sleep(HOLD)
        except (PoolTimeout, PoolOverloaded):
            refused.append(loop.time() - arrived)
            return
        took = loop.time() - arrived
        if took <= PATIENCE:
            good.append(took)
        else:
            late += 1

    pool = Pool(connect, SIZE, **options)
    callers: set[asyncio.Task[None]] = set()
    end = loop.time() + seconds
    while loop.time() < end:
        caller = loop.create_task(call(pool))
        callers.add(caller)
        caller.add_done_callback(callers.discard)
        await asyncio.sleep(arrivals.expovariate(CAPACITY * load))
    # What is still in the queue now counts for nobody.
    counts = len(good), late, len(refused)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await pool.close()
    unit = CAPACITY * seconds
    cuts = quantiles(good, n=100) if len(good) > 1 else [0.0] * 99
    return Outcome(
        policy=policy,
        load=load,
        goodput=counts[0] / unit,
        late=counts[1] / unit,
        turned_away=counts[2] / unit,
        told_after=sorted(refused)[len(refused) // 2] if refused else 0.0,
        p50=cuts[49],
        p99=cuts[98],
    )


def overload(loads: tuple[float, ...], seconds: float) -> list[Outcome]:
    """Every policy under every load."""
    outcomes = []
    for load in loads:
        for policy in POLICIES:
            with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
                outcomes.append(runner.run(offer(policy, load, seconds)))
    return outcomes


def table(outcomes: list[Outcome]) -> list[str]:
    """The lines that people read."""
    form = "{:<8}{:<14}{:>9}{:>9}{:>13}{:>12}{:>10}{:>10}"
    heads = ("load", "policy", "in time", "late", "turned away", "told after", "p50", "p99")
    return [
        form.format(*heads),
        *(
            form.format(
                f"{one.load:g}",
                one.policy,
                f"{one.goodput:.0%}",
                f"{one.late:.0%}",
                f"{one.turned_away:.0%}",
                f"{1000 * one.told_after:.0f} ms" if one.turned_away else "-",
                f"{1000 * one.p50:.0f} ms",
                f"{1000 * one.p99:.0f} ms",
            )
            for one in outcomes
        ),
    ]

"""How two programs are compared: in turns, in one run, as a ratio.

A round is made of slices, A B A B …, each a few milliseconds long.  The cost of a side in a round
is the median of its slices; the ratio is taken within the round, and the median of the rounds is
what counts.  What disturbs the machine then disturbs both sides.
"""

import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

__all__ = ["Case", "Goal", "Result", "Side", "Slice", "cpu_of", "run_case"]


@dataclass(frozen=True)
class Slice:
    """What a side used in one slice."""

    operations: int
    #: CPU seconds, of every process that the goal counts.
    cpu: float
    #: Seconds by the clock.
    wall: float = 0.0
    #: CPU seconds of the client alone, where it is measured apart.
    client_cpu: float | None = None


#: Runs one slice.
Side = Callable[[], Awaitable[Slice]]


@dataclass(frozen=True)
class Goal:
    """What a ratio must be: ``ratio <= limit`` or ``ratio >= limit``."""

    limit: float
    at_most: bool
    #: How much our cost may be above the other's, if that matters too.
    above: float | None = None

    def __str__(self) -> str:
        text = f"{'<=' if self.at_most else '>='} {self.limit:g}"
        return text if self.above is None else f"{text}, +{self.above:g}"

    def met(self, ratio: float, above: float) -> bool:
        """True if the ratio, and the difference, are good enough."""
        if self.above is not None and above > self.above:
            return False
        return ratio <= self.limit if self.at_most else ratio >= self.limit


@dataclass
class Case:
    """One side compared with others, which are compared with it only."""

    goal: str
    name: str
    loop: str
    ours: str
    sides: dict[str, Side]
    #: For each other side: what the ratio must be; None where it is only shown.
    goals: dict[str, Goal | None]
    #: Where there is no goal: ratios of costs, or of rates.
    costs: bool = True
    #: Of a cost: what a slice has as ``cpu`` is in millions of it.
    unit: str = "CPU us/operation"
    #: Said below the table.
    notes: list[str] = field(default_factory=list)


@dataclass
class Result:
    """One line of the report."""

    goal: str
    name: str
    loop: str
    ours: str
    other: str
    ratio: float
    ratio_min: float
    ratio_max: float
    wanted: str | None
    met: bool | None
    unit: str
    ours_us: float
    other_us: float
    ours_client_us: float | None
    other_client_us: float | None
    ours_wall_us: float
    other_wall_us: float
    rounds: list[dict[str, float]]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


async def run_case(case: Case, rounds: int, slices: int) -> list[Result]:
    """Measure a case: one line for each side it is compared with."""
    for side in case.sides.values():
        await side()  # the first calls fill caches and specialise the code
    taken: dict[str, list[list[Slice]]] = {label: [] for label in case.sides}
    for _ in range(rounds):
        for label in case.sides:
            taken[label].append([])
        gc.collect()
        for _ in range(slices):
            for label, side in case.sides.items():
                taken[label][-1].append(await side())
    return [_line(case, label, goal, taken) for label, goal in case.goals.items()]


def _line(
    case: Case, other: str, goal: Goal | None, taken: dict[str, list[list[Slice]]]
) -> Result:
    ours_cpu = [_cost(slices) for slices in taken[case.ours]]
    other_cpu = [_cost(slices) for slices in taken[other]]
    # "At most" is a goal for our cost, "at least" one for our rate, each in units of the other's.
    as_cost = case.costs if goal is None else goal.at_most
    ratios = [a / b if as_cost else b / a for a, b in zip(ours_cpu, other_cpu, strict=True)]
    ratio = median(ratios)
    return Result(
        goal=case.goal,
        name=case.name,
        loop=case.loop,
        ours=case.ours,
        other=other,
        ratio=ratio,
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        wanted=None if goal is None else str(goal),
        met=None if goal is None else goal.met(ratio, median(ours_cpu) - median(other_cpu)),
        unit=case.unit,
        ours_us=median(ours_cpu),
        other_us=median(other_cpu),
        ours_client_us=_client(taken[case.ours]),
        other_client_us=_client(taken[other]),
        ours_wall_us=_wall(taken[case.ours]),
        other_wall_us=_wall(taken[other]),
        rounds=[
            {"ours_us": a, "other_us": b, "ratio": r}
            for a, b, r in zip(ours_cpu, other_cpu, ratios, strict=True)
        ],
        notes=case.notes,
    )


def _cost(slices: list[Slice]) -> float:
    return 1e6 * median(s.cpu / s.operations for s in slices)


def _wall(rounds: list[list[Slice]]) -> float:
    return 1e6 * median(s.wall / s.operations for slices in rounds for s in slices)


def _client(rounds: list[list[Slice]]) -> float | None:
    costs = [
        1e6 * s.client_cpu / s.operations
        for slices in rounds
        for s in slices
        if s.client_cpu is not None
    ]
    return median(costs) if costs else None


def cpu_of(pid: int) -> float | None:
    """CPU seconds that another process has used; None where unknown.

    The process should have nothing to do: then, and only then, the figure is exact.
    """
    # It has just answered and may be on its way to sleep; time that it runs on another core is
    # accounted for at the next tick, or when it sleeps.
    time.sleep(0.0005)
    try:
        # Linux: the id of a process's CPU clock, what clock_getcpuclockid(3) gives.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None

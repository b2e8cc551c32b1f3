"""When the requests of an open loop are due: computed before the run, from a seed.

Pure functions of the plan; this module knows no clock and no loop.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from pulsar_client.exceptions import ConfigError

__all__ = ["MAX_ARRIVALS", "Stage", "arrivals", "choices", "planned"]

#: More arrivals than this are refused: a schedule is kept in memory, 8 bytes each.
MAX_ARRIVALS = 50_000_000


@dataclass(frozen=True)
class Stage:
    """A part of the schedule: so many seconds at a rate, or a ramp from one rate to another.

    Args:
        duration: seconds, above 0.
        rate: arrivals a second at the start of the stage.
        to: arrivals a second at its end; None for no change.

    Raises:
        ConfigError: a value is out of range.
    """

    duration: float
    rate: float
    to: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.duration < math.inf:
            raise ConfigError(f"a stage's duration is {self.duration!r}, expected seconds above 0")
        for rate in (self.rate, self.end):
            if not 0 <= rate < math.inf:
                raise ConfigError(f"a stage's rate is {rate!r}, expected arrivals a second")

    @property
    def end(self) -> float:
        """The rate at the end of the stage."""
        return self.rate if self.to is None else self.to

    @property
    def arrivals(self) -> float:
        """How many arrivals it plans; the area below the rate."""
        return (self.rate + self.end) / 2 * self.duration

    def moment(self, count: float) -> float:
        """Tell after how many seconds of the stage `count` arrivals are due."""
        slope = (self.end - self.rate) / self.duration
        if abs(slope) < 1e-12:
            return count / self.rate
        # The area of the trapezium up to t is rate t + slope t^2 / 2.
        root = math.sqrt(max(0.0, self.rate * self.rate + 2 * slope * count))
        return 2 * count / (self.rate + root) if self.rate + root else 0.0


def planned(stages: Sequence[Stage]) -> float:
    """Tell how many arrivals stages plan.

    Raises:
        ConfigError: they are too many for one run.
    """
    total = sum(stage.arrivals for stage in stages)
    if total > MAX_ARRIVALS:
        raise ConfigError(
            f"the plan has {total:.0f} requests, at most {MAX_ARRIVALS} are allowed: "
            "lower the rate or the duration"
        )
    return total


def arrivals(
    stages: Sequence[Stage], *, poisson: bool, seed: int, index: int = 0, count: int = 1
) -> "array[float]":
    """Compute the moments of all arrivals, in seconds after the start, rising.

    Constant arrivals are due at the moments at which the planned area reaches 0, 1, 2, …; Poisson
    arrivals where it reaches the sums of exponential gaps.

    Args:
        stages: one after the other.
        poisson: independent arrivals instead of regular ones.
        seed: of the random gaps.
        index: which share to take, from 0.
        count: how many shares there are.  Arrival k belongs to share k mod count, so that the
            shares are the plan whatever their number.
    """
    planned(stages)
    places = _poisson_places(Random(seed)) if poisson else _regular_places()
    found: array[float] = array("d")
    began = passed = 0.0
    place = next(places)
    number = 0
    for stage in stages:
        total = stage.arrivals
        while place - passed < total:
            if number % count == index:
                found.append(began + min(stage.moment(place - passed), stage.duration))
            number += 1
            place = next(places)
        began += stage.duration
        passed += total
    return found


def choices(weights: Sequence[float], *, seed: int, number: int) -> bytes:
    """Choose a scenario by weight for each of `number` arrivals: one byte each.

    Raises:
        ConfigError: there are more than 256 scenarios.
    """
    if len(weights) > 256:
        raise ConfigError(f"{len(weights)} scenarios, at most 256 are allowed")
    if len(weights) == 1:
        return bytes(number)
    return bytes(Random(f"{seed} scenarios").choices(range(len(weights)), weights, k=number))


def _regular_places() -> Iterator[float]:
    place = 0.0
    while True:
        yield place
        place += 1.0


def _poisson_places(random: Random) -> Iterator[float]:
    place = 0.0
    while True:
        place += random.expovariate(1.0)
        yield place

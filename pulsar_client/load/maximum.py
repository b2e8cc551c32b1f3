"""The highest rate at which a target keeps its objectives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.plan import Plan
from pulsar_client.load.quantities import format_duration
from pulsar_client.load.result import Result
from pulsar_client.load.running import run
from pulsar_client.load.session import Stop
from pulsar_client.load.thresholds import Threshold

__all__ = ["Maximum", "Trial", "find_maximum"]

#: A target that answers less than this share of what is due does not keep up, whatever the SLO.
_KEEPS_UP = 0.98
#: Beyond the knee p99 is more than so many times that of the lowest rate.
_KNEE = 3.0


@dataclass(frozen=True)
class Trial:
    """One run of the search.

    Attributes:
        rate: that was wanted, a second.
        ok: every objective held.
        invalid: why it says nothing; empty if it does.
        p50: of the response time.
        p99: of the response time.
        answered: requests a second.
        missed: the objectives that did not hold, with what was measured.
    """

    rate: float
    ok: bool
    invalid: str
    p50: float
    p99: float
    answered: float
    missed: str

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"INVALID: {self.invalid}" if self.invalid else self.missed
        return (
            f"{self.rate:>10.0f}/s   p50 {format_duration(self.p50):>8}   "
            f"p99 {format_duration(self.p99):>8}   {verdict}"
        )


@dataclass(frozen=True)
class Maximum:
    """What the search found.

    Attributes:
        rate: the highest rate that held twice; None if not even the first did.
        knee: the highest rate before p99 is three times that of the lowest rate.
        trials: in their order.
        limited_by: ``"target"``, ``"client"`` if a run was INVALID, or ``"limit"``.
        interrupted: it was stopped before its end.
    """

    rate: float | None
    knee: float | None
    trials: tuple[Trial, ...]
    limited_by: str
    interrupted: bool

    def text(self) -> str:
        """Say it for people."""
        held = max((trial.rate for trial in self.trials if trial.ok), default=None)
        if self.interrupted:
            so_far = "no rate held" if held is None else f"{held:.0f}/s held"
            return f"interrupted; until then {so_far}\n"
        if self.rate is None:
            return "no rate was found at which every objective holds\n"
        knee = "" if self.knee is None else f", the knee is at {self.knee:.0f}/s"
        return f"maximum {self.rate:.0f}/s (limited by the {self.limited_by}){knee}\n"

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {**vars(self), "trials": [vars(trial) for trial in self.trials]}


class _Search:
    def __init__(
        self,
        plan: Plan,
        objectives: Sequence[Threshold],
        stop: Stop,
        tell: Callable[[str], None],
        runner: Callable[..., Any],
    ) -> None:
        self._plan = plan
        self._objectives = objectives
        self._stop = stop
        self._tell = tell
        self._run = runner
        self.trials: list[Trial] = []

    async def holds(self, rate: float) -> bool:
        """Try a rate."""
        plan = replace(self._plan, rate=rate)
        result: Result = await self._run(plan, thresholds=self._objectives, stop=self._stop)
        missed = [f"{o.text} ({o.shown})" for o in result.outcomes if not o.ok]
        if result.rate < _KEEPS_UP * result.planned_rate:
            missed.append(f"only {result.rate:.0f}/s were answered")
        p50, p99 = result.response.quantiles((0.5, 0.99))
        trial = Trial(
            rate=rate,
            ok=not missed and result.valid,
            invalid="; ".join(result.invalid),
            p50=p50,
            p99=p99,
            answered=result.rate,
            missed="; ".join(missed),
        )
        self.trials.append(trial)
        self._tell(str(trial))
        return trial.ok

    @property
    def over(self) -> bool:
        return self._stop.requested


async def find_maximum(
    plan: Plan,
    objectives: Sequence[Threshold],
    *,
    limit: float,
    precision: float,
    stop: Stop | None = None,
    tell: Callable[[str], None] = lambda line: None,
    runner: Callable[..., Any] = run,
) -> Maximum:
    """Double the rate until an objective is missed, then halve the gap; repeat what was found.

    Args:
        plan: of each run; its rate is the first one.
        objectives: what must hold.
        limit: the highest rate to try.
        precision: the share of the answer by which it may be wrong.
        stop: ends the search early.
        tell: called with a line for each run.
        runner: makes a run.

    Raises:
        ConfigError: there is no first rate or it is above the limit, or the precision makes
            no sense.
    """
    if plan.rate is None or plan.stages:
        raise ConfigError("find-max needs a rate to begin with")
    if plan.rate > limit:
        raise ConfigError(f"the first rate is {plan.rate:g}, above the limit of {limit:g}")
    if not 0.001 <= precision <= 0.5:
        raise ConfigError(f"precision is {precision!r}, expected a share from 0.001 to 0.5")
    search = _Search(plan, objectives, stop or Stop(), tell, runner)
    good, bad = 0.0, 0.0
    rate = plan.rate
    while not bad and good < limit and not search.over:
        if await search.holds(rate):
            good, rate = rate, min(2 * rate, limit)
        else:
            bad = rate
    while good and bad - good > precision * good and not search.over:
        middle = (good + bad) / 2
        if await search.holds(middle):
            good = middle
        else:
            bad = middle
    # A single run may have been lucky.
    while good >= plan.rate and not search.over and not await search.holds(good):
        good *= 1 - 2 * precision
    return _answer(search, good if good >= plan.rate else None, limit)


def _answer(search: _Search, rate: float | None, limit: float) -> Maximum:
    trials = search.trials
    failed = [trial for trial in trials if not trial.ok]
    lowest = min((trial for trial in trials if trial.ok), key=lambda t: t.rate, default=None)
    knee = None
    if lowest is not None:
        flat = [t.rate for t in trials if t.ok and t.p99 <= _KNEE * max(lowest.p99, 1e-4)]
        knee = max(flat, default=None)
    by = "target"
    if rate is not None and rate >= limit:
        by = "limit"
    elif failed and min(failed, key=lambda trial: trial.rate).invalid:
        by = "client"
    return Maximum(rate, knee, tuple(trials), by, search.over)

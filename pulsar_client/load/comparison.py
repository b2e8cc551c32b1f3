"""Whether one run is worse than another, beyond what equal runs differ by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.quantities import format_duration
from pulsar_client.load.result import Result

__all__ = ["Comparison", "Line", "compare"]


@dataclass(frozen=True)
class Line:
    """One figure of two runs.

    Attributes:
        name: of the figure.
        base: its value in the first run.
        new: in the second.
        change: (new - base) / base.
        noise: the largest change among runs like the base.
        verdict: ``same``, ``better`` or ``worse``.
        shown: writes a value for people.
    """

    name: str
    base: float
    new: float
    change: float
    noise: float
    verdict: str
    shown: Callable[[float], str]


@dataclass(frozen=True)
class Comparison:
    """Two runs, figure by figure.

    Attributes:
        lines: of each figure.
        notes: what one should know.
    """

    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether any figure is worse."""
        return any(line.verdict == "worse" for line in self.lines)

    def text(self) -> str:
        """Say it for people."""
        rows = [f"{'':<16}{'base':>12}{'new':>12}{'change':>10}{'noise':>9}"]
        rows += [
            f"{line.name:<16}{line.shown(line.base):>12}{line.shown(line.new):>12}"
            f"{line.change:>+10.1%}{line.noise:>9.1%}  {line.verdict}"
            for line in self.lines
        ]
        return "\n".join([*rows, *(f"note: {note}" for note in self.notes)]) + "\n"


def _rate_text(value: float) -> str:
    return f"{value:.1f}/s"


def _share_text(value: float) -> str:
    return f"{value:.3%}"


def _quantile(percentile: float) -> Callable[[Result], float]:
    return lambda result: result.p(percentile)


def _failed(result: Result) -> float:
    counts = result.counts
    return (counts.error + counts.timeout + counts.dropped) / max(counts.scheduled, 1)


# Name, value, text, and whether more is worse.
_FIGURES: tuple[tuple[str, Callable[[Result], float], Callable[[float], str], bool], ...] = (
    ("answered", lambda result: result.rate, _rate_text, False),
    ("failed", _failed, _share_text, True),
    ("response p50", _quantile(50), format_duration, True),
    ("response p90", _quantile(90), format_duration, True),
    ("response p99", _quantile(99), format_duration, True),
    ("response p99.9", _quantile(99.9), format_duration, True),
)
#: Failures are shares already: a change of them is a difference.
_ABSOLUTE = {"failed": 0.001}
#: What two runs should have in common, by its name in the plan, for a change to be the target's.
_CONDITIONS = (
    *("protocol", "scenario_file", "rate", "stages", "arrivals", "in_flight", "on_full", "think"),
    *("duration", "warmup", "connections", "pipeline", "timeout", "size", "workers", "faults"),
    *("requests_per_connection", "connection_age"),
)
#: Fewer values than this beyond a percentile, and it is luck.
_FEW = 10


def compare(
    base: Result, new: Result, repeats: Sequence[Result] = (), at_least: float = 0.05
) -> Comparison:
    """Compare two runs.

    Args:
        base: what to compare with.
        new: what to judge.
        repeats: more runs like the base: what they differ from it by is noise.
        at_least: a change below this share never matters.

    Raises:
        ConfigError: open and closed loops are mixed; their percentiles can't be compared.
    """
    if len({result.loop for result in (base, new, *repeats)}) > 1:
        raise ConfigError(
            "an open and a closed loop can't be compared: a closed loop hides what it waits for"
        )
    lines = []
    for name, value, shown, more_is_worse in _FIGURES:
        first, second = value(base), value(new)
        change = _change(name, first, second)
        noise = max((abs(_change(name, first, value(run))) for run in repeats), default=0.0)
        verdict = "same"
        if abs(change) > max(noise, _ABSOLUTE.get(name, at_least)):
            verdict = "worse" if (change > 0) == more_is_worse else "better"
        # Beyond a percentile of a short run there are so few values that they are luck.
        if name.startswith("response p"):
            percentile = float(name.removeprefix("response p"))
            fewest = min(base.response.count, new.response.count)
            if fewest * (1 - percentile / 100) < _FEW and verdict != "same":
                verdict = f"too few values ({verdict})"
        lines.append(Line(name, first, second, change, noise, verdict, shown))
    notes = [
        f"the {who} run is INVALID" for who, r in (("base", base), ("new", new)) if not r.valid
    ]
    notes += [
        f"the runs differ in {name}: {base.plan.get(name)!r} and {new.plan.get(name)!r}"
        for name in _CONDITIONS
        if base.plan.get(name) != new.plan.get(name)
    ]
    if not repeats:
        notes.append("without --noise a change may be one of the machine's: repeat the base run")
    if base.loop == "closed":
        notes.append("closed loops")
    return Comparison(tuple(lines), tuple(notes))


def _change(name: str, first: float, second: float) -> float:
    if name in _ABSOLUTE:
        return second - first
    return (second - first) / first if first else (0.0 if not second else float("inf"))

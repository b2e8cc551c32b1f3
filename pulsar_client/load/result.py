"""The result of a run: numbers, and whether they mean anything.

Its JSON form has a version, and is read again by ``compare`` and ``merge``.
"""

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.histogram import Histogram
from pulsar_client.load.plan import Plan
from pulsar_client.load.recorder import METRICS, OTHER_METRICS, Counts, Totals
from pulsar_client.load.self_check import Health, verdict
from pulsar_client.load.session import Mark, SessionEnd
from pulsar_client.load.thresholds import Outcome, Threshold
from pulsar_client.load.timeline import Point, Timeline

__all__ = ["SCHEMA", "Result"]

#: The form of the JSON; the number rises when a reader has to know of a change.
SCHEMA = "pulsar_client.load/1"

# Seconds in which equal marks of several processes are taken for one.
_SAME_MOMENT = 0.25
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}


@dataclass(kw_only=True)
class Result:
    """What a run gave.

    Attributes:
        plan: of the run, as JSON has it.
        counts: requests behind the warm-up; see :class:`~pulsar_client.load.recorder.Counts`.
        causes: errors and time-outs by cause.
        samples: an example of the message of each cause.
        histograms: by ``label/metric`` and ``metric``.
        elapsed: seconds behind the warm-up, until the last answer.
        points: the course of the run.
        marks: what happened on the way.
        invalid: why the numbers mean little; empty if the run is valid.
        warnings: what one should know besides.
        healths: of every process.
        outcomes: of the thresholds.
        interrupted: it was stopped before its time.
        started: date and time of the start, UTC.
    """

    plan: dict[str, Any]
    counts: Counts
    causes: dict[str, int]
    samples: dict[str, str]
    histograms: dict[str, Histogram]
    elapsed: float
    points: list[Point]
    marks: list[Mark]
    invalid: list[str]
    warnings: list[str]
    healths: list[Health]
    outcomes: list[Outcome] = field(default_factory=list)
    interrupted: bool = False
    started: str = ""

    @classmethod
    def of(
        cls,
        plan: Plan,
        totals: Totals,
        timeline: Timeline,
        ends: Sequence[SessionEnd],
        *,
        lost: Iterable[str] = (),
        marks: Iterable[Mark] = (),
        started: str = "",
    ) -> "Result":
        """Put a result together.

        Args:
            plan: of the run.
            totals: of all processes.
            timeline: of all processes.
            ends: of every process that came to its end.
            lost: what is known of those that did not.
            marks: besides those of the processes.
            started: date and time, UTC.
        """
        histograms = {name: Histogram(counted) for name, counted in totals.durations.items()}
        healths = [end.health for end in ends]
        late = histograms.get("lateness")
        invalid, warnings = verdict(
            plan.limits,
            healths,
            0.0 if late is None else late.quantile(0.99),
            open_loop=plan.open,
        )
        invalid = [*lost, *invalid]
        if totals.gaps:
            invalid.append(f"{totals.gaps} intervals of workers never arrived")
        if not plan.open:
            warnings.append(
                "closed loop: it sends less when the target is slow, so its percentiles can't be "
                "compared with those of an open loop"
            )
        # Of processes that were all lost, or had not begun, only their intervals are known.
        seen = max((last.end for last in totals.workers.values()), default=0.0) - plan.warmup
        counts = totals.counts
        if counts.queued:
            warnings.append(
                f"{counts.queued} requests were still queued when the run ended: at its cap the "
                "target did not keep up"
            )
        if counts.in_flight:
            warnings.append(
                f"{counts.in_flight} requests had no end when the run ended; no percentile knows "
                "of them"
            )
        return cls(
            plan=plan.as_json(),
            counts=counts,
            causes=dict(totals.causes.most_common()),
            samples=totals.samples,
            histograms=histograms,
            elapsed=max((end.elapsed for end in ends), default=max(seen, 1e-9)),
            points=timeline.points,
            marks=merged_marks([*marks, *(m for end in ends for m in end.marks)]),
            invalid=invalid,
            warnings=warnings,
            healths=healths,
            interrupted=any(end.interrupted for end in ends),
            started=started,
        )

    # What a test asks

    @property
    def valid(self) -> bool:
        """Whether the client was good enough for the numbers to mean anything."""
        return not self.invalid

    @property
    def passed(self) -> bool:
        """Whether every threshold holds, and not every request failed."""
        return not self.failure and all(outcome.ok for outcome in self.outcomes)

    @property
    def failure(self) -> str:
        """What happened to the requests if none of those that were sent succeeded, or ""."""
        counts = self.counts
        if counts.ok or not counts.sent:
            return ""
        if not self.causes:
            return f"no request succeeded: none of {counts.sent} was answered"
        cause = max(self.causes, key=self.causes.__getitem__)
        return (
            f"no request succeeded: {self.causes[cause]} of {counts.sent} ended with {cause!r}, "
            f"e.g. {self.samples.get(cause, cause)}"
        )

    @property
    def open(self) -> bool:
        """Whether it was an open loop."""
        return bool(self.plan["rate"] is not None or self.plan["stages"])

    @property
    def loop(self) -> str:
        """``"open"`` or ``"closed"``."""
        return "open" if self.open else "closed"

    @property
    def labels(self) -> list[str]:
        """Of the scenarios that were called."""
        names = {name.rpartition("/")[0] for name in self.histograms if "/" in name}
        return sorted(names)

    @property
    def response(self) -> Histogram:
        """Response times: from the moment a request was due to its answer, in seconds."""
        return self.histogram("response")

    @property
    def service(self) -> Histogram:
        """Service times: from the moment a request was sent to its answer, in seconds."""
        return self.histogram("service")

    def histogram(self, metric: str, label: str | None = None) -> Histogram:
        """Give the durations of a metric, of one scenario or of all.

        Args:
            metric: ``response``, ``service``, ``pool_wait``, ``connect`` or ``lateness``.
            label: of a scenario.

        Raises:
            ValueError: there is no such metric.
        """
        if metric not in (*METRICS, *OTHER_METRICS):
            known = ", ".join((*METRICS, *OTHER_METRICS))
            raise ValueError(f"metric is {metric!r}, expected one of {known}")
        total = Histogram()
        for name, histogram in self.histograms.items():
            of, _, kind = name.rpartition("/")
            if kind == metric and (label is None or of == label):
                total.add(histogram)
        return total

    def p(self, percentile: float, label: str | None = None) -> float:
        """A percentile of the response time, in seconds: ``result.p(99)``."""
        return self.histogram("response", label).quantile(percentile / 100)

    @property
    def rate(self) -> float:
        """Requests that were answered well, a second."""
        return self.counts.ok / self.elapsed

    @property
    def planned_rate(self) -> float:
        """Requests that were due, a second; of a closed loop those that were sent."""
        seconds = self.elapsed if self.interrupted or not self.open else self.measured
        return self.counts.scheduled / seconds

    @property
    def measured(self) -> float:
        """Seconds that were planned, behind the warm-up."""
        stages = self.plan["stages"]
        return float(sum(stage[0] for stage in stages) if stages else self.plan["duration"])

    def judge(self, thresholds: Iterable[Threshold]) -> None:
        """Compare it with thresholds; the outcomes are kept."""
        self.outcomes = [threshold.judge(self) for threshold in thresholds]

    # JSON

    def as_json(self) -> dict[str, Any]:
        """Give it in the form that docs/load.md describes."""
        return {
            "schema": SCHEMA,
            "started": self.started,
            "loop": self.loop,
            "valid": self.valid,
            "invalid": self.invalid,
            "warnings": self.warnings,
            "interrupted": self.interrupted,
            "elapsed": self.elapsed,
            "warmup": self.plan["warmup"],
            "requests": self.counts.as_json(),
            "errors": self.causes,
            "error_samples": self.samples,
            "rate": {"planned": self.planned_rate, "answered": self.rate},
            "response_time": summary(self.histogram("response")),
            "service_time": summary(self.histogram("service")),
            "pool_wait": summary(self.histogram("pool_wait")),
            "connect_time": summary(self.histogram("connect")),
            "lateness": summary(self.histogram("lateness")),
            "labels": {
                label: {
                    "response_time": summary(self.histogram("response", label)),
                    "service_time": summary(self.histogram("service", label)),
                }
                for label in self.labels
            },
            "thresholds": [outcome.as_json() for outcome in self.outcomes],
            "self_check": [health.as_json() for health in self.healths],
            "timeline": [point.as_json() for point in self.points],
            "marks": [{"at": mark.at, "text": mark.text} for mark in self.marks],
            "plan": self.plan,
            "host": {"python": platform.python_version(), "system": sys.platform},
            "histograms": {name: h.encode() for name, h in self.histograms.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Result":
        """Read what :meth:`as_json` gave.

        Raises:
            ConfigError: it has another form, or is of another version.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else data
            raise ConfigError(f"a result of the form {SCHEMA!r} is expected, not {found!r}")
        try:
            return cls(
                plan=dict(data["plan"]),
                counts=Counts(**data["requests"]),
                causes=dict(data["errors"]),
                samples=dict(data["error_samples"]),
                histograms={n: Histogram.decode(h) for n, h in data["histograms"].items()},
                elapsed=float(data["elapsed"]),
                points=[Point.from_json(point) for point in data["timeline"]],
                marks=[Mark(float(m["at"]), str(m["text"])) for m in data["marks"]],
                invalid=list(data["invalid"]),
                warnings=list(data["warnings"]),
                healths=[Health(**health) for health in data["self_check"]],
                outcomes=[Outcome(**outcome) for outcome in data["thresholds"]],
                interrupted=bool(data["interrupted"]),
                started=str(data["started"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigError(f"the result can't be read: {exc!r}") from exc


def merged_marks(marks: Iterable[Mark]) -> list[Mark]:
    """Put marks in order; those that processes made at about the same time are one."""
    kept: dict[str, Mark] = {}
    merged: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: mark.at):
        last = kept.get(mark.text)
        if last is None or mark.at - last.at > _SAME_MOMENT:
            kept[mark.text] = mark
            merged.append(mark)
    return merged


def summary(histogram: Histogram) -> dict[str, float]:
    """Give the usual figures of durations, in seconds."""
    values = histogram.quantiles(list(_QUANTILES.values()))
    return {
        **dict(zip(_QUANTILES, values, strict=True)),
        "max": histogram.max,
        "mean": histogram.mean,
        "count": histogram.count,
    }

"""Parts of a run that were made at the same time, added to one result (L9)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import combinations

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.histogram import Histogram
from pulsar_client.load.recorder import Counts
from pulsar_client.load.result import Result, merged_marks
from pulsar_client.load.timeline import Timeline

__all__ = ["merge"]

#: Seconds by which the clocks of machines may differ, and starts be apart.
_CLOCKS = 5.0


def merge(parts: Sequence[Result]) -> Result:
    """Add results: counts, and histograms bucket by bucket, so that quantiles are the union's.

    Raises:
        ConfigError: there are none, one is there twice, or open and closed loops are mixed.
    """
    if not parts:
        raise ConfigError("there is nothing to merge")
    if len({part.loop for part in parts}) > 1:
        raise ConfigError("parts of an open and of a closed loop can't be merged")
    for part, other in combinations(parts, 2):
        if part.as_json() == other.as_json():
            raise ConfigError(
                f"the run of {part.started} is there twice: its requests would be counted twice"
            )
    counts = Counts()
    causes: Counter[str] = Counter()
    histograms: dict[str, Histogram] = {}
    point = min((p.seconds for part in parts for p in part.points), default=1.0)
    point = max([point, *(p.seconds for part in parts for p in part.points[:-1])])
    timeline = Timeline(point)
    for part in parts:
        counts.add(part.counts)
        causes.update(part.causes)
        for name, histogram in part.histograms.items():
            histograms.setdefault(name, Histogram()).add(histogram)
        for one in part.points:
            timeline.put(replace(one, counts=replace(one.counts), response=Counter(one.response)))
    first = parts[0]
    return replace(
        first,
        counts=counts,
        causes=dict(causes.most_common()),
        samples={cause: text for part in parts for cause, text in part.samples.items()},
        histograms=histograms,
        elapsed=max(part.elapsed for part in parts),
        points=timeline.points,
        marks=merged_marks(mark for part in parts for mark in part.marks),
        invalid=list(dict.fromkeys(reason for part in parts for reason in part.invalid)),
        warnings=[
            *dict.fromkeys(text for part in parts for text in part.warnings),
            *_apart(parts),
        ],
        healths=[
            replace(health, worker=number)
            for number, health in enumerate(h for part in parts for h in part.healths)
        ],
        outcomes=[],
        interrupted=any(part.interrupted for part in parts),
    )


def _apart(parts: Sequence[Result]) -> Iterator[str]:
    """Warn of parts that were made one after the other, as far as that is known."""
    known = [part for part in parts if part.started]
    last = max(known, key=lambda part: part.started, default=None)
    for part in known:
        assert last is not None
        gap = datetime.fromisoformat(last.started) - datetime.fromisoformat(part.started)
        if gap.total_seconds() > part.elapsed + part.plan["warmup"] + _CLOCKS:
            yield (
                "the parts were not made at the same time: the rate is that of none of them, and "
                "the percentiles are those of a load that the target never had"
            )
            return

"""The course of a run: one point for each interval, added over all processes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pulsar_client.load.histogram import Buckets, quantiles
from pulsar_client.load.recorder import Counts, Interval

__all__ = ["Point", "Timeline"]

# 8 of the 11 binary digits of a bucket are enough for a curve, and keep an hour of points small.
_SPARE_DIGITS = 3


def coarse(bucket: int) -> int:
    """Round a bucket down to two digits."""
    return bucket >> _SPARE_DIGITS << _SPARE_DIGITS


@dataclass(slots=True)
class Point:
    """What happened between two moments, behind the warm-up.

    Attributes:
        start: seconds since the start of the run.
        end: the same.
        counts: those of this time; ``queued`` and ``in_flight`` are as they were at its end.
        response: response times by their bucket, to two digits.
    """

    start: float
    end: float
    counts: Counts = field(default_factory=Counts)
    response: Buckets = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return max(self.end - self.start, 1e-9)

    def quantiles(self, *wanted: float) -> list[float]:
        """Quantiles of the response time, in seconds."""
        return quantiles(self.response, wanted)

    def as_json(self) -> dict[str, Any]:
        """Give it for a report; :meth:`from_json` reads it."""
        p50, p99, worst = self.quantiles(0.5, 0.99, 1.0)
        return {
            "start": round(self.start, 6),
            "end": round(self.end, 6),
            **self.counts.as_json(),
            "p50": p50,
            "p99": p99,
            "max": worst,
            "response": [number for pair in sorted(self.response.items()) for number in pair],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Point":
        """Read what :meth:`as_json` gave."""
        counts = Counts(**{name: int(data[name]) for name in Counts.__slots__})
        numbers = data["response"]
        response = Counter(dict(zip(numbers[::2], numbers[1::2], strict=True)))
        return cls(float(data["start"]), float(data["end"]), counts, response)

    def add(self, other: "Point") -> None:
        """Add what another process saw in about the same time."""
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        self.counts.add(other.counts)
        self.response.update(other.response)


class Timeline:
    """Points by their number.

    Args:
        point: seconds of one of them.
    """

    def __init__(self, point: float) -> None:
        self._point = point
        self._points: dict[int, Point] = {}
        self._last: dict[int, Counts] = {}

    def add(self, interval: Interval) -> Point:
        """Add an interval of a process to the point that it belongs to, and give that."""
        last = self._last.get(interval.worker, Counts())
        self._last[interval.worker] = interval.counts
        counts = interval.counts - last
        counts.queued, counts.in_flight = interval.counts.queued, interval.counts.in_flight
        response: Buckets = Counter()
        for name, counted in interval.durations.items():
            if name.endswith("/response"):
                for bucket, count in counted.items():
                    response[coarse(bucket)] += count
        return self.put(Point(interval.start, interval.end, counts, response))

    def put(self, point: Point) -> Point:
        """Add a point, at its place."""
        place = int((point.start + point.end) / 2 / self._point)
        present = self._points.get(place)
        if present is None:
            self._points[place] = point
            return point
        present.add(point)
        return present

    @property
    def points(self) -> list[Point]:
        """All of them in order."""
        return [self._points[place] for place in sorted(self._points)]

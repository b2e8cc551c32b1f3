"""Histograms of durations that cost next to nothing to feed.

A sample is appended to a list; a full list is folded into buckets, at C speed.  The bounds are
powers of two of a microsecond, so that a quantile is right within a factor of two.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["TimeSummary", "Timings"]

#: Upper bounds of the buckets, in seconds: 1 µs to 134 s, then infinity.
BOUNDS = (*(2.0**k * 1e-6 for k in range(28)), float("inf"))
#: Samples that are kept before they are folded.
_BATCH = 512


@dataclass(frozen=True, slots=True, repr=False)
class TimeSummary:
    """Durations in seconds, as a histogram.

    Attributes:
        count: how many there were.
        total: their sum.
        maximum: the longest; 0.0 if there was none.
        buckets: pairs of an upper bound (inclusive) and how many lie below it and above the bound
            before; those without any are left out.
    """

    count: int
    total: float
    maximum: float
    buckets: tuple[tuple[float, int], ...]

    @property
    def mean(self) -> float:
        """The average, 0.0 if there was none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, fraction: float) -> float:
        """An upper bound of that quantile, at most twice too high; 0.0 if there was none.

        Raises:
            ValueError: ``fraction`` is not between 0 and 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction is {fraction!r}, expected a number from 0 to 1")
        left = fraction * self.count
        for bound, count in self.buckets:
            left -= count
            if left <= 0:
                return min(bound, self.maximum)
        return self.maximum

    def __repr__(self) -> str:
        return (
            f"<{self.count}: mean {self.mean:.3g} s, p50 {self.quantile(0.5):.3g}, "
            f"p99 {self.quantile(0.99):.3g}, max {self.maximum:.3g}>"
        )


class Timings:
    """Collects durations.  Append to ``pending`` and call :meth:`fold` when it is ``full``."""

    __slots__ = ("_counts", "_maximum", "_total", "pending")

    #: Length at which ``pending`` has to be folded.
    full = _BATCH

    def __init__(self) -> None:
        self.pending: list[float] = []
        self._counts = [0] * len(BOUNDS)
        self._total = 0.0
        self._maximum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.pending.append(seconds)
        if len(self.pending) >= _BATCH:
            self.fold()

    def fold(self) -> None:
        """Move what is pending into the buckets."""
        pending = self.pending
        if not pending:
            return
        pending.sort()
        self._total += sum(pending)
        self._maximum = max(self._maximum, pending[-1])
        # In a sorted list the samples of a bucket are neighbours.
        first = bisect_right(BOUNDS, pending[0])
        last = bisect_right(BOUNDS, pending[-1])
        edges = [0, *(bisect_right(pending, BOUNDS[k]) for k in range(first, last)), len(pending)]
        for number, (start, end) in enumerate(pairwise(edges), first):
            self._counts[number] += end - start
        pending.clear()

    def summary(self, events: int = 0) -> TimeSummary:
        """What was counted; of so many ``events`` the others took no time."""
        self.fold()
        counts = list(self._counts)
        counts[0] += max(0, events - sum(counts))
        return TimeSummary(
            count=sum(counts),
            total=self._total,
            maximum=self._maximum,
            buckets=tuple(
                (bound, count) for bound, count in zip(BOUNDS, counts, strict=True) if count
            ),
        )

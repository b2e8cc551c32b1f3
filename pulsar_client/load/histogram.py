"""Histograms of durations: three digits exact, constant in memory, merged by integer addition.

While a run goes on, durations are counted in plain dictionaries of :func:`buckets`, which costs a
tenth of what a histogram's own ``record_value`` does.  The buckets are those of an
:class:`Histogram`, so that nothing is lost when the counts are handed over to one.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Self

from pulsar_client.exceptions import ConfigError

__all__ = ["Buckets", "Histogram", "buckets", "quantiles"]

#: How often each bucket was hit; a bucket is named by its lowest duration in nanoseconds.
Buckets = Counter[int]

_NANOSECONDS = 1_000_000_000
_LONGEST = 3600 * _NANOSECONDS
_DIGITS = 3
# Two to the power of these bits is the number of buckets that three digits need (HdrHistogram).
_BITS = 11


def buckets(durations: Iterable[float]) -> list[int]:
    """Give the bucket of each duration (seconds).

    Negative ones, which clocks of two machines may give, count as 0; what takes more than an hour
    counts as an hour.
    """
    # Every request passes here: no calls but those that can't be avoided.
    return [
        value
        if 0 <= (value := int(duration * _NANOSECONDS)) < 2048
        else (value >> (shift := value.bit_length() - _BITS)) << shift
        if 0 < value <= _LONGEST
        else (0 if value < 0 else _LONGEST)
        for duration in durations
    ]


def quantiles(counts: Mapping[int, int], wanted: Sequence[float]) -> list[float]:
    """Give quantiles (0.5 for the median) of counted buckets in seconds; 0 where there are none.

    For a look while a run goes on; a report takes those of :class:`Histogram`.
    """
    ordered = sorted(counts)
    seen = list(accumulate(counts[bucket] for bucket in ordered))
    if not seen or not seen[-1]:
        return [0.0] * len(wanted)
    ranks = [max(1, int(quantile * seen[-1] + 0.5)) for quantile in wanted]
    return [ordered[bisect_left(seen, rank)] / _NANOSECONDS for rank in ranks]


class Histogram:
    """Durations and how often they occurred.

    Args:
        counts: buckets as :func:`buckets` gives them, with their counts.

    Raises:
        ConfigError: the package hdrhistogram is not installed.
    """

    __slots__ = ("_hdr",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        try:
            from hdrh.histogram import HdrHistogram
        except ImportError as exc:
            raise ConfigError(
                "load tests need hdrhistogram, of the extra load: "
                "pip install 'PATH/TO/CHECKOUT[load]'"
            ) from exc
        self._hdr: Any = HdrHistogram(1, 2 * _LONGEST, _DIGITS)
        if counts:
            self.count_all(counts)

    def __repr__(self) -> str:
        return f"<Histogram: {self.count} values, max {self.max:.6g} s>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and bool(self._hdr.equals(other._hdr))

    __hash__ = None  # type: ignore[assignment]

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self._hdr.record_value(buckets((seconds,))[0])

    def count_all(self, counts: Mapping[int, int]) -> None:
        """Add the counts of buckets."""
        record = self._hdr.record_value
        for value, count in counts.items():
            record(value, count)

    def add(self, other: "Histogram") -> None:
        """Add another histogram, bucket by bucket: its quantiles are then those of the union."""
        if other.count:
            self._hdr.add(other._hdr)

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return int(self._hdr.get_total_count())

    @property
    def max(self) -> float:
        """The longest duration, in seconds; 0 if there is none."""
        return float(self._hdr.get_max_value()) / _NANOSECONDS

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 if there is none."""
        return float(self._hdr.get_mean_value()) / _NANOSECONDS

    def quantiles(self, wanted: Sequence[float]) -> list[float]:
        """Give quantiles (0.5 for the median), in seconds."""
        if not self.count:
            return [0.0] * len(wanted)
        found = self._hdr.get_percentile_to_value_dict([100 * quantile for quantile in wanted])
        return [min(found[100 * quantile] / _NANOSECONDS, self.max) for quantile in wanted]

    def quantile(self, wanted: float) -> float:
        """Give one quantile, in seconds."""
        return self.quantiles([wanted])[0]

    def encode(self) -> str:
        """Write it as text: HdrHistogram's compressed format V2 in base 64, in nanoseconds."""
        return str(self._hdr.encode().decode("ascii"))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what :meth:`encode` wrote.

        Raises:
            ValueError: it is something else.
        """
        self = cls()
        try:
            self._hdr.decode_and_add(text.encode("ascii"))
        except Exception as exc:
            raise ValueError(f"no histogram: {text[:40]!r}") from exc
        return self

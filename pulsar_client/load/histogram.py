"""Histograms of durations: three digits exact, constant in memory, merged by integer addition.

While a run goes on, durations are counted in plain dictionaries of :func:`buckets`, which costs a
tenth of what a histogram's own ``record_value`` does.  The buckets are those of an
:class:`Histogram`, so that nothing is lost when the counts are handed over to one.
"""

import struct
import sys
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, repeat
from typing import Any, Self

from pulsar_client.exceptions import ConfigError

__all__ = ["Buckets", "Histogram", "buckets", "nanoseconds", "quantiles"]

#: How often each bucket was hit; see :func:`buckets` for their names.
Buckets = Counter[int]

_NANOSECONDS = 1_000_000_000
_LONGEST = 3600 * _NANOSECONDS
_DIGITS = 3
# Two to the power of these bits is the number of buckets that three digits need (HdrHistogram).
_BITS = 11
# Which of the two halves of a float has its sign, exponent and first digits, and how many bits of
# that half are behind the first _BITS binary digits (the first of which is not stored).
_UPPER = slice(1 if sys.byteorder == "little" else 0, None, 2)
_SPARE = 20 - (_BITS - 1)


def buckets(ends: Iterable[float], starts: Iterable[float] = repeat(0.0)) -> list[int]:
    """Give the bucket of each duration, or of each between two moments (seconds).

    A float is its exponent and its binary digits: the exponent and the first 11 digits of the
    nanoseconds are the name of a bucket, and :func:`nanoseconds` tells what it stands for.
    """
    # Every request passes here three times: no calls but those that can't be avoided, and a
    # factor that is a float already.
    spans = array("d", [(end - start) * 1e9 for end, start in zip(ends, starts, strict=False)])
    return [half >> _SPARE for half in array("I", spans.tobytes())[_UPPER]]


@lru_cache(maxsize=2**16)  # a run meets the same few thousand all the time
def nanoseconds(bucket: int) -> int:
    """Give the lowest duration of a bucket.

    Negative ones, which clocks of two machines may give, count as 0; what takes more than an hour
    counts as an hour.
    """
    (lowest,) = struct.unpack(">d", struct.pack(">Q", bucket << (32 + _SPARE)))
    return int(min(max(0.0, lowest), _LONGEST))


def quantiles(counts: Mapping[int, int], wanted: Sequence[float]) -> list[float]:
    """Give quantiles (0.5 for the median) of counted buckets in seconds; 0 where there are none.

    For a look while a run goes on; a report takes those of :class:`Histogram`.
    """
    ordered = sorted(counts, key=nanoseconds)
    seen = list(accumulate(counts[bucket] for bucket in ordered))
    if not seen or not seen[-1]:
        return [0.0] * len(wanted)
    ranks = [max(1, int(quantile * seen[-1] + 0.5)) for quantile in wanted]
    return [nanoseconds(ordered[bisect_left(seen, rank)]) / _NANOSECONDS for rank in ranks]


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
        self._hdr.record_value(nanoseconds(buckets((seconds,))[0]))

    def count_all(self, counts: Mapping[int, int]) -> None:
        """Add the counts of buckets."""
        record = self._hdr.record_value
        for bucket, count in counts.items():
            record(nanoseconds(bucket), count)

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
        # As get_mean_value of HdrHistogram, from the middle of each bucket, but by way of the
        # buckets that were hit: it goes through all of them step by step, for 40 ms.
        hdr, total = self._hdr, 0
        for index, count in enumerate(hdr.counts):
            if count:
                lowest = hdr.get_value_from_index(index)
                total += count * ((lowest + hdr.get_highest_equivalent_value(lowest) + 1) // 2)
        return total / self.count / _NANOSECONDS if total else 0.0

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

"""What happened to the requests: counted at once, their times folded in batches.

A :class:`Recorder` belongs to one process and gives an :class:`Interval` now and then;
:class:`Totals` adds the intervals of one process or of many.  Only integers are added, so that
the totals of parts are those of the whole (L9).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pulsar_client.load.histogram import Buckets, buckets

__all__ = ["METRICS", "Counts", "Interval", "Recorder", "Totals"]

#: The durations of a request that are kept for each label, in the order of :class:`Recorder`.
METRICS = ("response", "service", "pool_wait")
#: Those that belong to no label.
OTHER_METRICS = ("lateness", "connect")

# A target, or a scenario, may make up error messages without end.
_MOST_CAUSES = 64
_LONGEST_CAUSE = 120
# So many moments are folded together: few enough to be in the processor's cache still.
_BATCH = 2048

# Moments of one request: intended, dequeued, sent (0.0 if it never was), answered.
_Times = tuple[float, float, float, float]


@dataclass(slots=True)
class Counts:
    """Requests since the end of the warm-up; each of them is in exactly one place (L4).

    ``scheduled = sent + dropped + queued`` and ``sent = ok + error + timeout + in_flight``.

    Attributes:
        scheduled: those that were due.
        sent: those that were handed to the client.
        dropped: those that were not, because the cap was reached.
        queued: those that wait because the cap is reached.
        ok: those that were answered.
        error: those that failed.
        timeout: those that took too long.
        in_flight: those without an end.
    """

    scheduled: int = 0
    sent: int = 0
    dropped: int = 0
    queued: int = 0
    ok: int = 0
    error: int = 0
    timeout: int = 0
    in_flight: int = 0

    def add(self, other: "Counts") -> None:
        """Add the counts of another process."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))

    @property
    def finished(self) -> int:
        """Those that have an end, good or bad."""
        return self.ok + self.error + self.timeout

    @property
    def balanced(self) -> bool:
        """Whether the two identities hold."""
        return (
            self.scheduled == self.sent + self.dropped + self.queued
            and self.sent == self.ok + self.error + self.timeout + self.in_flight
        )

    def as_json(self) -> dict[str, int]:
        """All of them by name."""
        return asdict(self)


@dataclass(slots=True)
class Interval:
    """What one process saw between two moments.

    Attributes:
        worker: which process, from 0.
        seq: the number of the interval, from 0 without a gap.
        start: seconds since the start of the run.
        end: the same.
        counts: of the whole run so far, so that the last one that arrived is all one needs.
        causes: errors and time-outs of the interval by cause.
        durations: buckets of the interval by ``label/metric``, or ``metric`` alone.
        samples: an example of the message of each cause that is new.
        connections: open now.
    """

    worker: int
    seq: int
    start: float
    end: float
    counts: Counts
    causes: Counter[str]
    durations: dict[str, Buckets]
    samples: dict[str, str] = field(default_factory=dict)
    connections: int = 0

    def as_json(self) -> dict[str, Any]:
        """Give it in a form that goes through a pipe; :meth:`from_json` reads it."""
        return {
            "worker": self.worker,
            "seq": self.seq,
            "start": self.start,
            "end": self.end,
            "counts": self.counts.as_json(),
            "causes": self.causes,
            "durations": {name: list(b.items()) for name, b in self.durations.items()},
            "samples": self.samples,
            "connections": self.connections,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Interval":
        """Read what :meth:`as_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        durations = {
            name: Counter({int(bucket): int(count) for bucket, count in pairs})
            for name, pairs in data["durations"].items()
        }
        return cls(
            **{
                **data,
                "counts": Counts(**data["counts"]),
                "causes": Counter(data["causes"]),
                "durations": durations,
            }
        )


class Recorder:
    """Counts the requests of one process.

    Args:
        labels: of the scenarios, by their index.
        worker: which process this is.

    The counters are changed by the runner in place; see :class:`Counts`.
    """

    def __init__(self, labels: Sequence[str], worker: int = 0) -> None:
        self.labels = tuple(labels)
        self.scheduled = self.sent = self.dropped = 0
        self.ok = self.error = self.timeout = 0
        #: How late each request was dispatched, and how long each connection took to open.
        self.lateness: list[float] = []
        self.connects: list[float] = []
        self._worker = worker
        self._seq = 0
        self._start = 0.0
        #: The moment of the last end of a request; 0.0 before the first.
        self.last_end = 0.0
        # Four moments a request, one behind the other: a tuple each would keep the collector busy.
        self._batches: list[list[float]] = [[] for _ in self.labels]
        # Of each label, in the order of METRICS.
        self._metrics = [tuple(f"{label}/{metric}" for metric in METRICS) for label in labels]
        self._durations: dict[str, Buckets] = {}
        self._causes: Counter[str] = Counter()
        self._known: set[str] = set()
        self._samples: dict[str, str] = {}

    def answered(self, label: int, times: _Times) -> None:
        """Count a request that was answered."""
        self.ok += 1
        batch = self._batches[label]
        batch += times
        if len(batch) >= _BATCH:
            self._fold(label)

    def knows(self, cause: str) -> bool:
        """Whether there was a failure with this cause before: then its message is not needed."""
        return cause[:_LONGEST_CAUSE] in self._known

    def failed(self, label: int, times: _Times, cause: str, message: str, timeout: bool) -> None:
        """Count a request that failed; its elapsed time is in the percentiles as well (L7)."""
        if timeout:
            self.timeout += 1
        else:
            self.error += 1
        self._batches[label] += times
        cause = cause[:_LONGEST_CAUSE]
        if cause not in self._known:
            if len(self._known) >= _MOST_CAUSES:
                cause = "other"
            self._known.add(cause)
            self._samples.setdefault(cause, message[:500])
        self._causes[cause] += 1

    def fold(self) -> None:
        """Fold what was recorded into buckets; to be called a few times a second."""
        for label, batch in enumerate(self._batches):
            if batch:
                self._fold(label)
        for name, durations in (("lateness", self.lateness), ("connect", self.connects)):
            if durations:
                self._count(name, buckets(durations))
                durations.clear()

    def take(self, now: float, *, queued: int, in_flight: int, connections: int) -> Interval:
        """End an interval.

        Args:
            now: seconds since the start of the run.
            queued: requests that wait at the cap.
            in_flight: requests without an end.
            connections: open now.

        `queued` and `in_flight` are counted by whoever holds the requests, not computed from the
        other counters: so the identities of :class:`Counts` can be wrong, and can be tested.
        """
        self.fold()
        counts = Counts(
            self.scheduled,
            self.sent,
            self.dropped,
            queued,
            self.ok,
            self.error,
            self.timeout,
            in_flight,
        )
        interval = Interval(
            self._worker,
            self._seq,
            self._start,
            now,
            counts,
            self._causes,
            self._durations,
            self._samples,
            connections,
        )
        self._seq += 1
        self._start = now
        self._causes, self._durations, self._samples = Counter(), {}, {}
        return interval

    def _fold(self, label: int) -> None:
        batch = self._batches[label]
        response, service, pool_wait = self._metrics[label]
        self.last_end = max(self.last_end, batch[-1])
        intended, dequeued, sent, answered = (batch[place::4] for place in range(4))
        self._count(response, buckets(answered, intended))
        if 0.0 in sent:  # some never were
            ends = [s or a for s, a in zip(sent, answered, strict=True)]
            self._count(pool_wait, buckets(ends, dequeued))
            pairs = zip(answered, sent, strict=True)
            self._count(service, buckets([a - s for a, s in pairs if s]))
        else:
            self._count(pool_wait, buckets(sent, dequeued))
            self._count(service, buckets(answered, sent))
        batch.clear()

    def _count(self, name: str, found: list[int]) -> None:
        counted = self._durations.get(name)
        if counted is None:
            counted = self._durations[name] = Counter()
        counted.update(found)


class Totals:
    """The sum of the intervals of all processes.

    Attributes:
        counts: of the last interval of each process, added.
        causes: errors and time-outs by cause.
        durations: buckets by ``label/metric`` and ``metric``.
        samples: an example of the message of each cause.
        gaps: intervals that never arrived.
    """

    def __init__(self) -> None:
        self.causes: Counter[str] = Counter()
        self.durations: dict[str, Buckets] = {}
        self.samples: dict[str, str] = {}
        self.gaps = 0
        self._last: dict[int, Interval] = {}

    @property
    def counts(self) -> Counts:
        """The counts of all processes."""
        total = Counts()
        for interval in self._last.values():
            total.add(interval.counts)
        return total

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return sum(interval.connections for interval in self._last.values())

    @property
    def workers(self) -> dict[int, Interval]:
        """The last interval of each process."""
        return dict(self._last)

    def add(self, interval: Interval) -> None:
        """Add an interval; those of one process come in order."""
        last = self._last.get(interval.worker)
        self.gaps += interval.seq - (last.seq + 1 if last is not None else 0)
        self._last[interval.worker] = interval
        self.causes.update(interval.causes)
        for name, counted in interval.durations.items():
            self.durations.setdefault(name, Counter()).update(counted)
        for cause, message in interval.samples.items():
            self.samples.setdefault(cause, message)

    def of(self, metric: str) -> Buckets:
        """Give the buckets of a metric, over all labels."""
        total: Buckets = Counter()
        for name, counted in self.durations.items():
            if name == metric or name.endswith(f"/{metric}"):
                total.update(counted)
        return total

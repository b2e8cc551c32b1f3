"""Pools for Prometheus, through ``prometheus_client`` (extra ``prometheus``).

Everything is read from ``pool.stats()`` when Prometheus asks; in between it costs nothing.
"""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from pulsar_client.metrics.watched_pools import WatchedPools
from pulsar_client.pool import Pool, PoolStats
from pulsar_client.pool.timings import BOUNDS

__all__ = ["PoolCollector"]

_POOL = ("pool",)

_GAUGES = (
    ("max_connections", "The most connections that may exist at once", "pool_size"),
    ("min_connections", "The connections that are kept open without being asked for", "min_size"),
    ("waiting", "Callers waiting for a connection", "waiting"),
)
_STATES = (
    ("idle", "available"),
    ("used", "in_use"),
    ("dialling", "dialling"),
    ("closing", "closing"),
)
_COUNTERS = (
    ("leases", "Leases given", "leases"),
    ("waits", "Leases that had to wait first", "waits"),
    ("timeouts", "Callers whose deadline passed before they had a connection", "timeouts"),
    ("overloads", "Callers turned away because of the queue", "overloads"),
    ("failed_dials", "Attempts to open a connection that failed", "failed_dials"),
    ("leaked_leases", "Leases that were garbage collected without having been released", "leaked"),
)
_BY_CAUSE = (
    ("opened", "Connections opened", "opened_by"),
    ("closed", "Connections closed or detached", "closed_by"),
)
_TIMES = (
    ("wait_seconds", "How long callers waited for their lease", "wait_time"),
    ("dial_seconds", "How long it took to open a connection", "dial_time"),
    ("use_seconds", "How long leases were held", "use_time"),
)


class PoolCollector:
    """Reports any number of pools; register it with a registry of ``prometheus_client``.

    Args:
        pools: pools of the running event loop, each under its own name; see :meth:`add`.
        prefix: what the names of the metrics begin with.

    Every metric has the label ``pool``.  Numbers are read on the pool's event loop, from whatever
    thread the registry collects in; a loop that is stuck for more than a second is reported with
    its last known numbers.
    """

    def __init__(self, *pools: Pool, prefix: str = "pulsar_client_pool") -> None:
        self._prefix = prefix
        self._pools = WatchedPools()
        for pool in pools:
            self.add(pool)

    def add(self, pool: Pool, name: str | None = None) -> None:
        """Report a pool until it is closed and its last connection is gone.

        Args:
            pool: a pool of the running event loop.
            name: the value of the label ``pool``; the pool's name by default.

        Raises:
            TypeError: ``pool`` is no pool.
            ValueError: the pool, or another one of that name, is reported already.
            RuntimeError: no event loop is running.
        """
        self._pools.add(pool, name)

    def remove(self, pool: Pool) -> None:
        """Report a pool no more; does nothing if it was not reported."""
        self._pools.remove(pool)

    def describe(self) -> Iterable[Metric]:
        """The metrics without values, for the registry's check of names."""
        return self._families([])

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        return self._families([(watched.name, stats) for watched, stats in self._pools.numbers()])

    def _families(self, pools: list[tuple[str, PoolStats]]) -> Iterator[Metric]:
        prefix = self._prefix
        connections = GaugeMetricFamily(
            f"{prefix}_connections", "Connections by state", labels=("pool", "state")
        )
        for name, stats in pools:
            for state, field in _STATES:
                connections.add_metric((name, state), getattr(stats, field))
        yield connections
        for suffix, text, field in _GAUGES:
            gauge = GaugeMetricFamily(f"{prefix}_{suffix}", text, labels=_POOL)
            for name, stats in pools:
                gauge.add_metric((name,), getattr(stats, field))
            yield gauge
        for suffix, text, field in _COUNTERS:
            counter = CounterMetricFamily(f"{prefix}_{suffix}", text, labels=_POOL)
            for name, stats in pools:
                counter.add_metric((name,), getattr(stats, field))
            yield counter
        for suffix, text, field in _BY_CAUSE:
            counter = CounterMetricFamily(f"{prefix}_{suffix}", text, labels=("pool", "cause"))
            for name, stats in pools:
                for cause, count in getattr(stats, field).items():
                    counter.add_metric((name, cause), count)
            yield counter
        for suffix, text, field in _TIMES:
            histogram = HistogramMetricFamily(f"{prefix}_{suffix}", text, labels=_POOL)
            for name, stats in pools:
                summary = getattr(stats, field)
                histogram.add_metric((name,), _cumulative(summary.buckets), summary.total)
            yield histogram


def _cumulative(buckets: tuple[tuple[float, int], ...]) -> list[tuple[str, float]]:
    """Every bucket, empty ones too: between two scrapes none may come or go."""
    counts = dict(buckets)
    total = 0
    result: list[tuple[str, float]] = []
    for bound in BOUNDS:
        total += counts.get(bound, 0)
        result.append(("+Inf" if bound == float("inf") else repr(bound), total))
    return result

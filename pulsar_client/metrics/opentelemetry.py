"""Pools for OpenTelemetry, through its API (extra ``opentelemetry``).

The instruments are those of the semantic conventions for database clients, named
``db.client.connection.*``.  What is a state of the pool is observed when the SDK collects, and
costs nothing in between.  There are no observable histograms: durations are recorded as they
happen, from the pool's hooks, so that they meet the context (and its trace) that they belong to.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    Observation,
    get_meter,
)

from pulsar_client.metrics.watched_pools import WatchedPools
from pulsar_client.pool import Pool

__all__ = ["PoolInstruments"]

_NAME = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"

# The conventions name no boundaries for these; those they name for operations, in seconds, and
# some below for leases that never wait.
_BOUNDARIES = (0.00001, 0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)

_HISTOGRAMS = {
    "on_open": ("create_time", "The time it took to create a new connection."),
    "on_lease": ("wait_time", "The time it took to obtain an open connection from the pool."),
    "on_release": (
        "use_time",
        "The time between borrowing a connection and returning it to the pool.",
    ),
}

_UP_DOWN = {
    "idle.max": (
        "pool_size",
        "{connection}",
        "The maximum number of idle open connections allowed.",
    ),
    "idle.min": (
        "min_size",
        "{connection}",
        "The minimum number of idle open connections allowed.",
    ),
    "max": ("pool_size", "{connection}", "The maximum number of open connections allowed."),
    "pending_requests": (
        "waiting",
        "{request}",
        "The number of current pending requests for an open connection.",
    ),
}


class PoolInstruments:
    """The instruments for any number of pools.

    Args:
        meter_provider: whose meter makes them; None for the global one.
        durations: record how long dials, waits and leases take.  Each lease then makes two
            measurements, a few microseconds together; without them leases cost nothing.

    The names of the pools are the attribute ``db.client.connection.pool.name``.
    """

    def __init__(
        self, *, meter_provider: MeterProvider | None = None, durations: bool = True
    ) -> None:
        meter = get_meter("pulsar_client", meter_provider=meter_provider)
        self._pools = WatchedPools()
        self._observe(meter)
        self._histograms = {
            event: meter.create_histogram(
                f"db.client.connection.{name}",
                unit="s",
                description=text,
                explicit_bucket_boundaries_advisory=_BOUNDARIES,
            )
            for event, (name, text) in (_HISTOGRAMS.items() if durations else ())
        }

    def _observe(self, meter: Meter) -> None:
        meter.create_observable_up_down_counter(
            "db.client.connection.count",
            [self._count],
            unit="{connection}",
            description="The number of connections that are currently in state described by the "
            "`state` attribute.",
        )
        for name, (field, unit, text) in _UP_DOWN.items():
            meter.create_observable_up_down_counter(
                f"db.client.connection.{name}", [self._reader(field)], unit=unit, description=text
            )
        meter.create_observable_counter(
            "db.client.connection.timeouts",
            [self._reader("timeouts")],
            unit="{timeout}",
            description="The number of connection timeouts that have occurred trying to obtain a "
            "connection from the pool.",
        )

    def add(
        self, pool: Pool, name: str | None = None, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Report a pool until it is closed and its last connection is gone.

        Args:
            pool: a pool of the running event loop.
            name: the name of the pool; its own by default.
            attributes: more of them, ``server.address`` and ``server.port`` for instance.

        Raises:
            TypeError: ``pool`` is no pool.
            ValueError: the pool, or another one of that name, is reported already.
            RuntimeError: no event loop is running.
        """
        watched = self._pools.add(pool, name)
        watched.attributes = {**(attributes or {}), _NAME: watched.name}
        for event, histogram in self._histograms.items():
            watched.bind(event, _recorder(histogram, watched.attributes))

    def remove(self, pool: Pool) -> None:
        """Report a pool no more; does nothing if it was not reported."""
        self._pools.remove(pool)

    def _count(self, options: CallbackOptions) -> Iterable[Observation]:
        for watched, stats in self._pools.numbers():
            for state, count in (("idle", stats.available), ("used", stats.in_use)):
                yield Observation(count, {**watched.attributes, _STATE: state})

    def _reader(self, field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(options: CallbackOptions) -> Iterable[Observation]:
            for watched, stats in self._pools.numbers():
                yield Observation(getattr(stats, field), watched.attributes)

        return read


def _recorder(histogram: Histogram, attributes: Mapping[str, Any]) -> Callable[..., None]:
    """A callback for a hook of the pool that records its duration."""
    record = histogram.record

    def note(sender: object, exc: object = None, *, duration: float, **kw: object) -> None:
        record(duration, attributes)

    return note

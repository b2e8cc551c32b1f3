"""What a pool tells about itself: a snapshot of numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from pulsar_client.pool.timings import TimeSummary

__all__ = ["PoolStats"]


@dataclass(frozen=True, slots=True, repr=False)
class PoolStats:
    """The numbers of a pool at one moment.

    ``available + in_use + dialling + closing == size <= pool_size`` always holds, but for the time
    after ``resize`` to less, until what is leased beyond it has come back.
    """

    #: What the pool is called.
    name: str
    #: The most connections that may exist at once.
    pool_size: int
    #: The connections that are kept open without being asked for.
    min_size: int
    #: Slots taken: idle, leased, being opened, being closed.
    size: int
    #: Idle connections, ready to be leased.
    available: int
    #: Leased connections, and those that are being reset after a lease.
    in_use: int
    #: Connections being opened.
    dialling: int
    #: Connections being closed.
    closing: int
    #: Callers waiting for a connection.
    waiting: int
    #: Leases given since the pool was made.
    leases: int
    #: Callers who found nothing idle that they could have at once, however their wait ended.
    waits: int
    #: Connections opened since the pool was made.
    opened: int
    #: Connections closed or detached since the pool was made.
    closed: int
    #: Callers whose deadline passed before they had a connection.
    timeouts: int
    #: Callers turned away: ``max_waiting`` was reached, or the queue was too slow.
    overloads: int
    #: Attempts to open a connection that failed.
    failed_dials: int
    #: Leases that were garbage collected without having been released.
    leaked: int
    #: Connections opened, by cause: ``demand`` or ``min_size``.
    opened_by: Mapping[str, int]
    #: Connections closed, by cause; see the hook ``on_close`` of :class:`~pulsar_client.Pool`.
    closed_by: Mapping[str, int]
    #: How long callers waited for their lease (seconds); an immediate lease counts as 0.
    wait_time: TimeSummary
    #: How long it took to open a connection, ``on_connect`` included (seconds).
    dial_time: TimeSummary
    #: How long leases were held (seconds), of one lease in 64; of all if somebody listens to
    #: the events of leases, or with ``leak_after``.
    use_time: TimeSummary

    @property
    def longest_wait(self) -> float:
        """The longest that a caller waited for its lease, in seconds."""
        return self.wait_time.maximum

    @property
    def reuse_ratio(self) -> float:
        """The share of leases that got a connection which had been used before; 0.0 to 1.0."""
        return max(0.0, 1 - self.opened / self.leases) if self.leases else 0.0

    def __repr__(self) -> str:
        causes = ", ".join(f"{count} {cause}" for cause, count in self.closed_by.items())
        return (
            f"<PoolStats {self.name!r}: {self.size} of {self.pool_size} slots: "
            f"{self.in_use} in use, {self.available} available, {self.dialling} dialling, "
            f"{self.closing} closing; {self.waiting} waiting; "
            f"{self.leases} leases, reuse {self.reuse_ratio:.1%}, "
            f"wait p99 {self.wait_time.quantile(0.99):.3g} s max {self.longest_wait:.3g} s, "
            f"use p99 {self.use_time.quantile(0.99):.3g} s; "
            f"opened {self.opened}, closed {self.closed}{f' ({causes})' if causes else ''}; "
            f"{self.timeouts} timeouts, {self.overloads} overloads, "
            f"{self.failed_dials} failed dials, {self.leaked} leaked>"
        )

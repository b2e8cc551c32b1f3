"""What a pool tells about itself: a snapshot of numbers."""

from dataclasses import dataclass

__all__ = ["PoolStats"]


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The numbers of a pool at one moment.

    ``available + in_use + dialling + closing == size <= pool_size`` always holds.
    """

    #: The most connections that may exist at once.
    pool_size: int
    #: Slots taken: idle, leased, being opened, being closed.
    size: int
    #: Idle connections, ready to be leased.
    available: int
    #: Leased connections.
    in_use: int
    #: Connections being opened.
    dialling: int
    #: Connections being closed.
    closing: int
    #: Callers waiting for a connection.
    waiting: int
    #: Leases given since the pool was made.
    leases: int
    #: Connections opened since the pool was made.
    opened: int
    #: Connections closed or detached since the pool was made.
    closed: int
    #: Callers whose deadline passed before they had a connection.
    timeouts: int

"""One lease of a pooled connection.

This module knows what a lease may do with its pool, and nothing of how the pool decides.
"""

import warnings
from types import CodeType
from typing import Any, Self

from pulsar_client.exceptions import LeaseReleased
from pulsar_client.pool.leaks import describe_site
from pulsar_client.pool.ledger import LEASED

__all__ = ["PoolConnection"]


class PoolConnection:
    """A leased connection; attribute access reaches the connection itself.

    ``async with pool.connect() as conn`` and ``conn = await pool.connect()`` give one.  At the end
    of the block, or with :meth:`close`, the connection goes back to the pool if the next user can
    trust it, else it is closed.

    A lease that is garbage collected without having been released is reported by a
    ``ResourceWarning`` that says where it was taken; its connection is closed, and its slot is
    free again, when the pool is used next, or within half a second while somebody waits.

    Args:
        pool: the pool that gave it.
        connection: one of its connections.  If it is idle, this leases it; if it is leased, this
            takes the lease over: releasing the handle that had it before does nothing.

    Raises:
        ValueError: it is not a connection of the pool, it is in use and shared, or it is being
            reset.
        RuntimeError: the pool belongs to another event loop, or to another process.

    Attributes:
        pool: the pool that gave the lease.
        connection: the connection itself.

    Using the lease after it was released raises :class:`~pulsar_client.LeaseReleased`.
    """

    # Because of __getattr__ each load of an attribute of a lease, a slot too, costs several times
    # what it costs elsewhere, a tenth of a lease.  So what is needed on its path is reached
    # through as few as possible: `_leases` is there until the lease begins, `_entry` from then
    # until it ends, and the rest is found at the entry.
    __slots__ = ("_entry", "_instruction", "_kept", "_leases", "_since", "_site", "pool")

    pool: Any
    _site: Any
    _instruction: int

    def __init__(self, pool: Any, connection: Any) -> None:
        self._entry: Any = None
        leases = pool._leases
        self.pool = pool
        self._leases: Any = None
        self._entry = leases.take_this(connection)
        self._site = None
        self.observe(0.0)

    @property
    def connection(self) -> Any:
        """The connection itself."""
        entry = self._entry
        if entry is None:
            raise self._refusal()
        return entry.connection

    def __getattr__(self, name: str) -> Any:
        entry = self._entry
        if name in ("_since", "_kept"):
            return None  # a slot that was not needed
        if entry is None:
            raise self._refusal()
        return getattr(entry.connection, name)

    def __repr__(self) -> str:
        name = self.pool.name
        if self._entry is not None:
            return f"<PoolConnection of {name!r}: {self.connection!r}>"
        state = "released" if self._leases is None else "not leased yet"
        return f"<PoolConnection of {name!r}: {state}>"

    def __del__(self) -> None:
        # In whatever thread, whatever it interrupts: note it and warn, nothing else (I30).
        entry = self._entry
        if entry is not None and entry.state == LEASED:
            entry.owner.lost.append((entry, self._site))
            warnings.warn(
                f"a lease of {entry.connection!r} from {self.pool!r} was garbage collected "
                f"without having been released; {self._describe_site()}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    async def __aenter__(self) -> Self:
        if self._entry is None:
            raise self._refusal()
        return self

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        entry = self._entry
        if entry is None or (entry.kept and self._kept):
            return
        self._entry = None
        if entry.measured:
            self._measure(entry)
        entry.owner.give_back(entry, False, exc_type is not None)

    def close(self, discard: bool = False) -> Any:
        """Give the connection back.

        Synchronous; it can't fail and can't be cancelled.  A second call does nothing.

        Args:
            discard: close the connection instead of putting it back.

        Returns:
            The connection, or None if the lease was released before.
        """
        entry = self._entry
        if entry is None:
            return None
        connection = entry.connection
        self._end(entry)
        entry.owner.give_back(entry, discard, False)
        return connection

    def detach(self, discard: bool = True) -> Any:
        """Keep the connection beyond the ``async with`` block.

        Args:
            discard: True takes the connection out of the pool for good: its slot is free, and
                closing it is the caller's business.  False keeps this lease, and its slot, until
                :meth:`close`.

        Returns:
            The connection, open and the caller's own; or this lease, if it is kept.

        Raises:
            LeaseReleased: the lease was released before.
            RuntimeError: other tasks use the connection too (``share``).
        """
        connection = self.connection
        entry = self._entry
        if not discard:
            self._kept = entry.kept = True
            return self
        entry.owner.let_go(entry)
        self._end(entry)
        return connection

    def observe(self, waited: float) -> None:
        """Measure this lease, which took so many seconds to get; tell those who want to know."""
        entry = self._entry
        entry.measured = True
        self._since = entry.owner.time()
        hold = entry.owner.began(entry.connection, waited, self._since)
        if hold is not None:
            self._site = hold

    def _refusal(self) -> LeaseReleased:
        if self._leases is None:
            return LeaseReleased(f"{self!r} was used after its release")
        return LeaseReleased(f"{self!r}: await connect() first, or enter it with 'async with'")

    def _describe_site(self) -> str:
        site = self._site
        return describe_site(site, self._instruction if isinstance(site, CodeType) else 0)

    def _measure(self, entry: Any) -> None:
        """The end of a lease that may have been measured."""
        since = self._since
        entry.measured = entry.owner.shares  # whose other leases may be measured
        if since is not None:
            entry.owner.ended(entry, self._site, since)

    def _end(self, entry: Any) -> None:
        self._entry = None
        if self._kept:
            entry.kept = entry.owner.shares
        if entry.measured:
            self._measure(entry)

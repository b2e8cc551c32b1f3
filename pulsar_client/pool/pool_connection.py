"""One lease of a pooled connection.

This module knows what a lease may do with its pool, and nothing of how the pool decides.
"""

from typing import Any, Self

from pulsar_client.exceptions import LeaseReleased

__all__ = ["PoolConnection"]


class PoolConnection:
    """A leased connection; attribute access reaches the connection itself.

    ``async with pool.connect() as conn`` and ``conn = await pool.connect()`` give one.  At the end
    of the block, or with :meth:`close`, the connection goes back to the pool if the next user can
    trust it, else it is closed.

    Args:
        pool: the pool that gave it.
        connection: the leased connection.

    Attributes:
        pool: the pool that gave the lease.
        connection: the connection itself.

    Using the lease after it was released raises :class:`~pulsar_client.LeaseReleased`.
    """

    # `connection` is deleted at the release: from then on any use ends in __getattr__.
    __slots__ = ("_entry", "_kept", "connection", "pool")

    pool: Any
    connection: Any

    def __init__(self, pool: Any, connection: Any) -> None:
        self.pool = pool
        self.connection = connection
        self._entry: Any = pool.entry_of(connection)
        self._kept = False

    def __getattr__(self, name: str) -> Any:
        if name == "connection":
            raise LeaseReleased(f"{self!r} was used after its release")
        return getattr(self.connection, name)

    def __repr__(self) -> str:
        try:
            connection = object.__getattribute__(self, "connection")
        except AttributeError:
            return f"<PoolConnection of {self.pool.name!r}: released>"
        return f"<PoolConnection of {self.pool.name!r}: {connection!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        if self._kept:
            return
        try:
            del self.connection
        except AttributeError:
            return  # released inside the block
        self.pool.give_back(self._entry, False, exc_type is not None)

    def close(self, discard: bool = False) -> Any:
        """Give the connection back.

        Synchronous; it can't fail and can't be cancelled.  A second call does nothing.

        Args:
            discard: close the connection instead of putting it back.

        Returns:
            The connection, or None if the lease was released before.
        """
        try:
            connection = object.__getattribute__(self, "connection")
        except AttributeError:
            return None
        del self.connection
        self.pool.give_back(self._entry, discard, False)
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
        """
        connection = self.connection
        if not discard:
            self._kept = True
            return self
        del self.connection
        self.pool.let_go(self._entry)
        return connection

"""Which pools are reported, under which names; and how another thread reads their numbers.

Monitoring libraries collect in threads of their own, and a pool belongs to its event loop's.  This
module knows no monitoring system.
"""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pulsar_client.pool import Pool, PoolStats

__all__ = ["WatchedPool", "WatchedPools"]

#: Seconds that a collecting thread waits for a loop that is busy, before it takes old numbers.
_PATIENCE = 1.0


class WatchedPool:
    """One pool under its name; made on the pool's event loop.

    Args:
        pool: the pool.
        name: what the monitoring system calls it.
    """

    __slots__ = ("_callbacks", "_given_up", "_last", "_loop", "attributes", "name", "pool")

    def __init__(self, pool: Pool, name: str) -> None:
        self.pool = pool
        self.name = name
        #: What else the monitoring system is told of it.
        self.attributes: Mapping[str, Any] = {}
        self._callbacks: list[tuple[str, Callable[..., None]]] = []
        self._loop = asyncio.get_running_loop()
        self._last = pool.stats()
        self._given_up = -_PATIENCE

    def stats(self) -> PoolStats:
        """The pool's numbers of this moment, from any thread.

        While the loop is stuck the last known ones come after a second, and at once for the
        second that follows.
        """
        running = None
        with contextlib.suppress(RuntimeError):
            running = asyncio.get_running_loop()
        if running is self._loop or not self._loop.is_running():
            self._last = self.pool.stats()
        elif time.monotonic() - self._given_up >= _PATIENCE:
            self._ask()
        return self._last

    def bind(self, event: str, callback: Callable[..., None]) -> None:
        """Call back at an event of the pool, for as long as it is watched."""
        self.pool.bind_event(event, callback)
        self._callbacks.append((event, callback))

    def unbind(self) -> None:
        """Take back every callback."""
        for event, callback in self._callbacks:
            self.pool.remove_callback(event, callback)
        self._callbacks.clear()

    def is_gone(self) -> bool:
        """The pool is closed, and so is its last connection."""
        return self.pool.closed and not self.stats().size

    def _ask(self) -> None:
        """Let the loop's own thread read the numbers."""
        answer: concurrent.futures.Future[PoolStats] = concurrent.futures.Future()

        def read() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_result(self.pool.stats())

        with contextlib.suppress(RuntimeError):  # closed in this moment
            self._loop.call_soon_threadsafe(read)
            try:
                self._last = answer.result(_PATIENCE)
            except concurrent.futures.TimeoutError:
                answer.cancel()
                self._given_up = time.monotonic()


class WatchedPools:
    """The pools that are reported."""

    def __init__(self) -> None:
        self._pools: list[WatchedPool] = []

    def numbers(self) -> Iterator[tuple[WatchedPool, PoolStats]]:
        """Each pool with its numbers of this moment, from any thread.

        A closed pool is left out once its last connection is gone.
        """
        for watched in tuple(self._pools):
            stats = watched.stats()
            if stats.size or not watched.pool.closed:
                yield watched, stats

    def add(self, pool: Pool, name: str | None) -> WatchedPool:
        """Report a pool.

        Args:
            pool: the pool; one of the running event loop.
            name: what to call it; the pool's own name by default.

        Raises:
            TypeError: ``pool`` is no pool.
            ValueError: the pool, or another one of that name, is reported already.
            RuntimeError: no event loop is running.
        """
        if not isinstance(pool, Pool):
            raise TypeError(f"pool is {pool!r}, expected a pulsar_client.Pool")
        name = name or pool.name
        self._pools = [known for known in self._pools if not known.is_gone()]
        for known in self._pools:
            if known.pool is pool:
                raise ValueError(f"{pool!r} is reported already, as {known.name!r}")
            if known.name == name:
                raise ValueError(
                    f"name is {name!r}, and {known.pool!r} is reported under it already: "
                    "give this one another"
                )
        watched = WatchedPool(pool, name)
        self._pools.append(watched)
        return watched

    def remove(self, pool: Pool) -> None:
        """Report a pool no more; does nothing if it was not reported."""
        for known in self._pools:
            if known.pool is pool:
                known.unbind()
        self._pools = [known for known in self._pools if known.pool is not pool]

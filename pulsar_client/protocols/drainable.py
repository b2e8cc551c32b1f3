"""Waiting until nothing is in flight any more.

This module knows nothing of consumers; who feeds them says when to look again.
"""

from asyncio import Future, get_running_loop
from typing import Any

from pulsar_client.exceptions import ConnectionClosed
from pulsar_client.protocols.collector import Collector
from pulsar_client.protocols.deadlines import DeadlineQueue

__all__ = ["Drainable"]


class Drainable(Collector):
    """A stream protocol of which one can wait until it is idle; see ``Protocol``."""

    _end_waiters: tuple[Future[None], ...] = ()
    # Of requests that have a time-out.
    _deadlines: DeadlineQueue[Any] | None

    async def drained(self) -> bool:
        """Wait until no request is in flight, abandoned ones included.

        Returns:
            True.

        Raises:
            ConnectionClosed: the connection is closing or lost.

        There is no time-out; cancelling it changes nothing for the connection.
        """
        while self._is_busy() and not self.closed:
            waiter = get_running_loop().create_future()
            self._end_waiters += (waiter,)
            try:
                await waiter
            finally:
                # Cancelled: an abandoned wait costs no memory.
                self._end_waiters = tuple(w for w in self._end_waiters if w is not waiter)
        if self.closed:
            raise ConnectionClosed(f"{self}: closed before nothing was in flight any more")
        return True

    def tell_drained(self) -> None:
        """Nothing is in flight: wake those who wait for that, to look again."""
        if self._deadlines is not None:
            self._deadlines.forget()  # and with them the replies
        waiters = self._end_waiters
        if waiters:
            self._end_waiters = ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

"""Waiting until nothing is in flight any more.

This module knows nothing of consumers; who feeds them says when to look again.
"""

from asyncio import Future, get_running_loop

from pulsar_client.exceptions import ConnectionClosed
from pulsar_client.protocols.collector import Collector

__all__ = ["Drainable"]


class Drainable(Collector):
    """A stream protocol of which one can wait until it is idle; see ``Protocol``."""

    _end_waiters: tuple[Future[None], ...] = ()

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
        """Wake those who wait until nothing is in flight, to look again."""
        waiters, self._end_waiters = self._end_waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

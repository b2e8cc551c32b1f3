"""Those who wait: until when, how many of them, and who is turned away in an overload."""

import asyncio
from collections.abc import Callable
from math import inf

from pulsar_client.exceptions import PoolOverloaded
from pulsar_client.pool.codel import CoDel
from pulsar_client.pool.dialler import fail
from pulsar_client.pool.ledger import Entry, Ledger, Waiter
from pulsar_client.pool.options import PoolOptions

__all__ = ["Waiting"]

#: Seconds by which a deadline may be missed when very many callers wait.
_PAUSE = 0.04
#: Seconds after which it is looked, while somebody waits, whether a lease was forgotten.
_PATROL = 0.47


class Waiting:
    """Ends waits in time, and those that should not be.

    Args:
        options: ``max_waiting``, ``queue_target``, ``queue_interval``.
        owner: what errors call the pool; only its ``repr`` is used.
        patrol: called now and then while somebody waits.
    """

    def __init__(
        self, options: PoolOptions, *, owner: object, patrol: Callable[[], object]
    ) -> None:
        self._max_waiting = options.max_waiting
        self._owner = owner
        self._patrol = patrol
        self._codel: CoDel | None = None
        if options.queue_target is not None:
            self._codel = CoDel(options.queue_target, options.queue_interval)
        # When they came, only kept for CoDel.
        self._since: dict[Waiter, float] = {}
        self._handle: asyncio.TimerHandle | None = None
        #: When those who wait are looked at; infinity if nobody waits.
        self.next_look = inf
        #: Waiters may be turned away when it is their turn.
        self.sheds = self._codel is not None
        self.overloads = 0

    def bind(self, ledger: Ledger, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to serve a pool, on its loop."""
        self._ledger = ledger
        self._loop = loop

    def admit(self) -> None:
        """Refuse one more who wants to wait.

        Raises:
            PoolOverloaded: as many wait as may.
        """
        if self._max_waiting is not None and self._ledger.is_full(self._max_waiting):
            self.overloads += 1
            raise PoolOverloaded(
                f"{self._owner!r}: {self._ledger.waiting} callers wait, "
                f"max_waiting is {self._max_waiting}"
            )

    def joined(
        self, waiter: "asyncio.Future[Entry | None]", since: float, deadline: float
    ) -> None:
        """One who waits has joined the ledger's queue."""
        if self._codel is not None:
            self._since[waiter] = since
            waiter.add_done_callback(self._left)  # however its wait ends (I9)
        # One timer for all who wait: one for each would cost more than the rest of the wait.
        if self._handle is None or deadline < self.next_look:
            self._arm(min(deadline, self._loop.time() + _PATROL))

    def _left(self, waiter: Waiter) -> None:
        self._since.pop(waiter, None)

    def turn_away(self, waiter: Waiter) -> bool:
        """Asked about one whose turn it is while others wait: True if it was told to go."""
        if self._codel is None:
            return False
        now = self._loop.time()
        waited = now - self._since.pop(waiter, now)
        if not self._codel.sheds(waited, now):
            return False
        self.overloads += 1
        error = PoolOverloaded(
            f"{self._owner!r}: overloaded, turned away after {waited:.3g} s in the queue"
        )
        return fail(waiter, error)

    def stop(self) -> None:
        """Nobody waits any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self.next_look = when
        self._handle = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """End the waits whose deadline has passed."""
        self._handle = None
        self.next_look = inf
        self._patrol()
        late, earliest = self._ledger.late(self._loop.time())
        for waiter in late:
            if not waiter.done():
                waiter.set_result(None)
        waiting = self._ledger.waiting
        if waiting:
            # Looking at n waiters takes time: not again at once for each deadline of many.
            now = self._loop.time()
            pause = min(_PAUSE, 2e-6 * waiting)
            self._arm(max(min(earliest, now + _PATROL), now + pause))

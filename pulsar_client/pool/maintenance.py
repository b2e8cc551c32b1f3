"""What a pool does unasked: one timer for age, idleness, the floor and leases held too long.

The timer runs only while there is something to wait for; a pool without these options has none.
"""

import asyncio
import random
from collections.abc import Callable
from itertools import islice
from math import inf

from pulsar_client.pool.leaks import Leaks
from pulsar_client.pool.ledger import IDLE, Entry, Ledger
from pulsar_client.pool.options import PoolOptions

__all__ = ["Maintenance"]

#: Connections die between this share of ``max_age`` and all of it.
_YOUNGEST = 0.75
#: The golden ratio: steps of it, modulo 1, spread evenly however many there are.
_STEP = 0.6180339887498949


class Maintenance:
    """Closes what is too old or idle for too long, and reports what is held too long.

    Args:
        options: ``max_idle``, ``max_age``.
        leaks: reports leases, or None.
        retire: called with an idle entry and the cause of its end.
        start_dials: called when a connection may have to be replaced.
    """

    def __init__(
        self,
        options: PoolOptions,
        ledger: Ledger,
        *,
        leaks: Leaks | None,
        retire: Callable[[Entry, str], None],
        start_dials: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._max_idle = options.max_idle
        self._max_age = options.max_age
        self._leaks = leaks
        self._retire = retire
        self._start_dials = start_dials
        self._phase = random.random()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._due = inf
        self._looking = False

    @property
    def looks_at_idle(self) -> bool:
        """True if :meth:`became_idle` wants to be called."""
        return self._max_idle is not None or self._max_age is not None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work, on the pool's loop."""
        self._loop = loop

    def opened(self, entry: Entry, now: float) -> None:
        """A connection is open: set when it dies.

        Those that were born together do not die together (I24): the shares of ``max_age`` that
        successive connections get are as far apart as so many can be.
        """
        if self._max_age is not None:
            self._phase = (self._phase + _STEP) % 1.0
            entry.dies_at = now + self._max_age * (_YOUNGEST + (1 - _YOUNGEST) * self._phase)

    def became_idle(self, entry: Entry, now: float) -> None:
        """A connection was put away."""
        entry.idle_since = now
        due = entry.dies_at
        if self._max_idle is not None and self._ledger.spare:
            since = now
            if self._due == inf:  # perhaps others lie there for longer, and were not spare
                since = next(one for one in self._ledger.shelf if one.state == IDLE).idle_since
            due = min(due, since + self._max_idle)
        self.look_at(due)

    def look_at(self, when: float) -> None:
        """There will be something to do then."""
        if when < self._due and self._loop is not None and not self._ledger.closed:
            if self._handle is not None:
                self._handle.cancel()
            self._due = when
            self._handle = self._loop.call_at(when, self.look)

    def stop(self) -> None:
        """Do nothing more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def look(self) -> None:
        """Do what is due, and come again when something will be."""
        if self._loop is None or self._ledger.closed or self._looking:
            return
        self._looking = True
        try:
            if self._handle is not None:
                self._handle.cancel()
                self._handle = None
            self._due = inf
            now = self._loop.time()
            due = min(self._end_the_idle(now), self._end_the_old(now))
            if self._leaks is not None:
                due = min(due, self._leaks.report(now) or inf)
        finally:
            self._looking = False
        if due < inf:
            self.look_at(due)

    def _end_the_idle(self, now: float) -> float:
        """Close what is idle for too long, but not below the floor (I25)."""
        if self._max_idle is None:
            return inf
        for entry in self._ledger.idle:
            if not self._ledger.spare:
                break
            due = entry.idle_since + self._max_idle
            if due > now:
                return due
            self._retire(entry, "idle")
        return inf  # whoever leaves or comes back next sets the timer again

    def _end_the_old(self, now: float) -> float:
        """Close what has reached its age; what the floor needs, after its successor is open."""
        ledger = self._ledger
        due = inf
        for entry in ledger.idle:
            if entry.dies_at > now:
                due = min(due, entry.dies_at)
            elif entry in ledger.dying:
                continue
            elif ledger.spare or ledger.size >= ledger.max_size:
                self._retire(entry, entry.cause or "age")
            else:
                ledger.dying.add(entry)
        if ledger.dying:
            self._start_dials()
            self.end_the_replaced()
        return due

    def end_the_replaced(self) -> None:
        """Close those old ones whose successors are open, or can't be opened."""
        ledger = self._ledger
        surplus = ledger.open - ledger.floor if ledger.dialling else len(ledger.dying)
        for entry in tuple(islice(ledger.dying, max(0, surplus))):
            if entry.state == IDLE:
                self._retire(entry, entry.cause or "age")

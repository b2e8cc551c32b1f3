"""Many deadlines and one timer.

A time-out of its own for each request would cost more than the request.  Here a deadline is an
entry in a heap; a request that is over in time leaves its entry behind, which is thrown away when
the next one comes and it is the earliest, when such entries are in the majority, when the timer
comes to it, or when nothing is in flight any more.

This module knows nothing of connections and requests.
"""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Generic, Protocol, TypeVar

__all__ = ["DeadlineQueue", "Together"]


class _Ends(Protocol):
    """Something that is over at some time; asked seldom, not for every entry."""

    def done(self) -> bool: ...


T = TypeVar("T", bound=_Ends)

#: So many entries are kept before it is looked whether they are still needed.
_FEW = 256


class Together(list[T]):
    """Items with one deadline, for one entry."""

    def done(self) -> bool:
        """True if all of them are."""
        for item in self:  # noqa: SIM110 - a generator costs more than the loop
            if not item.done():
                return False
        return True


class DeadlineQueue(Generic[T]):
    """Calls ``expired(item, seconds)`` for each item that is not ``done()`` at its deadline.

    Adding costs O(log n), without a timer of its own for each item.  There are never more than
    twice as many entries as items that are not done, and a constant number.  Times are the loop's.

    Args:
        loop: whose clock and timer to use.
        expired: called once for each item that is late, in the order of their deadlines, with
            the seconds it was given.
    """

    __slots__ = ("_armed_for", "_expired", "_handle", "_heap", "_loop", "_many", "_order")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, expired: Callable[[T, float], object]
    ) -> None:
        self._loop = loop
        self._expired = expired
        # The counter keeps entries of the same deadline in order, and the items out of it.
        self._heap: list[tuple[float, int, T, float]] = []
        self._order = count()
        self._many = _FEW
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = inf

    def __len__(self) -> int:
        """How many entries there are, those of items that are done included."""
        return len(self._heap)

    def add(self, item: T, seconds: float) -> None:
        """Let ``item`` expire in so many seconds, unless it is done by then."""
        deadline = self._loop.time() + seconds
        heap = self._heap
        while heap and heap[0][2].done():
            heappop(heap)
        heappush(heap, (deadline, next(self._order), item, seconds))
        if deadline < self._armed_for:
            self._arm(deadline)
        if len(heap) > self._many:
            self._compact()

    def forget(self) -> None:
        """Forget every item, with what it holds; the timer stays for those that follow."""
        self._heap.clear()
        self._many = _FEW

    def clear(self) -> None:
        """Forget every item and the timer."""
        self.forget()
        self._disarm()

    def _compact(self) -> None:
        self._heap[:] = [entry for entry in self._heap if not entry[2].done()]
        heapify(self._heap)
        self._many = 2 * len(self._heap) + _FEW

    def _arm(self, deadline: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = deadline
        self._handle = self._loop.call_at(deadline, self._look)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._armed_for = inf

    def _look(self) -> None:
        self._disarm()
        heap = self._heap
        # The clock may be a little behind the deadline that the loop has kept.
        now = self._loop.time()
        while heap:
            deadline, _, item, seconds = heap[0]
            if item.done():
                heappop(heap)
            elif deadline <= now:
                heappop(heap)
                self._expired(item, seconds)
            else:
                if self._armed_for > deadline:
                    self._arm(deadline)
                return

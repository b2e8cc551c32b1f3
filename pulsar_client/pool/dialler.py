"""Opens connections for those who wait: one task a dial, owned here.

A dial belongs to the pool, not to the caller it was made for: a caller that leaves does not stop
it, and what it opens goes to whoever is first in the queue (I14).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Any

from pulsar_client.exceptions import PoolError, PoolUnavailable
from pulsar_client.pool.ledger import Dial, Entry, Ledger

__all__ = ["Dialler", "fail"]

_logger = logging.getLogger("pulsar_client.pool")


class Dialler:
    """Carries out the dials that the ledger asks for.

    Args:
        ledger: the book of the pool.
        creator: opens a connection.
        owner: what errors call the pool; only its ``repr`` is used.
        opened: called with the entry of a new connection, leased to nobody yet.
        slot_freed: called when a dial ended without a connection.
    """

    def __init__(
        self,
        ledger: Ledger,
        creator: Callable[[], Awaitable[Any]],
        *,
        owner: object,
        opened: Callable[[Entry], None],
        slot_freed: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._creator = creator
        self._owner = owner
        self._opened = opened
        self._slot_freed = slot_freed
        self._tasks: dict[asyncio.Task[None], Dial] = {}
        self._last_error: BaseException | None = None
        self._failed_at = 0.0
        self._starting = False
        # A dial has succeeded since.
        self._recovered = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the dials that are due: for those who wait, while slots are free."""
        if self._starting:
            return  # an eager task has ended already: the loop below goes on
        self._starting = True
        try:
            self._start(loop)
        finally:
            self._starting = False

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while (dial := self._ledger.next_dial()) is not None:
            task = loop.create_task(self._dial(dial), name=f"dial of {self._owner!r}")
            self._tasks[task] = dial
            task.add_done_callback(partial(self._ended, dial))

    def cancel(self) -> None:
        """Cancel every dial under way; each frees its slot as it ends."""
        for task in tuple(self._tasks):
            task.cancel()

    def abandon(self) -> None:
        """Wait no longer for dials that were cancelled and take their time: their slots are free.

        A connection that one of them opens still is closed at once.
        """
        for dial in tuple(self._tasks.values()):
            if not dial.abandoned:
                dial.abandoned = True
                self._ledger.dial_failed()
                _logger.warning("%r: a dial does not end, forgotten", self._owner)
        self._slot_freed()

    def explain(self, error: PoolError, now: float) -> PoolError:
        """Add the last dial error to another one, as its cause unless dials succeed again."""
        failure = self._last_error
        if failure is None:
            return error
        if self._recovered:
            ago = f"{now - self._failed_at:.3g} s ago"
            error.args = (f"{error}; the last dial error, {ago}, was {failure!r}",)
        else:
            error.args = (f"{error}; the last dial failed with {failure!r}",)
            error.__cause__ = failure
        return error

    async def _dial(self, dial: Dial) -> None:
        """Open a connection within the deadline of the waiter it is for, even if that one left."""
        dial.begun = True
        limit = asyncio.timeout_at(None if dial.deadline == inf else dial.deadline)
        try:
            async with limit:
                connection = await self._create()
        except BaseException as exc:
            # Whatever ended it, the slot is free and somebody else gets a turn (I1, I5).
            if dial.abandoned and isinstance(exc, Exception | asyncio.CancelledError):
                return
            self._ledger.dial_failed()
            if not isinstance(exc, Exception):
                self._refused(dial, exc)  # cancelled: by the pool's close, or by the creator
            elif not isinstance(exc, OSError):  # TimeoutError is an OSError
                self._broken(dial, exc)
            elif not limit.expired():
                # An expired deadline is the asker's and says nothing about the target.
                self._last_error = exc
                self._failed_at = asyncio.get_running_loop().time()
                self._recovered = False
                self._refused(dial, exc)
            self._slot_freed()
            if not isinstance(exc, Exception):
                raise
        else:
            if dial.abandoned:
                connection.close()
                return
            self._recovered = True
            self._opened(self._ledger.dial_succeeded(connection))

    def _ended(self, dial: Dial, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not dial.begun and not dial.abandoned:
            # Cancelled before its first step: nothing of _dial() has run.
            self._ledger.dial_failed()
            self._refused(dial, asyncio.CancelledError())
            self._slot_freed()

    async def _create(self) -> Any:
        """Call the creator and check what it gives."""
        awaitable = self._creator()
        if not hasattr(awaitable, "__await__"):
            raise TypeError(
                f"creator {self._creator!r} returned {awaitable!r}, expected an awaitable"
            )
        try:
            connection = await awaitable
        except asyncio.CancelledError:
            # It came too late for a future that has its connection, which nobody else knows (I3).
            if not isinstance(awaitable, asyncio.Future) or not _succeeded(awaitable):
                raise
            connection = awaitable.result()
        if not hasattr(connection, "closed") or not callable(getattr(connection, "close", None)):
            raise TypeError(
                f"creator {self._creator!r} gave {connection!r}, expected a connection: an "
                "object with 'closed' and 'close()'"
            )
        if id(connection) in self._ledger.entries:
            raise ValueError(f"creator {self._creator!r} gave {connection!r} twice")
        if connection.closed:
            raise ConnectionError(
                f"creator {self._creator!r} gave {connection!r}, which is closed"
            )
        return connection

    def _broken(self, dial: Dial, exc: Exception) -> None:
        """The creator has a bug: its caller gets the exception as it is."""
        self._ledger.leave(dial.asker)
        if not fail(dial.asker, exc):
            _logger.error("%r: the creator failed", self._owner, exc_info=exc)

    def _refused(self, dial: Dial, exc: BaseException) -> None:
        """Tell those whom a failed dial concerns.

        That is the waiter it was made for; when no connection is open, all: they would wait for
        something that can't come.
        """
        ledger = self._ledger
        if ledger.leased or ledger.idle:
            waiters = [dial.asker] if ledger.leave(dial.asker) else []
        else:
            waiters = ledger.leave_all()
        for waiter in waiters:
            error = PoolUnavailable(f"{self._owner!r}: can't open a connection: {exc!r}")
            error.__cause__ = exc
            fail(waiter, error)


def _succeeded(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def fail(waiter: Any, exc: BaseException) -> bool:
    """End a wait with an error; False if it has ended already."""
    if waiter.done():
        return False
    waiter.set_exception(exc)
    return True

"""Opens connections for those who wait: one task a dial, owned here.

A dial belongs to the pool, not to the caller it was made for: a caller that leaves does not stop
it, and what it opens goes to whoever is first in the queue (I14).  A target that can't be reached
is left alone for a while, and then tried by one dial at a time (I26).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Any

from tenacity import RetryError

from pulsar_client.exceptions import PoolError, PoolUnavailable
from pulsar_client.pool.backoff import Backoff
from pulsar_client.pool.ledger import Dial, Entry, Ledger
from pulsar_client.pool.options import PoolOptions
from pulsar_client.pool.timings import Timings

__all__ = ["Dialler", "fail"]

_logger = logging.getLogger("pulsar_client.pool")

#: Seconds that a dial may take which nobody waits for any more, in a pool without a time-out.
_UNASKED_LIMIT = 30.0


class Dialler:
    """Carries out the dials that the ledger asks for.

    Args:
        ledger: the book of the pool.
        creator: opens a connection.
        options: ``on_connect``, ``retry``, ``timeout`` and how many dials at once.
        owner: what errors call the pool; only its ``repr`` is used.
        opened: called with the entry of a new connection, leased to nobody yet, and the cause.
        retire: called with the entry of a connection that ``on_connect`` refused, and the cause.
        slot_freed: called when a dial ended without a connection.
    """

    def __init__(
        self,
        ledger: Ledger,
        creator: Callable[[], Awaitable[Any]],
        options: PoolOptions,
        *,
        owner: object,
        opened: Callable[[Entry, str, float], None],
        retire: Callable[[Entry, str], None],
        slot_freed: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._creator = creator
        self._on_connect = options.on_connect
        self._retry = options.retry
        self._unasked_limit = options.timeout or _UNASKED_LIMIT
        self._owner = owner
        self._opened = opened
        self._retire = retire
        self._slot_freed = slot_freed
        self._tasks: dict[asyncio.Task[None], Dial] = {}
        self.backoff = Backoff(options.dials_at_once)
        self._resume_handle: asyncio.TimerHandle | None = None
        self._last_error: BaseException | None = None
        self._failed_at = 0.0
        self._starting = False
        # A dial has succeeded since.
        self._recovered = False
        self.times = Timings()
        self.failures = 0
        ledger.dial_limit = options.dials_at_once

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the dials that are due: for those who wait, and for the floor, in free slots."""
        if self._starting:
            return  # an eager task has ended already: the loop below goes on
        self._starting = True
        try:
            self._start(loop)
        finally:
            self._starting = False

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        ledger = self._ledger
        backoff = self.backoff
        while True:
            if backoff.down:
                ledger.dial_limit = backoff.limit(loop.time())
            dial = ledger.next_dial()
            if dial is None:
                break
            dial.epoch = backoff.epoch
            if dial.asker is None:
                dial.deadline = loop.time() + self._unasked_limit
            task = loop.create_task(self._dial(dial), name=f"dial of {self._owner!r}")
            self._tasks[task] = dial
            task.add_done_callback(partial(self._ended, dial))
        if (
            backoff.down
            and ledger.dial_limit == 0
            and self._resume_handle is None
            and (ledger.waiting or ledger.below_floor)
        ):
            self._resume_handle = loop.call_at(backoff.resume_at, self._resume, loop)

    def _resume(self, loop: asyncio.AbstractEventLoop) -> None:
        self._resume_handle = None
        self.start(loop)

    def cancel(self) -> None:
        """Start no more dials and cancel every one under way; each frees its slot as it ends."""
        if self._resume_handle is not None:
            self._resume_handle.cancel()
            self._resume_handle = None
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

    def refuses(self, now: float) -> PoolError | None:
        """Why nobody needs to begin to wait now: the target is down and is left alone (I26)."""
        if not self.backoff.down or self._ledger.open or now >= self.backoff.resume_at:
            return None
        return self._unavailable(self._last_error)

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
        loop = asyncio.get_running_loop()
        time = loop.time
        started = dial.started = time()
        limit = asyncio.timeout_at(None if dial.deadline == inf else dial.deadline)
        patrol = _Patrol(dial, limit, self._unasked_limit) if dial.deadline == inf else None
        connection = None
        try:
            async with limit:
                connection = await self._create()
                if self._on_connect is not None:
                    await self._on_connect(connection)
        except BaseException as exc:
            # Whatever ended it, somebody else gets a turn (I1, I5).
            if dial.abandoned and isinstance(exc, Exception | asyncio.CancelledError):
                _close_quietly(connection)
                return
            # Its slot is free, once a connection that it did open is closed (I2).
            entry = None
            if connection is None:
                self._ledger.dial_failed()
            else:
                entry = self._ledger.dial_succeeded(connection)
            self._failed(dial, exc, time(), expired=limit.expired(), refused=entry is not None)
            if entry is not None:
                self._retire(entry, "on_connect")
            self._slot_freed()
            if not isinstance(exc, Exception):
                raise
        else:
            if dial.abandoned:
                _close_quietly(connection)
                return
            self._recovered = True
            self.backoff.succeeded()
            self._ledger.dial_limit = self.backoff.limit(0.0)
            seconds = time() - started
            self.times.add(seconds)
            cause = "min_size" if dial.asker is None else "demand"
            self._opened(self._ledger.dial_succeeded(connection), cause, seconds)
        finally:
            if patrol is not None:
                patrol.stop()

    def _failed(
        self, dial: Dial, exc: BaseException, now: float, *, expired: bool, refused: bool
    ) -> None:
        """Tell those whom a failed dial concerns, and draw the consequences."""
        if not isinstance(exc, Exception):
            self._refused(dial, exc)  # cancelled: by the pool's close, or by the creator
            return
        self.failures += 1
        if expired and dial.asker is not None:
            # The asker's deadline, which says nothing about the target; but a lot to the asker.
            if self._last_error is None:  # one that the target gave says more
                self._last_error = TimeoutError(f"not open after {now - dial.started:.3g} s")
                self._failed_at = now
                self._recovered = False
            return
        if isinstance(exc, OSError) or refused or dial.asker is None:  # TimeoutError is an OSError
            self._last_error = exc
            self._failed_at = now
            self._recovered = False
            self.backoff.failed(dial.epoch, now)
        if isinstance(exc, OSError) or refused:
            self._refused(dial, exc, about_to_close=refused)
        else:
            self._broken(dial, exc)

    def _ended(self, dial: Dial, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not dial.begun and not dial.abandoned:
            # Cancelled before its first step: nothing of _dial() has run.
            self._ledger.dial_failed()
            self._refused(dial, asyncio.CancelledError())
            self._slot_freed()

    async def _create(self) -> Any:
        """Call the creator, as often as the retry object says, and check what it gives."""
        if self._retry is None:
            return await self._create_once()
        try:
            return await self._retry.copy()(self._attempt)
        except RetryError as given_up:
            failure = given_up.last_attempt.exception()
            raise (failure or given_up) from None

    async def _attempt(self) -> Any:
        """One of several attempts: the deadline may come before they are given up (I35)."""
        try:
            return await self._create_once()
        except OSError as exc:
            self._last_error = exc
            self._failed_at = asyncio.get_running_loop().time()
            self._recovered = False
            raise

    async def _create_once(self) -> Any:
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
        if self._ledger.share > 1 and getattr(connection, "is_shareable", True) is False:
            _close_quietly(connection)
            raise TypeError(
                f"creator {self._creator!r} gave {connection!r}, which can't be shared; a pool "
                "with share > 1 needs connections with pipeline=N"
            )
        return connection

    def _broken(self, dial: Dial, exc: Exception) -> None:
        """The creator has a bug: its caller gets the exception as it is."""
        self._ledger.leave(dial.asker)
        if dial.asker is None or not fail(dial.asker, exc):
            _logger.error("%r: the creator failed", self._owner, exc_info=exc)

    def _refused(self, dial: Dial, exc: BaseException, *, about_to_close: bool = False) -> None:
        """Tell those whom a failed dial concerns.

        That is the waiter it was made for; when no connection is open, but for one that this dial
        opened in vain, all: they would wait for something that can't come.
        """
        ledger = self._ledger
        if ledger.open > about_to_close:
            waiters = [dial.asker] if ledger.leave(dial.asker) else []
        else:
            waiters = [*ledger.leave_all()]
        if dial.asker is None and not ledger.closed:
            _logger.warning("%r: can't open a connection: %r", self._owner, exc)
        for waiter in waiters:
            fail(waiter, self._unavailable(exc))

    def _unavailable(self, cause: BaseException | None) -> PoolUnavailable:
        error = PoolUnavailable(f"{self._owner!r}: can't open a connection: {cause!r}")
        error.__cause__ = cause
        return error


class _Patrol:
    """Ends a dial whose asker would have waited for ever and left: it must not keep its slot (I5).

    Args:
        dial: the dial.
        limit: what it runs in.
        interval: seconds between two looks whether its asker still waits.
    """

    __slots__ = ("_dial", "_handle", "_interval", "_limit")

    def __init__(self, dial: Dial, limit: asyncio.Timeout, interval: float) -> None:
        self._dial = dial
        self._limit = limit
        self._interval = interval
        self._handle = asyncio.get_running_loop().call_later(interval, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if self._dial.asker is None or self._dial.asker.done():
            self._limit.reschedule(loop.time())
        else:
            self._handle = loop.call_later(self._interval, self._look)

    def stop(self) -> None:
        """The dial has ended."""
        self._handle.cancel()


def _succeeded(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _close_quietly(connection: Any) -> None:
    """Close a connection that the pool does not know."""
    if connection is None:
        return
    try:
        getattr(connection, "abort", connection.close)()
    except Exception:
        _logger.exception("closing %r failed", connection)


def fail(waiter: Any, exc: BaseException) -> bool:
    """End a wait with an error; False if it has ended already."""
    if waiter.done():
        return False
    waiter.set_exception(exc)
    return True

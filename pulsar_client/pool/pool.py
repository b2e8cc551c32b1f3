"""The pool: carries out, on the event loop, what the ledger decides.

It needs of a connection ``closed`` and ``close()``, and uses where present ``is_reusable``,
``abort()``, an awaitable that ``close()`` returns, and ``add_closing_callback`` (called when the
connection stops being usable).  It knows no protocol, no transport and no address.
"""

import asyncio
import logging
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Generator
from math import inf
from typing import Any, Self

from pulsar_client.durations import check_seconds
from pulsar_client.events import OneTime
from pulsar_client.exceptions import PoolClosed, PoolError, PoolTimeout
from pulsar_client.pool.closer import Closer
from pulsar_client.pool.dialler import Dialler, fail
from pulsar_client.pool.ledger import IDLE, LEASED, Entry, Ledger
from pulsar_client.pool.pool_connection import PoolConnection
from pulsar_client.pool.stats import PoolStats

__all__ = ["Pool"]

_logger = logging.getLogger("pulsar_client.pool")
_DEFAULT: Any = object()

#: Seconds that cancelled dials may take to end when the time-out of close() has passed.
_DIAL_GRACE = 0.25
#: Seconds by which a deadline may be missed when very many callers wait.
_EXPIRY_PAUSE = 0.04


class _Request(PoolConnection):
    """What ``pool.connect()`` returns: await it or enter it, and it is the lease.

    One object for both: making two costs an eighth of a whole lease.
    """

    __slots__ = ("_timeout",)

    def __init__(self, pool: "Pool", timeout: float | None) -> None:
        self.pool = pool
        self._timeout = timeout
        self._entry = None
        self._kept = False

    def __await__(self) -> Generator[Any, None, PoolConnection]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        if self._entry is None:
            pool: Pool = self.pool
            entry = pool._lease_now()
            if entry is None:
                entry = await pool._lease_later(self._timeout)
                if self._entry is not None:
                    pool.give_back(entry, False, False)
                    raise RuntimeError(f"{self!r} was awaited by two tasks: call connect() twice")
            self._entry = entry
            self.connection = entry.connection
        return self


class Pool:
    """A pool of open connections, for one event loop.

    Args:
        creator: called without arguments, returns an awaitable that opens a connection.  A
            connection is any object with ``closed`` and ``close()``.
        pool_size: the most connections that exist at once; those being opened and closed count.
        loop: the event loop; None for the one that runs at the first lease.
        timeout: seconds that a lease may take, all included; None for no limit.
        name: what errors, log lines and ``repr`` call the pool; the creator's name by default.

    Raises:
        TypeError: ``creator`` is not callable.
        ValueError: ``pool_size`` is below 1 or ``timeout`` is negative.
    """

    def __init__(
        self,
        creator: Callable[[], Awaitable[Any]],
        pool_size: int = 10,
        loop: asyncio.AbstractEventLoop | None = None,
        timeout: float | None = 30.0,
        *,
        name: str | None = None,
    ) -> None:
        if not callable(creator):
            raise TypeError(
                f"creator is {creator!r}, expected a callable that returns an awaitable connection"
            )
        if isinstance(pool_size, bool) or not isinstance(pool_size, int) or pool_size < 1:
            raise ValueError(f"pool_size is {pool_size!r}, expected an int >= 1")
        if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
            raise TypeError(f"loop is {loop!r}, expected an asyncio event loop or None")
        check_seconds("timeout", timeout)
        self.name = name or getattr(creator, "__qualname__", None) or type(creator).__name__
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted_loop = loop
        self._expiry_handle: asyncio.TimerHandle | None = None
        self._next_expiry = inf
        self._ledger = Ledger(pool_size)
        self._dialler = Dialler(
            self._ledger,
            creator,
            owner=self,
            opened=self._opened,
            slot_freed=self._slot_freed,
        )
        self._closer = Closer(self._ledger, owner=self, slot_freed=self._slot_freed)
        self._timeouts = 0
        self._all_closed = OneTime("closed", logger=_logger)
        self._abort_handle: asyncio.TimerHandle | None = None
        self._abort_at = inf

    def __repr__(self) -> str:
        ledger = self._ledger
        state = ("closed" if self._all_closed.done() else "closing") if self.closed else "open"
        parts = [f"{ledger.leased} in use", f"{len(ledger.idle)} available"]
        if ledger.dialling:
            parts.append(f"{ledger.dialling} dialling")
        if ledger.closing:
            parts.append(f"{ledger.closing} closing")
        parts.append(f"{len(ledger.waiters)} waiting")
        return f"<Pool {self.name!r} {state}: {', '.join(parts)}>"

    def __contains__(self, connection: object) -> bool:
        """True for a connection that is idle or leased here."""
        entry = self._ledger.entries.get(id(connection))
        return entry is not None and entry.state in (IDLE, LEASED)

    @property
    def pool_size(self) -> int:
        """The most connections that exist at once."""
        return self._ledger.max_size

    @property
    def available(self) -> int:
        """How many connections are idle."""
        return len(self._ledger.idle)

    @property
    def in_use(self) -> int:
        """How many connections are leased."""
        return self._ledger.leased

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called."""
        return self._ledger.closed

    def stats(self) -> PoolStats:
        """The numbers of this moment."""
        ledger = self._ledger
        return PoolStats(
            pool_size=ledger.max_size,
            size=ledger.size,
            available=len(ledger.idle),
            in_use=ledger.leased,
            dialling=ledger.dialling,
            closing=ledger.closing,
            waiting=len(ledger.waiters),
            leases=ledger.leases,
            opened=ledger.opened,
            closed=ledger.retired,
            timeouts=self._timeouts,
        )

    # Leases

    def connect(self, *, timeout: float | None = _DEFAULT) -> _Request:
        """Lease a connection: ``async with pool.connect() as conn`` or ``await pool.connect()``.

        An idle connection is leased at once; otherwise the caller waits, in order, for whatever
        comes first: a released connection or a new one.

        Args:
            timeout: seconds for all of it, queue and dial; the pool's by default, None for no
                limit, 0 for "an idle connection or nothing".

        Returns:
            An awaitable and asynchronous context manager that gives a :class:`PoolConnection`.

        Raises (when awaited or entered):
            PoolTimeout: the time has passed.
            PoolUnavailable: a connection could not be opened; the cause is attached.
            PoolClosed: the pool is closed.
            RuntimeError: the pool belongs to another event loop.
            ValueError: ``timeout`` is negative.

        Cancelling it never loses a connection: one that was handed over goes to the next in the
        queue, a dial under way goes on for whoever waits, or for later.
        """
        if timeout is _DEFAULT:
            timeout = self._timeout
        else:
            check_seconds("timeout", timeout)
        return _Request(self, timeout)

    def _lease_now(self) -> Entry | None:
        """Lease an idle connection, evicting those that turn out to be dead."""
        # No await below: whoever finds a connection idle has it (I8).
        if get_running_loop() is not self._loop:
            self._bind_loop()
        while True:
            entry = self._ledger.take_idle()
            if entry is None:
                return None
            try:
                if not entry.connection.closed:
                    return entry
            except Exception:
                _logger.exception("%r: can't tell whether %r is closed", self, entry.connection)
            self._retire(entry)

    async def _lease_later(self, timeout: float | None) -> Entry:
        """Wait for a connection: released by another, or dialled."""
        ledger = self._ledger
        if timeout == 0 and not ledger.closed:
            raise self._timed_out(0.0)
        loop = get_running_loop()
        started = loop.time()
        deadline = inf if timeout is None else started + timeout
        first = False
        while True:
            if ledger.closed:
                raise PoolClosed(f"{self!r} gives no more leases")
            waiter: asyncio.Future[Entry | None] = loop.create_future()
            if ledger.wait(waiter, deadline, first=first):
                self._dialler.start(loop)
            if deadline < self._next_expiry:
                self._arm_expiry(deadline)
            try:
                entry = await waiter
            except BaseException:
                # Cancelled or failed.  What was handed over goes to the next (I6).
                ledger.leave(waiter)
                if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                    entry = waiter.result()
                    if entry is not None:
                        self.give_back(entry, False, False)
                raise
            if entry is None:
                raise self._timed_out(loop.time() - started)
            if entry.state == LEASED:
                return entry
            # It died on the way.  Another may have come back (I10); else to the head of the queue.
            entry = self._lease_now()
            if entry is not None:
                return entry
            first = True

    def _arm_expiry(self, when: float) -> None:
        # One timer for all who wait: one for each would cost more than the rest of the wait.
        assert self._loop is not None
        if self._expiry_handle is not None:
            self._expiry_handle.cancel()
        self._next_expiry = when
        self._expiry_handle = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        """End the waits whose deadline has passed."""
        assert self._loop is not None
        self._expiry_handle = None
        self._next_expiry = inf
        late, earliest = self._ledger.late(self._loop.time())
        for waiter in late:
            if not waiter.done():
                waiter.set_result(None)
        if earliest < inf:
            # Looking at n waiters takes time: not again at once for each deadline of many.
            pause = min(_EXPIRY_PAUSE, 2e-6 * len(self._ledger.waiters))
            self._arm_expiry(max(earliest, self._loop.time() + pause))

    def _timed_out(self, waited: float) -> PoolError:
        self._timeouts += 1
        error = PoolTimeout(f"{self!r}: no connection within {waited:.3g} s")
        return self._dialler.explain(error, get_running_loop().time())

    # What a lease calls

    def entry_of(self, connection: Any) -> Entry:
        """The entry of a connection, for a lease.

        Raises:
            ValueError: it is not a connection of this pool.
        """
        entry = self._ledger.entries.get(id(connection))
        if entry is None:
            raise ValueError(f"{connection!r} is not a connection of {self!r}")
        return entry

    def give_back(self, entry: Entry, discard: bool, failed: bool) -> None:
        """End a lease: put the connection back if the next user can trust it, else close it."""
        # No await, and nothing that can raise: a release can't fail (I13).
        if entry.state != LEASED:
            return  # it died during the lease and is gone or going
        connection = entry.connection
        try:
            if entry.judges_itself:
                usable = not discard and connection.is_reusable
            else:
                usable = not discard and not failed and not connection.closed
        except Exception:
            _logger.exception("%r: can't tell whether %r is usable", self, connection)
            usable = False
        if usable and not self._ledger.closed:
            self._ledger.hand_over(entry)
        else:
            self._retire(entry)

    def let_go(self, entry: Entry) -> None:
        """End a lease and forget its connection: it is the caller's own."""
        if entry.state == LEASED:
            self._ledger.detach(entry)
            try:
                unwatch = getattr(entry.connection, "remove_closing_callback", None)
                if unwatch is not None:
                    unwatch(self._on_closing)
            finally:
                self._slot_freed()

    # New connections

    def _opened(self, entry: Entry) -> None:
        """A new connection: to the first who waits, or idle."""
        try:
            watch = getattr(entry.connection, "add_closing_callback", None)
            if watch is not None:
                watch(self._on_closing)
        except Exception:
            _logger.exception("%r: can't watch %r", self, entry.connection)
            self._retire(entry)
        if entry.state != LEASED:
            return
        # Not asked whether it is reusable: nobody has used it yet.
        if self._ledger.closed:
            self._retire(entry)
        else:
            self._ledger.hand_over(entry)

    # The end of connections

    def _on_closing(self, connection: Any) -> None:
        """A connection stopped being usable, idle or leased; its slot comes free with its end."""
        entry = self._ledger.entries.get(id(connection))
        if entry is not None and entry.state in (IDLE, LEASED):
            # In this very turn (I18); its close() follows outside of its own call.
            self._ledger.begin_close(entry)
            assert self._loop is not None
            self._loop.call_soon(self._closer.close, entry, self._loop)

    def _retire(self, entry: Entry) -> None:
        """Close a connection and free its slot when it is gone."""
        assert self._loop is not None
        if entry.state in (IDLE, LEASED):  # else asking it how it is was its end
            self._ledger.begin_close(entry)
            self._closer.close(entry, self._loop)

    def _slot_freed(self) -> None:
        """Some waiter gets its turn now (I5); a closed pool may be done."""
        if self._ledger.closed:
            self._check_all_closed()
        else:
            assert self._loop is not None
            self._dialler.start(self._loop)

    # The end of the pool

    def close(self, timeout: float | None = 10.0) -> OneTime:
        """Close the pool.

        At once: no new leases, those who wait get :class:`~pulsar_client.PoolClosed`, dials are
        cancelled, idle connections close.  Leased ones close when they are released.

        Args:
            timeout: seconds after which leased connections are aborted; None for never.  A later
                call may shorten it.

        Returns:
            An awaitable that completes when every connection is closed.  Cancelling the wait does
            not stop the close.

        Raises:
            ValueError: ``timeout`` is negative.
            RuntimeError: the pool belongs to another event loop that runs elsewhere.
        """
        check_seconds("timeout", timeout)
        self._check_loop()
        if not self._ledger.closed:
            self._ledger.closed = True
            for waiter in self._ledger.leave_all():
                fail(waiter, PoolClosed(f"{self!r} was closed while this caller waited"))
            self._dialler.cancel()
            for entry in tuple(self._ledger.idle):
                self._retire(entry)
        self._check_all_closed()
        if timeout is not None and self._loop is not None and not self._all_closed.done():
            deadline = self._loop.time() + timeout
            if deadline < self._abort_at:
                if self._abort_handle is not None:
                    self._abort_handle.cancel()
                self._abort_at = deadline
                self._abort_handle = self._loop.call_at(deadline, self._abort_all)
        return self._all_closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _abort_all(self) -> None:
        """The time-out of close(): whatever is left is cut."""
        assert self._loop is not None
        self._closer.hurry()
        self._abort_handle = self._loop.call_later(_DIAL_GRACE, self._dialler.abandon)
        for entry in tuple(self._ledger.entries.values()):
            if entry.state == LEASED:
                self._closer.abort(entry.connection)
                self._retire(entry)

    def _check_all_closed(self) -> None:
        if self._ledger.size == 0 and not self._all_closed.fired():
            if self._abort_handle is not None:
                self._abort_handle.cancel()
            if self._expiry_handle is not None:
                self._expiry_handle.cancel()
            self._all_closed.fire(None)

    # The loop

    def _bind_loop(self) -> None:
        self._check_loop()
        self._loop = get_running_loop()

    def _check_loop(self) -> None:
        mine = self._loop or self._wanted_loop
        try:
            running = get_running_loop()
        except RuntimeError:
            return  # between two runs of the loop
        if mine is not None and mine is not running:
            raise RuntimeError(
                f"{self!r} belongs to another event loop: make one pool for each loop"
            )

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
from pulsar_client.exceptions import PoolClosed, PoolTimeout, PoolUnavailable
from pulsar_client.pool.ledger import IDLE, LEASED, Dial, Entry, Ledger
from pulsar_client.pool.pool_connection import PoolConnection
from pulsar_client.pool.stats import PoolStats

__all__ = ["Pool"]

_logger = logging.getLogger("pulsar_client.pool")
_DEFAULT: Any = object()

#: Seconds that a connection may take to close before it is aborted.
_CLOSE_LIMIT = 10.0
#: Seconds that a connection may take to be gone after it was aborted.
_ABORT_LIMIT = 1.0
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
        self._creator = creator
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted_loop = loop
        self._expiry_handle: asyncio.TimerHandle | None = None
        self._next_expiry = inf
        self._ledger = Ledger(pool_size)
        self._timeouts = 0
        self._last_dial_error: BaseException | None = None
        self._dials: dict[asyncio.Task[None], Dial] = {}
        self._closes: set[asyncio.Task[None]] = set()
        self._all_closed = OneTime("closed", logger=_logger)
        # Set when the time-out of close() has passed: every close becomes an abort.
        self._abort_signal: asyncio.Future[None] | None = None
        self._abort_handle: asyncio.TimerHandle | None = None

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
            if entry is None or not entry.connection.closed:
                return entry
            self._retire(entry)

    async def _lease_later(self, timeout: float | None) -> Entry:
        """Wait for a connection: released by another, or dialled."""
        ledger = self._ledger
        if ledger.closed:
            raise PoolClosed(f"{self!r} gives no more leases")
        if timeout == 0:
            raise self._timed_out(0.0)
        loop = get_running_loop()
        started = loop.time()
        deadline = inf if timeout is None else started + timeout
        first = False
        while True:
            waiter: asyncio.Future[Entry | None] = loop.create_future()
            if ledger.wait(waiter, deadline, first=first):
                self._start_dials()
            if deadline < self._next_expiry:
                self._arm_expiry(deadline)
            try:
                entry = await waiter
            except BaseException:
                # Cancelled or failed.  What was handed over goes to the next (I6).
                ledger.leave(waiter)
                if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                    entry = waiter.result()
                    if entry is not None and entry.state == LEASED:
                        self._put_back(entry)
                raise
            if entry is None:
                raise self._timed_out(loop.time() - started)
            if entry.state == LEASED:
                if not entry.connection.closed:
                    return entry
                self._retire(entry)
            # It died on the way from one to the other: back to the head of the queue.
            first = True

    # One timer for all who wait: one for each would cost more than the rest of the wait.

    def _arm_expiry(self, when: float) -> None:
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

    def _timed_out(self, waited: float) -> PoolTimeout:
        self._timeouts += 1
        text = f"{self!r}: no connection within {waited:.3g} s"
        if self._last_dial_error is not None:
            text += f"; the last dial failed with {self._last_dial_error!r}"
        error = PoolTimeout(text)
        error.__cause__ = self._last_dial_error
        return error

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
            _unwatch(entry.connection, self._on_closing)
            self._slot_freed()

    # Dials

    def _start_dials(self) -> None:
        """Start the dials that the ledger asks for: for those who wait, while slots are free."""
        while (dial := self._ledger.next_dial()) is not None:
            assert self._loop is not None
            task = self._loop.create_task(self._dial(dial), name=f"dial of {self.name}")
            self._dials[task] = dial

    async def _dial(self, dial: Dial) -> None:
        """Open a connection within the deadline of the waiter it is for, even if that one left."""
        failure: BaseException
        limit = asyncio.timeout_at(None if dial.deadline == inf else dial.deadline)
        try:
            async with limit:
                connection = await self._create()
            entry = self._ledger.dial_succeeded(connection)
        except OSError as exc:  # TimeoutError included
            failure = exc
        except Exception as exc:  # a bug of the creator's: its caller gets it
            self._dial_over()
            self._ledger.leave(dial.asker)
            if not _fail(dial.asker, exc):
                _logger.error("%r: the creator failed", self, exc_info=exc)
            self._slot_freed()
            return
        except BaseException as exc:
            # Cancelled: by close(), whose waiters are gone already, or by the creator itself.
            self._dial_over()
            self._dial_refused(dial, exc)
            self._slot_freed()
            raise
        else:
            self._dials.pop(_current_task())
            self._opened(entry)
            return
        self._dial_over()
        # The asker's own deadline says nothing about the target: the next waiter gets a dial.
        if not limit.expired():
            self._last_dial_error = failure
            self._dial_refused(dial, failure)
        self._slot_freed()

    async def _create(self) -> Any:
        awaitable = self._creator()
        if not hasattr(awaitable, "__await__"):
            raise TypeError(
                f"creator {self._creator!r} returned {awaitable!r}, expected an awaitable"
            )
        connection = await awaitable
        if not hasattr(connection, "closed") or not callable(getattr(connection, "close", None)):
            raise TypeError(
                f"creator {self._creator!r} gave {connection!r}, expected a connection: an "
                "object with 'closed' and 'close()'"
            )
        if id(connection) in self._ledger.entries:
            raise ValueError(f"creator {self._creator!r} gave {connection!r} twice")
        return connection

    def _opened(self, entry: Entry) -> None:
        """A new connection: to the first who waits, or idle."""
        connection = entry.connection
        watch = getattr(connection, "add_closing_callback", None)
        if self._ledger.closed or connection.closed:
            self._retire(entry)
            return
        if watch is not None:
            watch(self._on_closing)
        self._put_back(entry)

    def _put_back(self, entry: Entry) -> None:
        """Hand over a leased connection that nobody has used."""
        if self._ledger.closed or entry.connection.closed:
            self._retire(entry)
        else:
            self._ledger.hand_over(entry)

    def _dial_over(self) -> None:
        self._dials.pop(_current_task())
        self._ledger.dial_failed()

    def _dial_refused(self, dial: Dial, failure: BaseException) -> None:
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
            error = PoolUnavailable(f"{self!r}: can't open a connection: {failure!r}")
            error.__cause__ = failure
            _fail(waiter, error)

    # The end of connections

    def _on_closing(self, connection: Any) -> None:
        """A connection stopped being usable, idle or leased; its slot comes free with its end."""
        entry = self._ledger.entries.get(id(connection))
        if entry is not None and entry.state in (IDLE, LEASED):
            # In this very turn (I18); its close() follows outside of its own call.
            self._ledger.begin_close(entry)
            assert self._loop is not None
            self._loop.call_soon(self._close_entry, entry)

    def _retire(self, entry: Entry) -> None:
        """Close a connection and free its slot when it is gone."""
        self._ledger.begin_close(entry)
        self._close_entry(entry)

    def _close_entry(self, entry: Entry) -> None:
        connection = entry.connection
        try:
            ending = connection.close()
        except Exception:
            _logger.exception("%r: closing %r failed", self, connection)
            self._abort(connection)
            ending = None
        if hasattr(ending, "__await__"):
            assert self._loop is not None
            task = self._loop.create_task(self._see_off(entry, ending), name="close of connection")
            self._closes.add(task)
            task.add_done_callback(self._closes.discard)
        else:
            self._ledger.end_close(entry)
            self._slot_freed()

    async def _see_off(self, entry: Entry, ending: Awaitable[Any]) -> None:
        """Wait for the end of a close, in a bounded time."""
        closing = asyncio.ensure_future(_outcome(ending))
        waits: list[asyncio.Future[Any]] = [closing, self._abort_future()]
        try:
            await asyncio.wait(waits, timeout=_CLOSE_LIMIT, return_when=asyncio.FIRST_COMPLETED)
            if not closing.done():
                self._abort(entry.connection)
                await asyncio.wait([closing], timeout=_ABORT_LIMIT)
            if closing.done():
                failure = closing.result()
                if failure is not None:
                    _logger.debug("%r: closing %r: %r", self, entry.connection, failure)
            else:
                _logger.warning("%r: %r does not close, forgotten", self, entry.connection)
        finally:
            closing.cancel()
            self._ledger.end_close(entry)
            self._slot_freed()

    def _abort(self, connection: Any) -> None:
        abort = getattr(connection, "abort", None)
        try:
            if abort is not None:
                abort()
        except Exception:
            _logger.exception("%r: aborting %r failed", self, connection)

    def _slot_freed(self) -> None:
        """Some waiter gets its turn now (I5); a closed pool may be done."""
        if self._ledger.closed:
            self._check_all_closed()
        else:
            self._start_dials()

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
                _fail(waiter, PoolClosed(f"{self!r} was closed while this caller waited"))
            for task in tuple(self._dials):
                task.cancel()
            for entry in tuple(self._ledger.idle):
                self._retire(entry)
        self._check_all_closed()
        if timeout is not None and self._loop is not None and not self._all_closed.done():
            deadline = self._loop.time() + timeout
            if self._abort_handle is None or deadline < self._abort_handle.when():
                if self._abort_handle is not None:
                    self._abort_handle.cancel()
                self._abort_handle = self._loop.call_at(deadline, self._abort_all)
        return self._all_closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _abort_all(self) -> None:
        """The time-out of close(): whatever is left is cut."""
        signal = self._abort_future()
        if not signal.done():
            signal.set_result(None)
        for entry in tuple(self._ledger.entries.values()):
            if entry.state == LEASED:
                self._abort(entry.connection)
                if entry.state == LEASED:
                    self._retire(entry)

    def _check_all_closed(self) -> None:
        if self._ledger.size == 0 and not self._all_closed.fired():
            if self._abort_handle is not None:
                self._abort_handle.cancel()
            if self._expiry_handle is not None:
                self._expiry_handle.cancel()
            self._all_closed.fire(None)

    # The loop

    def _abort_future(self) -> asyncio.Future[None]:
        if self._abort_signal is None:
            assert self._loop is not None
            self._abort_signal = self._loop.create_future()
        return self._abort_signal

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


async def _outcome(ending: Awaitable[Any]) -> BaseException | None:
    """Await a close and return, not raise, what it raises: the connection is gone either way."""
    try:
        await ending
    except Exception as exc:  # noqa: BLE001 - reported by the caller
        return exc
    return None


def _fail(waiter: Any, exc: BaseException) -> bool:
    """End a wait with an error; False if it has ended already."""
    if waiter.done():
        return False
    waiter.set_exception(exc)
    return True


def _unwatch(connection: Any, callback: Callable[[Any], object]) -> None:
    remove = getattr(connection, "remove_closing_callback", None)
    if remove is not None:
        remove(callback)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task

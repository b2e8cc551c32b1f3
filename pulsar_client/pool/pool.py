"""The pool: what its users see of it, and its beginning and end.

What happens to single connections is in ``leases``, every decision in ``ledger``.
"""

import asyncio
import logging
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable
from math import inf
from types import MappingProxyType
from typing import Any, Self

from tenacity import AsyncRetrying

from pulsar_client.durations import check_seconds
from pulsar_client.events import Event, EventHandler, OneTime
from pulsar_client.exceptions import PoolClosed
from pulsar_client.pool.dialler import fail
from pulsar_client.pool.leases import Leases
from pulsar_client.pool.ledger import IDLE, LEASED, Entry
from pulsar_client.pool.options import Action, PoolOptions, check_count, check_floor
from pulsar_client.pool.request import DEFAULT, ExclusiveRequest, Request
from pulsar_client.pool.shared_leases import SharedLeases
from pulsar_client.pool.stats import PoolStats

__all__ = ["Pool"]

_logger = logging.getLogger("pulsar_client.pool")

#: Seconds that cancelled dials may take to end when the time-out of close() has passed.
_DIAL_GRACE = 0.25


class Pool(EventHandler):
    """A pool of open connections, for one event loop.

    Args:
        creator: called without arguments, returns an awaitable that opens a connection.  A
            connection is any object with ``closed`` and ``close()``.
        pool_size: the most connections that exist at once; those being opened and closed count.
        loop: the event loop; None for the one that runs at the first lease.
        timeout: seconds that a lease may take, all included; None for no limit.
        name: what errors, log lines and ``repr`` call the pool; the creator's name by default.
        min_size: connections that are kept open without being asked for, from the moment the pool
            is made if a loop runs, else from its first use.
        max_waiting: callers that may wait for a connection; one more gets
            :class:`~pulsar_client.PoolOverloaded`.  Those for whom a connection is being opened
            don't count.  None for no bound, 0 so that nobody waits.
        max_idle: seconds after which an idle connection is closed, unless ``min_size`` needs it.
        max_age: seconds that a connection is used, less up to a quarter of that, so that
            connections born together do not die together.  No lease begins on an older one.
            Where ``min_size`` needs it, its successor is opened first.
        max_uses: leases after which a connection is closed.
        lifo: lease the connection that was released last (the others become idle); False for the
            one released first (all are kept in use).
        max_dialling: connections that are opened at the same time, 8 by default.
        check: coroutine function ``check(connection)``, run by the caller before each lease but
            the first of a connection; one that returns False or raises has the connection closed,
            and the next one is tried.  It counts against the caller's time-out.  A lease with
            ``timeout=0`` goes without.
        reset: coroutine function ``reset(connection)``, run by the pool after each lease, for 5 s
            at most; one that raises has the connection closed.  It does not delay the release.
        on_connect: coroutine function ``on_connect(connection)``, run once a connection, before
            anybody has it; one that raises is a failed dial.
        retry: a ``tenacity.AsyncRetrying``: how often a dial is attempted, within its deadline,
            before it has failed.  Once by default.
        leak_after: seconds after which a lease is reported in the log, with the stack that took it
            and where its task stands.
        share: tasks that may use one connection at once; for connections with ``pipeline=N``.
        queue_target: seconds of waiting that are acceptable.  When nobody waited less for a whole
            ``queue_interval``, those who waited longer are turned away with
            :class:`~pulsar_client.PoolOverloaded`, instead of being served too late; only while
            nothing is idle, and never the last in the queue.  None, the default, turns nobody
            away.
        queue_interval: seconds, see ``queue_target``.

    Raises:
        TypeError: ``creator`` is not callable, or an option has the wrong type.
        ValueError: an option is out of range; the message names it.

    Events (many times, called as ``callback(pool, exc=None, connection=..., **kw)``):
        ``on_open`` with ``duration`` (seconds) and ``cause``: ``demand`` or ``min_size``.
        ``on_close`` with ``cause``: ``lost`` (by the peer or its user), ``unusable`` (not fit for
        the next user), ``discarded``, ``detached``, ``idle``, ``age``, ``uses``, ``expired``,
        ``resize``, ``check``, ``reset``, ``leaked``, ``pool closed``, ``aborted``.
        ``on_lease`` with ``duration``: how long the caller waited.
        ``on_release`` with ``duration``: how long the lease was held.
    """

    MANY_TIMES_EVENTS = ("on_open", "on_close", "on_lease", "on_release")

    def __init__(
        self,
        creator: Callable[[], Awaitable[Any]],
        pool_size: int = 10,
        loop: asyncio.AbstractEventLoop | None = None,
        timeout: float | None = 30.0,
        *,
        name: str | None = None,
        min_size: int = 0,
        max_waiting: int | None = None,
        max_idle: float | None = None,
        max_age: float | None = None,
        max_uses: int | None = None,
        lifo: bool = True,
        max_dialling: int | None = None,
        check: Action | None = None,
        reset: Action | None = None,
        on_connect: Action | None = None,
        retry: AsyncRetrying | None = None,
        leak_after: float | None = None,
        share: int = 1,
        queue_target: float | None = None,
        queue_interval: float = 0.1,
    ) -> None:
        super().__init__(loop)
        if not callable(creator):
            raise TypeError(
                f"creator is {creator!r}, expected a callable that returns an awaitable connection"
            )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name is {name!r}, expected a str or None")
        self._options = PoolOptions(
            pool_size=pool_size,
            timeout=timeout,
            min_size=min_size,
            max_waiting=max_waiting,
            max_idle=max_idle,
            max_age=max_age,
            max_uses=max_uses,
            lifo=lifo,
            max_dialling=max_dialling,
            share=share,
            check=check,
            reset=reset,
            on_connect=on_connect,
            retry=retry,
            leak_after=leak_after,
            queue_target=queue_target,
            queue_interval=queue_interval,
        )
        self.name = name or getattr(creator, "__qualname__", None) or type(creator).__name__
        kind = Leases if share == 1 else SharedLeases
        self._leases = kind(
            self,
            creator,
            self._options,
            wanted_loop=loop,
            all_gone=self._check_all_closed,
        )
        self._ledger = self._leases.ledger
        #: For code that leases so often that an object for each counts; see ``Leases.borrow``.
        self.borrow: Callable[[], Entry | None] = self._leases.borrow
        self._all_closed = OneTime("closed", logger=_logger)
        self._abort_handle: asyncio.TimerHandle | None = None
        self._abort_at = inf
        if min_size:
            self._begin()

    def __repr__(self) -> str:
        ledger = self._ledger
        state = ("closed" if self._all_closed.done() else "closing") if self.closed else "open"
        parts = [f"{ledger.leased} in use", f"{ledger.available} available"]
        if ledger.dialling:
            parts.append(f"{ledger.dialling} dialling")
        if ledger.closing:
            parts.append(f"{ledger.closing} closing")
        parts.append(f"{ledger.waiting} waiting")
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
        return self._ledger.available

    @property
    def in_use(self) -> int:
        """How many connections are leased, or being reset after a lease."""
        return self._ledger.leased

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called."""
        return self._ledger.closed

    def event(self, name: str) -> Event | OneTime | None:
        """The event of that name, or None if this object has no such event."""
        event = super().event(name)
        if event is not None:
            self._leases.observe()
        return event

    def stats(self) -> PoolStats:
        """The numbers of this moment."""
        ledger = self._ledger
        leases = self._leases
        leases.collect_lost()
        return PoolStats(
            name=self.name,
            pool_size=ledger.max_size,
            min_size=ledger.floor,
            size=ledger.size,
            available=ledger.available,
            in_use=ledger.leased,
            dialling=ledger.dialling,
            closing=ledger.closing,
            waiting=ledger.waiting,
            leases=ledger.leases,
            waits=leases.waits,
            opened=ledger.opened,
            closed=ledger.retired,
            timeouts=leases.timeouts,
            overloads=leases.waiting.overloads,
            failed_dials=leases.dialler.failures,
            leaked=leases.leaked,
            opened_by=MappingProxyType(dict(leases.opened_by)),
            closed_by=MappingProxyType(dict(leases.closed_by)),
            wait_time=leases.wait_times.summary(ledger.leases),
            dial_time=leases.dialler.times.summary(),
            use_time=leases.use_times.summary(),
        )

    # Leases

    def connect(self, *, timeout: float | None = DEFAULT, exclusive: bool = False) -> Request:
        """Lease a connection: ``async with pool.connect() as conn`` or ``await pool.connect()``.

        An idle connection is leased at once; otherwise the caller waits, in order, for whatever
        comes first: a released connection or a new one.

        Args:
            timeout: seconds for all of it: queue, dial, ``on_connect`` and ``check``; the pool's
                by default, None for no limit, 0 for "an idle connection or nothing".
            exclusive: in a pool that shares connections (``share``), get one alone, after what is
                in flight on it has finished; for exchanges that block, subscriptions and
                transactions.  All but one of the connections may be leased so at once (I33).  In
                any other pool every lease is exclusive.

        Returns:
            An awaitable and asynchronous context manager that gives a :class:`PoolConnection`.

        Raises (when awaited or entered):
            PoolTimeout: the time has passed.
            PoolUnavailable: a connection could not be opened; the cause is attached.
            PoolOverloaded: too many wait, or have waited too long.
            PoolClosed: the pool is closed.
            RuntimeError: the pool belongs to another event loop, or to the process that this one
                was forked from.
            TypeError: ``exclusive`` is no bool.
            ValueError: ``timeout`` is negative.

        Cancelling it never loses a connection: one that was handed over goes to the next in the
        queue, a dial under way goes on for whoever waits, or for later.
        """
        if timeout is not DEFAULT:
            check_seconds("timeout", timeout)
        if exclusive is not False:
            if exclusive is not True:
                raise TypeError(f"exclusive is {exclusive!r}, expected True or False")
            return ExclusiveRequest(self, timeout)
        return Request(self, timeout)

    # The connections as a whole

    def resize(self, pool_size: int) -> None:
        """Change how many connections may exist at once.

        Surplus idle connections are closed at once, leased ones when they are released.

        Raises:
            ValueError: it is less than 1, or less than ``min_size``.
        """
        check_count("pool_size", pool_size, 1)
        check_floor(self._options.min_size, pool_size)
        self._leases.check_loop()
        ledger = self._ledger
        ledger.resize(pool_size)
        self._leases.look_closely()
        for entry in ledger.idle:
            if len(ledger.entries) - ledger.closing <= pool_size:
                break
            self._leases.retire(entry, "resize")
        self._leases.start_dials()

    def expire(self, condition: Callable[[Any], bool] | None = None) -> int:
        """Replace connections: idle ones are closed now, leased ones when they are released.

        For changed credentials, a failover, an address that is gone.  Idle connections that
        ``min_size`` needs are closed when their successors are open; until then nobody gets them.

        Args:
            condition: called with each connection, True to replace it; None for all.

        Returns:
            How many are replaced.

        Raises:
            TypeError: the condition is not callable.
        """
        if condition is not None and not callable(condition):
            raise TypeError(f"condition is {condition!r}, expected a callable or None")
        self._leases.check_loop()
        now = self._leases.time() if self._leases.loop is not None else 0.0
        expired = 0
        for entry in tuple(self._ledger.entries.values()):
            if entry.state in (IDLE, LEASED) and (
                condition is None or condition(entry.connection)
            ):
                entry.dies_at = min(entry.dies_at, now)
                entry.cause = "expired"
                expired += 1
        if expired:
            # Ages count from here on; where nothing expires, leases stay as quick as they were.
            self._leases.look_closely()
            self._leases.maintenance.look()
        return expired

    def _begin(self) -> None:
        """Open the connections that are kept, if a loop runs."""
        try:
            self._leases.bind_loop()
        except RuntimeError:
            pass  # none does, or another one: at the first use, then

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
        leases = self._leases
        leases.check_loop()
        if not self._ledger.closed:
            self._ledger.closed = True
            leases.look_closely()
            for waiter in self._ledger.leave_all():
                fail(waiter, PoolClosed(f"{self!r} was closed while this caller waited"))
            leases.waiting.stop()
            leases.maintenance.stop()
            leases.dialler.cancel()
            leases.resets.cancel()
            leases.end_steps()
            leases.collect_lost()
            for entry in self._ledger.idle:
                leases.retire(entry, "pool closed")
        self._check_all_closed()
        loop = leases.loop
        if timeout is not None and loop is not None and not self._all_closed.done():
            deadline = loop.time() + timeout
            if deadline < self._abort_at:
                if self._abort_handle is not None:
                    self._abort_handle.cancel()
                self._abort_at = deadline
                self._abort_handle = loop.call_at(deadline, self._abort_all)
        return self._all_closed

    async def __aenter__(self) -> Self:
        if get_running_loop() is not self._leases.loop:
            self._leases.bind_loop()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _abort_all(self) -> None:
        """The time-out of close(): whatever is left is cut."""
        leases = self._leases
        assert leases.loop is not None
        leases.closer.hurry()
        self._abort_handle = leases.loop.call_later(_DIAL_GRACE, leases.dialler.abandon)
        for entry in tuple(self._ledger.entries.values()):
            if entry.state == LEASED:
                leases.retire(entry, "aborted", abort=True)

    def _check_all_closed(self) -> None:
        if self._ledger.size == 0 and not self._all_closed.fired():
            if self._abort_handle is not None:
                self._abort_handle.cancel()
            self._all_closed.fire(None)

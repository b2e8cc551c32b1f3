"""The connections of a pool: how they come, where they are kept, how they go.

Carries out, on the event loop, what the ledger decides about them.  Who leases one is not known
here.  It needs of a connection ``closed`` and ``close()``, and uses where present ``is_reusable``,
``is_shareable``, ``abort()``, an awaitable that ``close()`` returns, and ``add_closing_callback``
(called when the connection stops being usable).  It knows no protocol, no transport, no address.
"""

import asyncio
import logging
import os
import time
from asyncio import get_running_loop
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from math import inf
from threading import get_ident
from typing import Any
from weakref import WeakSet

from pulsar_client.events import EventHandler
from pulsar_client.pool.closer import Closer
from pulsar_client.pool.dialler import Dialler
from pulsar_client.pool.leaks import Hold, Leaks
from pulsar_client.pool.ledger import CLOSING, IDLE, LEASED, Entry, Ledger
from pulsar_client.pool.maintenance import Maintenance
from pulsar_client.pool.options import PoolOptions
from pulsar_client.pool.resets import Resets
from pulsar_client.pool.timings import Timings
from pulsar_client.pool.waiting import Waiting

__all__ = ["Stock"]

_logger = logging.getLogger("pulsar_client.pool")


class Stock:
    """Opens, keeps and closes connections.

    Args:
        pool: the pool, for its events and its ``repr``.
        creator: opens a connection.
        options: those of the pool.
        wanted_loop: the loop the pool was made for, if it was named.
        all_gone: called when a connection of a closed pool is gone.
    """

    #: Several may use one connection.
    shares = False

    def __init__(
        self,
        pool: EventHandler,
        creator: Callable[[], Awaitable[Any]],
        options: PoolOptions,
        *,
        wanted_loop: asyncio.AbstractEventLoop | None,
        all_gone: Callable[[], None],
    ) -> None:
        self.pool = pool
        self.options = options
        self.loop: asyncio.AbstractEventLoop | None = None
        self._wanted_loop = wanted_loop
        self._pid = os.getpid()
        #: The process was forked after the pool had got its loop.
        self.foreign = False
        self._all_gone = all_gone
        # The loop runs in this thread exactly if it runs and this is its thread; to ask for the
        # running loop costs several times more on Python 3.11.
        self._is_running: Callable[[], bool] = bool
        self._thread = 0
        self._check = options.check
        self._max_uses = options.max_uses or inf
        #: There is a bound on those who wait.
        self.bounded = options.max_waiting is not None
        self.waiting = Waiting(options, owner=pool, patrol=self.collect_lost)
        self.ledger = self._make_ledger()
        self.dialler = Dialler(
            self.ledger,
            creator,
            options,
            owner=pool,
            opened=self._opened,
            retire=self.retire,
            slot_freed=self.slot_freed,
        )
        self._backoff = self.dialler.backoff
        self.closer = Closer(self.ledger, owner=pool, gone=self._gone)
        self.resets = Resets(options.reset, owner=pool, ended=self._reset_ended)
        self.leaks = None if options.leak_after is None else Leaks(pool, options.leak_after)
        self.maintenance = Maintenance(
            options,
            self.ledger,
            leaks=self.leaks,
            retire=self.retire,
            start_dials=self.start_dials,
        )
        # Leases take the short way: there is nothing to look at but the connection itself.
        self.short = options.plain
        # The same of connections that only one uses.
        self.plain = options.plain and not self.shares
        self._minds_idle = self.maintenance.looks_at_idle
        # Somebody wants to know of each lease: hooks or the watch for leaks.
        self.observed = self.leaks is not None
        # Leases that were garbage collected; appended to from anywhere, at any time.
        self.lost: deque[tuple[Entry, object]] = deque()
        #: The clock: that of the loop, so that tests can replace it (I34).
        self.time: Callable[[], float] = _no_time
        # Those of callers whose connection is being looked at before the lease.
        self._limits: set[asyncio.Timeout] = set()
        self.use_times = Timings()
        self.wait_times = Timings()
        self.timeouts = self.waits = self.leaked = 0
        self.opened_by: Counter[str] = Counter()
        self.closed_by: Counter[str] = Counter()

    def _make_ledger(self) -> Ledger:
        return Ledger(
            self.options.pool_size,
            floor=self.options.min_size,
            lifo=self.options.lifo,
            turn_away=self.waiting.turn_away if self.waiting.sheds else None,
        )

    # The loop

    def bind_loop(self) -> asyncio.AbstractEventLoop:
        """Belong to the running loop from now on.

        Raises:
            RuntimeError: there is none, or the pool belongs to another, or to another process.
        """
        self.check_loop()
        loop = get_running_loop()
        if self.loop is None:
            self._pid = os.getpid()
            self.loop = loop
            self.time = _clock(loop)
            self._is_running = loop.is_running
            self._thread = get_ident()
            _bound.add(self)
            self.waiting.bind(self.ledger, loop)
            self.maintenance.bind(loop)
            if self.ledger.below_floor:
                self.dialler.start(loop)
        return loop

    def disown(self) -> None:
        """This process is a copy, and what the pool has belongs to the original."""
        self._thread = 0
        self.foreign = True
        entries = self.ledger.entries
        for entry in tuple(entries.values()):
            if entry.state == LEASED:
                # A lease that is held is no way to the parent's socket either.
                del entries[id(entry.connection)]
                entry.connection, entry.begin = _Inherited(entry.connection, self), None
                entries[id(entry.connection)] = entry

    def refusal(self) -> RuntimeError:
        """What is said in a process that was forked from the pool's."""
        return RuntimeError(
            f"{self.pool!r} belongs to process {self._pid}, which this one "
            f"({os.getpid()}) was forked from: make a new pool after the fork"
        )

    def check_loop(self) -> None:
        """Refuse to be used where the connections can't be.

        Raises:
            RuntimeError: the pool belongs to another loop, or to the process this one was forked
                from (I31).
        """
        if self.foreign:
            raise self.refusal()
        mine = self.loop or self._wanted_loop
        try:
            running = get_running_loop()
        except RuntimeError:
            return  # between two runs of the loop
        if mine is not None and mine is not running:
            raise RuntimeError(
                f"{self.pool!r} belongs to another event loop: make one pool for each loop"
            )

    def look_closely(self) -> None:
        """From now on there is more to look at in a lease than the connection itself."""
        self.short = self.plain = False

    def observe(self) -> None:
        """Tell somebody of each lease from now on."""
        self.observed = True

    # New connections

    def start_dials(self) -> None:
        """Start what dials are due."""
        if self.loop is not None:
            self.dialler.start(self.loop)

    def _opened(self, entry: Entry, cause: str, seconds: float) -> None:
        """A new connection: to the first who waits, or idle."""
        self.opened_by[cause] += 1
        self.maintenance.opened(entry, self.time())
        entry.announced = True
        entry.owner = self
        self.pool._fire_many("on_open", connection=entry.connection, duration=seconds, cause=cause)
        try:
            watch = getattr(entry.connection, "add_closing_callback", None)
            if watch is not None:
                watch(self._on_closing)
        except Exception:
            _logger.exception("%r: can't watch %r", self.pool, entry.connection)
            self.retire(entry, "unusable")
        if entry.state == LEASED:
            # Not asked whether it is reusable: nobody has used it yet.
            self._keep(entry)
        self.slot_freed()  # a target that is up may be dialled more than once at a time

    # Good connections

    def _is_usable(self, entry: Entry, failed: bool) -> bool:
        """True if the next user can trust the connection."""
        connection = entry.connection
        try:
            if entry.judges_itself:
                return bool(connection.is_reusable)
            return not failed and not connection.closed
        except Exception:  # noqa: BLE001 - the user's attribute
            self._log_unknown(entry)
            return False

    def _log_unknown(self, entry: Entry) -> None:
        _logger.exception("%r: can't tell whether %r is usable", self.pool, entry.connection)

    def _keep(self, entry: Entry) -> None:
        """A connection that is good goes to the next who waits, or becomes idle."""
        ledger = self.ledger
        cause = self._end_of_life(entry)
        if cause is not None:
            if entry.dies_at > self.time() or not ledger.put_aside(entry):
                self.retire(entry, cause)
            else:
                self.maintenance.look()
            return
        ledger.hand_over(entry)
        if self._minds_idle and entry.state == IDLE:
            self.maintenance.became_idle(entry, self.time())

    def _end_of_life(self, entry: Entry) -> str | None:
        """Why a good connection is not kept, None if it is."""
        ledger = self.ledger
        if ledger.closed:
            return "pool closed"
        if entry.uses >= self._max_uses:
            return "uses"
        if entry.dies_at != inf and entry.dies_at <= self.time():
            return entry.cause or "age"
        if ledger.open > ledger.max_size:
            return "resize"
        return None

    def _reset_ended(self, entry: Entry, clean: bool) -> None:
        if entry.state != LEASED:
            return
        if clean and self._is_usable(entry, False):
            self._keep(entry)
        else:
            self.retire(entry, "pool closed" if self.ledger.closed else "reset")

    # The end of connections

    def collect_lost(self) -> None:
        """Take back the slots of leases that were garbage collected (I30)."""
        while self.lost:
            entry, site = self.lost.popleft()
            self.leaked += 1
            if isinstance(site, Hold) and self.leaks is not None:
                self.leaks.forget(site)
            if entry.state == LEASED:
                self._reclaim(entry)

    def _reclaim(self, entry: Entry) -> None:
        """End a lease that nobody will ever end."""
        self.retire(entry, "leaked")

    def _on_closing(self, connection: Any) -> None:
        """A connection stopped being usable, idle or leased; its slot comes free with its end."""
        entry = self.ledger.entries.get(id(connection))
        if entry is not None and entry.state in (IDLE, LEASED):
            # In this very turn (I18); its close() follows outside of its own call.
            entry.cause = "lost"
            self.ledger.begin_close(entry)
            assert self.loop is not None
            self.loop.call_soon(self.closer.close, entry, self.loop)
            self._refill()

    def retire(self, entry: Entry, cause: str, *, abort: bool = False) -> None:
        """Close a connection, abruptly or not, and free its slot when it is gone."""
        assert self.loop is not None
        if entry.state not in (IDLE, LEASED):
            return  # asking it how it is was its end
        entry.cause = cause
        self.ledger.begin_close(entry)
        if self.foreign:
            # The sockets are the parent's (I31): forget them.
            self.ledger.end_close(entry)
            return
        if abort:
            self.closer.abort(entry.connection)
        self.closer.close(entry, self.loop)
        if entry.state == CLOSING:
            self._refill()

    def _refill(self) -> None:
        """A connection is on its way out: where there is room the floor does not wait for that."""
        if self.ledger.below_floor:
            self.start_dials()

    def _gone(self, entry: Entry) -> None:
        """A connection has left the pool: its slot is free."""
        self.closed_by[entry.cause] += 1
        if entry.announced:
            self.pool._fire_many("on_close", connection=entry.connection, cause=entry.cause)
        self.slot_freed()

    def slot_freed(self) -> None:
        """Some waiter gets its turn now (I5); a closed pool may be done."""
        if self.ledger.closed:
            self._all_gone()
            return
        self.start_dials()
        if self.ledger.dying:
            self.maintenance.end_the_replaced()


class _Inherited:
    """Stands for a connection of the process that this one was forked from (I31).

    Args:
        connection: kept, so that its end is that of this process and closes nothing before.
        stock: refuses whatever else is asked for.
    """

    closed = True
    is_reusable = is_shareable = False

    def __init__(self, connection: Any, stock: Stock) -> None:
        self._connection = connection
        self._stock = stock

    def __getattr__(self, name: str) -> Any:
        raise self._stock.refusal()


#: Not looked for when it is used: a test may have put another in its place.
_LOOP_TIME = asyncio.BaseEventLoop.time
#: Those that have a loop, to be told of a fork.
_bound: WeakSet[Stock] = WeakSet()


def _forked() -> None:
    """In a new process: whoever uses a pool of the old one takes the way that refuses (I31)."""
    for leases in tuple(_bound):
        leases.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The clock of a loop; asyncio's own without the Python call around it."""
    if getattr(loop.time, "__func__", None) is _LOOP_TIME:
        return time.monotonic
    return loop.time


def _no_time() -> float:
    return asyncio.get_running_loop().time()

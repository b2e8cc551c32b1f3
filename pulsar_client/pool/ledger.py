"""Every decision of the pool: who gets which connection, who waits, when to dial.

Plain synchronous code: no await, no loop, no clock, no I/O.  The shell (``leases`` and what it
uses) calls it when something happened and carries out what it decided.

What holds after every call:

* ``idle + leased + closing + dialling == size <= max_size`` (I1, I2), but for the time after
  ``max_size`` was lowered;
* nobody waits while a connection is idle (I10), and a slot that is free has a dial under way for
  somebody who waits, as far as ``dial_limit`` allows (I5);
* those who wait are served in the order in which they came (I7), each connection to one (I8).
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from math import inf
from typing import Any, Protocol

__all__ = ["CLOSING", "GONE", "IDLE", "LEASED", "Dial", "Entry", "Ledger", "Waiter"]

# The states of an entry; plain integers, compared on the path of every lease.
IDLE, LEASED, CLOSING, GONE = range(4)

#: So many idle connections are searched rather than left where they are.
_SHORT = 64


class Waiter(Protocol):
    """Somebody who waits for a connection; an asyncio future is one."""

    def done(self) -> bool:
        """True if it waits no more: served, cancelled or late."""

    def set_result(self, result: Any, /) -> None:
        """Serve it with an :class:`Entry`."""


class Entry:
    """A connection of the pool: from the end of its dial to the end of its close.

    Attributes:
        connection: the connection.
        state: one of ``IDLE``, ``LEASED``, ``CLOSING``, ``GONE``.
        judges_itself: it has ``is_reusable``, which decides alone whether it goes back.
        shareable: it has ``is_shareable``, which decides whether another may join.
        dies_at: when it is too old to be leased (I24); infinity for never.
        idle_since: when it became idle.
        uses: leases so far.
        users: leases now; more than one only if it is shared.
        exclusive: its only lease is one that may not be shared.
        sealed: nobody may join it any more.
        begin: its ``begins_requests``, if it has what begins them: see ``SharedLeases.borrow``.
        announced: the pool's users were told that it is open.
        measured: a lease of it has begun that is measured or observed.
        kept: a lease of it was kept beyond its block.
        owner: what leases it.
        cause: why it is closed.
    """

    __slots__ = (
        "announced",
        "begin",
        "cause",
        "connection",
        "dies_at",
        "exclusive",
        "idle_since",
        "judges_itself",
        "kept",
        "measured",
        "owner",
        "sealed",
        "shareable",
        "state",
        "users",
        "uses",
    )

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.state = LEASED
        self.judges_itself = _has(connection, "is_reusable")
        self.shareable = _has(connection, "is_shareable")
        self.begin = _begin_of(connection)
        self.dies_at = inf
        self.idle_since = 0.0
        self.uses = self.users = 0
        self.exclusive = self.sealed = self.announced = False
        self.measured = self.kept = False
        self.owner: Any = None
        self.cause = ""


def _has(connection: Any, name: str) -> bool:
    try:
        return hasattr(connection, name)
    except Exception:  # noqa: BLE001 - it has one that fails: asked again at each release
        return True


def _begin_of(connection: Any) -> Callable[..., Any] | None:
    try:
        _ = connection.end_request  # without it nobody could stop to wait
        # Not that of another connection which this one stands for: it may add to request().
        _ = type(connection).begins_requests
        begin: Callable[..., Any] | None = connection.begins_requests
        return begin if callable(begin) else None
    except Exception:  # noqa: BLE001 - it has none, or one that fails
        return None


class Dial:
    """An attempt to open a connection, and the waiter it is made for, if there is one."""

    __slots__ = ("abandoned", "asker", "begun", "deadline", "epoch", "started")

    def __init__(self, asker: Waiter | None, deadline: float) -> None:
        self.asker = asker
        self.deadline = deadline
        # Its task has had its first step.
        self.begun = False
        # When, on the loop's clock.
        self.started = 0.0
        # Nobody waits for its end any more, the ledger least of all.
        self.abandoned = False
        # What the backoff wants to know if it fails.
        self.epoch = 0


class Ledger:
    """The book of a pool.

    Args:
        max_size: how many connections may exist at once, those being opened and closed included.
        floor: how many connections to keep open without being asked.
        lifo: lease the connection released last; False for the one released first.
        turn_away: asked about each waiter that is to be served while others wait behind it: True
            means that it was turned away instead.
    """

    #: How many may use one connection at once.
    share = 1

    def __init__(
        self,
        max_size: int,
        *,
        floor: int = 0,
        lifo: bool = True,
        turn_away: Callable[[Waiter], bool] | None = None,
    ) -> None:
        self.max_size = max_size
        self.floor = floor
        self.dial_limit: float = inf
        self._turn_away = turn_away
        # Every entry that is not gone, by the identity of its connection.
        self.entries: dict[int, Entry] = {}
        # Idle entries, the one released last at the end; and, in a long one, some that were closed
        # where they stood: to take them out at once would take time in proportion to its length.
        self.shelf: list[Entry] | deque[Entry] = [] if lifo else deque()
        self.dead = 0
        # Those who wait, in order, with their deadlines (inf: none); and those for whom a dial was
        # started.
        self.waiters: OrderedDict[Waiter, float] = OrderedDict()
        self._dialled: set[Waiter] = set()
        self.closing = 0
        self.dialling = 0
        # Connections of the floor that are to be replaced: idle, but not to be leased any more.
        self.dying: set[Entry] = set()
        # No more dials and no more idle connections.
        self.closed = False
        # Totals over the pool's life.
        self.leases = 0
        self.opened = 0
        self.retired = 0

    @property
    def available(self) -> int:
        """How many connections are idle."""
        return len(self.shelf) - self.dead

    @property
    def idle(self) -> list[Entry]:
        """The idle entries, the one released first at the beginning."""
        return [entry for entry in self.shelf if entry.state == IDLE]

    @property
    def leased(self) -> int:
        """How many connections are leased."""
        return len(self.entries) - len(self.shelf) + self.dead - self.closing

    @property
    def open(self) -> int:
        """How many connections are idle or leased."""
        return len(self.entries) - self.closing

    @property
    def size(self) -> int:
        """How many slots are taken."""
        return len(self.entries) + self.dialling

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self.waiters)

    @property
    def below_floor(self) -> bool:
        """True if there are fewer connections, open or on their way, than are to be kept."""
        return self.open - len(self.dying) + self.dialling < self.floor

    @property
    def spare(self) -> bool:
        """True if an idle connection may be closed and the floor still be kept."""
        return self.open - len(self.dying) > self.floor

    def resize(self, max_size: int) -> None:
        """Change how many connections may exist; closing the surplus is the caller's business."""
        self.max_size = max_size

    # Those who want a connection

    def take_idle(self) -> Entry | None:
        """Lease the connection that was released last; None if there is none idle."""
        shelf = self.shelf
        while shelf:
            entry = shelf.pop() if isinstance(shelf, list) else shelf.popleft()
            if entry.state == IDLE:
                entry.state = LEASED
                self.leases += 1
                return entry
            self.dead -= 1
        return None

    def take_entry(self, entry: Entry) -> None:
        """Lease this idle connection."""
        self.shelf.remove(entry)
        self.dying.discard(entry)
        entry.state = LEASED
        self.leases += 1

    def succeed(self, entry: Entry) -> Entry:
        """Let a new lease of a leased connection take the place of the one there is.

        Returns:
            The connection's new entry; the old one is gone, and with it what its lease could do.
        """
        heir = Entry(entry.connection)
        heir.dies_at, heir.uses, heir.announced = entry.dies_at, entry.uses, entry.announced
        heir.owner, heir.cause = entry.owner, entry.cause
        self.entries[id(entry.connection)] = heir
        entry.state = GONE
        return heir

    def take_exclusive(self) -> Entry | None:
        """Lease a connection to one alone: here every lease is that."""
        return self.take_idle()

    def is_full(self, max_waiting: int) -> bool:
        """True if so many wait already, not counting those whom a dial will serve."""
        slots = max(0, self.max_size - len(self.entries))
        return self.waiting >= max_waiting + slots * self.share

    def wait(
        self, waiter: Waiter, deadline: float, first: bool = False, exclusive: bool = False
    ) -> bool:
        """Join the queue, at its end or (served with a dead connection) at its head.

        Every lease is an exclusive one here, whether or not that is asked for.

        Returns:
            True if a dial may have to be started: ask :meth:`next_dial`.
        """
        self.waiters[waiter] = deadline
        if first:
            self.waiters.move_to_end(waiter, last=False)
        return len(self.entries) + self.dialling < self.max_size

    def late(self, now: float) -> tuple[list[Waiter], float]:
        """Take those out of the queue whose deadline has passed.

        Returns:
            Those waiters, and the earliest deadline of the others (infinity if there is none).
        """
        late, earliest = split(self.waiters, now)
        for waiter in late:
            self.leave(waiter)
        return late, earliest

    def leave(self, waiter: Waiter | None) -> bool:
        """The waiter waits no more, and leaves nothing behind (I9); True if it was waiting."""
        if waiter is None:
            return False
        self._dialled.discard(waiter)
        try:
            del self.waiters[waiter]
        except KeyError:
            return False
        return True

    def leave_all(self) -> list[Waiter]:
        """Empty the queue and return who was in it."""
        waiters = list(self.waiters)
        self.waiters.clear()
        self._dialled.clear()
        return waiters

    # Dials

    def next_dial(self) -> Dial | None:
        """A dial that must be started now; call it until it returns None.

        A dial is made for the first waiter who has none yet, but its connection goes to whoever
        is first in the queue when it is open (I14).  Without waiters it is for the floor (I25).
        """
        if (
            len(self.entries) + self.dialling >= self.max_size
            or self.dialling >= self.dial_limit
            or self.closed
        ):
            return None
        if self.dialling >= self.dials_wanted():
            if not self.below_floor:
                return None
            self.dialling += 1
            return Dial(None, inf)
        asker, deadline = self._first_without_dial()
        self._dialled.add(asker)
        self.dialling += 1
        return Dial(asker, deadline)

    def dials_wanted(self) -> int:
        """How many dials those who wait need."""
        return len(self.waiters)

    def _first_without_dial(self) -> tuple[Waiter, float]:
        waiters = self.waiters
        for waiter, deadline in waiters.items():
            if waiter not in self._dialled:
                return waiter, deadline
        # Everybody had a dial, and some of the connections went to others.
        return next(iter(waiters.items()))

    def dial_failed(self) -> None:
        """A dial ended without a connection: its slot is free."""
        self.dialling -= 1

    def dial_succeeded(self, connection: Any) -> Entry:
        """A dial ended with a connection: leased until it is handed over or put away."""
        self.dialling -= 1
        self.opened += 1
        entry = Entry(connection)
        self.entries[id(connection)] = entry
        return entry

    # Connections that come back

    def end_lease(self, entry: Entry) -> bool:
        """A lease of a connection that is not closing has ended; True if nobody else uses it."""
        return True

    def hand_over(self, entry: Entry) -> None:
        """Give a usable leased connection to the first who still waits, else put it away.

        It never lies idle while somebody waits, so that nobody who comes later overtakes (I7).
        """
        waiters = self.waiters
        while waiters:
            waiter, _ = waiters.popitem(last=False)
            if self._dialled:
                self._dialled.discard(waiter)
            if not waiter.done() and not (
                self._turn_away is not None and waiters and self._turn_away(waiter)
            ):
                self.leases += 1
                waiter.set_result(entry)
                return
        entry.state = IDLE
        self.shelf.append(entry)

    def put_aside(self, entry: Entry) -> bool:
        """Keep a leased connection that is too old until its successor is open.

        Returns:
            False if it can be closed now: the floor does not need it, somebody waits for its slot,
            or there is none for its successor.
        """
        if self.closed or self.waiting or self.spare or self.size >= self.max_size:
            return False
        entry.state = IDLE
        self.shelf.append(entry)
        self.dying.add(entry)
        return True

    # Connections that end

    def begin_close(self, entry: Entry) -> None:
        """An idle or leased connection is being closed: it keeps its slot (I2)."""
        assert entry.state in (IDLE, LEASED), f"bug: closing an entry in state {entry.state}"
        if entry.state == IDLE:
            self._take_out(entry)
        self.dying.discard(entry)
        entry.state = CLOSING
        self.closing += 1

    def _take_out(self, entry: Entry) -> None:
        """An idle connection is none any more; in constant time, on average, however many."""
        if len(self.shelf) <= _SHORT:
            self.shelf.remove(entry)
            return
        self.dead += 1
        if 2 * self.dead > len(self.shelf):
            entry.state = CLOSING
            alive = self.idle
            self.shelf.clear()
            self.shelf.extend(alive)
            self.dead = 0

    def end_close(self, entry: Entry) -> None:
        """Its transport is closed: the slot is free."""
        assert entry.state == CLOSING, f"bug: end of close in state {entry.state}"
        self.closing -= 1
        self._forget(entry)

    def detach(self, entry: Entry) -> None:
        """A leased connection leaves the pool, open; its slot is free."""
        assert entry.state == LEASED, f"bug: detaching an entry in state {entry.state}"
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        entry.state = GONE
        self.retired += 1
        del self.entries[id(entry.connection)]


def split(waiters: OrderedDict[Waiter, float], now: float) -> tuple[list[Waiter], float]:
    """Those who are late at that time, and the earliest deadline of the others."""
    late = []
    earliest = inf
    for waiter, deadline in waiters.items():
        if deadline <= now:
            late.append(waiter)
        elif deadline < earliest:
            earliest = deadline
    return late, earliest

"""Every decision of the pool: who gets which connection, who waits, when to dial.

Plain synchronous code: no await, no loop, no clock, no I/O.  The shell (``pool.pool``) calls it
when something happened and carries out what it decided.

What holds after every call:

* ``idle + leased + closing + dialling == size <= max_size`` (I1, I2);
* nobody waits while a connection is idle (I10), and a slot that is free has a dial under way for
  somebody who waits (I5);
* those who wait are served in the order in which they came (I7), each connection to one (I8).
"""

from collections import OrderedDict
from math import inf
from typing import Any, Protocol

__all__ = ["CLOSING", "GONE", "IDLE", "LEASED", "Dial", "Entry", "Ledger", "Waiter"]

# The states of an entry; plain integers, compared on the path of every lease.
IDLE, LEASED, CLOSING, GONE = range(4)


class Waiter(Protocol):
    """Somebody who waits for a connection; an asyncio future is one."""

    def done(self) -> bool:
        """True if it waits no more: served, cancelled or late."""

    def set_result(self, result: Any, /) -> None:
        """Serve it with an :class:`Entry`."""


class Entry:
    """A connection of the pool: from the end of its dial to the end of its close."""

    __slots__ = ("connection", "judges_itself", "state")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.state = LEASED
        # It has is_reusable, which decides alone whether it goes back.
        try:
            self.judges_itself = hasattr(connection, "is_reusable")
        except Exception:  # noqa: BLE001 - it has one that fails: asked again at each release
            self.judges_itself = True


class Dial:
    """An attempt to open a connection, and the waiter it is made for."""

    __slots__ = ("abandoned", "asker", "begun", "deadline")

    def __init__(self, asker: Waiter, deadline: float) -> None:
        self.asker = asker
        self.deadline = deadline
        # Its task has had its first step.
        self.begun = False
        # Nobody waits for its end any more, the ledger least of all.
        self.abandoned = False


class Ledger:
    """The book of a pool.

    Args:
        max_size: how many connections may exist at once, those being opened and closed included.
    """

    __slots__ = (
        "_dialled",
        "closed",
        "closing",
        "dialling",
        "entries",
        "idle",
        "leases",
        "max_size",
        "opened",
        "retired",
        "waiters",
    )

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        # Every entry that is not gone, by the identity of its connection.
        self.entries: dict[int, Entry] = {}
        # Idle entries, the one released last at the end.
        self.idle: dict[Entry, None] = {}
        # Those who wait, in order, with their deadlines (inf: none); and those for whom a dial was
        # started.
        self.waiters: OrderedDict[Waiter, float] = OrderedDict()
        self._dialled: set[Waiter] = set()
        self.closing = 0
        self.dialling = 0
        # No more dials and no more idle connections.
        self.closed = False
        # Totals over the pool's life.
        self.leases = 0
        self.opened = 0
        self.retired = 0

    @property
    def leased(self) -> int:
        """How many connections are leased."""
        return len(self.entries) - len(self.idle) - self.closing

    @property
    def size(self) -> int:
        """How many slots are taken."""
        return len(self.entries) + self.dialling

    # Those who want a connection

    def take_idle(self) -> Entry | None:
        """Lease the connection that was released last; None if there is none idle."""
        if not self.idle:
            return None
        entry, _ = self.idle.popitem()
        entry.state = LEASED
        self.leases += 1
        return entry

    def wait(self, waiter: Waiter, deadline: float, *, first: bool = False) -> bool:
        """Join the queue, at its end or (served with a dead connection) at its head.

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
        late = []
        earliest = inf
        for waiter, deadline in self.waiters.items():
            if deadline <= now:
                late.append(waiter)
            elif deadline < earliest:
                earliest = deadline
        for waiter in late:
            self.leave(waiter)
        return late, earliest

    def leave(self, waiter: Waiter) -> bool:
        """The waiter waits no more, and leaves nothing behind (I9); True if it was waiting."""
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
        is first in the queue when it is open (I14).
        """
        if (
            len(self.entries) + self.dialling >= self.max_size
            or self.dialling >= len(self.waiters)
            or self.closed
        ):
            return None
        asker = next((w for w in self.waiters if w not in self._dialled), None)
        if asker is None:
            # Everybody had a dial, and some of the connections went to others.
            asker = next(iter(self.waiters))
        self._dialled.add(asker)
        self.dialling += 1
        return Dial(asker, self.waiters[asker])

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

    def hand_over(self, entry: Entry) -> None:
        """Give a usable leased connection to the first who still waits, else put it away.

        It never lies idle while somebody waits, so that nobody who comes later overtakes (I7).
        """
        while self.waiters:
            waiter, _ = self.waiters.popitem(last=False)
            if self._dialled:
                self._dialled.discard(waiter)
            if not waiter.done():
                self.leases += 1
                waiter.set_result(entry)
                return
        entry.state = IDLE
        self.idle[entry] = None

    # Connections that end

    def begin_close(self, entry: Entry) -> None:
        """An idle or leased connection is being closed: it keeps its slot (I2)."""
        assert entry.state in (IDLE, LEASED), f"bug: closing an entry in state {entry.state}"
        if entry.state == IDLE:
            del self.idle[entry]
        entry.state = CLOSING
        self.closing += 1

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

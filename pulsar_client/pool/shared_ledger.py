"""The decisions of a pool whose connections are used by several at once.

A shared lease joins the connection that is in use and has room; when all are full it takes an idle
one, else it waits and another is opened: so tasks spread over the fewest connections that do.

A lease that is exclusive gets a connection alone.  Those who wait for one are kept apart from the
others (I33: exchanges that block for long never hold up shared ones):

* at most ``max_size - 1`` connections are exclusive at once, so that one is left to share (a pool
  of one connection can't keep that);
* one who waits gets the next idle or new connection; when no slot is free, a connection in use is
  reserved: nobody else joins it, and when its last user leaves it goes to the first who waits.
"""

from collections import OrderedDict
from math import ceil
from typing import Any

from pulsar_client.pool.ledger import IDLE, LEASED, Entry, Ledger, Waiter, split

__all__ = ["SharedLedger"]


class SharedLedger(Ledger):
    """The book of a pool that shares.

    Args:
        max_size: how many connections may exist at once.
        share: how many may use one at once.
        **kw: see :class:`Ledger`.
    """

    def __init__(self, max_size: int, share: int, **kw: Any) -> None:
        super().__init__(max_size, **kw)
        self.share = share
        # Leased connections that another may join.
        self.roomy: dict[Entry, None] = {}
        # The first of them, while there is nothing else to look at: it begins requests itself, and
        # nobody waits.
        self.ready: Entry | None = None
        # Leased connections that nobody joins any more, for one who wants to be alone.
        self.reserved: dict[Entry, None] = {}
        # Those who want to be alone, in order, with their deadlines.
        self._loners: OrderedDict[Waiter, float] = OrderedDict()
        self._exclusive = 0
        # The only connection of a pool was just used by one alone.
        self._in_turn = False

    @property
    def waiting(self) -> int:
        """How many wait, for whatever."""
        return len(self.waiters) + len(self._loners)

    @property
    def _exclusive_limit(self) -> int:
        return max(1, self.max_size - 1)

    def resize(self, max_size: int) -> None:
        """Change how many connections may exist, and with it how many may be exclusive."""
        super().resize(max_size)
        self._reserve()

    def describe_exclusive(self) -> str:
        """How many are used by one alone, and how many may be, for an error."""
        return f"for exclusive use ({self._exclusive} of at most {self._exclusive_limit} are)"

    # Those who want a connection

    def take_idle(self) -> Entry | None:
        """Join a connection that has room, else take an idle one; None if there is neither."""
        for entry in self.roomy:
            self.leases += 1
            self.join(entry)
            return entry
        found = super().take_idle()
        if found is not None:
            self.join(found)
        return found

    def take_entry(self, entry: Entry) -> None:
        """Join this idle connection."""
        super().take_entry(entry)
        self.join(entry)

    def take_exclusive(self) -> Entry | None:
        """Take an idle connection alone; None if there is none, or too many have that."""
        if self._exclusive + len(self.reserved) >= self._exclusive_limit:
            return None
        entry = super().take_idle()
        if entry is not None:
            self._seclude(entry)
        return entry

    def wait(
        self, waiter: Waiter, deadline: float, first: bool = False, exclusive: bool = False
    ) -> bool:
        """Join one of the queues: of those who share, or of those who want to be alone."""
        self.ready = None
        if not exclusive:
            return super().wait(waiter, deadline, first)
        self._loners[waiter] = deadline
        if first:
            self._loners.move_to_end(waiter, last=False)
        self._reserve()
        return len(self.entries) + self.dialling < self.max_size

    def late(self, now: float) -> tuple[list[Waiter], float]:
        """Take those out of the queues whose deadline has passed."""
        late, earliest = super().late(now)
        alone, earliest_alone = split(self._loners, now)
        for waiter in alone:
            self.leave(waiter)
        return late + alone, min(earliest, earliest_alone)

    def leave(self, waiter: Waiter | None) -> bool:
        """The waiter waits no more; what was reserved for it is shared again."""
        if super().leave(waiter):
            return True
        if waiter is None or self._loners.pop(waiter, None) is None:
            return False
        self._reserve()
        return True

    def leave_all(self) -> list[Waiter]:
        """Empty the queues and return who was in them."""
        waiters = [*super().leave_all(), *self._loners]
        self._loners.clear()
        self._reserve()
        return waiters

    # Dials

    def dials_wanted(self) -> int:
        """How many dials those who wait need."""
        return ceil(len(self.waiters) / self.share) + max(
            0, self._loners_served() - len(self.reserved)
        )

    def _first_without_dial(self) -> tuple[Waiter, float]:
        for queue in (self.waiters, self._loners):
            for waiter, deadline in queue.items():
                if waiter not in self._dialled:
                    return waiter, deadline
        return next(iter((self.waiters or self._loners).items()))

    def _loners_served(self) -> int:
        """How many who want to be alone may get a connection now."""
        return min(len(self._loners), self._exclusive_limit - self._exclusive)

    def dial_failed(self) -> None:
        """A dial ended without a connection: its slot is free."""
        super().dial_failed()
        self._reserve()

    # Connections that come back

    def end_lease(self, entry: Entry) -> bool:
        """A lease has ended; True if nobody else uses the connection."""
        entry.users -= 1
        if entry.exclusive:
            entry.exclusive = False
            self._exclusive -= 1
            self._in_turn = self.max_size == 1
            if self._loners:
                self._reserve()
        return entry.users == 0

    def seal(self, entry: Entry) -> None:
        """Let nobody join a connection any more: it is closed when its last user leaves."""
        entry.sealed = True
        self.bar(entry)
        if entry in self.reserved:
            del self.reserved[entry]
            self._reserve()

    def hand_over(self, entry: Entry) -> None:
        """Give the room of a usable leased connection to those who wait, else keep it."""
        if entry in self.reserved:
            if entry.users:
                return
            del self.reserved[entry]
        # Where there is one connection, those who share and those who don't have it in turn (I7).
        passed_over = self._in_turn and bool(self.waiters)
        self._in_turn = False
        if (
            not (entry.users or passed_over)
            and self._exclusive + len(self.reserved) < self._exclusive_limit
            and self._give_to_loner(entry)
        ):
            return
        while self.waiters and entry.users < self.share:
            waiter, _ = self.waiters.popitem(last=False)
            self._dialled.discard(waiter)
            if not waiter.done() and not (
                self._turn_away is not None and self.waiters and self._turn_away(waiter)
            ):
                self.leases += 1
                self.join(entry)
                waiter.set_result(entry)
        if entry.users == 0:
            self.bar(entry)
            entry.state = IDLE
            self.shelf.append(entry)
        elif entry.users < self.share:
            self.roomy[entry] = None
        if passed_over if self._loners else self.reserved:
            self._reserve()  # or all of them had gone meanwhile, and it is needed no more

    def rest(self, entry: Entry) -> bool:
        """The last user of a connection has left, and it becomes idle.

        Returns:
            False, and nothing was done: it is not as simple as that, somebody may want it.
        """
        if self.waiters or self._loners or self.reserved or entry.exclusive or entry.sealed:
            return False
        entry.users = 0
        self.bar(entry)
        entry.state = IDLE
        self.shelf.append(entry)
        return True

    def put_aside(self, entry: Entry) -> bool:
        """Keep an unused connection that is too old, and that nobody shall join."""
        aside = super().put_aside(entry)
        if aside:
            self.bar(entry)
        return aside

    # Connections that end

    def begin_close(self, entry: Entry) -> None:
        """A connection is being closed, whoever uses it."""
        super().begin_close(entry)
        self._leave_sharing(entry)

    def detach(self, entry: Entry) -> None:
        """A connection that one alone uses leaves the pool."""
        super().detach(entry)
        self._leave_sharing(entry)

    def _leave_sharing(self, entry: Entry) -> None:
        self.bar(entry)
        if entry.exclusive:
            entry.exclusive = False
            self._exclusive -= 1
        self.reserved.pop(entry, None)
        if self._loners:
            self._reserve()

    def join(self, entry: Entry) -> None:
        """One more uses a leased connection."""
        entry.users += 1
        if entry.users < self.share:
            self.roomy[entry] = None
        else:
            self.bar(entry)

    def bar(self, entry: Entry) -> None:
        """Let nobody join a connection, whether or not somebody could before."""
        self.roomy.pop(entry, None)
        if entry is self.ready:
            self.ready = None

    # Inside

    def _seclude(self, entry: Entry) -> None:
        self.bar(entry)
        entry.users = 1
        entry.exclusive = True
        self._exclusive += 1

    def _give_to_loner(self, entry: Entry) -> bool:
        while self._loners:
            waiter, _ = self._loners.popitem(last=False)
            self._dialled.discard(waiter)
            if not waiter.done():
                self.leases += 1
                self._seclude(entry)
                waiter.set_result(entry)
                self._reserve()
                return True
        return False

    def _reserve(self) -> None:
        """Keep as many connections for those who want to be alone as they can have and need.

        Slots that are free, and dials that nobody else needs, serve them first.
        """
        while self._loners and self._exclusive + len(self.reserved) < self._exclusive_limit:
            # One more may be alone than before, and what lies there will do.
            entry = next((entry for entry in self.idle if entry not in self.dying), None)
            if entry is None:
                break
            self.shelf.remove(entry)
            entry.state = LEASED
            if not self._give_to_loner(entry):
                self.hand_over(entry)
        spare_dials = self.dialling - ceil(len(self.waiters) / self.share)
        free = max(0, self.max_size - len(self.entries) - self.dialling)
        wanted = max(0, self._loners_served() - free - max(0, spare_dials))
        while len(self.reserved) > wanted:
            entry, _ = self.reserved.popitem()
            self.hand_over(entry)  # to those who wait, and again for whoever wants to join
        while len(self.reserved) < wanted:
            shared = [
                entry
                for entry in self.entries.values()
                if entry.state == LEASED
                and entry.users  # without any it is being reset, and free when that has ended
                and not (entry.exclusive or entry.sealed or entry in self.reserved)
            ]
            if len(shared) < min(2, self.max_size):
                return  # the last that is shared stays so
            chosen = min(shared, key=lambda entry: entry.users)
            self.bar(chosen)
            self.ready = None
            self.reserved[chosen] = None

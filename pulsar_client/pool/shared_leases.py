"""Leases of connections that several use at once.

A connection that can't be trusted any more is closed when the last of its users has left; until
then nobody joins it.
"""

from collections.abc import Callable
from math import inf
from threading import get_ident
from typing import Any

from pulsar_client.pool.leases import Leases
from pulsar_client.pool.ledger import IDLE, LEASED, Entry
from pulsar_client.pool.shared_ledger import SharedLedger

__all__ = ["SharedLeases"]


class SharedLeases(Leases):
    """Gives connections to several callers at once, and to one alone where that is asked for."""

    shares = True
    ledger: SharedLedger

    def _make_ledger(self) -> SharedLedger:
        turn_away: Callable[[Any], bool] | None = None
        if self.waiting.sheds:
            turn_away = self.waiting.turn_away
        return SharedLedger(
            self.options.pool_size,
            self.options.share,
            floor=self.options.min_size,
            lifo=self.options.lifo,
            turn_away=turn_away,
        )

    def look_closely(self) -> None:
        """From now on there is more to look at in a lease than the connection itself."""
        super().look_closely()
        self.ledger.ready = None

    def observe(self) -> None:
        """Tell somebody of each lease from now on."""
        super().observe()
        self.ledger.ready = None

    # Leases that begin

    def take_now(self) -> Entry | None:
        """Join a connection that has room, else take an idle one; None to wait."""
        # No await below: whoever finds room has it (I8).
        if get_ident() != self._thread or not self._is_running():
            self.bind_loop()
        ledger = self.ledger
        for entry in ledger.roomy:
            # What _take_used() does, where nothing but the connection has to be looked at: its
            # calls cost more than all the rest of a request.
            if self._check is not None or not entry.shareable or entry.dies_at != inf:
                break
            try:
                if not entry.connection.is_shareable:
                    break
            except Exception:  # noqa: BLE001 - the user's attribute; asked again, and logged, below
                break
            ledger.leases += 1
            entry.uses += 1
            entry.users += 1
            if entry.users == ledger.share:
                ledger.bar(entry)
            return entry
        return self._take_used()

    def borrow(self) -> Entry | None:
        """The same without a look at the connection.

        So it is where the connection itself says, when a request is begun on it, that it takes
        none: what its ``begins_requests`` gives then gives None.
        """
        ledger = self.ledger
        entry = ledger.ready
        if (
            entry is None
            or ledger.leases & 63 == 63
            or get_ident() != self._thread
            or not self._is_running()
        ):
            return self._borrow()
        ledger.leases += 1
        entry.uses += 1
        users = entry.users = entry.users + 1
        if users == ledger.share:
            ledger.bar(entry)
        return entry

    def _borrow(self) -> Entry | None:
        """The same where more has to be looked at."""
        ledger = self.ledger
        if self.observed or ledger.leases & 63 == 63:
            return None
        if not self.short or get_ident() != self._thread or not self._is_running():
            return self.take_now()
        for entry in ledger.roomy:  # noqa: B007 - the first of them
            break
        else:
            shelf = ledger.shelf
            if not shelf or (entry := shelf[-1]).state != IDLE:
                return self.take_now()
            if entry.begin is not None:
                shelf.pop()
                entry.state = LEASED
        if entry.begin is None:
            return self.take_now()
        ledger.leases += 1
        entry.uses += 1
        ledger.join(entry)
        if entry.users < ledger.share and not ledger.waiters and not ledger.reserved:
            ledger.ready = entry
        return entry

    def take_alone(self) -> None:
        """One who shares with nobody may have to wait until nothing is in flight."""
        self.bind_loop()

    def _take_unchecked(self, exclusive: bool) -> Entry:
        entry = super()._take_unchecked(exclusive)
        if exclusive and not self._is_usable(entry, False):
            # Not yet: a reply that nobody waits for is still to come.
            self.ledger.leases -= 1
            self.ledger.end_lease(entry)
            entry.uses -= 1
            self._keep(entry)
            raise self._timed_out(0.0, exclusive)
        return entry

    def _describe_wanted(self, exclusive: bool) -> str:
        # Else it would look as if somebody waited in vain while connections are idle (I35).
        return f"{self.ledger.describe_exclusive()} " if exclusive else ""

    async def _is_quiet(self, entry: Entry, started: float, deadline: float) -> bool:
        # Nobody has used a new one yet, whatever it says.
        if not (entry.shareable and entry.uses) or self._is_usable(entry, False):
            return True
        connection = entry.connection
        return await self._passes(
            entry, lambda: connection.drained(), "unusable", started, deadline
        )

    # Leases that end

    def give_back(self, entry: Entry, discard: bool, failed: bool) -> None:
        """End a lease; what becomes of the connection concerns its other users too."""
        ledger = self.ledger
        if entry is ledger.ready and entry.users > 1 and not discard:
            # Whether it can be trusted is asked when the next joins, and when the last leaves.
            entry.users -= 1
            return
        if entry.state != LEASED:
            return
        if self.short and not discard:
            if 1 < entry.users < ledger.share and not (
                entry.sealed or ledger.waiters or ledger.reserved
            ):
                # Others use it, it had room before, and nobody waits.  Whether it can be trusted
                # is asked when the next joins, and when the last leaves.
                entry.users -= 1
                return
            if (
                entry.users == 1
                and entry.begin is not None
                and self._is_joinable(entry)
                and (entry.state != LEASED or ledger.rest(entry))
            ):
                return  # idle; or asking it how it is was its end
        alone = entry.exclusive
        if not self.ledger.end_lease(entry):
            if discard or self._end_of_life(entry) or not self._is_joinable(entry):
                self.ledger.seal(entry)
            elif not entry.sealed:
                self.ledger.hand_over(entry)
        elif entry.sealed:
            self.retire(entry, self._end_of_life(entry) or "unusable")
        elif alone or discard or not entry.shareable:
            self._give_back_used(entry, discard, failed)
        elif self._is_joinable(entry):
            # A reply that nobody waits for any more may be on its way: the connection sees to it.
            self._keep(entry)
        else:
            self.retire(entry, "unusable")

    def let_go(self, entry: Entry) -> None:
        """End a lease and forget its connection, which nobody else may be using.

        Raises:
            RuntimeError: others use it.
        """
        if entry.state == LEASED and entry.users > 1:
            raise RuntimeError(
                f"{entry.connection!r} has {entry.users} users: lease one to detach with "
                "connect(exclusive=True)"
            )
        super().let_go(entry)

    def _is_good(self, entry: Entry) -> bool:
        connection = entry.connection
        return bool(connection.is_shareable if entry.shareable else not connection.closed)

    def _is_joinable(self, entry: Entry) -> bool:
        try:
            return self._is_good(entry)
        except Exception:  # noqa: BLE001 - the user's attribute
            self._log_unknown(entry)
            return False

    def _is_still_good(self, entry: Entry) -> bool:
        return self._is_usable(entry, False) if entry.exclusive else self._is_joinable(entry)

    def _reject(self, entry: Entry, cause: str) -> None:
        self.ledger.leases -= 1
        self._leave(entry, cause)

    def _reclaim(self, entry: Entry) -> None:
        self._leave(entry, "leaked")

    def _leave(self, entry: Entry, cause: str) -> None:
        """End one lease of a connection that nobody shall join any more."""
        if entry.state != LEASED:
            return
        if self.ledger.end_lease(entry):
            self.retire(entry, cause)
        else:
            self.ledger.seal(entry)

"""The life of a lease: taken now or later, and given back.

What concerns a connection whoever has it is in ``stock``, every decision in ``ledger``.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from threading import get_ident
from typing import Any

from pulsar_client.exceptions import PoolClosed, PoolError, PoolTimeout, PoolUnavailable
from pulsar_client.pool.leaks import Hold, caller_of
from pulsar_client.pool.ledger import IDLE, LEASED, Entry
from pulsar_client.pool.stock import Stock

__all__ = ["Leases"]

_logger = logging.getLogger("pulsar_client.pool")

#: So many connections one caller is given that are lost before it has them.
_DEATHS = 3


class Leases(Stock):
    """Gives connections to callers and takes them back."""

    # Leases that begin

    def take_now(self) -> Entry | None:
        """Lease an idle connection, evicting those that turn out to be dead; None to wait."""
        # No await below: whoever finds a connection idle has it (I8).
        if get_ident() != self._thread or not self._is_running():
            self.bind_loop()
        if not self.plain:
            return self._take_used()
        ledger = self.ledger
        shelf = ledger.shelf
        while shelf:
            # What ledger.take_idle() does: a call is a tenth of a lease.
            entry = shelf.pop()
            if entry.state != IDLE:
                ledger.dead -= 1
                continue
            entry.state = LEASED
            ledger.leases += 1
            try:
                if not entry.connection.closed:
                    return entry
            except Exception:  # noqa: BLE001 - the user's attribute
                self._log_unknown(entry)
            self._reject(entry, "lost")
        return None

    def borrow(self) -> Entry | None:
        """Lease a connection without an object for the lease, if one is there at once.

        For code that asks so often that the object counts, and that ends the lease in a
        ``finally``, with ``entry.owner.give_back(entry, False, failed)``: nobody else will.

        Returns:
            The pool's entry of the connection.  None: use ``connect()``, because one has to wait,
            or this lease is to be measured or observed.
        """
        if self.observed or self.ledger.leases & 63 == 63:
            return None
        return self.take_now()

    def may_still_be_asked(self, entry: Entry) -> bool:
        """Look at a connection that was borrowed, and that has begun no request.

        Returns:
            False if it takes none: then this was no lease, and there is nothing to give back.
        """
        if self._is_still_good(entry):
            return True
        self._reject(entry, "lost")
        return False

    def _take_used(self) -> Entry | None:
        if self._check is not None:
            return None
        entry = self._take(False)
        if entry is not None:
            entry.uses += 1
        return entry

    def take_alone(self) -> Entry | None:
        """The same for one who wants to share it with nobody; here nobody shares."""
        return self.take_now()

    def _take(self, exclusive: bool) -> Entry | None:
        while True:
            entry = self.ledger.take_exclusive() if exclusive else self.ledger.take_idle()
            if entry is None:
                return None
            if entry.dies_at != inf and entry.dies_at <= self.time():
                self._reject(entry, entry.cause or "age")
                continue
            try:
                if self._is_good(entry):
                    return entry
            except Exception:  # noqa: BLE001 - the user's attribute
                self._log_unknown(entry)
            self._reject(entry, "lost")

    async def take_later(  # noqa: C901 - one wait, told from its beginning to its end
        self, timeout: float | None, exclusive: bool = False
    ) -> tuple[Entry, float]:
        """Wait for a connection: released by another, or dialled.

        Returns:
            The connection's entry, and how long it took in seconds.
        """
        if timeout == 0:
            return self._take_unchecked(exclusive), 0.0
        loop = self.loop
        assert loop is not None
        ledger = self.ledger
        time = self.time
        started = time()
        deadline = inf if timeout is None else started + timeout
        self.waits += 1
        first = False
        died = 0
        entry: Entry | None = None
        while True:
            if first or not self.plain:
                # Another may have come back meanwhile (I10).
                entry = self._take(exclusive)
            if entry is None:
                if ledger.closed or self.lost or self.bounded or self._backoff.down:
                    self._admit(started, first)
                waiter: asyncio.Future[Entry | None] = asyncio.Future(loop=loop)
                if ledger.wait(waiter, deadline, first, exclusive):
                    self.dialler.start(loop)
                # The first of all counts too if it would wait for ever.
                if deadline <= self.waiting.next_look or self.waiting.sheds:
                    self.waiting.joined(waiter, started, deadline)
                try:
                    entry = await waiter
                except BaseException:
                    self._withdraw(waiter)
                    raise
                if entry is None:
                    raise self._timed_out(time() - started, exclusive)
            # If it is not good, or died on the way, back to the head of the queue.
            if entry.state != LEASED:
                died = self._one_more(died)
            elif self.plain or await self._is_fit(entry, started, deadline, exclusive):
                waited = time() - started
                pending = self.wait_times.pending
                pending.append(waited)
                if len(pending) >= 512:
                    self.wait_times.fold()
                return entry, waited
            first = True

    def _one_more(self, died: int) -> int:
        """Count a connection that was lost before its caller had it.

        Raises:
            PoolUnavailable: there were several in a row: a target that lets one connect and closes
                is down, whatever its dials say (I26).
        """
        died += 1
        if died < _DEATHS:
            return died
        error = PoolUnavailable(
            f"{self.pool!r}: {died} connections in a row were lost before they could be used"
        )
        raise self.dialler.explain(error, self.time())

    def _withdraw(self, waiter: asyncio.Future[Entry | None]) -> None:
        """A wait was cancelled or failed: what was handed over goes to the next (I6)."""
        self.ledger.leave(waiter)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            entry = waiter.result()
            if entry is not None:
                self.give_back(entry, False, False)

    def _take_unchecked(self, exclusive: bool) -> Entry:
        """An idle connection or an error: a check would have to wait."""
        self._refuse_if_closed()
        self.collect_lost()
        entry = self._take(exclusive)
        if entry is None:
            raise self._timed_out(0.0, exclusive)
        entry.uses += 1
        return entry

    def _refuse_if_closed(self) -> None:
        if self.ledger.closed:
            raise PoolClosed(f"{self.pool!r} gives no more leases")

    def _admit(self, now: float, first: bool) -> None:
        """Raise what is certain already for one who would have to wait."""
        self._refuse_if_closed()
        if first:
            return  # it has waited before
        self.collect_lost()
        refusal = self.dialler.refuses(now)
        if refusal is not None:
            raise refusal
        self.waiting.admit()

    async def _is_fit(
        self, entry: Entry, started: float, deadline: float, exclusive: bool
    ) -> bool:
        """Look at what a plain pool need not; a connection that is not fit is closed."""
        if entry.sealed:
            # Another of its users gave it up, in the turn in which it was handed over.
            self._reject(entry, "unusable")
            return False
        if exclusive and not await self._is_quiet(entry, started, deadline):
            return False
        entry.uses += 1
        check = self._check
        return (
            check is None
            or entry.uses == 1
            or await self._passes(
                entry, lambda: check(entry.connection), "check", started, deadline
            )
        )

    async def _passes(
        self,
        entry: Entry,
        step: Callable[[], Awaitable[Any]],
        cause: str,
        started: float,
        deadline: float,
    ) -> bool:
        """Take a step before a lease, in the caller's time; False if the connection is rejected.

        That it is when the step fails, gives False, or does not end in time.

        Raises:
            PoolTimeout: the caller's time has passed.
            PoolClosed: the pool was closed meanwhile; that ends the step.
        """
        limit = asyncio.timeout_at(None if deadline == inf else deadline)
        self._limits.add(limit)
        try:
            self._refuse_if_closed()
            async with limit:
                passed = await step() is not False
            self._refuse_if_closed()
            passed = passed and entry.state == LEASED and self._is_still_good(entry)
        except BaseException as exc:
            closed = self.ledger.closed
            self._reject(entry, "pool closed" if closed else cause)
            if not isinstance(exc, Exception):
                raise
            self._refuse_if_closed()
            if limit.expired():
                error = self._timed_out(self.time() - started)
                raise error from exc
            _logger.debug("%r: the %s of %r failed: %r", self.pool, cause, entry.connection, exc)
            return False
        finally:
            self._limits.discard(limit)
        if not passed:
            self._reject(entry, cause)
        return passed

    def end_steps(self) -> None:
        """Let nobody wait any more for what comes before a lease: there will be none (I29)."""
        for limit in tuple(self._limits):
            with suppress(RuntimeError):  # it ends already, or the loop has
                limit.reschedule(self.time())

    def _reject(self, entry: Entry, cause: str) -> None:
        """A connection that was leased is not good enough after all."""
        self.ledger.leases -= 1
        self.retire(entry, cause)

    def _timed_out(self, waited: float, exclusive: bool = False) -> PoolError:
        self.timeouts += 1
        wanted = self._describe_wanted(exclusive)
        error = PoolTimeout(f"{self.pool!r}: no connection {wanted}within {waited:.3g} s")
        return self.dialler.explain(error, self.time())

    def _describe_wanted(self, exclusive: bool) -> str:
        """What an error says of the connection that could not be had, if there is more to say."""
        return ""

    def began(self, connection: Any, waited: float, now: float) -> Hold | None:
        """Tell those who want to know that a lease has begun."""
        if not self.observed:
            return None
        self.pool._fire_many("on_lease", connection=connection, duration=waited)
        if self.leaks is None:
            return None
        hold = self.leaks.begin(connection, now, caller_of(3))
        self.maintenance.look_at(now + (self.options.leak_after or 0.0))
        return hold

    def ended(self, entry: Entry, site: object, since: float) -> None:
        """A lease that is measured or observed has ended."""
        now = self.time()
        self.use_times.add(now - since)
        if self.observed:
            if isinstance(site, Hold) and self.leaks is not None:
                self.leaks.end(site, now)
            self.pool._fire_many("on_release", connection=entry.connection, duration=now - since)

    # Leases that end

    def take_this(self, connection: Any) -> Entry:
        """Lease one connection that is idle, or take its lease over from whoever has it.

        Raises:
            ValueError: it is not a connection of this pool, it is in use and shared, or it is
                being reset.
            RuntimeError: the pool belongs to another loop, or to another process.
        """
        self.check_loop()
        entry = self.ledger.entries.get(id(connection))
        if entry is None or entry.state not in (IDLE, LEASED):
            raise ValueError(f"{connection!r} is not a connection of {self.pool!r}")
        if entry.state == IDLE:
            self.ledger.take_entry(entry)
            entry.uses += 1
            return entry
        if self.shares:
            raise ValueError(f"{connection!r} is in use: a lease that is shared has one handle")
        if entry in self.resets:
            raise ValueError(f"{connection!r} is being reset: {self.pool!r} leases it afterwards")
        return self.ledger.succeed(entry)

    def give_back(self, entry: Entry, discard: bool, failed: bool) -> None:
        """End a lease: put the connection back if the next user can trust it, else close it."""
        # No await, and nothing that can raise: a release can't fail (I13).
        if entry.state != LEASED:
            return  # it died during the lease and is gone or going
        if not self.plain or discard:
            self._give_back_used(entry, discard, failed)
            return
        # The short way.  What it does is what _is_usable() and ledger.hand_over() do: each call is
        # a tenth of a lease.
        connection = entry.connection
        try:
            if entry.judges_itself:
                usable = connection.is_reusable
            else:
                usable = not failed and not connection.closed
        except Exception:  # noqa: BLE001 - the user's attribute
            self._log_unknown(entry)
            usable = False
        ledger = self.ledger
        if not usable:
            self.retire(entry, "unusable")
        elif ledger.waiters:
            ledger.hand_over(entry)
        else:
            entry.state = IDLE
            ledger.shelf.append(entry)

    def _give_back_used(self, entry: Entry, discard: bool, failed: bool) -> None:
        """The same where there is more to look at than the connection itself."""
        if discard:
            self.retire(entry, "discarded")
        elif self.foreign or not self._is_usable(entry, failed):
            self.retire(entry, "unusable")
        elif self.resets.wanted and not self.ledger.closed and entry.uses:
            assert self.loop is not None
            self.resets.begin(entry, self.loop)
        else:
            self._keep(entry)

    def _is_good(self, entry: Entry) -> bool:
        """True if an idle connection is still one."""
        return not entry.connection.closed

    def _is_still_good(self, entry: Entry) -> bool:
        """True if a leased connection can be used after its check."""
        return self._is_usable(entry, False)

    async def _is_quiet(self, entry: Entry, started: float, deadline: float) -> bool:
        """Wait until nothing of earlier users is in flight; False if the connection was lost."""
        return True

    def let_go(self, entry: Entry) -> None:
        """End a lease and forget its connection: it is the caller's own."""
        if entry.state == LEASED:
            entry.cause = "detached"
            self.ledger.detach(entry)
            try:
                unwatch = getattr(entry.connection, "remove_closing_callback", None)
                if unwatch is not None:
                    unwatch(self._on_closing)
            finally:
                self._gone(entry)

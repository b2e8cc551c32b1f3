"""The book of a pool that shares: every decision, without a loop."""

from math import ceil, inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pulsar_client.pool.ledger import CLOSING, IDLE, LEASED, Dial, Entry
from pulsar_client.pool.shared_ledger import SharedLedger


class Waiter:
    """Somebody who waits; what an asyncio future is to the ledger."""

    def __init__(self, number: int, served: "list[Waiter]") -> None:
        self.number = number
        self.served = served
        self.entry: Entry | None = None
        self.left = False

    def __repr__(self) -> str:
        return f"w{self.number}"

    def done(self) -> bool:
        return self.left or self.entry is not None

    def set_result(self, entry: Entry, /) -> None:
        assert not self.done(), f"{self} is served twice, or after it left"
        self.entry = entry
        self.served.append(self)


class Connection:
    pass


def opened(ledger: SharedLedger) -> Entry:
    entry = ledger.dial_succeeded(Connection())
    ledger.hand_over(entry)
    return entry


def book(size: int, share: int, connections: int) -> SharedLedger:
    ledger = SharedLedger(size, share)
    ledger.dialling = connections
    for _ in range(connections):
        opened(ledger)
    return ledger


def waiting(ledger: SharedLedger, *, alone: bool = False) -> Waiter:
    waiter = Waiter(0, [])
    ledger.wait(waiter, inf, exclusive=alone)
    return waiter


def release(ledger: SharedLedger, entry: Entry) -> None:
    ledger.end_lease(entry)
    ledger.hand_over(entry)


def test_tasks_spread_over_the_fewest_connections() -> None:
    ledger = book(3, 2, 3)
    taken = [ledger.take_idle() for _ in range(7)]
    assert taken[6] is None
    assert taken[0] is taken[1] is not taken[2] is taken[3] is not taken[4] is taken[5]
    assert ledger.leased == 3


@pytest.mark.parametrize(("size", "alone"), [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_i33_one_is_left_to_share(size: int, alone: int) -> None:
    ledger = book(size, 4, size)
    entries = [ledger.take_exclusive() for _ in range(size)]
    assert sum(entry is not None for entry in entries) == alone
    assert (ledger.take_idle() is not None) is (size > 1)


def test_i33_one_who_wants_to_be_alone_gets_the_least_used_when_it_is_free() -> None:
    ledger = book(2, 3, 2)
    first = [ledger.take_idle() for _ in range(3)]
    second = ledger.take_idle()
    assert second is not None
    loner = waiting(ledger, alone=True)
    other = waiting(ledger)  # full, and the other one is reserved: nobody joins
    assert ledger.take_idle() is None
    release(ledger, second)
    assert loner.entry is second
    assert second.exclusive
    assert other.entry is None
    release(ledger, first[0])  # type: ignore[arg-type]
    assert other.entry is first[0]


def test_what_was_reserved_is_shared_again_when_its_waiter_leaves() -> None:
    ledger = book(2, 2, 2)
    entries = [ledger.take_idle() for _ in range(3)]
    loner = waiting(ledger, alone=True)
    assert ledger.take_idle() is None
    shared = waiting(ledger)
    assert ledger.leave(loner)
    assert shared.entry is entries[2]
    assert not ledger.reserved


def test_i7_the_only_connection_goes_to_those_who_share_and_those_who_do_not_in_turn() -> None:
    """Callers who loop with exclusive leases never keep the others out for ever."""
    ledger = book(1, 2, 1)
    entry = ledger.take_exclusive()
    assert entry is not None
    for _ in range(5):
        loner = waiting(ledger, alone=True)
        sharers = [waiting(ledger) for _ in range(3)]
        release(ledger, entry)
        assert [sharer.entry for sharer in sharers] == [entry, entry, None]
        assert ledger.take_idle() is None  # reserved
        release(ledger, entry)
        assert loner.entry is None
        release(ledger, entry)
        assert loner.entry is entry
        assert ledger.leave(sharers[2])


def test_a_sealed_connection_is_joined_by_nobody() -> None:
    ledger = book(1, 3, 1)
    entry = ledger.take_idle()
    assert entry is not None
    assert ledger.take_idle() is entry
    assert not ledger.end_lease(entry)
    ledger.seal(entry)
    assert ledger.take_idle() is None
    assert ledger.end_lease(entry)
    ledger.begin_close(entry)
    ledger.end_close(entry)
    assert ledger.size == 0


def test_room_that_nobody_wants_for_himself_any_more_is_shared_again() -> None:
    """I10: those who wanted to be alone gave up, and were found out when one came back."""
    ledger = book(3, 2, 3)
    taken = [ledger.take_idle() for _ in range(6)]
    served: list[Waiter] = []
    loners = [Waiter(number, served) for number in range(2)]
    for loner in loners:
        ledger.wait(loner, inf, exclusive=True)
    first, second = ledger.reserved
    for loner in loners:
        loner.left = True
    assert None not in taken
    assert not ledger.end_lease(second)
    ledger.hand_over(second)
    assert not ledger.end_lease(first)
    assert ledger.end_lease(first)
    ledger.hand_over(first)
    assert not ledger.reserved
    assert list(ledger.roomy) == [second]


class SharedMachine(RuleBasedStateMachine):
    """A pool that does everything the ledger asks for.

    `lines` are the two queues as those who wait see them: to share, and to be alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: tuple[list[Waiter], list[Waiter]] = ([], [])
        self.dials: list[Dial] = []
        self.leases: list[tuple[Entry, bool]] = []
        self.closing: list[Entry] = []
        self.served: list[Waiter] = []
        self.number = 0
        self.now = 0.0

    @initialize(
        size=st.integers(1, 4),
        share=st.integers(2, 3),
        floor=st.integers(0, 2),
        limit=st.sampled_from([1, 2, inf]),
        lifo=st.booleans(),
    )
    def start(self, size: int, share: int, floor: int, limit: float, lifo: bool) -> None:
        self.ledger = SharedLedger(size, share, floor=min(floor, size), lifo=lifo)
        self.ledger.dial_limit = limit
        self.largest = size
        self.dial()

    def dial(self) -> None:
        while (dial := self.ledger.next_dial()) is not None:
            self.dials.append(dial)

    def settle(self) -> None:
        """Those who were served were the first in their lines (I7), and have leases now."""
        for waiter in self.served:
            alone = waiter in self.lines[1]
            line = self.lines[alone]
            assert waiter is next(one for one in line if not one.left), "overtaken"
            del line[: line.index(waiter) + 1]
            assert waiter.entry is not None
            self.leases.append((waiter.entry, alone))
        self.served.clear()
        for line, queue in zip(
            self.lines, (self.ledger.waiters, self.ledger._loners), strict=True
        ):
            # Those whose task has not had its turn yet were passed over, or are still there.
            line[:] = [waiter for waiter in line if not waiter.left or waiter in queue]
        self.dial()

    @rule(wait=st.floats(0, 10) | st.just(inf), alone=st.booleans())
    def ask(self, wait: float, alone: bool) -> None:
        ledger = self.ledger
        while True:
            entry = ledger.take_exclusive() if alone else ledger.take_idle()
            if entry not in ledger.dying:
                break
            ledger.end_lease(entry)  # too old for a lease
            ledger.begin_close(entry)
            self.closing.append(entry)
        if entry is not None:
            self.leases.append((entry, alone))
            return
        self.number += 1
        waiter = Waiter(self.number, self.served)
        self.lines[alone].append(waiter)
        ledger.wait(waiter, self.now + wait, exclusive=alone)
        self.settle()

    @precondition(lambda self: any(self.lines))
    @rule(data=st.data(), silently=st.booleans())
    def leave(self, data: Any, silently: bool) -> None:
        waiter = data.draw(st.sampled_from([*self.lines[0], *self.lines[1]]))
        waiter.left = True
        if not silently:
            assert self.ledger.leave(waiter)
            assert not self.ledger.leave(waiter)
            self.lines[waiter in self.lines[1]].remove(waiter)
            self.settle()

    @rule(seconds=st.floats(0, 5))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        late, earliest = self.ledger.late(self.now)
        for line in self.lines:
            line[:] = [waiter for waiter in line if waiter not in late]
        assert earliest > self.now
        self.settle()

    @precondition(lambda self: self.dials)
    @rule(data=st.data(), ok=st.booleans())
    def end_dial(self, data: Any, ok: bool) -> None:
        dial = data.draw(st.sampled_from(self.dials))
        self.dials.remove(dial)
        if ok:
            entry = self.ledger.dial_succeeded(Connection())
            if self.ledger.closed or self.ledger.open > self.ledger.max_size:
                self.ledger.begin_close(entry)
                self.closing.append(entry)
            else:
                self.ledger.hand_over(entry)
        else:
            self.ledger.dial_failed()
            for line in self.lines:
                if dial.asker in line and self.ledger.leave(dial.asker):
                    line.remove(dial.asker)
        self.settle()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), good=st.integers(0, 4), old=st.booleans())
    def release(self, data: Any, good: int, old: bool) -> None:
        ledger = self.ledger
        lease = data.draw(st.sampled_from(self.leases))
        self.leases.remove(lease)
        entry = lease[0]
        last = ledger.end_lease(entry)
        assert last == all(other is not entry for other, _ in self.leases)
        if last:
            fit = good and not entry.sealed and not ledger.closed
            if fit and old and ledger.put_aside(entry):  # for the floor (I24)
                assert ledger.open - len(ledger.dying) < ledger.floor
                assert not any(self.lines)
            elif fit and not old:
                ledger.hand_over(entry)
            else:
                ledger.begin_close(entry)
                self.closing.append(entry)
        elif not good or ledger.closed:
            ledger.seal(entry)
        elif not entry.sealed:
            ledger.hand_over(entry)
        self.settle()

    @precondition(lambda self: self.leases or self.ledger.idle)
    @rule(data=st.data())
    def die(self, data: Any) -> None:
        entries = [entry for entry, _ in self.leases] + self.ledger.idle
        entry = data.draw(st.sampled_from(entries))
        self.leases = [lease for lease in self.leases if lease[0] is not entry]
        self.ledger.begin_close(entry)
        self.closing.append(entry)
        self.settle()

    @precondition(lambda self: self.closing)
    @rule(data=st.data())
    def gone_at_last(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.closing))
        self.closing.remove(entry)
        self.ledger.end_close(entry)
        self.settle()

    @precondition(lambda self: any(alone for _, alone in self.leases))
    @rule(data=st.data())
    def detach(self, data: Any) -> None:
        lease = data.draw(st.sampled_from([lease for lease in self.leases if lease[1]]))
        self.leases.remove(lease)
        self.ledger.detach(lease[0])
        self.settle()

    @rule(size=st.integers(1, 5))
    def resize(self, size: int) -> None:
        ledger = self.ledger
        size = max(size, ledger.floor)
        ledger.resize(size)
        self.largest = max(self.largest, size)
        for entry in ledger.idle:
            if ledger.open <= size:
                break
            ledger.begin_close(entry)
            self.closing.append(entry)
        self.settle()

    @rule(really=st.integers(0, 14))
    def close(self, really: int) -> None:
        if really:
            return
        self.ledger.closed = True
        assert set(self.ledger.leave_all()) == {*self.lines[0], *self.lines[1]}
        for line in self.lines:
            line.clear()
        for entry in tuple(self.ledger.idle):
            self.ledger.begin_close(entry)
            self.closing.append(entry)

    @invariant()
    def the_books_balance(self) -> None:
        """I1, I2, I8, I33."""
        ledger = self.ledger
        assert ledger.size == len(ledger.entries) + ledger.dialling <= self.largest
        assert (ledger.dialling, ledger.closing) == (len(self.dials), len(self.closing))
        users: dict[Entry, list[bool]] = {}
        for entry, alone in self.leases:
            users.setdefault(entry, []).append(alone)
        assert ledger.leased == len(users)
        for entry in ledger.entries.values():
            mine = users.get(entry, [])
            if entry.state == LEASED:
                assert entry.users == len(mine) <= ledger.share
                assert entry.exclusive == any(mine)
                assert len(mine) == 1 or not any(mine)
            else:
                assert entry.state in (IDLE, CLOSING)
                assert not mine
        assert ledger._exclusive == sum(alone for _, alone in self.leases)
        assert set(ledger.roomy) == {
            entry
            for entry in users
            if entry.users < ledger.share
            and not (entry.exclusive or entry.sealed or entry in ledger.reserved)
        }

    @invariant()
    def the_lines_are_kept(self) -> None:
        """I7, I9."""
        ledger = self.ledger
        assert [list(ledger.waiters), list(ledger._loners)] == list(self.lines)
        assert ledger.waiting == sum(map(len, self.lines))
        assert ledger._dialled <= {*self.lines[0], *self.lines[1]}

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        """I5, I10: neither room, nor a reservation that nobody needs, nor an unused slot."""
        ledger = self.ledger
        if ledger.closed:
            return
        sharing = [waiter for waiter in self.lines[0] if not waiter.left]
        assert not sharing or not (ledger.idle or ledger.roomy)
        assert not ledger.reserved or self.lines[1]
        assert (
            not (ledger.reserved and ledger.idle)
            or self.largest > ledger.max_size
            or (ledger._exclusive + len(ledger.reserved) >= ledger._exclusive_limit)
        )
        if ledger.size < ledger.max_size and ledger.dialling < ledger.dial_limit:
            assert ledger.dialling >= ceil(len(sharing) / ledger.share)
        may_be_alone = ledger._exclusive_limit - ledger._exclusive - len(ledger.reserved)
        if self.lines[1] and any(not waiter.left for waiter in self.lines[1]) and may_be_alone > 0:
            # One who wants to be alone waits although there may be one more: something is coming.
            assert not ledger.idle


def test_any_sequence_of_steps() -> None:
    """I1, I2, I5 to I10, I33."""
    run_state_machine_as_test(
        SharedMachine,
        settings=settings(
            max_examples=250,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )


class Begins:
    """Has all that is needed to begin a request on it without a look before."""

    def begins_requests(self) -> None:
        """Begin."""

    def end_request(self) -> None:
        """Stop to wait."""


@pytest.mark.parametrize(("missing", "value"), [("end_request", None), ("begins_requests", 1)])
def test_requests_are_begun_only_where_all_is_there_for_it(missing: str, value: Any) -> None:
    assert Entry(Begins()).begin is not None
    members = {name: member for name, member in vars(Begins).items() if name != missing}
    if value is not None:
        members[missing] = value
    assert Entry(type("Part", (), members)()).begin is None
